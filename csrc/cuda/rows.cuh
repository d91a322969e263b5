// The kernels beside the loss: gradients into rows, rows as they are now, the clock, dynamics, a batch's repeated ids.
#pragma once
#include "state.cuh"
#include "workspace.cuh"

namespace fastac::cuda {

// Which position and how a block's threads are shared out: teams of `threads` threads, one a position.
FASTAC_DEVICE int64_t team_position(int threads) {
  return ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) >> log_two(threads);
}

// --- repeated ids of a large batch: exactly the positions that share their id with another are marked ---

// Any of an id's positions may win its slot; whichever it is, mark_repeats marks the same ones.
__global__ void mark_ids(const Ids ids, int64_t num_rows, int32_t* slot, uint8_t* contested) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= ids.count) return;
  contested[i] = 0;
  const int64_t id = ids.at(i);
  if (id >= 0 && id < num_rows) slot[id] = (int32_t)i;
}

__global__ void mark_repeats(const Ids ids, int64_t num_rows, const int32_t* slot, uint8_t* contested) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= ids.count) return;
  const int64_t id = ids.at(i);
  if (id < 0 || id >= num_rows || slot[id] == (int32_t)i) return;
  contested[i] = 1;
  contested[slot[id]] = 1;
}

// --- gradients into rows ---

template <bool kMomentum, bool kWide>
struct UpdateRow {
  const Update& u;
  const Workspace& w;
  Team& team;
  const Ids& ids;
  const Columns<kWide> columns;

  FASTAC_DEVICE UpdateRow(const Update& u_, const Workspace& w_, Team& team_, const Ids& ids_)
      : u(u_), w(w_), team(team_), ids(ids_), columns(u_.rows.columns, team_.threads, team_.rank) {}

  FASTAC_DEVICE void load_scaled(int64_t i, int begin, float (&g)[1][kItems]) const {
    const float scale = u.scale ? u.scale[i * u.scale_stride] : 1.0f;
    load(u.grad + row_offset(i, u.rows.columns), begin, columns, 0, g);
#pragma unroll
    for (int k = 0; k < kItems; ++k) g[0][k] *= scale;
  }

  // Whether the gradient of position i is finite.
  FASTAC_DEVICE bool finite(int64_t i) {
    float bad[1] = {0};
#pragma unroll (kWide ? 4 : 1)
    for (int begin = 0; begin < columns.count; begin += columns.turn) {
      float g[1][kItems];
      load_scaled(i, begin, g);
#pragma unroll
      for (int k = 0; k < kItems; ++k) bad[0] += g[0][k] * 0.0f;
    }
    team.all(Sum{}, bad);
    return bad[0] == 0;
  }

  // first: where id comes first; alone: it comes nowhere else.
  FASTAC_DEVICE void run(int64_t first, int64_t id, bool alone) {
    const auto next = [&](int64_t i) { return alone ? -1 : ids.find(team, id, i + 1, ids.count); };
    const Coefficients now(u.rows.clock, u.rows.last[id]);
    bool writes = false;
    for (int64_t i = first; i >= 0; i = next(i)) {
      const bool good = finite(i);
      writes |= good;
      if (!alone && team.rank == 0) w.numbers[i].write = good ? 1.0f : 0.0f;
    }
    if (!writes) return;
    team.sync();  // before the row is written, all of the team have read `last`
    const Step step(u.sgd, u.rows.clock, kMomentum);
    const int64_t steps = *u.rows.clock.steps + 1;
    const uint32_t hash = hash_row(u.sgd.seed, steps, id);
    const Storage<kMomentum> row(u.rows, id);
    for (int begin = 0; begin < columns.count; begin += columns.turn) {
      float sum[kItems] = {}, a[1][kItems], b[1][kItems] = {};
      row.load_stored(begin, columns, a, b);
      for (int64_t i = first; i >= 0; i = next(i)) {
        if (!alone && w.numbers[i].write == 0) continue;
        float g[1][kItems];
        load_scaled(i, begin, g);
#pragma unroll
        for (int k = 0; k < kItems; ++k) sum[k] += g[0][k];
      }
      if (u.gauge && columns.first == 0 && begin == 0) sum[0] = 0;
      catch_up<kMomentum>(now, a[0], b[0]);
      take_step<kMomentum>(step, a[0], b[0], sum);
      row.store_state(begin, columns, a[0], b[0], hash, step.write_momentum);
    }
    if (team.rank == 0) u.rows.last[id] = (int32_t)steps;
  }
};

