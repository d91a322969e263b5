// Few columns: W rows at a time, a row in each lane, in tiles that lie column by column. Internal linkage, as in
// vector.h. What a row comes to does not depend on its lane or its neighbours.
#pragma once
#include <math.h>

#include <type_traits>

#include "state.h"

namespace fastac::cpu {
namespace {

constexpr float kLeast = -3.402823466e38f;
struct None {};  // α's type where there is none

constexpr int64_t kNarrow = 64;       // columns up to which the loss is faster in tiles
constexpr int64_t kNarrowUpdate = 4;  // and an update of the table alone

// Four times four elements: to[j][i] = from[i][j].
template <class T>
ALWAYS_INLINE inline void transpose(const T* const (&from)[4], T* const (&to)[4]) {
#if defined(__SSE2__)
  if constexpr (sizeof(T) == 4) {
    __m128 a = _mm_loadu_ps(from[0]), b = _mm_loadu_ps(from[1]), c = _mm_loadu_ps(from[2]), d = _mm_loadu_ps(from[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to[0], a);
    _mm_storeu_ps(to[1], b);
    _mm_storeu_ps(to[2], c);
    _mm_storeu_ps(to[3], d);
  } else {
    const auto row = [&](int i) { return _mm_loadl_epi64((const __m128i*)from[i]); };
    const __m128i ab = _mm_unpacklo_epi16(row(0), row(1)), cd = _mm_unpacklo_epi16(row(2), row(3));
    const __m128i low = _mm_unpacklo_epi32(ab, cd), high = _mm_unpackhi_epi32(ab, cd);
    _mm_storel_epi64((__m128i*)to[0], low);
    _mm_storeh_pd((double*)to[1], (__m128d)low);
    _mm_storel_epi64((__m128i*)to[2], high);
    _mm_storeh_pd((double*)to[3], (__m128d)high);
  }
#else
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) to[j][i] = from[i][j];
#endif
}

// Copies n rows into a tile, or (kOut) out of it. row(lane): the address of a lane's row, or null for none.
template <bool kOut, class T, class F>
ALWAYS_INLINE inline void copy_rows(T* tile, int n, int64_t columns, F row) {
  const auto one = [&](T* p, int lane, int64_t begin) {
    for (int64_t k = begin; k < columns; ++k) kOut ? p[k] = tile[k * W + lane] : tile[k * W + lane] = p[k];
  };
  for (int lane = 0; lane < n;) {
    if (lane + 4 <= n) {
      T* const p[4] = {row(lane), row(lane + 1), row(lane + 2), row(lane + 3)};
      if (p[0] && p[1] && p[2] && p[3]) {
        int64_t k = 0;
        for (; k + 4 <= columns; k += 4) {
          T* const t = tile + k * W + lane;
          T* const columns_of[4] = {t, t + W, t + 2 * W, t + 3 * W};
          T* const rows_of[4] = {p[0] + k, p[1] + k, p[2] + k, p[3] + k};
          if (kOut) transpose<T>({columns_of[0], columns_of[1], columns_of[2], columns_of[3]}, rows_of);
          else transpose<T>({rows_of[0], rows_of[1], rows_of[2], rows_of[3]}, columns_of);
        }
        for (int i = 0; i < 4; ++i) one(p[i], lane + i, k);
        lane += 4;
        continue;
      }
    }
    if (T* p = row(lane)) one(p, lane, 0);
    ++lane;
  }
}

// W rows of the table on their way to a new state, as RowState is one.
template <class A, bool kMomentum>
struct StateTile {
  const Rows* rows;
  Optimizer optimizer;
  uint32_t step_hash = 0;
  int64_t id[W];  // -1: no row in this lane
  vf c[4];
  vu hash{};
  alignas(64) A a[kNarrow * W] = {};
  alignas(64) A b[kMomentum ? kNarrow * W : 1] = {};

  StateTile(const Rows* rows, const Sgd* sgd) : rows(rows) {
    if (!sgd) return;
    optimizer = Optimizer(*sgd, kMomentum);
    step_hash = hash_step(sgd->seed, rows->clock.steps + 1);
  }

  A* row(void* state, int64_t id) const { return id < 0 ? nullptr : (A*)state + id * rows->columns; }

