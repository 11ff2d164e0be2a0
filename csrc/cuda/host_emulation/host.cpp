// The CUDA library's programs on the host, behind the same entry points: for tests where there is no GPU. Built by
// them, not by an installation. The environment variable SCP_HOST_ORDER says in which order a block's threads run, and
// SCP_HOST_WITHOUT_BARRIER which barrier is left out (block.h).
#include <cstdlib>
#include <cstring>
#include <typeinfo>

#include "block.h"
#include "cuda/entry.h"

namespace scp {
namespace SCP_NAMESPACE {
namespace {

class Host {
 public:
  void clear(void* at, size_t bytes) { std::memset(at, 0, bytes); }

  template <class Program>
  void launch(const Program& program, int64_t blocks, int64_t shared_bytes) {
    races::launch(typeid(Program).name(), size_t(shared_bytes));
    constexpr int kSize = kThreadsOf<Program>;
    HostGrid<kSize> grid(number("SCP_HOST_ORDER"), shared_bytes, number("SCP_HOST_WITHOUT_BARRIER"));
    grid.run(blocks, [&](HostBlock<kSize>& block) { program(block); });
  }

 private:
  static int number(const char* variable) {
    const char* value = std::getenv(variable);
    return value == nullptr ? 0 : std::atoi(value);
  }
};

}  // namespace

int run_call_here(const scp_cuda_call* call, bool backward, char* message, int64_t size) {
  try {
    return run_call(call, backward, message, size, [](auto& sequence) {
      Host host;
      sequence(host);
    });
  } catch (const std::logic_error& error) {
    return common::fail(message, size, SCP_DEVICE_ERROR, error.what());
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

extern "C" int scp_cuda_driver(int32_t* driver, int32_t* built_with) {
  *driver = *built_with = 0;
  return SCP_OK;
}
