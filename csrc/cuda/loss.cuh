// The one pass over a batch: loss, gradient by the logits, training dynamics, and with kUpdate the rows' step.
//
// A row stays in registers (kChunks turns of kItems columns a thread), spread over part of a warp, a warp, a block or
// a cluster of blocks. Rows that are wider than that (kChunks 0), and the rows of an id that a batch holds several
// times, are streamed: once for the sums, once more, out of the caches, for gradient and step.
#pragma once
#include <type_traits>

#include "batch.cuh"

namespace fastac::cuda {

// Softmax sums of one row's training logits z, relative to `top`, without y's own term, so that 1 − p_y does not
// cancel; with statistics those of the network's logits m too, relative to `highest`.
struct Sums {
  float top = kLeast, rest = 0, e_y = 0, z_y = 0, bad = 0;
  float smooth = 0, weights = 0;        // Σ w (top − z), Σ w
  float others = kLeast, m_y = kLeast;  // the largest of m but y's, and y's; the larger is `highest`
  float m_rest = 0, m_squares = 0;      // Σ e of all m but y's, and of their squares
};

template <class M, Alpha kAlphas, bool kUpdate, bool kWide>
struct LossRow {
  using G = std::conditional_t<kUpdate, M, float>;
  static constexpr bool kAlpha = kAlphas != Alpha::none, kMomentum = kAlphas == Alpha::momentum;
  using State = Storage<kMomentum>;

  const Forward& f;
  const Workspace& w;
  Team& team;
  const Columns<kWide> columns;
  const bool half;     // see Half
  const float normaliser;
  const float spread;  // of label smoothing

  FASTAC_DEVICE LossRow(const Forward& f_, const Workspace& w_, Team& team_, float normaliser_)
      : f(f_), w(w_), team(team_),
        columns(f_.classes, team_.threads * team_.blocks, team_.block * team_.threads + team_.rank),
        half(f_.logits_type == Type::float16), normaliser(normaliser_),
        spread(f_.label_smoothing / (float)f_.classes) {}

  FASTAC_DEVICE const M* logits(int64_t i) const { return (const M*)f.logits + row_offset(i, f.logits_stride); }
  FASTAC_DEVICE G* grad(int64_t i) const { return (G*)f.grad + row_offset(i, f.classes); }
  // 0 beyond the row.
  FASTAC_DEVICE float weight(int k) const { return k >= columns.count ? 0.0f : f.weight ? f.weight[k] : 1.0f; }
  FASTAC_DEVICE bool smooths() const { return f.label_smoothing > 0; }
  FASTAC_DEVICE bool observes() const { return f.statistics || (kUpdate && f.accumulators.visits); }

  // AC2's α of an id.
  FASTAC_DEVICE float shift_y(int64_t id) const {
    return !kAlpha && f.rows.type != Type::none && id >= 0 ? read_number(f.rows, id) : 0.0f;
  }

  // --- one thread's part of the sums ---

  // own: columns.item_of(y, begin). m: the network's logits, n turns of them, kLeast beyond the row. Sums are relative
  // to the largest that the thread has seen.
  template <int n>
  FASTAC_DEVICE void observe_logits(Sums& s, const float (&m)[n][kItems], int own) const {
    const float before = fmaxf(s.others, s.m_y);
#pragma unroll
    for (int t = 0; t < n; ++t)
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const bool at_y = t * kItems + i == own;
        s.others = fmaxf(s.others, at_y ? kLeast : m[t][i]);
        s.m_y = fmaxf(s.m_y, at_y ? m[t][i] : kLeast);
      }
    const float highest = fmaxf(s.others, s.m_y);
    rescale_logits(s, before, highest);
#pragma unroll
    for (int t = 0; t < n; ++t)
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const float e = t * kItems + i == own ? 0.0f : expf(m[t][i] - highest);
        s.m_rest += e;
        s.m_squares += e * e;
      }
  }

  FASTAC_DEVICE static void rescale_logits(Sums& s, float before, float after) {
    const float factor = expf(before - after);
    s.m_rest *= factor;
    s.m_squares *= factor * factor;
  }

  FASTAC_DEVICE static void rescale(Sums& s, float before, float after) {
    const float factor = expf(before - after);
    s.rest *= factor;
    s.e_y *= factor;
    s.smooth += s.weights > 0 ? s.weights * (after - before) : 0.0f;
    s.top = after;
  }

  // z: n turns of training logits, which become their exponentials.
  template <int n>
  FASTAC_DEVICE void add_exponentials(Sums& s, int begin, float (&z)[n][kItems], int own) const {
    if (smooths()) {
#pragma unroll
      for (int t = 0; t < n; ++t)
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          const float w_k = weight(columns.at(begin + t * columns.turn, i));
          s.weights += w_k;
          s.smooth += w_k > 0 ? w_k * (s.top - z[t][i]) : 0.0f;
        }
    }
