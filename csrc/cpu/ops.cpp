// The operators torch.ops.fastac_cpu.*: checks, the choice of the kernels, threads. fastac/cpu.py calls them.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <string_view>
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

Clock make_clock(const ClockTensors& clock) {
  check(clock.within.is_contiguous() && clock.tail.is_contiguous() && clock.within.scalar_type() == at::kDouble &&
            clock.tail.scalar_type() == at::kDouble && clock.steps.scalar_type() == at::kLong, "a clock in float64");
  const int64_t window = clock.within.size(0), blocks = clock.tail.size(0);
  check(window > 0 && blocks > 0 && (window & (window - 1)) == 0 && (blocks & (blocks - 1)) == 0 && blocks <= window,
        "a clock whose window and blocks are powers of two");
  return {clock.within.const_data_ptr<double>(), clock.tail.const_data_ptr<double>(), window, blocks,
          __builtin_ctzll(window / blocks), *clock.steps.const_data_ptr<int64_t>()};
}

Rows make_rows(const Tensor& alpha, const OptionalTensor& momentum, const Tensor& last, const ClockTensors& clock) {
  const Type type = type_of(alpha);
  check(type != Type::float16, "a float32 or bfloat16 table");
  check(alpha.dim() == 1 || alpha.dim() == 2, "α of shape (N, K) or (N,)");
  check(alpha.is_contiguous() && last.is_contiguous() && last.scalar_type() == at::kInt &&
            last.numel() == alpha.size(0), "a contiguous table, last (N,) int32");
  check(!momentum || (momentum->is_contiguous() && momentum->sizes() == alpha.sizes() &&
                      momentum->scalar_type() == alpha.scalar_type()), "a momentum buffer like α");
  return {type, alpha.data_ptr(), momentum ? momentum->data_ptr() : nullptr, last.data_ptr<int32_t>(),
          alpha.dim() == 2 ? alpha.size(1) : 1, make_clock(clock)};
}

Sgd make_sgd(const Tensor& lr, double momentum, double weight_decay, bool nesterov, bool folded, int64_t seed,
             bool gauge) {
  check(lr.scalar_type() == at::kDouble, "the clock's learning rate in float64");
  const double eta = *lr.const_data_ptr<double>();
  return {(float)(folded ? eta / (1 - momentum) : eta), (float)momentum, (float)weight_decay, nesterov, folded, gauge,
          seed};
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

void record_groups(const Record& r, int64_t groups) {
  over_rows(groups, 64, [&](int64_t begin, int64_t end) { kernels().record(r, begin, end); });
}

// The rows of a batch whose ids are repeated, each with a slot: all are read before one is written.
struct Deferred {
  std::vector<int32_t> slot;  // (n,), -1 for none
  std::vector<int64_t> ids;
  std::vector<float> grad;  // (slots, columns)

  Deferred(const Groups& all, int64_t n, int64_t columns) : slot(n, -1) {
    int32_t slots = 0;
    for (int64_t p = 0; p < n; ++p)
      if (all.repeated[p]) slot[p] = slots++;
    ids.resize(slots);
    grad.resize((size_t)slots * columns);
  }
};

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
    const size_t bytes = (size_t)(rows * columns) * options.dtype().itemsize();
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
  bool ac2;
  std::string_view reduction;
  double label_smoothing;
  int64_t ignore_index, num_samples;
  bool statistics;
};

// update="forward": what else is written.
struct Writes {
  Sgd sgd;
  float grad_output;
  const Accumulators* accumulators;
};

// What was written through a pointer: saved tensors of autograd must notice.
void written(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (t && !t->is_inference()) t->unsafeGetTensorImpl()->bump_version();
}

Tensor with_unit_stride(const Tensor& t) { return t.stride(1) == 1 || t.size(1) == 1 ? t : t.contiguous(); }

// Scales of the loss that all rows share.
void set_normaliser(Forward& f, const Call& call, int64_t n) {
  const float* w = f.weight;
  f.weight_sum = (double)f.classes;
  if (w) {
    f.weight_sum = 0;
    for (int64_t k = 0; k < f.classes; ++k) f.weight_sum += w[k];
  }
  f.normaliser = 1;
  if (call.reduction != "mean") return;
  int64_t kept = 0;
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) kept += f.target[i] != f.ignore_index;
  for (int64_t i = 0; w && i < n; ++i) sum += f.target[i] == f.ignore_index ? 0 : w[f.target[i]];
  f.normaliser = w ? sum : (double)kept;
}

