// Samples that share a position map share Phi: it is evaluated once for them all.
#ifndef SCP_CPU_SAMPLES_H
#define SCP_CPU_SAMPLES_H

#include <cstdint>
#include <vector>

#include "scp.h"

namespace scp {

// Some samples of the batch, by number.
struct Samples {
  const int64_t* number;
  int64_t count;
};

// The distinct position maps of a call: one for the whole batch, or one per sample, of which some may be equal, byte
// for byte: in the first layer's coefficients, or in P where its gradient is wanted.
class PositionMaps {
 public:
  explicit PositionMaps(const scp_call& call);

  int64_t count() const { return int64_t(source_.size()); }
  // Which of the call's groups map `m` is: the first of those that are equal.
  int64_t source(int64_t m) const { return source_[m]; }
  Samples samples(int64_t m) const { return {samples_.data() + begin_[m], begin_[m + 1] - begin_[m]}; }

 private:
  std::vector<int64_t> source_, samples_, begin_;
};

}  // namespace scp

#endif
