// Compiled without -fsanitize=thread: this is what it calls.
#include "races.h"

#include <array>
#include <memory>
#include <unordered_map>
#include <utility>

namespace scp {
namespace races {
namespace {

constexpr int kNobody = -1, kSeveral = -2;

// Who wrote and who read a byte, in the time that `since` numbers.
struct Accesses {
  uint64_t since = 0;
  int writer = kNobody, reader = kNobody;

  // Whether an access by `number` is a race with an earlier one.
  bool races_with_earlier(uint64_t now, int number, bool writes) {
    if (since != now) since = now, writer = reader = kNobody;
    const bool race = (writer != kNobody && writer != number) || (writes && reader != kNobody && reader != number);
    if (writes)
      writer = number;
    else
      reader = reader == kNobody || reader == number ? number : kSeveral;
    return race;
  }
};

struct Cell {
  Accesses threads, blocks;
};

class RaceDetector {
 public:
  void begin(const char* stacks, size_t stacks_bytes, const char* shared, size_t shared_bytes,
             std::function<void()> leave) {
    ++launch_, ++epoch_, leave_ = std::move(leave);
    stacks_ = address(stacks), stacks_end_ = stacks_ + stacks_bytes, shared_ = address(shared),
    shared_end_ = shared_ + shared_bytes;
    race_.clear();
  }
  void barrier() { ++epoch_; }
  void resume(int64_t block, int thread) { block_ = int(block), thread_ = thread, on_ = true; }
  void pause() { on_ = false; }
  const std::string& description() const { return race_; }

  void touch(const void* memory, size_t bytes, bool writes) {
    const uintptr_t first = address(memory);
    if (!on_ || (first >= stacks_ && first < stacks_end_)) return;
    const bool shared = first >= shared_ && first < shared_end_;
    for (uintptr_t at = first; at < first + bytes; ++at) {
      Cell& cell = this->cell(at);
      const bool threads = cell.threads.races_with_earlier(epoch_, thread_, writes);
      if (threads || (!shared && cell.blocks.races_with_earlier(launch_, block_, writes)))
        return report(at, writes, threads, shared);
    }
  }

 private:
  static constexpr uintptr_t kPage = 4096;
  using Page = std::array<Cell, kPage>;

  static uintptr_t address(const void* memory) { return reinterpret_cast<uintptr_t>(memory); }

  Cell& cell(uintptr_t at) {
    if (at / kPage != last_number_) {
      std::unique_ptr<Page>& page = pages_[at / kPage];
      if (page == nullptr) page = std::make_unique<Page>();
      last_number_ = at / kPage, last_ = page.get();
    }
    return (*last_)[at % kPage];
  }

  void report(uintptr_t at, bool writes, bool threads, bool shared) {
    race_ = std::string("a race between ") + (threads ? "threads" : "blocks") + ": thread " + std::to_string(thread_) +
            " of block " + std::to_string(block_) + (writes ? " writes " : " reads ") +
            (shared ? "byte " + std::to_string(at - shared_) + " of shared memory" : "global memory");
    pause();
    leave_();
  }

  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  uintptr_t last_number_ = ~uintptr_t(0);
  Page* last_ = nullptr;
  uint64_t launch_ = 0, epoch_ = 0;
  uintptr_t stacks_ = 0, stacks_end_ = 0, shared_ = 0, shared_end_ = 0;
  int block_ = 0, thread_ = 0;
  bool on_ = false;
  std::string race_;
  std::function<void()> leave_;
};

RaceDetector detector;

}  // namespace

void begin(const char* stacks, size_t stacks_bytes, const char* shared, size_t shared_bytes,
           std::function<void()> leave) {
  detector.begin(stacks, stacks_bytes, shared, shared_bytes, std::move(leave));
}
void barrier() { detector.barrier(); }
void resume(int64_t block, int thread) { detector.resume(block, thread); }
void pause() { detector.pause(); }
const std::string& description() { return detector.description(); }

}  // namespace races
}  // namespace scp

#define SCP_INSTRUMENT(bytes)                                                                    \
  extern "C" void __tsan_read##bytes(void* at) { scp::races::detector.touch(at, bytes, false); } \
  extern "C" void __tsan_write##bytes(void* at) { scp::races::detector.touch(at, bytes, true); } \
  extern "C" void __tsan_unaligned_read##bytes(void* at) { __tsan_read##bytes(at); }             \
  extern "C" void __tsan_unaligned_write##bytes(void* at) { __tsan_write##bytes(at); }
SCP_INSTRUMENT(1)
SCP_INSTRUMENT(2)
SCP_INSTRUMENT(4)
SCP_INSTRUMENT(8)
SCP_INSTRUMENT(16)
#undef SCP_INSTRUMENT
extern "C" void __tsan_read_range(void* at, size_t bytes) { scp::races::detector.touch(at, bytes, false); }
extern "C" void __tsan_write_range(void* at, size_t bytes) { scp::races::detector.touch(at, bytes, true); }
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
