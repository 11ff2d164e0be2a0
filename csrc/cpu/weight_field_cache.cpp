#include "weight_field_cache.h"

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <list>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace scp {

// All that W is a function of but the coefficients of layer 1: one copy for all fields of a head.
struct ParameterCopy {
  std::vector<char> bytes;
  int64_t fields = 0;  // in the cache, of these parameters
};

// Immutable once it is in the list of entries; calls that read it share it.
struct CachedField {
  CachedField(int64_t count, std::shared_ptr<ParameterCopy> copy) : bytes(count), parameters(std::move(copy)) {
    const size_t whole = (size_t(count) + 63) / 64 * 64;
    values = std::aligned_alloc(64, whole);
    if (values == nullptr) throw std::bad_alloc();
  }
  CachedField(const CachedField&) = delete;
  CachedField& operator=(const CachedField&) = delete;
  ~CachedField() { std::free(values); }

  void* values;
  int64_t bytes;
  std::shared_ptr<ParameterCopy> parameters;
};

namespace {

constexpr size_t kMostEntries = 1024;
// A field makes room for another only after this many calls without use: fields used in turn do not push each other
// out.
constexpr int64_t kIdleCalls = 64;
constexpr int64_t kLargestThreshold = 1024;
// Coefficients of one call take at most this share of the capacity, or they are not remembered.
constexpr int64_t kRememberedShare = 64;
// Units of layer 1 that a hash looks at.
constexpr int64_t kHashedUnits = 8;

struct Sizes {
  int64_t values[12];

  bool operator==(const Sizes& other) const { return std::memcmp(values, other.values, sizeof values) == 0; }
};

Sizes sizes_of(const scp_call& call, const FieldShape& shape) {
  return {{call.spatial_dims, call.compute_dtype, call.method, call.channels, call.classes, call.hidden1, call.hidden2,
           call.size[0], call.size[1], call.spatial_dims == 3 ? call.size[2] : 1, shape.vector_bytes,
           shape.weight_path}};
}

// The first layer's coefficients of one position map: [h1, d + 1].
struct Coefficients {
  const double* values;
  int64_t units, columns;

  size_t bytes() const { return size_t(units * columns) * sizeof(double); }
  bool equal(const std::vector<char>& copy) const {
    return copy.size() == bytes() && (bytes() == 0 || std::memcmp(copy.data(), values, bytes()) == 0);
  }
  std::vector<char> copied() const {
    const auto* from = reinterpret_cast<const char*>(values);
    return {from, from + bytes()};
  }
  uint64_t hash() const {
    const int64_t step = units / kHashedUnits + 1;
    uint64_t hash = uint64_t(units);
    for (int64_t u = 0; u < units; u += step) {
      for (int64_t a = 0; a < columns; ++a) {
        uint64_t bits;
        std::memcpy(&bits, values + u * columns + a, sizeof bits);
        hash = (hash ^ bits) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
      }
    }
    return hash;
  }
};

// The other parameters of a call: compared with each copy once, whatever the number of position maps, and copied once.
class CallParameters {
 public:
  explicit CallParameters(const scp_call& call) {
    const size_t number = call.compute_dtype == SCP_FLOAT64 ? sizeof(double) : sizeof(float);
    const size_t h1 = size_t(call.hidden1), h2 = size_t(call.hidden2), nc = size_t(call.classes * call.channels);
    part_[0] = {call.b2, h2 * number};
    part_[1] = {call.b3, nc * number};
    part_[2] = {call.residual, nc * number};
    part_[3] = {call.w2, h1 * h2 * number};
    part_[4] = {call.w3, nc * h2 * number};
  }
  bool equal(const std::shared_ptr<ParameterCopy>& copy) {
    if (copy == equal_) return true;
    if (copy == different_) return false;
    const bool result = same(copy->bytes);
    (result ? equal_ : different_) = copy;
    return result;
  }
  // The copy that was found to be equal, or else a new one.
  std::shared_ptr<ParameterCopy> copy() {
    if (equal_ != nullptr) return equal_;
    auto copy = std::make_shared<ParameterCopy>();
    copy->bytes.resize(bytes());
    char* at = copy->bytes.data();
    for (const Part& p : part_) {
      if (p.bytes != 0) std::memcpy(at, p.data, p.bytes);
      at += p.bytes;
    }
    return equal_ = std::move(copy);
  }
  bool known() const { return equal_ != nullptr; }
  size_t bytes() const {
    size_t sum = 0;
    for (const Part& p : part_) sum += p.bytes;
    return sum;
  }

 private:
  struct Part {
    const void* data;
    size_t bytes;
  };
  bool same(const std::vector<char>& copy) const {
    if (copy.size() != bytes()) return false;
    const char* at = copy.data();
    for (const Part& p : part_) {
      if (p.bytes != 0 && std::memcmp(at, p.data, p.bytes) != 0) return false;
      at += p.bytes;
    }
    return true;
  }

  Part part_[5];
  std::shared_ptr<ParameterCopy> equal_, different_;
};

struct Entry {
  uint64_t id;
  uint64_t hash;
  Sizes sizes;
  std::vector<char> coefficients;
  int64_t last_used;
  int64_t hits = 1;                 // calls with these coefficients since the field was last dropped
  int64_t admission_threshold = 1;  // hits before W is stored
  int64_t capacity = 0;             // bytes that the last call allowed for all fields
  std::shared_ptr<CachedField> field;
};

class WeightFieldCache {
 public:
  // Never destroyed: calls of other threads may outlive static objects.
  static WeightFieldCache& instance() {
    static WeightFieldCache* cache = new WeightFieldCache;
    return *cache;
  }

  std::vector<FieldHandle> find(const scp_call& call, const FieldShape& shape, const PositionMaps& maps) {
    std::vector<FieldHandle> handles(size_t(maps.count()));
    const Sizes sizes = sizes_of(call, shape);
    CallParameters parameters(call);
    int64_t pending = 0;  // bytes of the fields that this call is to write
    const std::lock_guard<std::mutex> lock(mutex_);
    ++calls_;
    for (int64_t m = 0; m < maps.count(); ++m) {
      const int64_t columns = call.spatial_dims + 1;
      const Coefficients coefficients{call.coefficients + maps.source(m) * call.hidden1 * columns, call.hidden1,
                                      columns};
      const uint64_t hash = coefficients.hash();
      if (Entry* entry = find_entry(hash, sizes, coefficients)) {
        entry->last_used = calls_;
        entry->capacity = call.cache_bytes;
        handles[size_t(m)] = find_known(*entry, shape, parameters, pending);
        // Many position maps, one per sample: most likely random crops, which never come again.
      } else if (int64_t(coefficients.bytes()) * maps.count() <= call.cache_bytes / kRememberedShare) {
        remember(hash, sizes, coefficients, call.cache_bytes);
      }
    }
    return handles;
  }

  void admit(const FieldHandle& handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->id != handle.entry) continue;
      if (entry->field != nullptr) return;  // another thread was faster
      ParameterCopy& copy = *handle.field->parameters;
      const int64_t shared = copy.fields == 0 ? int64_t(copy.bytes.size()) : 0;
      if (!make_room(*entry, handle.field->bytes + shared)) return;
      // Making room may have let go of the copy's last other field.
      bytes_ += handle.field->bytes + (copy.fields == 0 ? int64_t(copy.bytes.size()) : 0);
      ++copy.fields;
      entry->field = handle.field;
      return;
    }
  }

  int64_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (!entries_.empty()) erase(entries_.begin());
  }

 private:
  using Entries = std::list<Entry>;

  // A forked child finds the lock free and the entries whole.
  WeightFieldCache() {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
#endif
  }

  Entry* find_entry(uint64_t hash, const Sizes& sizes, const Coefficients& coefficients) {
    const auto [first, last] = index_.equal_range(hash);
    for (auto at = first; at != last; ++at) {
      const Entries::iterator entry = at->second;
      if (!(entry->sizes == sizes) || !coefficients.equal(entry->coefficients)) continue;
      entries_.splice(entries_.begin(), entries_, entry);
      return &*entry;
    }
    return nullptr;
  }

  void remember(uint64_t hash, const Sizes& sizes, const Coefficients& coefficients, int64_t capacity) {
    if (entries_.size() == kMostEntries) erase(std::prev(entries_.end()));
    Entry entry{};
    entry.hash = hash;
    entry.sizes = sizes;
    entry.last_used = calls_;
    entry.capacity = capacity;
    if (!make_room(entry, int64_t(coefficients.bytes()))) return;
    entry.coefficients = coefficients.copied();
    entry.id = ++last_id_;
    entries_.push_front(std::move(entry));
    bytes_ += int64_t(coefficients.bytes());
    index_.emplace(hash, entries_.begin());
  }

  FieldHandle find_known(Entry& entry, const FieldShape& shape, CallParameters& parameters, int64_t& pending) {
    if (entry.field != nullptr) {
      if (parameters.equal(entry.field->parameters)) return {entry.field, true, entry.id};
      drop_field(entry);
      entry.hits = 0;
      entry.admission_threshold =
          entry.admission_threshold * 2 < kLargestThreshold ? entry.admission_threshold * 2 : kLargestThreshold;
    }
    if (entry.hits++ < entry.admission_threshold) return {};
    if (!parameters.known()) look_for_copy(parameters);
    const int64_t bytes = shape.bytes + (parameters.known() ? 0 : int64_t(parameters.bytes()));
    if (!make_room(entry, pending + bytes)) return {};
    pending += bytes;
    return {std::make_shared<CachedField>(shape.bytes, parameters.copy()), false, entry.id};
  }

  // Whether another field has the same parameters.
  void look_for_copy(CallParameters& parameters) const {
    for (const Entry& entry : entries_)
      if (entry.field != nullptr && parameters.equal(entry.field->parameters)) return;
  }

  void drop_field(Entry& entry) {
    if (entry.field == nullptr) return;
    ParameterCopy& copy = *entry.field->parameters;
    bytes_ -= entry.field->bytes;
    if (--copy.fields == 0) bytes_ -= int64_t(copy.bytes.size());
    entry.field = nullptr;
  }

  Entries::iterator erase(Entries::iterator entry) {
    drop_field(*entry);
    bytes_ -= int64_t(entry->coefficients.size());
    const auto [first, last] = index_.equal_range(entry->hash);
    for (auto at = first; at != last; ++at) {
      if (at->second != entry) continue;
      index_.erase(at);
      break;
    }
    return entries_.erase(entry);
  }

  // Whether so many bytes more fit for an entry, once idle fields have gone.
  bool make_room(const Entry& owner, int64_t bytes) {
    if (bytes_ + bytes <= owner.capacity) return true;
    int64_t idle = 0;
    for (const Entry& entry : entries_)
      if (&entry != &owner && is_idle(entry)) idle += bytes_of(entry);
    if (bytes_ + bytes - idle > owner.capacity) return false;
    for (auto entry = entries_.end(); entry != entries_.begin() && bytes_ + bytes > owner.capacity;) {
      --entry;
      if (&*entry != &owner && is_idle(*entry)) entry = erase(entry);
    }
    return true;
  }
  bool is_idle(const Entry& entry) const { return calls_ - entry.last_used > kIdleCalls; }

  // Without the copy of parameters, which other fields may share.
  static int64_t bytes_of(const Entry& entry) {
    return int64_t(entry.coefficients.size()) + (entry.field ? entry.field->bytes : 0);
  }

  std::mutex mutex_;
  Entries entries_;                                             // the one used last comes first
  std::unordered_multimap<uint64_t, Entries::iterator> index_;  // by the hash of their coefficients
  int64_t bytes_ = 0;                                           // of all entries, and the copies that they share
  int64_t calls_ = 0;
  uint64_t last_id_ = 0;
};

}  // namespace

void* values_of(CachedField& field) { return field.values; }

// Out of memory here is no error: the call evaluates Phi as usual.
std::vector<FieldHandle> find_fields(const scp_call& call, const FieldShape& shape, const PositionMaps& maps) noexcept {
  if (call.cache_bytes <= 0) return {};
  try {
    return WeightFieldCache::instance().find(call, shape, maps);
  } catch (const std::bad_alloc&) {
    return {};
  }
}

void admit_fields(const std::vector<FieldHandle>& handles) noexcept {
  for (const FieldHandle& handle : handles)
    if (handle.field != nullptr && !handle.ready) WeightFieldCache::instance().admit(handle);
}

int64_t weight_field_cache_bytes() noexcept { return WeightFieldCache::instance().bytes(); }

void clear_weight_field_cache() noexcept { WeightFieldCache::instance().clear(); }

}  // namespace scp
