// The operators torch.ops.fastac_cuda.*: checks, memory and streams around kernels.h. fastac/cuda.py calls them.
//
// Only torch's stable ABI is used, so that one build serves several versions of torch, with or without CUDA in it.
// FASTAC_CUDA_HOST: the same operators, as fastac_cuda_host, on CPU tensors (tests/cuda_host).
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

// torch 2.13 brought these two.
#define FASTAC_TORCH_2_13 (TORCH_FEATURE_VERSION >= ((2ULL << 56) | (13ULL << 48)))
#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif
#if !defined(FASTAC_CUDA_HOST) && !FASTAC_TORCH_2_13
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace fastac::cuda::ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Result = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// A kernel takes raw pointers, so what it is told must hold.
void check(bool good, const char* what) { STD_TORCH_CHECK(good, "the cuda backend needs ", what); }

// The device and the stream that a call is for.
class Call {
 public:
#if defined(FASTAC_CUDA_HOST)
  explicit Call(const Tensor&) {}
  static bool takes(const Tensor& t) { return t.is_cpu(); }
#else
  explicit Call(const Tensor& like) : guard_(like.get_device_index()) {
    check(takes(like), "tensors on a CUDA device");
    const int32_t device = like.get_device_index();
#if FASTAC_TORCH_2_13
    stream_ = (cudaStream_t)torch::stable::accelerator::getCurrentStream(device).nativeHandle();
#else
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, (void**)&stream_));
#endif
  }
  static bool takes(const Tensor& t) { return t.is_cuda(); }
#endif

  void run(cudaError_t error) const { STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error)); }
  cudaStream_t stream() const { return stream_; }

 private:
#if !defined(FASTAC_CUDA_HOST)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_ = nullptr;
};

Tensor empty(const Tensor& like, std::vector<int64_t> sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  int32_t type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided((int64_t)sizes.size(), sizes.data(), strides.data(), dtype,
                                                         type, like.get_device_index(), &handle));
  return Tensor(handle);
}

int32_t dtype_of(const Tensor& t) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}

Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Type::float32;
    case ScalarType::BFloat16: return Type::bfloat16;
    case ScalarType::Half: return Type::float16;
    default: check(false, "float32, bfloat16 or float16"); return Type::none;
  }
}

void* data(const Tensor& t) { return t.mutable_data_ptr(); }

template <class T>
T* data(const Optional& t, ScalarType type, const char* what) {
  if (!t) return nullptr;
  check(t->scalar_type() == type && t->is_contiguous() && Call::takes(*t), what);
  return (T*)t->mutable_data_ptr();
}

// A pointer of another device would be read there, or be an illegal address.
void check_device(const Tensor& like, std::initializer_list<const Tensor*> others) {
  for (const Tensor* t : others) check(t->get_device_index() == like.get_device_index(), "tensors on one device");
}

Clock make_clock(const Tensor& within, const Tensor& tail, const Tensor& steps, const Tensor& lr) {
  const int64_t window = within.size(0), blocks = tail.size(0);
  check(window > 0 && blocks > 0 && (window & (window - 1)) == 0 && (blocks & (blocks - 1)) == 0 && blocks <= window &&
            window <= (int64_t{1} << 30),
        "a clock whose window and blocks are powers of two, at most 2^30");
  return {data<double>(within, ScalarType::Double, "the clock in float64"),
          data<double>(tail, ScalarType::Double, "the clock in float64"),
          data<int64_t>(steps, ScalarType::Long, "the clock's steps in int64"),
          data<double>(lr, ScalarType::Double, "the clock's learning rate in float64"), window, blocks};
}

