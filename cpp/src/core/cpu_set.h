// How many CPUs this process may use.
#pragma once

namespace wkv {

/// CPUs in the affinity mask, limited by the cgroup quota; at least 1. Hyper-threads count.
int schedulable_cpus() noexcept;

}  // namespace wkv