  void fetch() {
    for (int i = 0; i < W; ++i) {
      if (id[i] < 0) continue;
      const Coefficients own(rows->clock, rows->last[id[i]]);
      for (int j = 0; j < (kMomentum ? 4 : 1); ++j) c[j][i] = own.c[j];
    }
    copy_rows<false>(a, W, rows->columns, [&](int i) { return row(rows->alpha, id[i]); });
    if (kMomentum) copy_rows<false>(b, W, rows->columns, [&](int i) { return row(rows->momentum, id[i]); });
    if (sizeof(A) == 2) {
      vu low, high;
      for (int i = 0; i < W; ++i) low[i] = (uint32_t)id[i], high[i] = (uint32_t)((uint64_t)id[i] >> 32);
      hash = absorb(vu{} + step_hash, low, high);
    }
  }

  ALWAYS_INLINE vf alpha(int64_t k) const {
    vf v = load(a + k * W, Full{}) * c[0];
    if constexpr (kMomentum) v += load(b + k * W, Full{}) * c[1];
    return v;
  }

  // Column k's step, in the tile.
  ALWAYS_INLINE void move(int64_t k, vf g) {
    A* const pa = a + k * W;
    A* const pb = b + (kMomentum ? k * W : 0);
    const vf a0 = load(pa, Full{});
    vf a1 = a0 * c[0], b1{};
    if constexpr (kMomentum) {
      const vf b0 = load(pb, Full{});
      a1 += b0 * c[1];
      b1 = a0 * c[2] + b0 * c[3];
    }
    optimizer.move(a1, b1, g);
    if constexpr (sizeof(A) == 2) {
      const vu noise = absorb(hash, vu{} + (uint32_t)k, 0u);
      store_half(&pa->bits, round_bf16(a1, noise & 0xffffu), Full{});
      if (kMomentum && optimizer.write_b) store_half(&pb->bits, round_bf16(b1, noise >> 16), Full{});
    } else {
      store(pa, a1, Full{});
      if (kMomentum && optimizer.write_b) store(pb, b1, Full{});
    }
  }

  // Stores the rows of the lanes that `mask` names.
  void write(vi mask) {
    for (int i = 0; i < W; ++i) {
      if (!mask[i]) id[i] = -1;
      else rows->last[id[i]] = (int32_t)(rows->clock.steps + 1);
    }
    copy_rows<true>(a, W, rows->columns, [&](int i) { return row(rows->alpha, id[i]); });
    if (kMomentum && optimizer.write_b)
      copy_rows<true>(b, W, rows->columns, [&](int i) { return row(rows->momentum, id[i]); });
  }

  void prefetch_row(int64_t later) const {
    prefetch(rows->last + later);
    prefetch_columns((const A*)rows->alpha + later * rows->columns, rows->columns);
    if (kMomentum) prefetch_columns((const A*)rows->momentum + later * rows->columns, rows->columns);
  }
};

// --- update ---

// The gradient of one group into its lane; returns its id, or -1 where there is nothing to write.
inline int64_t narrow_gradient(const Update& u, int64_t first, float* tile, int lane) {
  const int64_t columns = u.rows.columns;
  int64_t id = -1;
  for (int64_t p = first; p >= 0; p = u.next[p]) {
    const float* row = u.grad + p * columns;
    const float scale = u.scale[p * u.scale_stride];
    if (u.ids[p] < 0) continue;
    float bad = 0;
    for (int64_t k = 0; k < columns; ++k) bad += row[k] * scale * 0.0f;
    if (bad != 0 || bad != bad) continue;
    for (int64_t k = 0; k < columns; ++k) {
      float& sum = tile[k * W + lane];
      sum = id < 0 ? row[k] * scale : sum + row[k] * scale;
    }
    id = u.ids[p];
  }
  return id;
}

template <class A, bool kMomentum>
void narrow_update(const Update& u, int64_t begin, int64_t end) {
  alignas(64) float g[kNarrow * W] = {};
  StateTile<A, kMomentum> state(&u.rows, &u.sgd);
  for (int64_t start = begin; start < end; start += W) {
    vi mask{};
    for (int i = 0; i < W; ++i) {
      state.id[i] = start + i < end ? narrow_gradient(u, u.first[start + i], g, i) : -1;
      mask[i] = state.id[i] < 0 ? 0 : -1;
      if (start + i + W < end && u.ids[u.first[start + i + W]] >= 0) state.prefetch_row(u.ids[u.first[start + i + W]]);
    }
    state.fetch();
    for (int64_t k = 0; k < u.rows.columns; ++k)
      state.move(k, k == 0 && u.sgd.gauge ? vf{} : load(g + k * W, Full{}));
    state.write(mask);
  }
}

// --- the loss ---

// A softmax over a tile's columns, of which y is kept apart; see Softmax in kernels.cpp.
struct TileSoftmax {
  vf top, z_y, e_y{};
  Sum sum{};