// Ids that came more than once: all have been read, now they are written, each by the sum of its gradients.
void write_deferred(const Forward& f, const Writes& writes, const Deferred& deferred, int64_t n) {
  const Groups groups(deferred.ids.data(), (int64_t)deferred.ids.size());
  update_groups({*f.rows, writes.sgd, deferred.ids.data(), deferred.grad.data(), &writes.grad_output, 0,
                 groups.first.data(), groups.next.data()}, (int64_t)groups.first.size());
  for (int64_t i = 0; writes.accumulators && i < n; ++i) {
    const int32_t alone = 0, end = -1;
    if (deferred.slot[i] >= 0 && f.ids[i] >= 0)
      kernels().record({*writes.accumulators, f.ids + i, f.statistics + 5 * i, &alone, &end}, 0, 1);
  }
}

// rows, writes: null where there are none.
Result run(const Call& call, const Rows* rows, const Writes* writes) {
  check(call.logits.dim() == 2 && call.target.dim() == 1 && call.target.scalar_type() == at::kLong &&
            call.target.size(0) == call.logits.size(0), "logits (B, K) and target (B,) int64");
  const Tensor logits = with_unit_stride(call.logits), target = call.target.contiguous();
  const int64_t n = logits.size(0), classes = logits.size(1);
  const Tensor index = call.index ? call.index->to(at::kLong).contiguous() : Tensor();
  check(!index.defined() || index.sizes() == target.sizes(), "index (B,)");
  check(!rows || (index.defined() && rows->columns == (call.ac2 ? 1 : classes)),
        "index, and logits as wide as the table");
  const Tensor weight = call.weight ? call.weight->to(at::kFloat).contiguous() : Tensor();
  check(!weight.defined() || weight.numel() == classes, "weight (K,)");

  Forward f{};
  f.target = target.const_data_ptr<int64_t>();
  f.index = index.defined() ? index.const_data_ptr<int64_t>() : nullptr;
  check_range(f.target, f.index, n, classes, call.num_samples, call.ignore_index);
  f.logits_type = type_of(logits);
  f.logits = logits.const_data_ptr();
  f.logits_stride = logits.stride(0);
  f.classes = classes;
  f.weight = weight.defined() ? weight.const_data_ptr<float>() : nullptr;
  f.smoothing = call.label_smoothing;
  f.ignore_index = call.ignore_index;
  f.ac2 = call.ac2;
  f.rows = rows;
  set_normaliser(f, call, n);

  const auto float32 = logits.options().dtype(at::kFloat);
  const bool mean = call.reduction == "mean", accumulate = writes && writes->accumulators;
  Tensor loss = at::empty({n}, float32);
  const Tensor grad = Buffers::empty(n, classes, writes ? logits.options() : float32);
  const Tensor ids = at::empty({f.index ? n : 0}, target.options());
  Tensor statistics = at::empty({call.statistics || accumulate ? n : 0, 5}, float32);
  f.loss = loss.mutable_data_ptr<float>();
  f.grad = grad.mutable_data_ptr();
  f.grad_type = type_of(grad);
  f.stream = (int64_t)grad.nbytes() >= kStreamBytes && (uintptr_t)f.grad % 64 == 0;
  f.ids = f.index ? ids.mutable_data_ptr<int64_t>() : nullptr;
  f.statistics = statistics.numel() ? statistics.mutable_data_ptr<float>() : nullptr;

  std::optional<Deferred> deferred;
  if (writes) {
    f.sgd = &writes->sgd;
    f.grad_output = writes->grad_output;
    f.accumulators = writes->accumulators;
    const Groups groups(f.index, n);
    if ((int64_t)groups.first.size() < n) {
      deferred.emplace(groups, n, rows->columns);
      f.slot = deferred->slot.data();
      f.deferred_ids = deferred->ids.data();
      f.deferred_grad = deferred->grad.data();
    }
  }
  over_rows(n, classes, [&](int64_t begin, int64_t end) { kernels().forward(f, begin, end); });
  if (deferred) write_deferred(f, *writes, *deferred, n);

  if (call.reduction != "none") {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += f.loss[i];
    loss = at::empty({}, float32);
    *loss.mutable_data_ptr<float>() = (float)(mean ? total / f.normaliser : total);
  }
  if (!call.statistics && accumulate) statistics = at::empty({0, 5}, float32);
  return {loss, grad, ids, statistics};
}

