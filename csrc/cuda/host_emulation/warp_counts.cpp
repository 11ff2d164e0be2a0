// In the place of races.cpp: counts what the warps of a GPU would do, for benchmarks/cycles.py. Compiled without
// -fsanitize=thread: this is what it calls.
//
// Threads run one after another from barrier to barrier. Accesses of the lanes of a warp from the same place in the
// code, each lane's n-th between two barriers, are one instruction of the warp.
#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "races.h"
#include "scp.h"

namespace scp {
namespace races {
namespace {

constexpr int kWarpLanes = 32, kBanks = 32, kWordBytes = 4, kSectorBytes = 32, kNameBytes = 64;
// Of the stack that a launch is made on: a kernel's arguments, which a GPU has in constant memory, and the emulation's
// own.
constexpr uintptr_t kCallerBytes = 64 << 10;
// What one pass over shared memory delivers: wider accesses take a pass per part of a warp.
constexpr int kPassBytes = kBanks * kWordBytes;

// Of one launch, over all blocks. "Longest" is, summed over the intervals between barriers, what the warp that has most
// of it does: the block waits for that one.
struct Counts {
  char program[kNameBytes];
  double blocks, shared_bytes, barriers;
  double longest_loads;   // instructions that read global memory
  double longest_passes;  // passes over shared memory: 1 per instruction without a bank conflict
  double new_sectors;     // of 32 bytes of global memory, touched for the first time in the call
  double accesses;        // instructions that access memory, of all warps
};

struct Access {
  uint32_t place, turn;
  uintptr_t at;
  uint32_t bytes;
  int lane;
  bool shared, writes;

  std::pair<uint32_t, uint32_t> instruction() const { return {place, turn}; }
};

uintptr_t address(const void* memory) { return reinterpret_cast<uintptr_t>(memory); }

// Passes over shared memory of one instruction: distinct words of one bank take one each.
int passes(const Access* first, const Access* end) {
  const int lanes = std::max(1, std::min(kWarpLanes, kPassBytes / int(std::max(first->bytes, uint32_t(kWordBytes)))));
  int result = 0;
  for (int part = 0; part < kWarpLanes; part += lanes) {
    std::array<std::vector<uintptr_t>, kBanks> words;
    size_t most = 0;
    for (const Access* access = first; access != end; ++access) {
      if (access->lane < part || access->lane >= part + lanes) continue;
      for (uintptr_t word = access->at / kWordBytes; word * kWordBytes < access->at + access->bytes; ++word) {
        std::vector<uintptr_t>& of_bank = words[word % kBanks];
        if (std::find(of_bank.begin(), of_bank.end(), word) == of_bank.end()) of_bank.push_back(word);
        most = std::max(most, of_bank.size());
      }
    }
    result += int(most);
  }
  return result;
}

class Counter {
 public:
  void launch(const char* program, size_t shared_bytes) {
    launches_.emplace_back();
    std::strncpy(launches_.back().program, program, kNameBytes - 1);
    launches_.back().shared_bytes = double(shared_bytes);
    block_ = -1;
  }
  void begin(const char* stacks, size_t stacks_bytes, const char* shared, size_t shared_bytes) {
    own_ = address(stacks), own_end_ = own_ + stacks_bytes;
    caller_ = address(__builtin_frame_address(0)), caller_end_ = caller_ + kCallerBytes;
    shared_ = address(shared), shared_end_ = shared_ + shared_bytes;
  }
  void resume(int64_t block, int thread) {
    if (block != block_) block_ = block, ++launches_.back().blocks;
    thread_ = size_t(thread), on_ = true;
  }
  void pause() { on_ = false; }

  void touch(const void* memory, size_t bytes, bool writes, const void* place) {
    const uintptr_t at = address(memory);
    if (!on_ || (at >= own_ && at < own_end_) || (at >= caller_ && at < caller_end_)) return;
    const bool shared = at >= shared_ && at < shared_end_;
    if (thread_ >= turns_.size()) turns_.resize(thread_ + 1), warps_.resize(turns_.size() / kWarpLanes + 1);
    const uint32_t number = places_.try_emplace(place, uint32_t(places_.size())).first->second;
    std::vector<uint32_t>& turns = turns_[thread_];
    if (number >= turns.size()) turns.resize(number + 1);
    const int lane = int(thread_ % kWarpLanes);
    warps_[thread_ / kWarpLanes].push_back({number, turns[number]++, at, uint32_t(bytes), lane, shared, writes});
    if (shared) return;
    for (uintptr_t sector = at / kSectorBytes; sector * kSectorBytes < at + bytes; ++sector)
      if (touched_.insert(sector).second) ++launches_.back().new_sectors;
  }

