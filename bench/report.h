// Results as a table for people and as JSON for programs.
#pragma once

#include <string>

#include "measure.h"

namespace wkv::bench {

std::string table(const Result& result);
/// One object on one line; every figure is {"median": m, "min": a, "max": b}.
std::string json(const Result& result);

}  // namespace wkv::bench
