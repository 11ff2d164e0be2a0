#include "weight_field_cache.h"

#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace scp {

// Immutable once it is in the list of entries; calls that read it share it.
struct CachedField {
  explicit CachedField(int64_t count) : bytes(count) {
    const size_t whole = (size_t(count) + 63) / 64 * 64;
    values = std::aligned_alloc(64, whole);
    if (values == nullptr) throw std::bad_alloc();
  }
  CachedField(const CachedField&) = delete;
  CachedField& operator=(const CachedField&) = delete;
  ~CachedField() { std::free(values); }

  void* values;
  int64_t bytes;
  std::vector<char> parameters;  // all but the coefficients of layer 1
};

namespace {

constexpr int64_t kMostEntries = 64;
// A field makes room for another only after this many calls without use: fields used in turn do not push each other
// out.
constexpr int64_t kIdleCalls = 64;
constexpr int64_t kLargestThreshold = 1024;

struct Part {
  const void* data;
  size_t bytes;
};

struct Sizes {
  int64_t values[13];
};

Sizes sizes_of(const scp_call& call, const FieldShape& shape) {
  return {{call.spatial_dims, call.compute_dtype, call.method, call.groups, call.channels, call.classes, call.hidden1,
           call.hidden2, call.size[0], call.size[1], call.spatial_dims == 3 ? call.size[2] : 1, shape.vector_bytes,
           shape.weight_path}};
}

Part coefficients_of(const scp_call& call) {
  return {call.coefficients, size_t(call.groups * call.hidden1 * (call.spatial_dims + 1)) * sizeof(double)};
}

struct Parts {
  Part part[5];

  explicit Parts(const scp_call& call) {
    const size_t number = call.compute_dtype == SCP_FLOAT64 ? sizeof(double) : sizeof(float);
    const size_t h1 = size_t(call.hidden1), h2 = size_t(call.hidden2), nc = size_t(call.classes * call.channels);
    part[0] = {call.b2, h2 * number};
    part[1] = {call.b3, nc * number};
    part[2] = {call.residual, nc * number};
    part[3] = {call.w2, h1 * h2 * number};
    part[4] = {call.w3, nc * h2 * number};
  }
  size_t bytes() const {
    size_t sum = 0;
    for (const Part& p : part) sum += p.bytes;
    return sum;
  }
  bool equal(const std::vector<char>& copy) const {
    const char* at = copy.data();
    for (const Part& p : part) {
      if (p.bytes != 0 && std::memcmp(at, p.data, p.bytes) != 0) return false;
      at += p.bytes;
    }
    return true;
  }
  std::vector<char> copied() const {
    std::vector<char> copy(bytes());
    char* at = copy.data();
    for (const Part& p : part) {
      if (p.bytes != 0) std::memcpy(at, p.data, p.bytes);
      at += p.bytes;
    }
    return copy;
  }
};

struct Entry {
  uint64_t id;
  Sizes sizes;
  std::vector<char> coefficients;
  int64_t last_used;
  int64_t hits = 1;                 // calls with these coefficients since the field was last dropped
  int64_t admission_threshold = 1;  // hits before W is stored
  int64_t capacity = 0;             // bytes that the last call allowed for all fields
  std::shared_ptr<CachedField> field;

  int64_t bytes() const {
    return int64_t(coefficients.size()) + (field ? field->bytes + int64_t(field->parameters.size()) : 0);
  }
};

class WeightFieldCache {
 public:
  // Never destroyed: calls of other threads may outlive static objects.
  static WeightFieldCache& instance() {
    static WeightFieldCache* cache = new WeightFieldCache;
    return *cache;
  }