  void barrier() {
    int64_t loads = 0, most_passes = 0, accesses = 0;
    for (std::vector<Access>& warp : warps_) {
      std::stable_sort(warp.begin(), warp.end(),
                       [](const Access& a, const Access& b) { return a.instruction() < b.instruction(); });
      int64_t warp_loads = 0, warp_passes = 0;
      for (size_t i = 0, end; i < warp.size(); i = end) {
        for (end = i; end < warp.size() && warp[end].instruction() == warp[i].instruction();) ++end;
        ++accesses;
        if (warp[i].shared)
          warp_passes += passes(&warp[i], &warp[i] + (end - i));
        else
          warp_loads += !warp[i].writes;
      }
      loads = std::max(loads, warp_loads), most_passes = std::max(most_passes, warp_passes);
      warp.clear();
    }
    for (std::vector<uint32_t>& turns : turns_) std::fill(turns.begin(), turns.end(), 0);
    Counts& counts = launches_.back();
    ++counts.barriers, counts.longest_loads += double(loads), counts.longest_passes += double(most_passes);
    counts.accesses += double(accesses);
  }

  std::vector<Counts> take() {
    touched_.clear();
    return std::exchange(launches_, {});
  }

 private:
  std::vector<Counts> launches_;
  std::vector<std::vector<Access>> warps_;    // since the last barrier
  std::vector<std::vector<uint32_t>> turns_;  // of a thread at a place, since the last barrier
  std::unordered_map<const void*, uint32_t> places_;
  std::unordered_set<uintptr_t> touched_;
  uintptr_t own_ = 0, own_end_ = 0, caller_ = 0, caller_end_ = 0, shared_ = 0, shared_end_ = 0;
  int64_t block_ = -1;
  size_t thread_ = 0;
  bool on_ = false;
};

Counter counter;

}  // namespace

void launch(const char* program, size_t shared_bytes) { counter.launch(program, shared_bytes); }
void begin(const char* stacks, size_t stacks_bytes, const char* shared, size_t shared_bytes, std::function<void()>) {
  counter.begin(stacks, stacks_bytes, shared, shared_bytes);
}
void barrier() { counter.barrier(); }
void resume(int64_t block, int thread) { counter.resume(block, thread); }
void pause() { counter.pause(); }
const std::string& description() {
  static const std::string nothing;
  return nothing;
}

}  // namespace races
}  // namespace scp

// Copies the counts of the launches since the last call, at most `most` of them; returns how many there are.
extern "C" SCP_EXPORT int scp_host_counts(void* counts, int most) {
  const auto launches = scp::races::counter.take();
  std::memcpy(counts, launches.data(), std::min(launches.size(), size_t(most)) * sizeof(launches[0]));
  return int(launches.size());
}

#define SCP_COUNT(access, bytes, writes)                                       \
  extern "C" void __tsan_##access(void* at) {                                  \
    scp::races::counter.touch(at, bytes, writes, __builtin_return_address(0)); \
  }
#define SCP_COUNT_UNALIGNED(bytes)               \
  SCP_COUNT(unaligned_read##bytes, bytes, false) \
  SCP_COUNT(unaligned_write##bytes, bytes, true) \
  SCP_COUNT(read##bytes, bytes, false)           \
  SCP_COUNT(write##bytes, bytes, true)
SCP_COUNT(read1, 1, false)
SCP_COUNT(write1, 1, true)
SCP_COUNT_UNALIGNED(2)
SCP_COUNT_UNALIGNED(4)
SCP_COUNT_UNALIGNED(8)
SCP_COUNT_UNALIGNED(16)
#undef SCP_COUNT_UNALIGNED
#undef SCP_COUNT
extern "C" void __tsan_read_range(void* at, size_t bytes) {
  scp::races::counter.touch(at, bytes, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* at, size_t bytes) {
  scp::races::counter.touch(at, bytes, true, __builtin_return_address(0));
}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
