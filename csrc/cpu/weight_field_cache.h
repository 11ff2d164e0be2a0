// The weight field cache: with frozen weights, Phi is evaluated once and W is only streamed from then on.
//
// Every position map has a field of its own, so that slices find theirs in whatever batch they come. A field is valid
// for the very bytes of all that W is a function of: they are stored beside it and compared on every call, so whatever
// changes a parameter, and however, the field is never stale. What a call returns does not depend on the cache: it is
// bit for bit the same.
//
// Admission. The first call with some coefficients of layer 1 only remembers them; the second stores W; the third reads
// it. A training step changes the coefficients, so it never stores, and pays for one comparison that ends early. Where
// the coefficients stay but other parameters change, the admission threshold doubles: W is stored after twice as many
// calls.
#ifndef SCP_CPU_WEIGHT_FIELD_CACHE_H
#define SCP_CPU_WEIGHT_FIELD_CACHE_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "samples.h"
#include "scp.h"

namespace scp {

// Two calls with equal parameters have the same field, bit for bit, only if they cut the map in the same way.
struct FieldShape {
  int64_t bytes;         // of the field of one position map
  int64_t vector_bytes;  // of the ISA target
  int64_t weight_path;   // how the map is cut (task.h)
};

struct CachedField;

// What the cache has for a position map of a call.
struct FieldHandle {
  std::shared_ptr<CachedField> field;  // null: evaluate Phi as usual
  bool ready = false;                  // W is in the field; else the call is to write it there
  uint64_t entry = 0;
};

void* values_of(CachedField& field);

// One handle for each position map of the call; none where the cache is not used.
std::vector<FieldHandle> find_fields(const scp_call& call, const FieldShape& shape, const PositionMaps& maps) noexcept;

// To be called when W has been written to the fields that were not ready.
void admit_fields(const std::vector<FieldHandle>& handles) noexcept;

int64_t weight_field_cache_bytes() noexcept;
void clear_weight_field_cache() noexcept;

}  // namespace scp

#endif