Rows make_rows(const Tensor& alpha, const Optional& momentum, const Tensor& last, const Tensor& within,
               const Tensor& tail, const Tensor& steps, const Tensor& lr) {
  const Type type = type_of(alpha);
  check(type != Type::float16, "a float32 or bfloat16 table");
  check(alpha.dim() == 1 || alpha.dim() == 2, "α of shape (N, K) or (N,)");
  check(alpha.is_contiguous() && Call::takes(alpha) && last.numel() == alpha.size(0), "a contiguous table");
  check_device(alpha, {&last, &within, &tail, &steps, &lr});
  if (momentum) check_device(alpha, {&*momentum});
  check(!momentum || (momentum->numel() == alpha.numel() && momentum->scalar_type() == alpha.scalar_type() &&
                      momentum->is_contiguous() && Call::takes(*momentum)), "a momentum buffer like α");
  return {type, data(alpha), momentum ? data(*momentum) : nullptr,
          data<int32_t>(last, ScalarType::Int, "a contiguous table, last (N,) int32"), alpha.size(0),
          alpha.dim() == 2 ? alpha.size(1) : 1, make_clock(within, tail, steps, lr)};
}

Sgd make_sgd(double momentum, double weight_decay, bool nesterov, bool folded, int64_t seed) {
  return {momentum, weight_decay, nesterov, folded, seed};
}

const float* make_scale(const Tensor& scale, int64_t rows, int64_t& stride) {
  check(scale.scalar_type() == ScalarType::Float && Call::takes(scale), "scale in float32");
  check(scale.dim() == 0 || (scale.dim() == 1 && scale.size(0) == rows), "scale of shape () or (B,)");
  stride = scale.dim() == 0 ? 0 : scale.stride(0);
  return (const float*)scale.const_data_ptr();
}

Tensor make_workspace(const Tensor& like, int64_t batch, int64_t num_rows, bool updates) {
  return empty(like, {(int64_t)workspace_bytes(batch, num_rows, updates)}, aoti_torch_dtype_uint8());
}

// What logits, targets and options are; no outputs yet.
Forward make_forward(const Tensor& logits, const Tensor& target, const Optional& index, const Tensor& flags,
                     const Optional& weight, bool ac2, int64_t ignore_index, int64_t reduction, double label_smoothing,
                     int64_t num_samples) {
  check(logits.dim() == 2 && logits.stride(1) == 1 && Call::takes(logits), "logits (B, K) with unit stride");
  check(logits.size(1) <= (int64_t{1} << 30) && logits.size(0) < (int64_t{1} << 31), "K ≤ 2^30 and B < 2^31");
  check(target.numel() == logits.size(0) && (!index || index->numel() == logits.size(0)), "targets and ids (B,)");
  check(!weight || weight->numel() == logits.size(1), "weight (K,)");
  check_device(logits, {&target, &flags});
  if (weight) check_device(logits, {&*weight});
  Forward f{};
  f.logits_type = type_of(logits);
  f.logits = logits.const_data_ptr();
  f.logits_stride = logits.stride(0);
  f.batch = logits.size(0);
  f.classes = logits.size(1);
  f.target = data<int64_t>(target, ScalarType::Long, "target in int64");
  if (index) {
    check_device(logits, {&*index});
    f.index_int32 = index->scalar_type() == ScalarType::Int;
    f.index = data<void>(index, f.index_int32 ? ScalarType::Int : ScalarType::Long, "index in int64 or int32");
  }
  f.num_samples = num_samples;
  f.weight = data<float>(weight, ScalarType::Float, "weight in float32");
  f.label_smoothing = (float)label_smoothing;
  f.reduction = (Reduction)reduction;
  f.ignore_index = ignore_index;
  f.ac2 = ac2;
  f.flags = data<int64_t>(flags, ScalarType::Long, "flags in int64");
  return f;
}

Result run(Forward& f, const Tensor& logits, bool statistics) {
  const Call call(logits);
  const int64_t n = f.batch, none = 0;
  const int32_t float32 = aoti_torch_dtype_float32();
  check(f.rows.type == Type::none || f.ac2 == (f.rows.columns == 1) || f.classes == 1, "a table of the loss's form");
  check(f.rows.type == Type::none || f.ac2 || f.rows.columns == f.classes, "logits as wide as the table");
  Tensor loss = f.reduction == Reduction::none ? empty(logits, {n}, float32) : empty(logits, {}, float32);
  Tensor grad = empty(logits, {n, f.classes}, f.update ? dtype_of(logits) : float32);
  Tensor ids = empty(logits, {f.index ? n : none}, aoti_torch_dtype_int64());
  Tensor seen = empty(logits, {statistics ? n : none, 5}, float32);
  const Tensor workspace = make_workspace(logits, n, f.num_samples, f.update);
  f.loss = (float*)data(loss);
  f.grad = data(grad);
  f.ids = f.index ? (int64_t*)data(ids) : nullptr;
  f.statistics = statistics ? (float*)data(seen) : nullptr;
  f.workspace = data(workspace);
  call.run(cuda::forward(f, call.stream()));
  return {loss, grad, ids, seen};
}

