// Counts CPUs from the affinity mask, /sys topology and the cgroup quota (v2: cpu.max, v1:
// cpu.cfs_quota_us), every level of the hierarchy. Anything unreadable means no limit.
#include "core/cpu_set.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/thread_pool.h"

namespace wkv {
namespace {

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  for (int size = 1024; size <= 1 << 16; size *= 2) {  // the kernel refuses a mask too small for it
    cpu_set_t* mask = CPU_ALLOC(static_cast<std::size_t>(size));
    if (mask == nullptr) break;
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(size));
    const bool ok = sched_getaffinity(0, bytes, mask) == 0;
    if (ok)
      for (int i = 0; i < size; ++i)
        if (CPU_ISSET_S(static_cast<std::size_t>(i), bytes, mask)) cpus.push_back(i);
    CPU_FREE(mask);
    if (ok) break;
  }
  return cpus;
}

bool read_line(const std::string& path, std::string& line) {
  std::ifstream file(path);
  return file && std::getline(file, line);
}

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

/// CPUs' worth of time of one cgroup v2 directory: "max 100000" or "150000 100000".
double quota_v2(const std::string& directory) {
  std::string line;
  if (!read_line(directory + "/cpu.max", line)) return kNoLimit;
  const std::size_t space = line.find(' ');
  if (space == std::string::npos || line.compare(0, 3, "max") == 0) return kNoLimit;
  const double quota = std::atof(line.c_str());
  const double period = std::atof(line.c_str() + space);
  return quota > 0 && period > 0 ? quota / period : kNoLimit;
}

double quota_v1(const std::string& directory) {
  std::string quota, period;
  if (!read_line(directory + "/cpu.cfs_quota_us", quota)) return kNoLimit;
  if (!read_line(directory + "/cpu.cfs_period_us", period)) return kNoLimit;
  const double q = std::atof(quota.c_str()), p = std::atof(period.c_str());
  return q > 0 && p > 0 ? q / p : kNoLimit;  // -1: no limit
}

/// The least quota from `path` (as /proc/self/cgroup names it) up to the root of `mount`.
double least_quota(const std::string& mount, std::string path,
                   double (*quota)(const std::string&)) {
  double least = quota(mount);
  if (path.empty() || path[0] != '/') return least;
  for (; path.size() > 1; path.resize(path.rfind('/')))
    least = std::min(least, quota(mount + path));
  return least;
}

double cgroup_quota() {
  double least = kNoLimit;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/a/b" or "4:cpu,cpuacct:/a/b"
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      least = std::min(least, least_quota("/sys/fs/cgroup", path, quota_v2));
    } else if ((',' + controllers + ',').find(",cpu,") != std::string::npos) {
      least = std::min(least, least_quota("/sys/fs/cgroup/cpu", path, quota_v1));
      least = std::min(least, least_quota("/sys/fs/cgroup/" + controllers, path, quota_v1));
    }
  }
  return least;
}

int physical_cores(const std::vector<int>& cpus) {
  std::set<std::pair<std::string, std::string>> cores;
  for (const int cpu : cpus) {
    const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    std::string package, core;
    if (!read_line(base + "physical_package_id", package) || !read_line(base + "core_id", core))
      return static_cast<int>(cpus.size());
    cores.emplace(package, core);
  }
  return static_cast<int>(cores.size());
}

int limit_by_quota(int cpus, double quota, double round) {
  if (quota < cpus) cpus = static_cast<int>(quota + round);
  return std::max(cpus, 1);
}

}  // namespace

int schedulable_cpus() noexcept {
  try {
    int cpus = static_cast<int>(allowed_cpus().size());
    if (cpus == 0) cpus = static_cast<int>(std::thread::hardware_concurrency());
    return limit_by_quota(cpus, cgroup_quota(), 0.999);
  } catch (...) {
    return 1;
  }
}

int usable_cores() noexcept {
  try {
    const std::vector<int> cpus = allowed_cpus();
    if (cpus.empty()) return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    // Rounded down: a thread that the quota stops for part of every period stops the others too.
    return limit_by_quota(physical_cores(cpus), cgroup_quota(), 0.0);
  } catch (...) {
    return 1;
  }
}

}  // namespace wkv
