#include "report.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace wkv::bench {
namespace {

__attribute__((format(printf, 1, 2))) std::string format(const char* text, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(line, sizeof line, text, arguments);
  va_end(arguments);
  return line;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += format("\\u%04x", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string number(double value) {  // JSON knows no infinity
  return std::isfinite(value) ? format("%.9g", value) : "null";
}

std::string object(const Figure& f) {
  return "{\"median\": " + number(f.median) + ", \"min\": " + number(f.min) +
         ", \"max\": " + number(f.max) + "}";
}

std::string row(const char* name, const Figure& f, const char* unit, int digits) {
  return format("%-22s %12.*f %12.*f %12.*f  %s\n", name, digits, f.median, digits, f.min, digits,
                f.max, unit);
}

}  // namespace

std::string table(const Result& r) {
  std::string out = format("wkv %s  %s  %s\n", std::string(version()).c_str(), r.model.c_str(),
                           r.backend.c_str());
  out += format("RWKV-%s, %d layers, %d channels, vocabulary %d, %.1fM parameters, %s\n\n",
                r.info.version.c_str(), r.info.n_layer, r.info.n_embd, r.info.n_vocab,
                1e-6 * static_cast<double>(r.info.n_params), r.dtype.c_str());
  out += format("%-22s %12s %12s %12s\n", "", "median", "min", "max");
  out += row("load", r.load_s, "s", 3);
  out += row("first token", r.first_token_s, "s", 3);
  out += row("decode", r.decode_tok_s, "tok/s", 2);
  out += row("prefill", r.prefill_tok_s, format("tok/s, %d tokens", r.prefill_tokens).c_str(), 1);
  for (const BatchResult& b : r.batch)
    out += row(format("batch of %d", b.rows).c_str(), b.tok_s,
               format("tok/s, %.2f each", b.tok_s.median / b.rows).c_str(), 2);
  out += row("weights a token", r.weight_bytes_per_token.scaled(1e-6), "MB", 1);
  out += row("read bandwidth", r.read_bandwidth_gb_s, "GB/s", 2);
  out += row("of the bandwidth", r.bandwidth_fraction.scaled(100), "%", 1);
  out += row("  run by run", r.paired_fraction.scaled(100), "%", 1);
  if (r.active_share >= 0)
    out += row("hidden units not zero", exactly(100 * r.active_share), "%, the others skipped", 1);
  out += row("CPU share", r.cpu_share.scaled(100), "%", 1);
  out += row("peak memory", r.peak_rss_bytes.scaled(1e-6), "MB", 1);
  return out;
}

std::string json(const Result& r) {
  std::string out = "{";
  auto add = [&](const char* key, const std::string& value) {
    if (out.size() > 1) out += ", ";
    out += quoted(key) + ": " + value;
  };
  add("wkv_version", quoted(std::string(version())));
  add("model", quoted(r.model));
  add("version", quoted(r.info.version));
  add("n_layer", std::to_string(r.info.n_layer));
  add("n_embd", std::to_string(r.info.n_embd));
  add("n_vocab", std::to_string(r.info.n_vocab));
  add("n_params", std::to_string(r.info.n_params));
  add("device", quoted(r.device));
  add("backend", quoted(r.backend));
  add("dtype", quoted(r.dtype));
  add("matmul_precision", quoted(r.precision));
  add("isa", quoted(r.isa));
  add("threads", std::to_string(r.threads));
  add("decode_tokens", std::to_string(r.decode_tokens));
  add("prefill_tokens", std::to_string(r.prefill_tokens));
  add("load_s", object(r.load_s));
  add("first_token_s", object(r.first_token_s));
  add("decode_tok_s", object(r.decode_tok_s));
  add("prefill_tok_s", object(r.prefill_tok_s));
  if (!r.batch.empty()) {
    std::string rows = "[";
    for (const BatchResult& b : r.batch)
      rows += (rows.size() > 1 ? ", " : "") + format("{\"rows\": %d, \"tok_s\": ", b.rows) +
              object(b.tok_s) + "}";
    add("batch", rows + "]");
  }
  add("peak_rss_bytes", object(r.peak_rss_bytes));
  add("weight_bytes_per_token", object(r.weight_bytes_per_token));
  add("read_bandwidth_gb_s", object(r.read_bandwidth_gb_s));
  add("bandwidth_fraction", object(r.bandwidth_fraction));
  add("paired_fraction", object(r.paired_fraction));
  add("active_share", r.active_share >= 0 ? number(r.active_share) : "null");
  add("cpu_share", object(r.cpu_share));
  return out + "}\n";
}

}  // namespace wkv::bench
