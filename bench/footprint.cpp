#include "footprint.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace wkv::bench {

std::size_t footprint_bytes() {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
  std::size_t wanted =
      std::max(1024 * kMiB, std::size_t{4} * static_cast<std::size_t>(std::max(l3, 0L)));
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key; meminfo >> key;) {
    if (key == "MemAvailable:") {
      std::size_t kib = 0;
      meminfo >> kib;
      wanted = std::min(wanted, kib * 1024 / 4);
      break;
    }
    meminfo.ignore(256, '\n');
  }
  return std::max(wanted, 64 * kMiB);
}

}  // namespace wkv::bench