  FieldHandle find(const scp_call& call, const FieldShape& shape) {
    const Sizes sizes = sizes_of(call, shape);
    const Part coefficients = coefficients_of(call);
    const std::lock_guard<std::mutex> lock(mutex_);
    ++calls_;
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (std::memcmp(&entry->sizes, &sizes, sizeof sizes) != 0) continue;
      if (coefficients.bytes != 0 &&
          std::memcmp(entry->coefficients.data(), coefficients.data, coefficients.bytes) != 0)
        continue;
      entries_.splice(entries_.begin(), entries_, entry);
      return find_known(*entry, call, shape);
    }
    // Many position maps, one per sample: most likely random crops, which never come again.
    if (int64_t(coefficients.bytes) > call.cache_bytes / kMostEntries) return {};
    if (entries_.size() == size_t(kMostEntries)) entries_.pop_back();
    const auto* from = static_cast<const char*>(coefficients.data);
    Entry entry{};
    entry.sizes = sizes;
    entry.last_used = calls_;
    entry.capacity = call.cache_bytes;
    if (!make_room(entry, int64_t(coefficients.bytes))) return {};
    entry.coefficients.assign(from, from + coefficients.bytes);
    entry.id = ++last_id_;
    entries_.push_front(std::move(entry));
    return {};
  }

  void admit(const FieldHandle& handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Entry& entry : entries_) {
      if (entry.id != handle.entry) continue;
      const CachedField& field = *handle.field;
      const int64_t bytes = field.bytes + int64_t(field.parameters.size() + entry.coefficients.size());
      if (make_room(entry, bytes)) entry.field = handle.field;
      return;
    }
  }

  int64_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    int64_t sum = 0;
    for (const Entry& entry : entries_) sum += entry.bytes();
    return sum;
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_.clear();
  }

 private:
  // A forked child finds the lock free and the entries whole.
  WeightFieldCache() {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
#endif
  }

  FieldHandle find_known(Entry& entry, const scp_call& call, const FieldShape& shape) {
    entry.last_used = calls_;
    entry.capacity = call.cache_bytes;
    const Parts parts(call);
    if (entry.field != nullptr) {
      if (parts.equal(entry.field->parameters)) return {entry.field, true, entry.id};
      entry.field = nullptr;
      entry.hits = 0;
      entry.admission_threshold =
          entry.admission_threshold * 2 < kLargestThreshold ? entry.admission_threshold * 2 : kLargestThreshold;
    }
    const int64_t bytes = shape.bytes + int64_t(parts.bytes() + entry.coefficients.size());
    if (entry.hits++ < entry.admission_threshold || !make_room(entry, bytes)) return {};
    auto field = std::make_shared<CachedField>(shape.bytes);
    field->parameters = parts.copied();
    return {field, false, entry.id};
  }

  // Whether `bytes` for this entry fit, once idle fields have gone.
  bool make_room(const Entry& owner, int64_t bytes) {
    int64_t sum = bytes, idle = 0;
    for (const Entry& entry : entries_) {
      if (&entry == &owner) continue;
      sum += entry.bytes();
      if (is_idle(entry)) idle += entry.bytes();
    }
    if (sum - idle > owner.capacity) return false;
    for (auto entry = entries_.end(); entry != entries_.begin() && sum > owner.capacity;) {
      --entry;
      if (&*entry == &owner || !is_idle(*entry)) continue;
      sum -= entry->bytes();
      entry = entries_.erase(entry);
    }
    return true;
  }
  bool is_idle(const Entry& entry) const { return calls_ - entry.last_used > kIdleCalls; }

  std::mutex mutex_;
  std::list<Entry> entries_;  // the one used last comes first
  int64_t calls_ = 0;
  uint64_t last_id_ = 0;
};

}  // namespace

void* values_of(CachedField& field) { return field.values; }

// Out of memory here is no error: the call evaluates Phi as usual.
FieldHandle find_field(const scp_call& call, const FieldShape& shape) noexcept {
  if (call.cache_bytes <= 0) return {};
  try {
    return WeightFieldCache::instance().find(call, shape);
  } catch (const std::bad_alloc&) {
    return {};
  }
}

void admit_field(const FieldHandle& handle) noexcept {
  if (handle.field != nullptr && !handle.ready) WeightFieldCache::instance().admit(handle);
}

int64_t weight_field_cache_bytes() noexcept { return WeightFieldCache::instance().bytes(); }

void clear_weight_field_cache() noexcept { WeightFieldCache::instance().clear(); }

}  // namespace scp