  // e: the exponential of one column, at_y: the lanes whose y it is.
  ALWAYS_INLINE void add(vf e, vi at_y) {
    e_y = at_y ? e : e_y;
    sum.add(at_y ? vf{} : e);
  }

  // log Σe, with the whole precision of a small one: the highest exponential is 1.
  vf log_total() const {
    const vf rest = sum.total();
    return log1p_finite(z_y >= top ? rest : (rest - 1.0f) + e_y);
  }
};

// Training dynamics of W rows of logits m; see fastac.eager.dynamics.
template <class M>
void narrow_statistics(const M* m, int64_t classes, vi y, int n, float* out) {
  vf others = splat(-INFINITY);
  Sum squares;
  TileSoftmax s{splat(0), splat(0)};
  for (int64_t k = 0; k < classes; ++k) {
    const vf v = load(m + k * W, Full{});
    const vi at_y = y == (int32_t)k;
    s.z_y = at_y ? v : s.z_y;
    others = max(at_y ? splat(-INFINITY) : v, others);
  }
  s.top = others > s.z_y ? others : s.z_y;
  for (int64_t k = 0; k < classes; ++k) {
    const vf e = exp_nonpositive(load(m + k * W, Full{}) - s.top);
    const vi at_y = y == (int32_t)k;
    s.add(e, at_y);
    squares.add(at_y ? vf{} : e * e);
  }
  const vf rest = s.sum.total(), total = rest + s.e_y;
  const vf columns[5] = {s.z_y - others, s.e_y / total, s.z_y >= others ? splat(1) : vf{},
                         square_root(squares.total() + rest * rest) / total, s.log_total() + (s.top - s.z_y)};
  for (int i = 0; i < n; ++i)
    for (int c = 0; c < 5; ++c) out[5 * i + c] = columns[c][i];
}

// What the loss of W rows comes to, and the gradient's factors; as the row path has them for one row.
struct TileLoss {
  vf loss, scale, grad_y, q;

  TileLoss(const Forward& f, const TileSoftmax& s, vf smooth, vf w_y) {
    const float spread = (float)(f.smoothing / (double)f.classes), weight_sum = (float)f.weight_sum;
    const vf q_hard = w_y * (float)(1 - f.smoothing), q_y = q_hard + w_y * spread, q_sum = q_hard + spread * weight_sum;
    const vf log_total = s.log_total(), rest = s.sum.total(), total = (rest + s.e_y) * (float)f.normaliser;
    loss = q_hard > 0 ? q_hard * (log_total + (s.top - s.z_y)) : vf{};
    if (f.smoothing > 0) loss += spread * (weight_sum * log_total + smooth);
    scale = q_sum / total;
    grad_y = (s.e_y * (q_sum - q_y) - q_y * rest) / total;
    q = splat((float)(spread / f.normaliser));
  }
};

inline vi finite(vf v) { return v * 0.0f == 0.0f; }

// What is known of W rows beside their logits. live: lanes with a row that is not ignored.
struct TileTargets {
  vi y{}, live{};
  vf w_y = splat(1);

