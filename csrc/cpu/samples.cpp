#include "samples.h"

#include <cstring>

namespace scp {

PositionMaps::PositionMaps(const scp_call& call) {
  const size_t bytes = size_t(call.hidden1 * (call.spatial_dims + 1)) * sizeof(double);
  const auto* coefficients = reinterpret_cast<const char*>(call.coefficients);
  std::vector<int64_t> map_of(size_t(call.groups));
  for (int64_t g = 0; g < call.groups; ++g) {
    int64_t m = 0;
    while (m < count() && std::memcmp(coefficients + source_[m] * bytes, coefficients + g * bytes, bytes) != 0) ++m;
    if (m == count()) source_.push_back(g);
    map_of[g] = m;
  }
  samples_.reserve(size_t(call.batch));
  for (int64_t m = 0; m < count(); ++m) {
    begin_.push_back(int64_t(samples_.size()));
    for (int64_t b = 0; b < call.batch; ++b)
      if (map_of[call.groups == 1 ? 0 : b] == m) samples_.push_back(b);
  }
  begin_.push_back(int64_t(samples_.size()));
}

}  // namespace scp
