// What each ISA target offers the entry points: one function.
#ifndef SCP_CPU_ISA_TARGET_H
#define SCP_CPU_ISA_TARGET_H

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