  TileTargets(const Forward& f, int64_t start, int n) {
    for (int i = 0; i < n; ++i) {
      const int64_t target = f.target[start + i];
      live[i] = target == f.ignore_index ? 0 : -1;
      y[i] = live[i] ? (int32_t)target : 0;
      if (f.weight) w_y[i] = f.weight[y[i]];
    }
  }
};

// Rows whose ids are repeated leave their gradient (in z; AC2: grad_y), the others count their visit. Returns the lanes
// of `write` that are left.
inline vi defer_or_count(const Forward& f, int64_t start, int n, vi write, const float* z, vf grad_y) {
  for (int64_t row = start, i = 0; i < n; ++i, ++row) {
    const int32_t slot = f.slot ? f.slot[row] : -1;
    if (slot < 0) {
      if (f.accumulators && f.ids[row] >= 0) add_visit(*f.accumulators, f.ids[row], f.statistics + 5 * row);
      continue;
    }
    write[i] = 0;
    f.deferred_ids[slot] = f.ids[row];
    if (f.ac2) f.deferred_grad[slot] = grad_y[i];
    for (int64_t k = 0; !f.ac2 && k < f.classes; ++k) f.deferred_grad[slot * f.classes + k] = z[k * W + i];
  }
  return write;
}

// A: None where α = 0. AC2's table has one column, whose entry is added at y.
template <class M, class G, class A, bool kMomentum>
void narrow_forward(const Forward& f, int64_t begin, int64_t end) {
  constexpr bool has_alpha = sizeof(A) > 1, float_grad = std::is_same_v<G, float>;
  const int64_t classes = f.classes;
  StateTile<std::conditional_t<has_alpha, A, float>, kMomentum> state(f.rows, f.sgd);
  alignas(64) M m[kNarrow * W] = {};
  alignas(64) float z[kNarrow * W];  // training logits, then their exponentials, then the gradient
  alignas(64) G g[float_grad ? 1 : kNarrow * W];
  G* const grad = [&] {
    if constexpr (float_grad) return z;
    else return g;
  }();
  const bool smooth = f.smoothing > 0;

  for (int64_t start = begin; start < end; start += W) {
    const int n = (int)(end - start < W ? end - start : W);
    const TileTargets targets(f, start, n);
    const vi y = targets.y, live = targets.live;
    copy_rows<false>(m, n, classes, [&](int i) { return (M*)f.logits + (start + i) * f.logits_stride; });
    if constexpr (has_alpha) {
      for (int i = 0; i < W; ++i) {
        state.id[i] = live[i] ? f.index[start + i] : -1;
        if (start + W + i < end) state.prefetch_row(f.index[start + W + i]);
      }
      state.fetch();
    }
    if (f.statistics) narrow_statistics(m, classes, y, n, f.statistics + 5 * start);

    TileSoftmax s{splat(kLeast), vf{}};
    vf bad{};
    const vf single = has_alpha && f.ac2 ? state.alpha(0) : vf{};
    for (int64_t k = 0; k < classes; ++k) {
      vf v = load(m + k * W, Full{});
      const vi at_y = y == (int32_t)k;
      bad += v * 0.0f;
      if (has_alpha) v += !f.ac2 ? state.alpha(k) : at_y ? single : vf{};
      s.z_y = at_y ? v : s.z_y;
      s.top = max(v, s.top);
      store(z + k * W, v, Full{});
    }
    Sum below;  // Σ_k w_k (top − z_k)
    for (int64_t k = 0; smooth && k < classes; ++k) {
      const float w = f.weight ? f.weight[k] : 1;
      if (w > 0) below.add(w * (s.top - load(z + k * W, Full{})));
    }
    for (int64_t k = 0; k < classes; ++k) {
      const vf e = exp_nonpositive(load(z + k * W, Full{}) - s.top);
      store(z + k * W, e, Full{});
      s.add(e, y == (int32_t)k);
    }

    const TileLoss of(f, s, below.total(), targets.w_y);
    const vi visible = live & (bad == 0.0f);
    vi write{};
    if (f.sgd) write = visible & finite(of.scale * f.grad_output) & finite(of.grad_y * f.grad_output);
    for (int64_t k = 0; k < classes; ++k) {
      vf v = load(z + k * W, Full{}) * of.scale;
      if (smooth) v -= of.q * (f.weight ? f.weight[k] : 1.0f);
      v = y == (int32_t)k ? of.grad_y : v;
      v = live ? v : vf{};
      store(z + k * W, v, Full{});
      if (!float_grad) store(g + k * W, v, Full{});
      if (has_alpha && f.sgd && !f.ac2) state.move(k, k == 0 ? vf{} : v * f.grad_output);
    }
    if (has_alpha && f.sgd && f.ac2) state.move(0, of.grad_y * f.grad_output);

    const vf loss = live ? of.loss : vf{};
    if (n == W) store(f.loss + start, loss, Full{});
    else store(f.loss + start, loss, Part{n});
    copy_rows<true>(grad, n, classes, [&](int i) { return (G*)f.grad + (start + i) * classes; });
    for (int i = 0; f.ids && i < n; ++i) f.ids[start + i] = visible[i] ? f.index[start + i] : -1;
    if (f.slot || f.accumulators) write = defer_or_count(f, start, n, write, z, of.grad_y);
    if (has_alpha && f.sgd) state.write(write);
  }
}

}  // namespace
}  // namespace fastac::cpu
