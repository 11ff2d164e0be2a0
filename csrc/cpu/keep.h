// Weight fields kept between calls: with frozen weights, Phi is evaluated once and then only streamed.
//
// A field is valid for the very bytes of all that W is a function of: they are kept beside it and compared on every
// call, so whatever changes a parameter, and however, the field is never stale. What a call returns does not depend on
// whether W was kept: it is bit for bit the same.
//
// Rules. The first call with some coefficients of layer 1 only remembers them; the second stores W; the third reads it.
// A training step changes the coefficients, so it never stores, and pays for one comparison that ends early. Where the
// coefficients stay but other parameters change, the next storing waits for twice as many calls.
#ifndef SCP_CPU_KEEP_H
#define SCP_CPU_KEEP_H

#include <cstddef>
#include <cstdint>
#include <memory>

#include "scp.h"

namespace scp {

// Two calls with equal parameters have the same field, bit for bit, only if they cut the map in the same way.
struct FieldShape {
  int64_t bytes;         // of the field, all position maps
  int64_t vector_bytes;  // vector level
  int64_t direct;        // how the map is cut (tree.h)
};

struct KeptField;

// What keep.cpp has for a call.
struct Lease {
  std::shared_ptr<KeptField> field;  // null: evaluate Phi as usual
  bool ready = false;                // W is in the field; else the call is to write it there
  uint64_t ticket = 0;
};

void* values_of(KeptField& field);

Lease lend_field(const scp_call& call, const FieldShape& shape) noexcept;

// To be called when W has been written to the field.
void return_field(const Lease& lease) noexcept;

int64_t kept_bytes() noexcept;
void release_kept() noexcept;

}  // namespace scp

#endif
