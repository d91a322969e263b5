// The functions of kernels.h: layouts, workspaces and launches.
#include <type_traits>

#include "batch.cuh"
#include "rows.cuh"

namespace fastac::cuda {
namespace {

int power_of_two(int64_t least) {
  int p = 1;
  while (p < least) p *= 2;
  return p;
}

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool aligned(const void* p) { return (uintptr_t)p % 16 == 0; }

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream,
                   Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((unsigned)blocks);
  config.blockDim = dim3((unsigned)threads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Threads of a row that is streamed: a turn for all of it up to a warp's, then up to four turns each.
int streaming_threads(int64_t columns) {
  const int enough = power_of_two(ceil_divide(columns, kItems)), few = power_of_two(ceil_divide(columns, 4 * kItems));
  const int threads = enough <= kWarp ? enough : few < kWarp ? kWarp : few;
  return threads < kMaxThreads ? threads : kMaxThreads;
}

// Blocks and their threads for n teams.
struct Grid {
  int64_t blocks;
  int threads;
};

Grid grid_of(int64_t n, int team) {
  const int threads = team > kWarp ? team : kThreads;
  return {ceil_divide(n * team, threads), threads};
}

// Calls f(momentum, wide) with std::true_type or std::false_type for each.
template <class F>
cudaError_t with_storage(const Rows& rows, bool wide, F f) {
  const std::true_type yes;
  const std::false_type no;
  if (rows.momentum) return wide ? f(yes, yes) : f(yes, no);
  return wide ? f(no, yes) : f(no, no);
}

bool wide_rows(const Rows& rows) {
  return rows.columns % kItems == 0 && aligned(rows.alpha) && aligned(rows.momentum);
}

bool needs_marks(int64_t batch, int team) {
  const int64_t each = (int64_t)kScannedEach * (team < kWarp ? team : kWarp);
  return batch > kScanned || batch > each;
}

cudaError_t mark(const Ids& ids, int64_t num_rows, const Workspace& w, cudaStream_t stream) {
  const int64_t blocks = ceil_divide(ids.count, kThreads);
  const cudaError_t error = launch(mark_ids, blocks, kThreads, stream, ids, num_rows, w.slot, w.contested);
  if (error != cudaSuccess) return error;
  return launch(mark_repeats, blocks, kThreads, stream, ids, num_rows, (const int32_t*)w.slot, w.contested);
}

Plan plan_of(const Forward& f) {
  Plan plan{1, 1, 1, false, false, 0};
  const int64_t block = 4 * kItems * kMaxThreads;  // columns that a block's registers hold
  if (f.classes <= kItems * kWarp) {
    plan.threads = power_of_two(ceil_divide(f.classes, kItems));
  } else if (f.classes <= block) {
    plan.chunks = 4;
    plan.threads = power_of_two(ceil_divide(f.classes, 4 * kItems));
  } else {
    plan.threads = kMaxThreads;
    const bool cluster = f.classes <= block * kMaxCluster;  // where the device has them, see cluster_fits
    plan.blocks = cluster ? power_of_two(ceil_divide(f.classes, block)) : 1;
    plan.chunks = cluster ? 4 : 0;
  }
  const int64_t size = f.logits_type == Type::float32 ? 4 : 2;
  plan.wide = f.classes % kItems == 0 && f.logits_stride * size % 16 == 0 && aligned(f.logits) && aligned(f.grad) &&
              (f.ac2 || f.rows.type == Type::none || wide_rows(f.rows));
  plan.contested = f.update && needs_marks(f.batch, plan.threads);
  if (f.reduction == Reduction::mean && f.batch > kScanned) {
    const int64_t partials = ceil_divide(f.batch, kScanned);
    plan.partials = (int)(partials < kMaxPartials ? partials : kMaxPartials);
  }
  return plan;
}

// One share of the normaliser of a large batch a block.
__global__ void sum_weights(const __grid_constant__ Forward f, float* partials) {
  const int64_t each = (f.batch + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * each;
  const int64_t end = begin + each < f.batch ? begin + each : f.batch;
  float sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) sum += kept_weight(f, i);
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

template <class M>
cudaError_t launch_typed(const Forward& f, const Plan& plan, const Workspace& w, cudaStream_t stream) {
  if (f.ac2 || f.rows.type == Type::none) return launch_loss<M, Alpha::none>(f, plan, w, stream);
  return f.rows.momentum ? launch_loss<M, Alpha::momentum>(f, plan, w, stream)
                         : launch_loss<M, Alpha::plain>(f, plan, w, stream);
}

cudaError_t reduce_loss(const Forward& f, const Workspace& w, cudaStream_t stream) {
  const bool mean = f.reduction == Reduction::mean;
  const float* normaliser = f.batch > 0 ? w.normaliser : nullptr;
  const int64_t once = 16 * kMaxThreads;
  if (f.batch <= once)
    return launch(finish_loss<float>, 1, kMaxThreads, stream, (const float*)w.row_loss, (int)f.batch, mean, normaliser,
                  f.loss);
  const int64_t wanted = ceil_divide(f.batch, once), blocks = wanted < kMaxLossPartials ? wanted : kMaxLossPartials;
  const cudaError_t error =
      launch(sum_losses, blocks, kMaxThreads, stream, (const float*)w.row_loss, f.batch, w.losses);
  if (error != cudaSuccess) return error;
  return launch(finish_loss<double>, 1, kMaxThreads, stream, (const double*)w.losses, (int)blocks, mean, normaliser,
                f.loss);
}

cudaError_t run_loss(const Forward& f, const Plan& plan, const Workspace& w, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (plan.contested) error = mark({f.index, f.index_int32, f.batch, nullptr}, f.num_samples, w, stream);
  if (error == cudaSuccess && plan.partials > 0)
    error = launch(sum_weights, plan.partials, kMaxThreads, stream, f, w.partials);
  if (error != cudaSuccess) return error;
  return f.logits_type == Type::float32 ? launch_typed<float>(f, plan, w, stream)
                                        : launch_typed<Half>(f, plan, w, stream);
}

}  // namespace

size_t workspace_bytes(int64_t batch, int64_t num_rows, bool updates) {
  return Workspace(nullptr, batch, num_rows, updates).bytes;
}

cudaError_t forward(const Forward& f, cudaStream_t stream) {
  const Workspace w(f.workspace, f.batch, f.num_samples, f.update);
  if (f.batch > 0) {
    const cudaError_t error = run_loss(f, plan_of(f), w, stream);
    if (error != cudaSuccess) return error;
  }
  return f.reduction == Reduction::none ? cudaSuccess : reduce_loss(f, w, stream);
}

cudaError_t update_rows(const Update& u, cudaStream_t stream) {
  if (u.batch == 0) return cudaSuccess;
  const Workspace w(u.workspace, u.batch, u.rows.num_rows, true);
  const int team = streaming_threads(u.rows.columns);
  const bool contested = needs_marks(u.batch, team);
  if (contested) {
    const cudaError_t error = mark({u.ids, false, u.batch, nullptr}, u.rows.num_rows, w, stream);
    if (error != cudaSuccess) return error;
  }
  const Grid grid = grid_of(u.batch, team);
  return with_storage(u.rows, wide_rows(u.rows) && aligned(u.grad), [&](auto momentum, auto wide) {
    return launch(update_kernel<decltype(momentum)::value, decltype(wide)::value>, grid.blocks, grid.threads, stream, u,
                  w, team, contested);
  });
}

cudaError_t read_rows(const Rows& rows, const int64_t* ids, int64_t n, float* out, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const int team = streaming_threads(rows.columns);
  const Grid grid = grid_of(n, team);
  return with_storage(rows, wide_rows(rows) && aligned(out), [&](auto momentum, auto wide) {
    return launch(read_kernel<decltype(momentum)::value, decltype(wide)::value>, grid.blocks, grid.threads, stream,
                  rows, ids, n, out, team);
  });
}

cudaError_t sweep(const Rows& rows, const int64_t* ids, int64_t n, int64_t sweep_every, int64_t seed,
                  cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const int team = streaming_threads(rows.columns);
  const Grid grid = grid_of(n, team);
  return with_storage(rows, wide_rows(rows), [&](auto momentum, auto wide) {
    return launch(sweep_kernel<decltype(momentum)::value, decltype(wide)::value>, grid.blocks, grid.threads, stream,
                  rows, ids, n, sweep_every, seed, team);
  });
}

cudaError_t scale(const Scale& s, cudaStream_t stream) {
  const int64_t count = s.rows * s.columns, blocks = ceil_divide(count, (int64_t)kMaxThreads * kItems);
  if (count == 0) return cudaSuccess;
  const int64_t most = 1 << 16, grid = blocks < most ? blocks : most;
  if (s.in_type != Type::float32) return launch(scale_kernel<Half, Half>, grid, kMaxThreads, stream, s);
  if (s.out_type == Type::float32) return launch(scale_kernel<float, float>, grid, kMaxThreads, stream, s);
  return launch(scale_kernel<float, Half>, grid, kMaxThreads, stream, s);
}

cudaError_t row_gradient(const float* grad, const int64_t* target, int64_t n, int64_t classes, float* out,
                         cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return launch(row_gradient_kernel, ceil_divide(n, kThreads), kThreads, stream, grad, target, n, classes, out);
}

cudaError_t record(const Accumulators& accumulators, const int64_t* ids, const float* statistics, int64_t n,
                   int64_t num_samples, void* workspace, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const Workspace w(workspace, n, num_samples, true);
  Ids batch{ids, false, n, nullptr};
  if (needs_marks(n, 1)) {
    const cudaError_t error = mark(batch, num_samples, w, stream);
    if (error != cudaSuccess) return error;
    batch.contested = w.contested;
  }
  return launch(record_kernel, ceil_divide(n, kThreads), kThreads, stream, accumulators, batch, num_samples,
                statistics);
}

cudaError_t advance(const Clock& clock, const Sgd& sgd, const bool* skip, cudaStream_t stream) {
  return launch(advance_kernel, 1, 512, stream, clock, sgd, skip);
}

}  // namespace fastac::cuda
