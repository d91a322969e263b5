// The operators torch.ops.fastac_cpu.*: checks, the choice of the kernels, threads. fastac/cpu.py calls them.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <cmath>
#include <cstdlib>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace fastac::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Result = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kGrain = 1 << 14;             // elements below which a thread more costs more than it brings
constexpr int64_t kStreamBytes = int64_t{4} << 20;  // a gradient as large as this does not stay in a cache for backward

constexpr size_t kHugePage = size_t{2} << 20;

bool supports(const std::string& name) {
#if defined(__x86_64__)
  if (name == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return name == "default";
}

// Best first.
std::vector<const Kernels*> built() {
#if defined(__x86_64__)
  return {&kernels_avx512, &kernels_avx2, &kernels_default};
#else
  return {&kernels_default};
#endif
}

const Kernels& choose() {
  const char* forced = std::getenv("FASTAC_CPU_CAPABILITY");
  for (const Kernels* k : built()) {
    if (forced ? std::string(forced) == k->name : supports(k->name)) {
      TORCH_CHECK_VALUE(supports(k->name), "FASTAC_CPU_CAPABILITY is ", forced, ", which this processor lacks");
      return *k;
    }
  }
  TORCH_CHECK_VALUE(false, "FASTAC_CPU_CAPABILITY must be default, avx2 or avx512, got '", forced, "'");
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return Type::float32;
    case at::kBFloat16: return Type::bfloat16;
    case at::kHalf: return Type::float16;
    default: TORCH_CHECK_TYPE(false, "the cpu backend does not take ", t.scalar_type());
  }
}

// A kernel takes raw pointers, so what it is told must hold.
void check(bool good, const char* what) { TORCH_CHECK_VALUE(good, "the cpu backend needs ", what); }

struct ClockTensors {
  const Tensor &within, &tail, &steps;
};

Rows make_rows(const Tensor& alpha, const OptionalTensor& momentum, const Tensor& last, const ClockTensors& clock) {
  const Type type = type_of(alpha);
  check(type != Type::float16, "a float32 or bfloat16 table");
  check(alpha.dim() == 1 || alpha.dim() == 2, "α of shape (N, K) or (N,)");
  check(alpha.is_contiguous() && last.is_contiguous() && last.scalar_type() == at::kInt &&
            last.numel() == alpha.size(0), "a contiguous table, last (N,) int32");
  check(!momentum || (momentum->is_contiguous() && momentum->sizes() == alpha.sizes() &&
                      momentum->scalar_type() == alpha.scalar_type()), "a momentum buffer like α");
  check(clock.within.is_contiguous() && clock.tail.is_contiguous() && clock.within.scalar_type() == at::kDouble &&
            clock.tail.scalar_type() == at::kDouble && clock.steps.scalar_type() == at::kLong, "a clock in float64");
  const int64_t window = clock.within.size(0), blocks = clock.tail.size(0);
  check(window > 0 && blocks > 0 && (window & (window - 1)) == 0 && (blocks & (blocks - 1)) == 0 && blocks <= window,
        "a clock whose window and blocks are powers of two");
  return {type, alpha.data_ptr(), momentum ? momentum->data_ptr() : nullptr, last.data_ptr<int32_t>(),
          alpha.dim() == 2 ? alpha.size(1) : 1,
          {clock.within.const_data_ptr<double>(), clock.tail.const_data_ptr<double>(), window, blocks, __builtin_ctzll(window / blocks),
           *clock.steps.const_data_ptr<int64_t>()}};
}

Sgd make_sgd(const Tensor& lr, double momentum, double weight_decay, bool nesterov, bool folded, int64_t seed,
             bool gauge) {
  check(lr.scalar_type() == at::kDouble, "the clock's learning rate in float64");
  return {(float)*lr.const_data_ptr<double>(), (float)momentum, (float)weight_decay, nesterov, folded, gauge, seed};
}

template <class F>
void over_rows(int64_t rows, int64_t columns, F f) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns)), f);
}

