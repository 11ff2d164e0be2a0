// A block of threads on the host: fibres that run one after another from barrier to barrier, in any order. A warp that
// exchanges values waits for all its lanes, which orders nothing else: the race detector does not count it as a
// barrier.
//
// What it shows: results of the very code that a GPU runs; threads that do not all come to the same barrier; missing
// barriers, because results then depend on the order, and exactly with races.h; shared memory read before it is written
// (it starts as NaN) or written past its end. What it cannot show: speed, and anything below the source (registers,
// alignment, caches).
#ifndef SCP_CUDA_HOST_BLOCK_H
#define SCP_CUDA_HOST_BLOCK_H

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda/block.h"
#include "races.h"

namespace scp {
namespace SCP_NAMESPACE {

template <int N>
class HostGrid;

template <int N>
class HostBlock {
 public:
  static constexpr int kSize = N, kWarps = kSize / kWarp;

  HostBlock(HostGrid<N>& grid, int thread) : grid_(grid), thread_(thread) {}
  int thread() const { return thread_; }
  int64_t index() const;
  void sync() const;
  char* shared() const;
  SCP_NOT_INSTRUMENTED void add(double* at, double value) const { *at += value; }
  SCP_NOT_INSTRUMENTED void raise(int* flag) const { *flag = 1; }
  uint32_t ballot(bool value) const;
  template <int kLanes, class V>
  V sum_of_lanes(V value) const;

 private:
  HostGrid<N>& grid_;
  const int thread_;
  mutable int barriers_ = 0;
};

template <int N>
class HostGrid {
 public:
  // Order 0 runs threads as they are numbered, 1 backwards, any other number shuffles them anew at every barrier. The
  // barrier of the given number, counted from 1, is left out of every block: the race detector is tested on that.
  HostGrid(int order, int64_t shared_bytes, int without_barrier = 0)
      : order_(order),
        without_barrier_(without_barrier),
        random_(unsigned(order)),
        memory_(size_t(shared_bytes + kGuard)),
        fibres_(N),
        stacks_(new char[size_t(N) * kStack]),
        turn_(N) {
    for (int t = 0; t < N; ++t) turn_[t] = t;
    if (order == 1) std::reverse(turn_.begin(), turn_.end());
  }

  void run(int64_t blocks, const std::function<void(HostBlock<N>&)>& body) {
    body_ = &body;
    races::begin(stacks_.get(), size_t(N) * kStack, memory_.data(), memory_.size(),
                 [this] { swapcontext(&fibres_[present_], &scheduler_); });
    for (index_ = 0; index_ < blocks; ++index_) run_block();
  }

 private:
  friend class HostBlock<N>;
  static constexpr size_t kStack = 64 * 1024;
  static constexpr size_t kGuard = 256;
  enum class State : uint8_t { kReady, kAtExchange, kAtBarrier, kEnded };

  void run_block() {
    std::memset(memory_.data(), 0xff, memory_.size());
    for (int t = 0; t < N; ++t) {
      ucontext_t& fibre = fibres_[t];
      getcontext(&fibre);
      fibre.uc_stack.ss_sp = stacks_.get() + size_t(t) * kStack;
      fibre.uc_stack.ss_size = kStack;
      fibre.uc_link = &scheduler_;
      const auto self = reinterpret_cast<uintptr_t>(this);
      makecontext(&fibre, reinterpret_cast<void (*)()>(&enter), 3, unsigned(self >> 32), unsigned(self), t);
    }
    do {
      std::fill(states_, states_ + N, State::kReady);
      if (order_ > 1) std::shuffle(turn_.begin(), turn_.end(), random_);
      run_to_barrier();
      races::barrier();
    } while (all(State::kAtBarrier));
    if (!all(State::kEnded)) throw std::logic_error("threads of a block did not all come to the same barrier");
    for (size_t i = memory_.size() - kGuard; i < memory_.size(); ++i)
      if (memory_[i] != char(0xff)) throw std::logic_error("a block wrote past the end of its shared memory");
  }