Result forward(Tensor logits, Tensor target, Optional index, Tensor flags, Optional alpha, Optional momentum,
               Optional last, Optional within, Optional tail, Optional steps, Optional lr, Optional weight, bool ac2,
               int64_t ignore_index, int64_t reduction, double label_smoothing, int64_t num_samples, bool statistics) {
  Forward f = make_forward(logits, target, index, flags, weight, ac2, ignore_index, reduction, label_smoothing,
                           num_samples);
  if (alpha) {
    check(last && within && tail && steps && lr && index, "all of a table, and ids");
    check_device(logits, {&*alpha});
    f.rows = make_rows(*alpha, momentum, *last, *within, *tail, *steps, *lr);
    check(f.rows.num_rows == num_samples, "ids of the table's rows");
  }
  return run(f, logits, statistics);
}

Result forward_update(Tensor logits, Tensor target, Tensor index, Tensor flags, Tensor alpha, Optional momentum,
                      Tensor last, Tensor within, Tensor tail, Tensor steps, Tensor lr, Optional weight, bool ac2,
                      int64_t ignore_index, int64_t reduction, double label_smoothing, int64_t num_samples,
                      double sgd_momentum, double weight_decay, bool nesterov, bool folded, int64_t seed,
                      double grad_output, Optional visits, Optional sums, Optional forgetting, Optional was_correct) {
  Forward f = make_forward(logits, target, index, flags, weight, ac2, ignore_index, reduction, label_smoothing,
                           num_samples);
  check_device(logits, {&alpha});
  f.rows = make_rows(alpha, momentum, last, within, tail, steps, lr);
  check(f.rows.num_rows == num_samples, "ids of the table's rows");
  f.update = true;
  f.sgd = make_sgd(sgd_momentum, weight_decay, nesterov, folded, seed);
  f.grad_output = (float)grad_output;
  if (visits) {
    check(visits->numel() == num_samples, "accumulators of the table's samples");
    check_device(logits, {&*visits});
    f.accumulators = {data<int64_t>(visits, ScalarType::Long, "visits (N,) int64"),
                      data<double>(sums, ScalarType::Double, "sums (N, 6) float64"),
                      data<int64_t>(forgetting, ScalarType::Long, "forgetting (N,) int64"),
                      data<bool>(was_correct, ScalarType::Bool, "was_correct (N,) bool")};
  }
  return run(f, logits, false);
}

void update_rows(Tensor alpha, Optional momentum, Tensor last, Tensor within, Tensor tail, Tensor steps, Tensor lr,
                 Tensor ids, Tensor grad, Optional scale, double sgd_momentum, double weight_decay, bool nesterov,
                 bool folded, int64_t seed, Optional skip) {
  const Call call(alpha);
  Update u{};
  u.rows = make_rows(alpha, momentum, last, within, tail, steps, lr);
  u.sgd = make_sgd(sgd_momentum, weight_decay, nesterov, folded, seed);
  check_device(alpha, {&ids, &grad});
  if (scale) check_device(alpha, {&*scale});
  u.gauge = alpha.dim() == 2;
  u.batch = ids.numel();
  u.ids = data<int64_t>(ids, ScalarType::Long, "ids (n,) int64");
  check(grad.numel() == u.batch * u.rows.columns && u.batch < (int64_t{1} << 31), "a gradient (n, K), AC2 (n,)");
  u.grad = data<float>(grad, ScalarType::Float, "a contiguous gradient in float32");
  if (scale) u.scale = make_scale(*scale, u.batch, u.scale_stride);
  u.skip = data<bool>(skip, ScalarType::Bool, "skip () bool");
  const Tensor workspace = make_workspace(alpha, u.batch, u.rows.num_rows, true);
  u.workspace = data(workspace);
  call.run(cuda::update_rows(u, call.stream()));
}