// Positions grouped by id, in the batch's order, in one pass: a hash table with linear probing.
struct Groups {
  std::vector<int32_t> first, next;
  std::vector<uint8_t> repeated;

  Groups(const int64_t* ids, int64_t n) : next(n, -1), repeated(n, 0) {
    check(n < (int64_t{1} << 30), "fewer than 2^30 rows a batch");
    int bits = 4;
    while ((int64_t{1} << bits) < 2 * n) ++bits;
    const uint64_t mask = (uint64_t{1} << bits) - 1;
    struct Slot { int32_t first = -1, last; };
    std::vector<Slot> slots(mask + 1);
    first.reserve(n);
    for (int64_t p = 0; p < n; ++p) {
      if (ids[p] < 0) continue;
      uint64_t place = ((uint64_t)ids[p] * 0x9e3779b97f4a7c15u) >> (64 - bits);
      while (slots[place].first >= 0 && ids[slots[place].first] != ids[p]) place = (place + 1) & mask;
      Slot& slot = slots[place];
      if (slot.first < 0) {
        slot.first = (int32_t)p;
        first.push_back((int32_t)p);
      } else {
        next[slot.last] = (int32_t)p;
        repeated[p] = repeated[slot.first] = 1;
      }
      slot.last = (int32_t)p;
    }
  }
};

void update_groups(const Update& u, int64_t groups) {
  over_rows(groups, u.rows.columns, [&](int64_t begin, int64_t end) { kernels().update(u, begin, end); });
}

// As fastac/validation.py: targets before ids, the first value outside.
void check_range(const int64_t* target, const int64_t* index, int64_t n, int64_t classes, int64_t num_samples,
                 int64_t ignore_index) {
  for (int64_t i = 0; i < n; ++i)
    TORCH_CHECK_INDEX((uint64_t)target[i] < (uint64_t)classes || target[i] == ignore_index, "target ", target[i],
                      " is outside [0, ", classes, ") and is not ignore_index (", ignore_index, ")");
  for (int64_t i = 0; index && i < n; ++i)
    TORCH_CHECK_INDEX((uint64_t)index[i] < (uint64_t)num_samples, "index ", index[i], " is outside [0, ", num_samples,
                      ")");
}

// Large gradients come from a few buffers that are kept: fresh memory costs a page fault each 4 KiB, more than the
// kernels themselves. At most kKept buffers wait for their next use, each at most twice as large as what is asked for.
class Buffers {
 public:
  static Tensor empty(int64_t rows, int64_t columns, const at::TensorOptions& options) {
    const size_t bytes = (size_t)(rows * columns) * sizeof(float);
    if ((int64_t)bytes < kStreamBytes) return at::empty({rows, columns}, options);
    // The deleter may run at the process's end: the pool is never destroyed.
    static Buffers& pool = *new Buffers;
    const Buffer buffer = pool.take(bytes);
    return at::from_blob(buffer.p, {rows, columns}, [buffer](void*) { pool.give(buffer); }, options);
  }

 private:
  struct Buffer {
    void* p;
    size_t bytes;
  };
  static constexpr size_t kKept = 2;
  std::mutex mutex_;
  std::vector<Buffer> kept_;

  Buffer take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto b = kept_.rbegin(); b != kept_.rend(); ++b) {
        if (b->bytes < bytes || b->bytes > 2 * bytes) continue;
        const Buffer found = *b;
        kept_.erase(std::next(b).base());
        return found;
      }
    }
    const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* p = std::aligned_alloc(kHugePage, rounded);
    if (!p) throw std::bad_alloc();
#if defined(__linux__)
    madvise(p, rounded, MADV_HUGEPAGE);
#endif
    return {p, rounded};
  }

  void give(const Buffer& buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.push_back(buffer);
    if (kept_.size() > kKept) {
      std::free(kept_.front().p);
      kept_.erase(kept_.begin());
    }
  }
};

