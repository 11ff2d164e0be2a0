// Threads: OpenMP, which torch's own libgomp serves.
#ifndef SCP_CPU_PARALLEL_H
#define SCP_CPU_PARALLEL_H

namespace scp {

// body(context, i) for i in [0, count). One thread opens no parallel region, so a forked worker may call it. Throws
// std::bad_alloc if a body did.
void parallel_for(int count, int threads, void (*body)(const void* context, int i), const void* context);

}  // namespace scp

#endif
