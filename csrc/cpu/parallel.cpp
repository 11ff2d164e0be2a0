#include "parallel.h"

#include <atomic>
#include <new>

namespace scp {

void parallel_for(int count, int threads, void (*body)(const void* context, int i), const void* context) {
  if (threads > count) threads = count;
  if (threads <= 1) {
    for (int i = 0; i < count; ++i) body(context, i);
    return;
  }
  std::atomic<bool> out_of_memory{false};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int i = 0; i < count; ++i) {
    try {
      if (!out_of_memory) body(context, i);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  }
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace scp