struct Call {
  const Tensor& logits;
  const Tensor& target;
  const OptionalTensor& index;
  const OptionalTensor& weight;
  std::string reduction;
  double label_smoothing;
  int64_t ignore_index, num_samples;
  bool statistics;
};

// What was written through a pointer: saved tensors of autograd must notice.
void written(const Tensor& alpha, const OptionalTensor& momentum, const Tensor& last) {
  for (const Tensor* t : {&alpha, momentum ? &*momentum : &alpha, &last})
    if (!t->is_inference()) t->unsafeGetTensorImpl()->bump_version();
}

// rows, sgd: null where there are none.
Result run(const Call& call, const Rows* rows, bool ac2, const Sgd* sgd, float grad_output) {
  const Tensor logits = call.logits.stride(1) == 1 || call.logits.size(1) == 1 ? call.logits : call.logits.contiguous();
  const Tensor target = call.target.contiguous();
  check(logits.dim() == 2 && target.dim() == 1 && target.scalar_type() == at::kLong && target.size(0) == logits.size(0),
        "logits (B, K) and target (B,) int64");
  const int64_t n = logits.size(0), classes = logits.size(1);
  const Tensor index = call.index ? call.index->to(at::kLong).contiguous() : Tensor();
  check(!index.defined() || index.sizes() == target.sizes(), "index (B,)");
  check(!rows || (index.defined() && rows->columns == (ac2 ? 1 : classes)), "index, and logits as wide as the table");
  const Tensor weight = call.weight ? call.weight->to(at::kFloat).contiguous() : Tensor();
  check(!weight.defined() || weight.numel() == classes, "weight (K,)");

  const int64_t* y = target.const_data_ptr<int64_t>();
  const int64_t* ids = index.defined() ? index.const_data_ptr<int64_t>() : nullptr;
  const float* w = weight.defined() ? weight.const_data_ptr<float>() : nullptr;
  check_range(y, ids, n, classes, call.num_samples, call.ignore_index);

  const auto float32 = logits.options().dtype(at::kFloat);
  Tensor loss = at::empty({n}, float32);
  Tensor grad = Buffers::empty(n, classes, float32);
  Tensor out_ids = at::empty({ids ? n : 0}, target.options());
  Tensor statistics = at::empty({call.statistics ? n : 0, 5}, float32);

  Forward f{};
  f.logits_type = type_of(logits);
  f.logits = logits.const_data_ptr();
  f.logits_stride = logits.stride(0);
  f.classes = classes;
  f.target = y;
  f.index = ids;
  f.weight = w;
  f.weight_sum = (double)classes;
  if (w) {
    f.weight_sum = 0;
    for (int64_t k = 0; k < classes; ++k) f.weight_sum += w[k];
  }
  f.smoothing = call.label_smoothing;
  f.normaliser = 1;
  const bool mean = call.reduction == "mean";
  if (mean) {
    f.normaliser = 0;
    for (int64_t i = 0; i < n; ++i) f.normaliser += y[i] == call.ignore_index ? 0 : w ? w[y[i]] : 1;
  }
  f.ignore_index = call.ignore_index;
  f.ac2 = ac2;
  f.stream = (int64_t)grad.nbytes() >= kStreamBytes;
  f.rows = rows;
  f.sgd = sgd;
  f.grad_output = grad_output;
  f.loss = loss.mutable_data_ptr<float>();
  f.grad = grad.mutable_data_ptr<float>();
  f.ids = ids ? out_ids.mutable_data_ptr<int64_t>() : nullptr;
  f.statistics = call.statistics ? statistics.mutable_data_ptr<float>() : nullptr;

  std::optional<Groups> groups;
  if (sgd) {
    groups.emplace(ids, n);
    f.deferred = groups->repeated.data();
  }
  over_rows(n, classes, [&](int64_t begin, int64_t end) { kernels().forward(f, begin, end); });

  if (sgd && (int64_t)groups->first.size() < n) {
    // Ids that came more than once: all have been read, now they are written, each by the sum of its gradients.
    std::vector<int32_t> first;
    for (int32_t p : groups->first)
      if (groups->repeated[p]) first.push_back(p);
    std::vector<float> at_target;
    Update u{*rows, *sgd, f.ids, f.grad, classes, grad_output, first.data(), groups->next.data()};
    if (ac2) {
      at_target.resize(n);
      for (int64_t i = 0; i < n; ++i) at_target[i] = y[i] == call.ignore_index ? 0 : f.grad[i * classes + y[i]];
      u.grad = at_target.data();
      u.grad_stride = 1;
    }
    update_groups(u, (int64_t)first.size());
  }

  if (call.reduction != "none") {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += f.loss[i];
    loss = at::scalar_tensor(mean ? total / f.normaliser : total, float32);
  }
  return {loss, grad, out_ids, statistics};
}