Result forward(const Tensor& logits, const Tensor& target, const OptionalTensor& index, const OptionalTensor& alpha,
               const OptionalTensor& momentum, const OptionalTensor& last, const OptionalTensor& within,
               const OptionalTensor& tail, const OptionalTensor& steps, const OptionalTensor& weight, bool ac2,
               int64_t ignore_index, c10::string_view reduction, double label_smoothing, int64_t num_samples,
               bool statistics) {
  const Call call{logits, target, index, weight, ac2, reduction, label_smoothing, ignore_index, num_samples,
                  statistics};
  if (!alpha) return run(call, nullptr, nullptr);
  const Rows rows = make_rows(*alpha, momentum, *last, {*within, *tail, *steps});
  return run(call, &rows, nullptr);
}

Accumulators make_accumulators(const Tensor& visits, const Tensor& sums, const Tensor& forgetting,
                               const Tensor& was_correct) {
  check(visits.scalar_type() == at::kLong && forgetting.scalar_type() == at::kLong && visits.is_contiguous() &&
            forgetting.is_contiguous() && was_correct.scalar_type() == at::kBool && was_correct.is_contiguous() &&
            sums.scalar_type() == at::kDouble && sums.is_contiguous() && sums.dim() == 2 && sums.size(1) == 6 &&
            sums.size(0) == visits.numel() && forgetting.numel() == visits.numel() &&
            was_correct.numel() == visits.numel(),
        "accumulators of equal length: visits and forgetting int64, sums (N, 6) float64, was_correct bool");
  return {visits.mutable_data_ptr<int64_t>(), sums.mutable_data_ptr<double>(), forgetting.mutable_data_ptr<int64_t>(),
          was_correct.mutable_data_ptr<bool>()};
}

Result forward_update(const Tensor& logits, const Tensor& target, const Tensor& index, const Tensor& alpha,
                      const OptionalTensor& momentum, const Tensor& last, const Tensor& within, const Tensor& tail,
                      const Tensor& steps, const OptionalTensor& weight, bool ac2, int64_t ignore_index,
                      c10::string_view reduction, double label_smoothing, int64_t num_samples, const Tensor& lr,
                      double sgd_momentum, double weight_decay, bool nesterov, bool folded, int64_t seed,
                      double grad_output, const OptionalTensor& visits, const OptionalTensor& sums,
                      const OptionalTensor& forgetting, const OptionalTensor& was_correct) {
  const Call call{logits, target, index, weight, ac2, reduction, label_smoothing, ignore_index, num_samples, false};
  const Rows rows = make_rows(alpha, momentum, last, {within, tail, steps});
  std::optional<Accumulators> accumulators;
  if (visits) {
    accumulators = make_accumulators(*visits, *sums, *forgetting, *was_correct);
    check(visits->numel() == num_samples, "accumulators of as many samples as the table");
  }
  const Writes writes{make_sgd(lr, sgd_momentum, weight_decay, nesterov, folded, seed, !ac2), (float)grad_output,
                      accumulators ? &*accumulators : nullptr};
  Result result = run(call, &rows, &writes);
  written({&alpha, momentum ? &*momentum : nullptr, &last});
  if (visits) written({&*visits, &*sums, &*forgetting, &*was_correct});
  return result;
}

const int64_t* checked_ids(const Tensor& ids, int64_t num_rows, int64_t least) {
  check(ids.dim() == 1 && ids.is_contiguous() && ids.scalar_type() == at::kLong, "ids (n,) int64");
  const int64_t* p = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); ++i)
    TORCH_CHECK_INDEX(p[i] >= least && p[i] < num_rows, "index ", p[i], " is outside [0, ", num_rows, ")");
  return p;
}

// One factor, or one for each of n rows, in float32; stride 0 for one.
struct Factor {
  Tensor held;
  const float* p = nullptr;
  int64_t stride = 0;

  Factor(const Tensor& scale, int64_t n) : held(scale.to(at::kFloat)) {
    check(scale.dim() == 0 || (scale.dim() == 1 && scale.size(0) == n), "a scale () or (n,)");
    p = held.const_data_ptr<float>();
    stride = scale.dim() ? held.stride(0) : 0;
  }
};