#pragma unroll
    for (int t = 0; t < n; ++t)
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const bool at_y = t * kItems + i == own;
        if (at_y) s.z_y = z[t][i];
        z[t][i] = expf(z[t][i] - s.top);
        if (at_y) s.e_y = z[t][i];
        s.rest += at_y ? 0.0f : z[t][i];
      }
  }

  // --- from all threads' parts to the position's results ---

  FASTAC_DEVICE void share_tops(Sums& s) {
    const float top = s.top, highest = fmaxf(s.others, s.m_y);
    if (observes()) {
      float v[3] = {s.top, s.others, s.m_y};
      team.all(Max{}, v);
      s.others = v[1], s.m_y = v[2];
      rescale_logits(s, highest, fmaxf(s.others, s.m_y));
      rescale(s, top, v[0]);
    } else {
      float v[1] = {s.top};
      team.all(Max{}, v);
      rescale(s, top, v[0]);
    }
  }

  FASTAC_DEVICE void share_sums(Sums& s) {
    float v[4] = {s.rest, s.e_y, s.z_y, s.bad};
    team.all(Sum{}, v);
    s.rest = v[0], s.e_y = v[1], s.z_y = v[2], s.bad = v[3];
    if (smooths()) {
      float u[2] = {s.smooth, s.weights};
      team.all(Sum{}, u);
      s.smooth = u[0], s.weights = u[1];
    }
    if (observes()) {
      float u[2] = {s.m_rest, s.m_squares};
      team.all(Sum{}, u);
      s.m_rest = u[0], s.m_squares = u[1];
    }
  }

  // Writes the position's loss, id and statistics.
  FASTAC_DEVICE Numbers finish(const Position& p, const Sums& s) const {
    const float w_y = f.weight ? f.weight[p.y] : 1.0f, hard = (1 - f.label_smoothing) * w_y;
    const float q_y = hard + spread * w_y, q_others = smooths() ? spread * (s.weights - w_y) : 0.0f;
    // No finite training logit: PyTorch's answer is NaN.
    const float total = s.top > kLeast ? s.rest + s.e_y : NAN, inverse = 1 / (total * normaliser);
    // p_k Σq − q_k; at y in the form where nothing cancels when p_y is close to 1.
    Numbers n{s.top, (q_y + q_others) * inverse, (s.e_y * q_others - q_y * s.rest) * inverse, 0};
    const bool usable = p.kept && s.bad == 0;
    n.write = usable && isfinite(n.scale * f.grad_output) && isfinite(n.grad_y * f.grad_output) ? 1.0f : 0.0f;
    if (!p.kept) n.scale = n.grad_y = 0;
    if (team.leads()) {
      const float log_total = s.z_y == s.top ? log1pf(s.rest) : logf(total);
      float loss = hard > 0 ? hard * (log_total + (s.top - s.z_y)) : 0.0f;
      if (smooths()) loss += spread * (s.weights * log_total + s.smooth);
      (f.reduction == Reduction::none ? f.loss : w.row_loss)[p.i] = p.kept ? loss : 0.0f;
      if (f.ids) f.ids[p.i] = usable ? p.id : -1;
      if (observes()) observe(p, s, usable);
    }
    return n;
  }

  FASTAC_DEVICE void observe(const Position& p, const Sums& s, bool usable) const {
    const float highest = fmaxf(s.others, s.m_y), e_y = expf(s.m_y - highest), total = s.m_rest + e_y;
    const float log_total = s.m_y >= s.others ? log1pf(s.m_rest) : logf(total);
    const float v[5] = {s.m_y - s.others, e_y / total, s.m_y >= s.others ? 1.0f : 0.0f,
                        sqrtf(s.m_squares + s.m_rest * s.m_rest) / total, log_total + (highest - s.m_y)};
    if (f.statistics) {
#pragma unroll
      for (int i = 0; i < 5; ++i) f.statistics[5 * p.i + i] = v[i];
    }
    if (kUpdate && f.accumulators.visits && usable) add_visit(f.accumulators, p.id, v);
  }

  // The gradient of one turn, out of its exponentials; it is written, and what is left in e is α's part of it.
  FASTAC_DEVICE void write_gradient(const Position& p, const Numbers& n, int begin, float (&e)[kItems], int own) const {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      float g = e[i] * n.scale;
      if (smooths()) g -= weight(columns.at(begin, i)) * (spread / normaliser);
      if (i == own) g = n.grad_y;
      e[i] = p.kept ? g : 0.0f;
    }
    store_rounded(grad(p.i), begin, columns, e, half);
    if constexpr (kUpdate) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) e[i] *= f.grad_output;
      if (columns.first == 0 && begin == 0) e[0] = 0;  // the gauge
    }
  }

  // --- a row in registers ---

  template <int kChunks>
  FASTAC_DEVICE void resident(const Position& p) {
    if (!p.kept && !observes()) return ignore(p);
    float z[kChunks][kItems], a[kAlpha ? kChunks : 1][kItems], b[kMomentum ? kChunks : 1][kItems];
    load(logits(p.i), 0, columns, kLeast, z, half);
    if constexpr (kAlpha) load_row(p, a, b);
    const int own = columns.item_of(p.y, 0);
    Sums s;
    if (observes()) observe_logits(s, z, own);
    const float shift = shift_y(p.kept ? p.id : -1);
    if constexpr (kAlpha) training_logits(s, z, a, shift, own);
    else training_logits(s, z, z, shift, own);
    share_tops(s);
    add_exponentials(s, 0, z, own);
    share_sums(s);
    const Numbers n = finish(p, s);
#pragma unroll
    for (int t = 0; t < kChunks; ++t) write_gradient(p, n, t * columns.turn, z[t], own - t * kItems);
    if constexpr (kUpdate) {
      if (n.write == 0) return;
      if constexpr (kAlpha) step_row(p.id, z, a, b);
      else step_number(p.id, n.grad_y * f.grad_output);
    }
  }

  // The row's state now; zeros where the position is not kept, which may not look at a row that others write.
  template <int n>
  FASTAC_DEVICE void load_row(const Position& p, float (&a)[n][kItems], float (&b)[kMomentum ? n : 1][kItems]) const {
    if (!p.kept) {
#pragma unroll
      for (int t = 0; t < n; ++t)
#pragma unroll
        for (int i = 0; i < kItems; ++i) a[t][i] = b[kMomentum ? t : 0][i] = 0;
      return;
    }
    State(f.rows, p.id).load_stored(0, columns, a, b);
    const Coefficients now(f.rows.clock, f.rows.last[p.id]);
#pragma unroll
    for (int t = 0; t < n; ++t) catch_up<kMomentum>(now, a[t], b[kMomentum ? t : 0]);
  }

  // z: the network's logits, n turns of them; α is added, and the largest noted.
  template <int n>
  FASTAC_DEVICE void training_logits(Sums& s, float (&z)[n][kItems], const float (&a)[n][kItems], float shift,
                                     int own) const {
#pragma unroll
    for (int t = 0; t < n; ++t)
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        s.bad += z[t][i] * 0.0f;
        if constexpr (kAlpha) z[t][i] += a[t][i];
        else z[t][i] += t * kItems + i == own ? shift : 0.0f;
        s.top = fmaxf(s.top, z[t][i]);
      }
  }

  template <int n>
  FASTAC_DEVICE void step_row(int64_t id, const float (&g)[n][kItems], float (&a)[n][kItems],
                              float (&b)[kMomentum ? n : 1][kItems]) const {
    const Step step(f.sgd, f.rows.clock, kMomentum);
    const int64_t now = *f.rows.clock.steps + 1;
    const uint32_t hash = hash_row(f.sgd.seed, now, id);
    const State row(f.rows, id);
#pragma unroll
    for (int t = 0; t < n; ++t) {
      take_step<kMomentum>(step, a[t], b[kMomentum ? t : 0], g[t]);
      row.store_state(t * columns.turn, columns, a[t], b[kMomentum ? t : 0], hash, step.write_momentum);
    }
    if (team.leads()) f.rows.last[id] = (int32_t)now;
  }

  // A position that has no loss and of which nothing is to be observed.
  FASTAC_DEVICE void ignore(const Position& p) const {
    const float zeros[kItems] = {};
    for (int begin = 0; begin < columns.count; begin += columns.turn)
      store_rounded(grad(p.i), begin, columns, zeros, half);
    if (!team.leads()) return;
    (f.reduction == Reduction::none ? f.loss : w.row_loss)[p.i] = 0;
    if (f.ids) f.ids[p.i] = -1;
  }

  // --- a row that is streamed, and an id that comes several times ---

  // The sums of one position; every thread of the team gets the same.
  FASTAC_DEVICE Sums stream_sums(const Position& p, const Coefficients& now, float shift) {
    Sums s;
    for (int begin = 0; begin < columns.count; begin += columns.turn) {
      float z[1][kItems], a[1][kItems], b[1][kItems];
      load(logits(p.i), begin, columns, kLeast, z, half);
      if constexpr (kAlpha) stream_row(p, now, begin, a, b);
      const int own = columns.item_of(p.y, begin);
      if (observes()) observe_logits(s, z, own);
      const float before = s.top;
      training_logits(s, z, a, shift, own);
      rescale(s, before, s.top);
      add_exponentials(s, begin, z, own);
    }
    share_tops(s);
    share_sums(s);
    return s;
  }

  FASTAC_DEVICE void stream_row(const Position& p, const Coefficients& now, int begin, float (&a)[1][kItems],
                                float (&b)[1][kItems]) const {
#pragma unroll
    for (int i = 0; i < kItems; ++i) a[0][i] = b[0][i] = 0;
    if (!p.kept) return;
    State(f.rows, p.id).load_stored(begin, columns, a, b);
    catch_up<kMomentum>(now, a[0], b[0]);
  }

  // first: where the id comes first in the batch; alone: it comes nowhere else.
  FASTAC_DEVICE void stream(const Position& first, const Ids& ids, bool alone) {
    Coefficients now;
    if constexpr (kAlpha)
      if (first.id >= 0) now = Coefficients(f.rows.clock, f.rows.last[first.id]);
    const auto next = [&](int64_t i) { return alone ? -1 : ids.find(team, first.id, i + 1, ids.count); };
    const float shift = shift_y(first.id);
    bool writes = false;
    float sum_y = 0;  // AC2's gradient
    Numbers numbers{};
    for (int64_t i = first.i; i >= 0; i = next(i)) {
      const Position p(f, i, team.leads());
      numbers = finish(p, stream_sums(p, now, shift));
      if (numbers.write != 0) writes = true, sum_y += numbers.grad_y * f.grad_output;
      if (kUpdate && !alone && team.rank == 0) w.numbers[i] = numbers;
    }
    if (!alone) team.sync();
    stream_gradients(first, now, numbers, shift, alone, writes, next);
    if constexpr (kUpdate) {
      if (!writes) return;
      if constexpr (!kAlpha) step_number(first.id, sum_y);
      else if (team.leads()) f.rows.last[first.id] = (int32_t)(*f.rows.clock.steps + 1);
    }
  }

  // The second pass, turn by turn: all positions' gradients, and the row's step with their sum.
  template <class Next>
  FASTAC_DEVICE void stream_gradients(const Position& first, const Coefficients& now, const Numbers& only, float shift,
                                      bool alone, bool writes, Next next) {
    const int64_t step_number = kUpdate ? *f.rows.clock.steps + 1 : 0;
    const uint32_t hash = kUpdate && kAlpha ? hash_row(f.sgd.seed, step_number, first.id) : 0;
    for (int begin = 0; begin < columns.count; begin += columns.turn) {
      float sum[kItems] = {}, a[1][kItems], b[1][kItems];
      for (int64_t i = first.i; i >= 0; i = next(i)) {
        const Position p(f, i, false);
        const Numbers n = alone ? only : w.numbers[i];
        const int own = columns.item_of(p.y, begin);
        float z[1][kItems];
        load(logits(i), begin, columns, kLeast, z, half);
        if constexpr (kAlpha) stream_row(p, now, begin, a, b);
        Sums unused;
        training_logits(unused, z, a, shift, own);
#pragma unroll
        for (int k = 0; k < kItems; ++k) z[0][k] = expf(z[0][k] - n.top);
        write_gradient(p, n, begin, z[0], own);
#pragma unroll
        for (int k = 0; k < kItems; ++k) sum[k] += n.write != 0 ? z[0][k] : 0.0f;
      }
      if constexpr (kUpdate && kAlpha) {
        if (!writes) continue;
        const State row(f.rows, first.id);
        row.load_stored(begin, columns, a, b);
        catch_up<kMomentum>(now, a[0], b[0]);
        const Step step(f.sgd, f.rows.clock, kMomentum);
        take_step<kMomentum>(step, a[0], b[0], sum);
        row.store_state(begin, columns, a[0], b[0], hash, step.write_momentum);
      }
    }
  }

  FASTAC_DEVICE void step_number(int64_t id, float g) const {
    if (team.leads() && f.rows.type != Type::none) cuda::step_number(f.rows, f.sgd, id, g);
  }
};

