#include "samples.h"

#include <string_view>
#include <unordered_map>

namespace scp {

PositionMaps::PositionMaps(const scp_call& call) {
  // Maps with different P may have equal coefficients (where weights of the first layer are 0), and then equal W, but
  // the gradient of the first layer is the coefficients' times each map's own P.
  const bool by_positions = call.grad_coefficients != nullptr;
  const int64_t columns = call.spatial_dims + 1, rows = by_positions ? 2 * call.position_dims : call.hidden1;
  const size_t bytes = size_t(rows * columns) * sizeof(double);
  const auto* data = reinterpret_cast<const char*>(by_positions ? call.positions : call.coefficients);
  std::unordered_map<std::string_view, int64_t> known;
  std::vector<int64_t> map_of(size_t(call.groups));
  for (int64_t g = 0; g < call.groups; ++g) {
    const auto [entry, is_new] = known.emplace(std::string_view(data + size_t(g) * bytes, bytes), count());
    if (is_new) source_.push_back(g);
    map_of[g] = entry->second;
  }
  const auto map_of_sample = [&](int64_t b) { return map_of[call.groups == 1 ? 0 : b]; };
  begin_.assign(size_t(count()) + 1, 0);
  for (int64_t b = 0; b < call.batch; ++b) ++begin_[map_of_sample(b) + 1];
  for (int64_t m = 0; m < count(); ++m) begin_[m + 1] += begin_[m];
  samples_.resize(size_t(call.batch));
  std::vector<int64_t> next(begin_);
  for (int64_t b = 0; b < call.batch; ++b) samples_[next[map_of_sample(b)]++] = b;
}

}  // namespace scp
