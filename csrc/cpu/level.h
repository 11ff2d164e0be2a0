// What each vector level offers the entry points: one function.
#ifndef SCP_CPU_LEVEL_H
#define SCP_CPU_LEVEL_H

#include "scp.h"

namespace scp {

// Throws std::bad_alloc. The call has been checked.
namespace portable {
void run(const scp_call& call, bool backward);
}
namespace avx2 {
void run(const scp_call& call, bool backward);
}
namespace avx512 {
void run(const scp_call& call, bool backward);
}

}  // namespace scp

#endif