Result forward(const Tensor& logits, const Tensor& target, const OptionalTensor& index, const OptionalTensor& alpha,
               const OptionalTensor& momentum, const OptionalTensor& last, const OptionalTensor& within,
               const OptionalTensor& tail, const OptionalTensor& steps, const OptionalTensor& weight, bool ac2,
               int64_t ignore_index, std::string reduction, double label_smoothing, int64_t num_samples,
               bool statistics) {
  const Call call{logits, target, index, weight, std::move(reduction), label_smoothing, ignore_index, num_samples,
                  statistics};
  if (!alpha) return run(call, nullptr, ac2, nullptr, 1);
  const Rows rows = make_rows(*alpha, momentum, *last, {*within, *tail, *steps});
  return run(call, &rows, ac2, nullptr, 1);
}

Result forward_update(const Tensor& logits, const Tensor& target, const Tensor& index, const Tensor& alpha,
                      const OptionalTensor& momentum, const Tensor& last, const Tensor& within, const Tensor& tail,
                      const Tensor& steps, const OptionalTensor& weight, bool ac2, int64_t ignore_index,
                      std::string reduction, double label_smoothing, int64_t num_samples, bool statistics,
                      const Tensor& lr, double sgd_momentum, double weight_decay, bool nesterov, bool folded,
                      int64_t seed, double grad_output) {
  const Call call{logits, target, index, weight, std::move(reduction), label_smoothing, ignore_index, num_samples,
                  statistics};
  const Rows rows = make_rows(alpha, momentum, last, {within, tail, steps});
  const Sgd sgd = make_sgd(lr, sgd_momentum, weight_decay, nesterov, folded, seed, !ac2);
  Result result = run(call, &rows, ac2, &sgd, (float)grad_output);
  written(alpha, momentum, last);
  return result;
}

const int64_t* checked_ids(const Tensor& ids, int64_t num_rows, int64_t least) {
  check(ids.dim() == 1 && ids.is_contiguous() && ids.scalar_type() == at::kLong, "ids (n,) int64");
  const int64_t* p = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); ++i)
    TORCH_CHECK_INDEX(p[i] >= least && p[i] < num_rows, "index ", p[i], " is outside [0, ", num_rows, ")");
  return p;
}

void update_rows(const Tensor& alpha, const OptionalTensor& momentum, const Tensor& last, const Tensor& within,
                 const Tensor& tail, const Tensor& steps, const Tensor& ids, const Tensor& grad, const Tensor& lr,
                 double sgd_momentum, double weight_decay, bool nesterov, bool folded, int64_t seed,
                 const OptionalTensor& skip) {
  if (skip && *skip->const_data_ptr<bool>()) return;
  const Rows rows = make_rows(alpha, momentum, last, {within, tail, steps});
  const Tensor given = ids.clamp_min(-1).contiguous();
  const Tensor g = grad.to(at::kFloat).contiguous();
  check(g.dim() == alpha.dim() && g.size(0) == given.numel() && g.numel() == g.size(0) * rows.columns,
        "a gradient (n, K), AC2 (n,)");
  const int64_t* p = checked_ids(given, alpha.size(0), -1);
  const Groups groups(p, given.numel());
  const Sgd sgd = make_sgd(lr, sgd_momentum, weight_decay, nesterov, folded, seed, alpha.dim() == 2);
  update_groups({rows, sgd, p, g.const_data_ptr<float>(), rows.columns, 1, groups.first.data(), groups.next.data()},
                (int64_t)groups.first.size());
  written(alpha, momentum, last);
}