Tensor read_rows(Tensor alpha, Optional momentum, Tensor last, Tensor within, Tensor tail, Tensor steps, Tensor lr,
                 Tensor ids) {
  const Call call(alpha);
  const Rows rows = make_rows(alpha, momentum, last, within, tail, steps, lr);
  check_device(alpha, {&ids});
  const int64_t n = ids.numel();
  const int32_t float32 = aoti_torch_dtype_float32();
  Tensor out = alpha.dim() == 2 ? empty(alpha, {n, rows.columns}, float32) : empty(alpha, {n}, float32);
  const int64_t* p = data<int64_t>(ids, ScalarType::Long, "ids (n,) int64");
  call.run(cuda::read_rows(rows, p, n, (float*)data(out), call.stream()));
  return out;
}

void sweep(Tensor alpha, Optional momentum, Tensor last, Tensor within, Tensor tail, Tensor steps, Tensor lr,
           Tensor ids, int64_t sweep_every, int64_t seed) {
  const Call call(alpha);
  const Rows rows = make_rows(alpha, momentum, last, within, tail, steps, lr);
  const int64_t* p = data<int64_t>(ids, ScalarType::Long, "ids (n,) int64");
  call.run(cuda::sweep(rows, p, ids.numel(), sweep_every, seed, call.stream()));
}

void scale_into(const Tensor& in, const Tensor& out, const Tensor& scale) {
  const Call call(in);
  check(in.dim() == 2 && in.is_contiguous() && Call::takes(in), "a contiguous gradient (B, K)");
  check_device(in, {&scale});
  Scale s{type_of(in), type_of(out), in.const_data_ptr(), data(out), in.size(0), in.size(1), nullptr, 0};
  s.scale = make_scale(scale, s.rows, s.scale_stride);
  call.run(cuda::scale(s, call.stream()));
}

Tensor row_gradient(Tensor grad, Tensor target) {
  const Call call(grad);
  const int64_t n = grad.size(0);
  check(grad.dim() == 2 && target.numel() == n, "a gradient (B, K) and target (B,)");
  check_device(grad, {&target});
  Tensor out = empty(grad, {n}, aoti_torch_dtype_float32());
  const float* from = data<float>(grad, ScalarType::Float, "a contiguous gradient in float32");
  const int64_t* y = data<int64_t>(target, ScalarType::Long, "target in int64");
  call.run(cuda::row_gradient(from, y, n, grad.size(1), (float*)data(out), call.stream()));
  return out;
}

// type: a Type.
Tensor backward(Tensor grad, Tensor scale, int64_t type) {
  check(grad.scalar_type() == ScalarType::Float, "a gradient in float32");
  const int32_t dtype = type == (int64_t)Type::float32    ? aoti_torch_dtype_float32()
                        : type == (int64_t)Type::bfloat16 ? aoti_torch_dtype_bfloat16()
                                                          : aoti_torch_dtype_float16();
  Tensor out = empty(grad, {grad.size(0), grad.size(1)}, dtype);
  scale_into(grad, out, scale);
  return out;
}

void scale_gradient(Tensor grad, Tensor scale) { scale_into(grad, grad, scale); }

void record(Tensor visits, Tensor sums, Tensor forgetting, Tensor was_correct, Tensor ids, Tensor statistics) {
  const Call call(visits);
  check_device(visits, {&sums, &forgetting, &was_correct, &ids, &statistics});
  const int64_t n = ids.numel(), num_samples = visits.numel();
  check(statistics.numel() == 5 * n && sums.numel() == 6 * num_samples, "statistics (B, 5), sums (N, 6)");
  const Accumulators a{data<int64_t>(visits, ScalarType::Long, "visits (N,) int64"),
                       data<double>(sums, ScalarType::Double, "sums (N, 6) float64"),
                       data<int64_t>(forgetting, ScalarType::Long, "forgetting (N,) int64"),
                       data<bool>(was_correct, ScalarType::Bool, "was_correct (N,) bool")};
  const int64_t* p = data<int64_t>(ids, ScalarType::Long, "ids (B,) int64");
  const float* seen = data<float>(statistics, ScalarType::Float, "contiguous statistics in float32");
  const Tensor workspace = make_workspace(visits, n, num_samples, true);
  call.run(cuda::record(a, p, seen, n, num_samples, data(workspace), call.stream()));
}