  void run_to_barrier() {
    for (bool ran = true; ran;) {
      ran = false;
      for (int t : turn_) {
        if (states_[t] != State::kReady) continue;
        resume(t), ran = true;
        complete_exchange(t / kWarp);
      }
    }
  }

  bool all(State state) const {
    return std::all_of(states_, states_ + N, [&](State other) { return other == state; });
  }

  // Once all lanes of a warp have brought their values.
  void complete_exchange(int warp) {
    const int first = warp * kWarp, end = first + kWarp;
    if (!std::all_of(states_ + first, states_ + end, [](State state) { return state == State::kAtExchange; })) return;
    std::copy(brought_ + first, brought_ + end, exchanged_ + first);
    std::fill(states_ + first, states_ + end, State::kReady);
  }

  // By a thread: it runs no further until its state is kReady again.
  SCP_NOT_INSTRUMENTED void wait(int thread, State state) {
    states_[thread] = state;
    swapcontext(&fibres_[thread], &scheduler_);
  }
  // In the order of a butterfly of shuffles.
  template <int kLanes, class V>
  SCP_NOT_INSTRUMENTED V sum_of_lanes(int thread, V value) {
    std::memcpy(&brought_[thread], &value, sizeof value);
    wait(thread, State::kAtExchange);
    V sums[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      std::memcpy(&sums[lane], &exchanged_[thread / kLanes * kLanes + lane], sizeof value);
    for (int count = kLanes / 2; count > 0; count /= 2)
      for (int i = 0; i < count; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
    return sums[0];
  }

  SCP_NOT_INSTRUMENTED uint32_t ballot(int thread, bool value) {
    brought_[thread] = value;
    wait(thread, State::kAtExchange);
    uint32_t bits = 0;
    for (int lane = 0; lane < kWarp; ++lane) bits |= uint32_t(exchanged_[thread / kWarp * kWarp + lane]) << lane;
    return bits;
  }

  void resume(int thread) {
    present_ = thread;
    races::resume(index_, thread);
    swapcontext(&scheduler_, &fibres_[thread]);
    races::pause();
    if (const std::string& race = races::description(); !race.empty()) throw std::logic_error(race);
  }

  static void enter(unsigned high, unsigned low, int thread) {
    HostGrid& grid = *reinterpret_cast<HostGrid*>(uintptr_t(high) << 32 | low);
    HostBlock<N> block(grid, thread);
    (*grid.body_)(block);
    races::pause();
    grid.states_[thread] = State::kEnded;
  }

  const int order_, without_barrier_;
  std::mt19937 random_;
  std::vector<char> memory_;
  std::vector<ucontext_t> fibres_;
  std::unique_ptr<char[]> stacks_;
  std::vector<int> turn_;
  ucontext_t scheduler_;
  const std::function<void(HostBlock<N>&)>* body_ = nullptr;
  int64_t index_ = 0;
  int present_ = 0;
  State states_[N];
  uint64_t brought_[N], exchanged_[N];  // of an exchange between the lanes of a warp
};

template <int N>
int64_t HostBlock<N>::index() const {
  return grid_.index_;
}
template <int N>
void HostBlock<N>::sync() const {
  if (++barriers_ != grid_.without_barrier_) grid_.wait(thread_, HostGrid<N>::State::kAtBarrier);
}
template <int N>
uint32_t HostBlock<N>::ballot(bool value) const {
  return grid_.ballot(thread_, value);
}
template <int N>
template <int kLanes, class V>
V HostBlock<N>::sum_of_lanes(V value) const {
  return grid_.template sum_of_lanes<kLanes>(thread_, value);
}
template <int N>
char* HostBlock<N>::shared() const {
  const auto at = reinterpret_cast<uintptr_t>(grid_.memory_.data());
  return reinterpret_cast<char*>((at + 15) / 16 * 16);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
