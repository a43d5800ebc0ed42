// Symbol visibility. Everything else in libwkv is hidden.
#pragma once

#if defined(_WIN32)
#if defined(WKV_STATIC)
#define WKV_API
#elif defined(WKV_BUILDING)
#define WKV_API __declspec(dllexport)
#else
#define WKV_API __declspec(dllimport)
#endif
#else
#define WKV_API __attribute__((visibility("default")))
#endif