// Blocks that a multiprocessor should hold at least. Rows of few classes need many threads to keep memory busy; four
// leave 128 registers a thread, five 96.
constexpr int least_blocks(int chunks, bool update, bool wide) { return chunks != 1 ? 1 : update && !wide ? 4 : 5; }

template <class M, Alpha kAlpha, int kChunks, bool kUpdate, bool kWide>
__global__ void __launch_bounds__(kChunks == 1 ? kThreads : kMaxThreads, least_blocks(kChunks, kUpdate, kWide))
    loss_kernel(const __grid_constant__ Forward f, const Plan plan, const __grid_constant__ Workspace w) {
  FASTAC_SHARED(Exchange, exchange);
  Team team(plan.threads, plan.blocks, &exchange);
  const float normaliser = batch_normaliser(f, w, plan.partials);
  const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) >> log_two(plan.threads * plan.blocks);
  if (i >= f.batch) return;
  const Position p(f, i, team.leads());
  const Ids ids{f.index, f.index_int32, f.batch, plan.contested ? w.contested : nullptr};
  const Role role = kUpdate ? role_of(team, ids, i, p.id) : Role::alone;
  if (role == Role::leaves) return;
  LossRow<M, kAlpha, kUpdate, kWide> row(f, w, team, normaliser);
  if constexpr (kChunks > 0) {
    if (role == Role::alone) return row.template resident<kChunks>(p);
  }
  if constexpr (kChunks == 0 || kUpdate) row.stream(p, ids, role == Role::alone);
}