Tensor read_rows(const Tensor& alpha, const OptionalTensor& momentum, const Tensor& last, const Tensor& within,
                 const Tensor& tail, const Tensor& steps, const Tensor& ids) {
  const Rows rows = make_rows(alpha, momentum, last, {within, tail, steps});
  const Tensor given = ids.contiguous();
  const int64_t* p = checked_ids(given, alpha.size(0), 0);
  std::vector<int64_t> shape = alpha.sizes().vec();
  shape[0] = given.numel();
  Tensor out = at::empty(shape, alpha.options().dtype(at::kFloat));
  float* to = out.mutable_data_ptr<float>();
  over_rows(shape[0], rows.columns, [&](int64_t begin, int64_t end) { kernels().read(rows, p, to, begin, end); });
  return out;
}

void sweep(const Tensor& alpha, const OptionalTensor& momentum, const Tensor& last, const Tensor& within,
           const Tensor& tail, const Tensor& steps, const Tensor& ids, int64_t sweep_every, int64_t seed) {
  const Rows rows = make_rows(alpha, momentum, last, {within, tail, steps});
  const Tensor given = ids.contiguous();
  const int64_t* p = checked_ids(given, alpha.size(0), 0);
  over_rows(given.numel(), rows.columns,
            [&](int64_t begin, int64_t end) { kernels().sweep(rows, p, sweep_every, seed, begin, end); });
  written(alpha, momentum, last);
}

std::string capability() { return kernels().name; }

std::vector<std::string> capabilities() {
  std::vector<std::string> names;
  for (const Kernels* k : built())
    if (supports(k->name)) names.emplace_back(k->name);
  return names;
}

}  // namespace

#define ROWS "Tensor(a!) alpha, Tensor(b!)? momentum, Tensor(c!) last, Tensor within, Tensor tail, Tensor steps"
#define READ_ROWS "Tensor alpha, Tensor? momentum, Tensor last, Tensor within, Tensor tail, Tensor steps"
#define OPTIONS                                                                                                   \
  "Tensor? weight, bool ac2, int ignore_index, str reduction, float label_smoothing, int num_samples, bool statistics"
#define SGD "float sgd_momentum, float weight_decay, bool nesterov, bool folded, int seed"

TORCH_LIBRARY(fastac_cpu, m) {
  m.def("forward(Tensor logits, Tensor target, Tensor? index, Tensor? alpha, Tensor? momentum, Tensor? last, "
        "Tensor? within, Tensor? tail, Tensor? steps, " OPTIONS ") -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("forward_update(Tensor logits, Tensor target, Tensor index, " ROWS ", " OPTIONS ", Tensor lr, " SGD
        ", float grad_output) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("update_rows(" ROWS ", Tensor ids, Tensor grad, Tensor lr, " SGD ", Tensor? skip) -> ()");
  m.def("read_rows(" READ_ROWS ", Tensor ids) -> Tensor");
  m.def("sweep(" ROWS ", Tensor ids, int sweep_every, int seed) -> ()");
  m.def("capability() -> str", &capability);
  m.def("capabilities() -> str[]", &capabilities);
}

TORCH_LIBRARY_IMPL(fastac_cpu, CPU, m) {
  m.impl("forward", &forward);
  m.impl("forward_update", &forward_update);
  m.impl("update_rows", &update_rows);
  m.impl("read_rows", &read_rows);
  m.impl("sweep", &sweep);
}

}  // namespace fastac::cpu