void update_rows(const Tensor& alpha, const OptionalTensor& momentum, const Tensor& last, const Tensor& within,
                 const Tensor& tail, const Tensor& steps, const Tensor& ids, const Tensor& grad,
                 const OptionalTensor& scale, const Tensor& lr, double sgd_momentum, double weight_decay, bool nesterov,
                 bool folded, int64_t seed, const OptionalTensor& skip) {
  if (skip && *skip->const_data_ptr<bool>()) return;
  const Rows rows = make_rows(alpha, momentum, last, {within, tail, steps});
  const Tensor given = ids.contiguous(), g = grad.to(at::kFloat).contiguous();
  const int64_t n = given.numel();
  check(g.dim() == alpha.dim() && g.size(0) == n && g.numel() == n * rows.columns, "a gradient (n, K), AC2 (n,)");
  const int64_t* p = checked_ids(given, alpha.size(0), std::numeric_limits<int64_t>::min());
  const Groups groups(p, n);
  const std::optional<Factor> factor = scale ? std::optional<Factor>(std::in_place, *scale, n) : std::nullopt;
  const float one = 1;
  const Sgd sgd = make_sgd(lr, sgd_momentum, weight_decay, nesterov, folded, seed, alpha.dim() == 2);
  update_groups({rows, sgd, p, g.const_data_ptr<float>(), factor ? factor->p : &one, factor ? factor->stride : 0,
                 groups.first.data(), groups.next.data()}, (int64_t)groups.first.size());
  written({&alpha, momentum ? &*momentum : nullptr, &last});
}

void record(const Tensor& visits, const Tensor& sums, const Tensor& forgetting, const Tensor& was_correct,
            const Tensor& ids, const Tensor& statistics) {
  const Accumulators accumulators = make_accumulators(visits, sums, forgetting, was_correct);
  const Tensor given = ids.contiguous(), seen = statistics.contiguous();
  const int64_t n = given.numel();
  const int64_t* p = checked_ids(given, visits.numel(), std::numeric_limits<int64_t>::min());
  check(seen.dim() == 2 && seen.size(0) == n && seen.size(1) == 5 && seen.scalar_type() == at::kFloat,
        "statistics (n, 5) float32");
  const Groups groups(p, n);
  record_groups({accumulators, p, seen.const_data_ptr<float>(), groups.first.data(), groups.next.data()},
                (int64_t)groups.first.size());
  written({&visits, &sums, &forgetting, &was_correct});
}

// AC2: a row's entry at its target; 0 where the target is ignored, as the gradient is throughout.
Tensor row_gradient(const Tensor& grad, const Tensor& target) {
  check(grad.dim() == 2 && grad.scalar_type() == at::kFloat && target.dim() == 1 && target.size(0) == grad.size(0) &&
            target.scalar_type() == at::kLong, "a gradient (B, K) float32 and target (B,) int64");
  const Tensor g = grad.contiguous(), t = target.contiguous();
  const int64_t n = g.size(0), classes = g.size(1);
  Tensor out = at::empty({n}, g.options());
  const float* from = g.const_data_ptr<float>();
  const int64_t* y = t.const_data_ptr<int64_t>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < n; ++i) to[i] = (uint64_t)y[i] < (uint64_t)classes ? from[i * classes + y[i]] : 0;
  return out;
}

void run_scaled(const Tensor& from, const Tensor& scale, const Tensor& to) {
  const Factor factor(scale, from.size(0));
  const int64_t size = from.numel(), columns = scale.dim() ? from.size(1) : 4096;
  const bool stream = (int64_t)to.nbytes() >= kStreamBytes;
  const Scaled s{type_of(from), type_of(to), from.const_data_ptr(), to.mutable_data_ptr(), columns, size, factor.p,
                 factor.stride, stream};
  if (size == 0) return;
  over_rows((size + columns - 1) / columns, columns,
            [&](int64_t begin, int64_t end) { kernels().scaled(s, begin, end); });
}

Tensor backward(const Tensor& grad, const Tensor& scale, at::ScalarType dtype) {
  check(grad.dim() == 2 && grad.scalar_type() == at::kFloat, "a gradient (B, K) float32");
  const Tensor given = grad.contiguous();
  const Tensor out = Buffers::empty(given.size(0), given.size(1), given.options().dtype(dtype));
  run_scaled(given, scale, out);
  return out;
}

void scale_gradient(const Tensor& grad, const Tensor& scale) {
  check(grad.dim() == 2 && grad.is_contiguous(), "a contiguous gradient (B, K)");
  run_scaled(grad, scale, grad);
  written({&grad});
}

// state = matrix · state, both 2x2.
void multiply(const double* matrix, double* state) {
  const double a = state[0], b = state[1], c = state[2], d = state[3];
  state[0] = matrix[0] * a + matrix[1] * c;
  state[1] = matrix[0] * b + matrix[1] * d;
  state[2] = matrix[2] * a + matrix[3] * c;
  state[3] = matrix[2] * b + matrix[3] * d;
}

void set_identity(double* state) {
  state[0] = state[3] = 1;
  state[1] = state[2] = 0;
}