// Whether a cluster of plan.blocks blocks can run. The code that the device runs decides, not the device: what was
// compiled for an older one has no cluster instructions (see device.cuh), and a newer one may still have to run it.
template <class Kernel>
bool cluster_fits(Kernel kernel, const Plan& plan, const cudaLaunchConfig_t& config) {
  cudaFuncAttributes code;
  if (cudaFuncGetAttributes(&code, kernel) != cudaSuccess || code.ptxVersion < 90) return false;
  if (plan.blocks <= kPortableCluster) return true;
  int fitting = 0;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
         cudaOccupancyMaxActiveClusters(&fitting, kernel, &config) == cudaSuccess && fitting > 0;
}

template <class M, Alpha kAlpha, int kChunks, bool kUpdate, bool kWide>
cudaError_t launch_layout(const Forward& f, const Plan& plan, const Workspace& w, cudaStream_t stream) {
  const auto kernel = loss_kernel<M, kAlpha, kChunks, kUpdate, kWide>;
  const int threads = plan.threads > kWarp ? plan.threads : kThreads;
  const int64_t blocks = (f.batch * plan.threads * plan.blocks + threads - 1) / threads;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = (unsigned)plan.blocks;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((unsigned)blocks);
  config.blockDim = dim3((unsigned)threads);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = plan.blocks > 1 ? 1 : 0;
  if constexpr (kChunks > 1) {
    if (plan.blocks > 1 && !cluster_fits(kernel, plan, config)) {
      const Plan streamed{plan.threads, 1, 0, plan.wide, plan.contested, plan.partials};
      return launch_layout<M, kAlpha, 0, kUpdate, kWide>(f, streamed, w, stream);
    }
  }
  return cudaLaunchKernelEx(&config, kernel, f, plan, w);
}

template <class M, Alpha kAlpha, int kChunks>
cudaError_t launch_layouts(const Forward& f, const Plan& plan, const Workspace& w, cudaStream_t stream) {
  if (f.update)
    return plan.wide ? launch_layout<M, kAlpha, kChunks, true, true>(f, plan, w, stream)
                     : launch_layout<M, kAlpha, kChunks, true, false>(f, plan, w, stream);
  return plan.wide ? launch_layout<M, kAlpha, kChunks, false, true>(f, plan, w, stream)
                   : launch_layout<M, kAlpha, kChunks, false, false>(f, plan, w, stream);
}

template <class M, Alpha kAlpha>
cudaError_t launch_loss(const Forward& f, const Plan& plan, const Workspace& w, cudaStream_t stream) {
  if (plan.chunks == 1) return launch_layouts<M, kAlpha, 1>(f, plan, w, stream);
  if (plan.chunks == 4) return launch_layouts<M, kAlpha, 4>(f, plan, w, stream);
  return launch_layouts<M, kAlpha, 0>(f, plan, w, stream);
}

}  // namespace fastac::cuda