template <bool kMomentum, bool kWide>
__global__ void __launch_bounds__(kMaxThreads, 1)
    update_kernel(const __grid_constant__ Update u, const __grid_constant__ Workspace w, int threads, bool contested) {
  if (u.skip && *u.skip) return;
  FASTAC_SHARED(Exchange, exchange);
  const int64_t i = team_position(threads);
  if (i >= u.batch) return;
  const int64_t id = u.ids[i];
  if (id < 0 || id >= u.rows.num_rows) return;
  Team team(threads, 1, &exchange);
  const Ids ids{u.ids, false, u.batch, contested ? w.contested : nullptr};
  const Role role = role_of(team, ids, i, id);
  if (role != Role::leaves) UpdateRow<kMomentum, kWide>(u, w, team, ids).run(i, id, role == Role::alone);
}

// --- rows as they are now ---

template <bool kMomentum, bool kWide>
__global__ void __launch_bounds__(kMaxThreads, 1)
    read_kernel(const __grid_constant__ Rows rows, const int64_t* ids, int64_t n, float* out, int threads) {
  const int64_t i = team_position(threads);
  if (i >= n) return;
  const Columns<kWide> columns(rows.columns, threads, (int)threadIdx.x & (threads - 1));
  const Coefficients now(rows.clock, rows.last[ids[i]]);
  const Storage<kMomentum> row(rows, ids[i]);
  for (int begin = 0; begin < columns.count; begin += columns.turn) {
    float a[1][kItems], b[1][kItems];
    row.load_stored(begin, columns, a, b);
    catch_up<kMomentum>(now, a[0], b[0]);
    store(out + row_offset(i, rows.columns), begin, columns, a[0]);
  }
}

template <bool kMomentum, bool kWide>
__global__ void __launch_bounds__(kMaxThreads, 1)
    sweep_kernel(const __grid_constant__ Rows rows, const int64_t* ids, int64_t n, int64_t sweep_every, int64_t seed,
                 int threads) {
  const int64_t i = team_position(threads);
  if (i >= n) return;
  const int64_t id = ids[i], steps = *rows.clock.steps, last = rows.last[id];
  if (steps - last < sweep_every) return;
  const Team team(threads, 1, nullptr);
  const Columns<kWide> columns(rows.columns, threads, team.rank);
  const Coefficients now(rows.clock, last);
  const Storage<kMomentum> row(rows, id);
  const uint32_t hash = hash_row(seed, steps, id);
  team.sync();  // all have read `last`
  for (int begin = 0; begin < columns.count; begin += columns.turn) {
    float a[1][kItems], b[1][kItems];
    row.load_stored(begin, columns, a, b);
    catch_up<kMomentum>(now, a[0], b[0]);
    row.store_state(begin, columns, a[0], b[0], hash, true);
  }
  if (team.rank == 0) rows.last[id] = (int32_t)steps;
}

// --- the logits' gradient ---

template <class In, class Out>
__global__ void scale_kernel(const __grid_constant__ Scale s) {
  const bool half = s.out_type == Type::float16, one = s.scale_stride == 0 && *s.scale == 1;
  if (one && s.in == s.out) return;
  const int64_t count = s.rows * s.columns, stride = (int64_t)gridDim.x * blockDim.x * kItems;
  const bool wide = ((uintptr_t)s.in | (uintptr_t)s.out) % 16 == 0;
  for (int64_t k = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * kItems; k < count; k += stride) {
    const In* in = (const In*)s.in + k;
    Out* out = (Out*)s.out + k;
    const bool full = wide && k + kItems <= count;
    float v[kItems];
    Out rounded[kItems];
    if (full) unpack(in, half, v);
    int64_t row = k / s.columns, column = k - row * s.columns;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (k + i >= count) break;
      if (!full) v[i] = to_float(in[i], half);
      round_to(v[i] * s.scale[row * s.scale_stride], half, rounded[i]);
      if (!full) out[i] = rounded[i];
      if (++column == s.columns) column = 0, ++row;
    }
    if (full) pack(out, rounded);
  }
}

// AC2's part of it.
__global__ void row_gradient_kernel(const float* grad, const int64_t* target, int64_t n, int64_t classes, float* out) {
  const int64_t i = team_position(1);
  if (i >= n) return;
  const int64_t y = target[i];
  out[i] = y >= 0 && y < classes ? grad[row_offset(i, classes) + y] : 0.0f;
}