// StepClock.advance with its step_matrix, over the products that are in use.
void advance(const Tensor& within, const Tensor& tail, const Tensor& steps, const Tensor& lr, double momentum,
             double weight_decay, bool nesterov, bool folded, const OptionalTensor& skip) {
  if (skip && *skip->const_data_ptr<bool>()) return;
  const Clock clock = make_clock({within, tail, steps});
  check(lr.scalar_type() == at::kDouble, "the clock's learning rate in float64");
  const double eta = *lr.const_data_ptr<double>();
  double matrix[4] = {1 - eta * weight_decay, -eta * momentum, weight_decay, momentum};
  if (folded || momentum == 0) {
    set_identity(matrix);
    matrix[0] = 1 - eta * (folded ? weight_decay / (1 - momentum) : weight_decay);
  } else if (nesterov) {
    matrix[0] = 1 - eta * (weight_decay * (1 + momentum));
    matrix[1] = -eta * (momentum * momentum);
  }
  const int64_t now = clock.steps, block = now >> clock.block_bits;
  double* const w = within.mutable_data_ptr<double>();
  double* const t = tail.mutable_data_ptr<double>();
  for (int64_t s = block << clock.block_bits; s <= now; ++s) multiply(matrix, w + 4 * (s & (clock.window - 1)));
  for (int64_t k = 0; k < std::min(block, clock.blocks); ++k) multiply(matrix, t + 4 * k);
  set_identity(w + 4 * ((now + 1) & (clock.window - 1)));
  // The block that was extended has no later block yet, nor has the one that the next step begins in.
  set_identity(t + 4 * (block & (clock.blocks - 1)));
  set_identity(t + 4 * (((now + 1) >> clock.block_bits) & (clock.blocks - 1)));
  *steps.mutable_data_ptr<int64_t>() = now + 1;
  written({&within, &tail, &steps});
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
  written({&alpha, momentum ? &*momentum : nullptr, &last});
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
#define CLOCK "Tensor(a!) within, Tensor(b!) tail, Tensor(c!) steps"
#define ACCUMULATORS "Tensor(a!) visits, Tensor(b!) sums, Tensor(c!) forgetting, Tensor(d!) was_correct"
#define OPTIONS                                                                                                   \
  "Tensor? weight, bool ac2, int ignore_index, str reduction, float label_smoothing, int num_samples"
#define SGD "float sgd_momentum, float weight_decay, bool nesterov, bool folded, int seed"

TORCH_LIBRARY(fastac_cpu, m) {
  m.def("forward(Tensor logits, Tensor target, Tensor? index, Tensor? alpha, Tensor? momentum, Tensor? last, "
        "Tensor? within, Tensor? tail, Tensor? steps, " OPTIONS ", bool statistics) "
        "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("forward_update(Tensor logits, Tensor target, Tensor index, " ROWS ", " OPTIONS ", Tensor lr, " SGD
        ", float grad_output, Tensor(d!)? visits=None, Tensor(e!)? sums=None, Tensor(f!)? forgetting=None, "
        "Tensor(g!)? was_correct=None) "
        "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("update_rows(" ROWS ", Tensor ids, Tensor grad, Tensor? scale, Tensor lr, " SGD ", Tensor? skip) -> ()");
  m.def("row_gradient(Tensor grad, Tensor target) -> Tensor");
  m.def("backward(Tensor grad, Tensor scale, ScalarType dtype) -> Tensor");
  m.def("scale_gradient(Tensor(a!) grad, Tensor scale) -> ()");
  m.def("record(" ACCUMULATORS ", Tensor ids, Tensor statistics) -> ()");
  m.def("advance(" CLOCK ", Tensor lr, float momentum, float weight_decay, bool nesterov, bool folded, Tensor? skip) "
        "-> ()");
  m.def("read_rows(" READ_ROWS ", Tensor ids) -> Tensor");
  m.def("sweep(" ROWS ", Tensor ids, int sweep_every, int seed) -> ()");
  m.def("capability() -> str", &capability);
  m.def("capabilities() -> str[]", &capabilities);
}

TORCH_LIBRARY_IMPL(fastac_cpu, CPU, m) {
  m.impl("forward", &forward);
  m.impl("forward_update", &forward_update);
  m.impl("update_rows", &update_rows);
  m.impl("row_gradient", &row_gradient);
  m.impl("backward", &backward);
  m.impl("scale_gradient", &scale_gradient);
  m.impl("record", &record);
  m.impl("advance", &advance);
  m.impl("read_rows", &read_rows);
  m.impl("sweep", &sweep);
}

}  // namespace fastac::cpu