void advance(Tensor within, Tensor tail, Tensor steps, Tensor lr, double momentum, double weight_decay, bool nesterov,
             bool folded, Optional skip) {
  const Call call(steps);
  const bool* skipped = data<bool>(skip, ScalarType::Bool, "skip () bool");
  const Sgd sgd = make_sgd(momentum, weight_decay, nesterov, folded, 0);
  call.run(cuda::advance(make_clock(within, tail, steps, lr), sgd, skipped, call.stream()));
}

}  // namespace

#define OPTIONAL_ROWS                                                                                                \
  "Tensor? alpha, Tensor? momentum, Tensor? last, Tensor? within, Tensor? tail, Tensor? steps, Tensor? lr"
#define READ_ROWS "Tensor alpha, Tensor? momentum, Tensor last, Tensor within, Tensor tail, Tensor steps, Tensor lr"
#define ROWS \
  "Tensor(a!) alpha, Tensor(b!)? momentum, Tensor(c!) last, Tensor within, Tensor tail, Tensor steps, Tensor lr"
#define OPTIONS "Tensor? weight, bool ac2, int ignore_index, int reduction, float label_smoothing, int num_samples"
#define SGD "float sgd_momentum, float weight_decay, bool nesterov, bool folded, int seed"
#define DYNAMICS "Tensor(e!)? visits, Tensor(f!)? sums, Tensor(g!)? forgetting, Tensor(h!)? was_correct"

#if defined(FASTAC_CUDA_HOST)
#define LIBRARY fastac_cuda_host
#define DEVICE CPU
#else
#define LIBRARY fastac_cuda
#define DEVICE CUDA
#endif
// The macros of torch paste their arguments as they are.
#define DEFINE(name, m) STABLE_TORCH_LIBRARY(name, m)
#define IMPLEMENT(name, device, m) STABLE_TORCH_LIBRARY_IMPL(name, device, m)

DEFINE(LIBRARY, m) {
  m.def("forward(Tensor logits, Tensor target, Tensor? index, Tensor(d!) flags, " OPTIONAL_ROWS ", " OPTIONS
        ", bool statistics) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("forward_update(Tensor logits, Tensor target, Tensor index, Tensor(d!) flags, " ROWS ", " OPTIONS ", " SGD
        ", float grad_output, " DYNAMICS ") -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("update_rows(" ROWS ", Tensor ids, Tensor grad, Tensor? scale, " SGD ", Tensor? skip) -> ()");
  m.def("read_rows(" READ_ROWS ", Tensor ids) -> Tensor");
  m.def("sweep(" ROWS ", Tensor ids, int sweep_every, int seed) -> ()");
  m.def("row_gradient(Tensor grad, Tensor target) -> Tensor");
  m.def("backward(Tensor grad, Tensor scale, int type) -> Tensor");
  m.def("scale_gradient(Tensor(a!) grad, Tensor scale) -> ()");
  m.def("record(Tensor(a!) visits, Tensor(b!) sums, Tensor(c!) forgetting, Tensor(d!) was_correct, Tensor ids, "
        "Tensor statistics) -> ()");
  m.def("advance(Tensor(a!) within, Tensor(b!) tail, Tensor(c!) steps, Tensor lr, float momentum, float weight_decay, "
        "bool nesterov, bool folded, Tensor? skip) -> ()");
}

IMPLEMENT(LIBRARY, DEVICE, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("forward_update", TORCH_BOX(&forward_update));
  m.impl("update_rows", TORCH_BOX(&update_rows));
  m.impl("read_rows", TORCH_BOX(&read_rows));
  m.impl("sweep", TORCH_BOX(&sweep));
  m.impl("row_gradient", TORCH_BOX(&row_gradient));
  m.impl("backward", TORCH_BOX(&backward));
  m.impl("scale_gradient", TORCH_BOX(&scale_gradient));
  m.impl("record", TORCH_BOX(&record));
  m.impl("advance", TORCH_BOX(&advance));
}

}  // namespace fastac::cuda::ops