// --- training dynamics ---

__global__ void record_kernel(const Accumulators a, const Ids ids, int64_t num_samples, const float* statistics) {
  const int64_t i = team_position(1);
  if (i >= ids.count) return;
  const int64_t id = ids.at(i);
  if (id < 0 || id >= num_samples) return;
  const Team team(1, 1, nullptr);
  const Role role = role_of(team, ids, i, id);
  if (role == Role::leaves) return;
  for (int64_t j = i; j >= 0; j = role == Role::alone ? -1 : ids.find(team, id, j + 1, ids.count))
    add_visit(a, id, statistics + 5 * j);
}

// --- the clock ---

struct Matrix {
  double m[4];
};

// M of one step; see fastac.clock.step_matrix.
FASTAC_DEVICE Matrix step_matrix(double lr, const Sgd& sgd) {
  const double momentum = sgd.momentum, decay = sgd.weight_decay;
  if (sgd.folded || sgd.momentum == 0) return {{1 - lr * (sgd.folded ? decay / (1 - momentum) : decay), 0, 0, 1}};
  if (sgd.nesterov) return {{1 - lr * (decay * (1 + momentum)), -lr * momentum * momentum, decay, momentum}};
  return {{1 - lr * decay, -lr * momentum, decay, momentum}};
}

FASTAC_DEVICE void put(double* p, const Matrix& x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) p[i] = x.m[i];
}

// p becomes x · p.
FASTAC_DEVICE void extend(double* p, const Matrix& x) {
  put(p, {{x.m[0] * p[0] + x.m[1] * p[2], x.m[0] * p[1] + x.m[1] * p[3], x.m[2] * p[0] + x.m[3] * p[2],
           x.m[2] * p[1] + x.m[3] * p[3]}});
}

// One block. See StepClock.advance: the block of steps that is being filled is extended, and all tails; entries that
// the next step begins with are the identity.
__global__ void advance_kernel(const Clock clock, const Sgd sgd, const bool* skip) {
  if (skip && *skip) return;
  const int64_t size = clock.window / clock.blocks, steps = *clock.steps, next = steps + 1;
  const Matrix step = step_matrix(*clock.lr, sgd), identity{{1, 0, 0, 1}};
  const int64_t begin = steps / size * size % clock.window, now = next % clock.window;
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x)
    if (begin + i != now) extend(clock.within + 4 * (begin + i), step);
  const int64_t current = steps / size % clock.blocks, following = next / size % clock.blocks;
  for (int64_t i = threadIdx.x; i < clock.blocks; i += blockDim.x) {
    if (i == current || i == following) put(clock.tail + 4 * i, identity);
    else extend(clock.tail + 4 * i, step);
  }
  __syncthreads();  // all have read the number of steps
  if (threadIdx.x == 0) {
    put(clock.within + 4 * now, identity);
    *clock.steps = next;
  }
}

// --- the loss of a batch, always added in the same order ---

FASTAC_DEVICE double block_sum_double(double v) {
  struct Partial { double v[kMaxThreads]; };
  FASTAC_SHARED(Partial, partial);
  partial.v[threadIdx.x] = v;
  __syncthreads();
  for (int half = kMaxThreads / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) partial.v[threadIdx.x] += partial.v[threadIdx.x + half];
    __syncthreads();
  }
  return partial.v[0];
}

// Of kMaxThreads threads. Each block adds up its slice of n values into out.
__global__ void sum_losses(const float* values, int64_t n, double* out) {
  const int64_t each = (n + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * each;
  const int64_t end = begin + each < n ? begin + each : n;
  double v = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kMaxThreads) v += values[i];
  v = block_sum_double(v);
  if (threadIdx.x == 0) out[blockIdx.x] = v;
}

// One block: the loss from n values, over the normaliser for the mean, where there is one (0 of an empty batch).
template <class T>
__global__ void finish_loss(const T* values, int n, bool mean, const float* normaliser, float* loss) {
  double v = 0;
  for (int i = (int)threadIdx.x; i < n; i += kMaxThreads) v += values[i];
  v = block_sum_double(v);
  if (threadIdx.x == 0) *loss = (float)(mean ? v / (normaliser ? *normaliser : 0.0) : v);
}

}  // namespace fastac::cuda
