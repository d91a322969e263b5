// The kernels of one capability: compiled with the flags of baseline, AVX2 and AVX-512, FASTAC_CAPABILITY the suffix.
// No torch here, and nothing with external linkage but the table of functions, so that no inline function compiled
// for one processor can be linked in where another one is asked for.
#include "kernels.h"

#include <math.h>
#include <stdlib.h>

#include "narrow.h"
#include "state.h"
#include "vector.h"

namespace fastac::cpu {
namespace {

constexpr int64_t kChunk = 2048;  // columns whose logits, α and exponentials stay in the first cache

void read(const Rows& rows, const int64_t* ids, float* out, int64_t begin, int64_t end) {
  with_rows(&rows, [&]<class A, bool kMomentum>() {
    for (int64_t i = begin; i < end; ++i) {
      const RowState<A, kMomentum> row(rows, ids[i]);
      float* o = out + i * rows.columns;
      each_vector(0, rows.columns, [&](int64_t k, auto part) ALWAYS_INLINE { store(o + k, row.alpha(k, part), part); });
    }
  });
}

void sweep(const Rows& rows, const int64_t* ids, int64_t sweep_every, int64_t seed, int64_t begin, int64_t end) {
  with_rows(&rows, [&]<class A, bool kMomentum>() {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t id = ids[i], now = rows.clock.steps;
      if (now - rows.last[id] < sweep_every) continue;
      RowState<A, kMomentum> row(rows, id);
      row.catch_up_only(seed, now, id);
      each_vector(0, rows.columns, [&](int64_t k, auto part) ALWAYS_INLINE { row.write(k, part, vf{}); });
      rows.last[id] = (int32_t)now;
    }
  });
}

inline bool finite_row(const float* g, int64_t columns, float scale) {
  vf bad{};
  each_vector(0, columns, [&](int64_t k, auto part) ALWAYS_INLINE { bad += load(g + k, part) * scale * 0.0f; });
  return sum_lanes(bad) == 0;
}

template <class A, bool kMomentum>
void update_group(const Update& u, int64_t first, float* sum) {
  const int64_t columns = u.rows.columns;
  int64_t id = -1;
  const float* g = nullptr;  // the group's gradient: a row as it came, or the sum of several times their scales
  float scale = 1;
  for (int64_t p = first; p >= 0; p = u.next[p]) {
    const float* row = u.grad + p * columns;
    const float own = u.scale[p * u.scale_stride];
    if (u.ids[p] < 0 || !finite_row(row, columns, own)) continue;
    if (g == nullptr) {
      g = row;
      scale = own;
      id = u.ids[p];
      continue;
    }
    each_vector(0, columns, [&](int64_t k, auto part) ALWAYS_INLINE {
      store(sum + k, load(g + k, part) * scale + load(row + k, part) * own, part);
    });
    g = sum;
    scale = 1;
  }
  if (g == nullptr) return;
  RowState<A, kMomentum> row(u.rows, id);
  row.step_with(u.sgd, u.rows.clock.steps + 1, id);
  each_vector(0, columns, [&](int64_t k, auto part) ALWAYS_INLINE {
    vf v = load(g + k, part) * scale;
    if (k == 0 && u.sgd.gauge) v = with_lane(v, 0, 0);
    row.write(k, part, v);
  });
  u.rows.last[id] = (int32_t)(u.rows.clock.steps + 1);
}

template <class A, bool kMomentum>
void wide_update(const Update& u, int64_t begin, int64_t end) {
  float* sum = (float*)malloc(sizeof(float) * u.rows.columns);
  for (int64_t i = begin; i < end; ++i) {
    if (i + 1 < end && u.ids[u.first[i + 1]] >= 0) {
      const int64_t offset = u.ids[u.first[i + 1]] * u.rows.columns;
      const int64_t columns = u.rows.columns < kChunk ? u.rows.columns : kChunk;
      prefetch_columns((const A*)u.rows.alpha + offset, columns);
      if (kMomentum) prefetch_columns((const A*)u.rows.momentum + offset, columns);
    }
    update_group<A, kMomentum>(u, u.first[i], sum);
  }
  free(sum);
}

void update(const Update& u, int64_t begin, int64_t end) {
  with_rows(&u.rows, [&]<class A, bool kMomentum>() {
    u.rows.columns <= kNarrowUpdate ? narrow_update<A, kMomentum>(u, begin, end)
                              : wide_update<A, kMomentum>(u, begin, end);
  });
}

void record(const Record& r, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t p = r.first[i]; p >= 0; p = r.next[p]) add_visit(r.accumulators, r.ids[p], r.statistics + 5 * p);
}

// --- the gradient times the incoming one ---

template <class F, class T>
void scaled_rows(const Scaled& s, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t start = i * s.columns, n = s.columns < s.size - start ? s.columns : s.size - start;
    const F* from = (const F*)s.from + start;
    T* to = (T*)s.to + start;
    const float scale = s.scale[i * s.scale_stride];
    if (scale == 1 && (const void*)from == (const void*)to) continue;
    constexpr int64_t vector = W * sizeof(T);
    const int64_t head = s.stream ? (-(intptr_t)to & (vector - 1)) / (int64_t)sizeof(T) : 0;
    each_vector(0, n, [&](int64_t k, auto part) ALWAYS_INLINE {
      const vf v = load(from + k, part) * scale;
      if (part.n == W && s.stream) store_stream(to + k, v);
      else store(to + k, v, part);
    }, head);
  }
  if (s.stream) stream_fence();
}

void scaled(const Scaled& s, int64_t begin, int64_t end) {
  if (s.from_type == Type::bfloat16) return scaled_rows<bf16, bf16>(s, begin, end);
  if (s.from_type == Type::float16) return scaled_rows<fp16, fp16>(s, begin, end);
  if (s.to_type == Type::bfloat16) return scaled_rows<float, bf16>(s, begin, end);
  if (s.to_type == Type::float16) return scaled_rows<float, fp16>(s, begin, end);
  scaled_rows<float, float>(s, begin, end);
}

// --- the loss ---

// Training dynamics of one row of logits; see fastac.eager.dynamics.
template <class M>
void row_statistics(const M* m, int64_t classes, int64_t y, float* out) {
  vf top = splat(-INFINITY);
  each_vector(0, classes, [&](int64_t k, auto part) ALWAYS_INLINE {
    vf v = load(m + k, part, -INFINITY);
    if (holds(k, part.n, y)) v = with_lane(v, y - k, -INFINITY);
    top = max(v, top);
  });
  const float others = max_lane(top), m_y = max_lane(load(m + y, Part{1}, -INFINITY));
  const float highest = others > m_y ? others : m_y;
  Sum sums[2];  // of e but e_y, and of their squares
  sum_columns(0, classes, 0, sums, [&](int64_t k, auto part, vf* run) ALWAYS_INLINE {
    vf e = exp_nonpositive(load(m + k, part, -INFINITY) - highest);
    if (holds(k, part.n, y)) e = with_lane(e, y - k, 0);
    run[0] += e;
    run[1] += e * e;
  });
  const double rest = sums[0].total_of_lanes(), e_y = exp((double)m_y - highest), total = rest + e_y;
  out[0] = m_y - others;
  out[1] = (float)(e_y / total);
  out[2] = m_y >= others;
  out[3] = (float)(sqrt(sums[1].total_of_lanes() + rest * rest) / total);  // 1 - p_y is rest / total
  out[4] = (float)(log(total) + ((double)highest - m_y));
}

// Softmax of one row, chunk by chunk: each chunk's exponentials are relative to its own highest training logit.
struct Softmax {
  double rest = 0, e_y = 0;  // Σ e of all columns but y, and e of y, relative to `highest`
  double smooth = 0;         // Σ_k w_k (highest − z_k), with label smoothing
  double highest = kLeast;
  float z_y = 0;
  bool finite = true;        // the logits
};

template <class M, class A, bool kMomentum>
struct ForwardRow {
  const Forward& f;
  float* e;       // (K,) exponentials; e + head is aligned
  float* tops;    // per chunk: its highest training logit
  const M* m;
  const M* next_m;  // of the next row, to be fetched while this one is computed
  const A* next_a = nullptr;
  const A* next_b = nullptr;
  const RowState<A, kMomentum>* row;
  float shift_y;  // AC2's α
  int64_t y, head;  // from column `head` on the gradient's row is aligned; every pass cuts the row alike

  int64_t chunk_end(int64_t chunk) const {
    const int64_t end = head + (chunk + 1) * kChunk;
    return end < f.classes ? end : f.classes;
  }

  int64_t chunk_begin(int64_t chunk) const { return chunk == 0 ? 0 : chunk_end(chunk - 1); }

  // f(k, part) over the columns of a chunk.
  template <class F>
  ALWAYS_INLINE void each(int64_t chunk, F f) const {
    each_vector(chunk_begin(chunk), chunk_end(chunk), f, chunk == 0 ? head : 0);
  }

  // The sum of what f(k, part, run) adds to *run.
  template <class F>
  ALWAYS_INLINE double sum(int64_t chunk, F f) const {
    Sum sums[1];
    sum_columns(chunk_begin(chunk), chunk_end(chunk), chunk == 0 ? head : 0, sums, f);
    return sums[0].total_of_lanes();
  }

  vf weights(int64_t k, Full part) const { return f.weight ? load(f.weight + k, part) : splat(1); }
  vf weights(int64_t k, Part part) const {
    return first_lanes(f.weight ? load(f.weight + k, part) : splat(1), part, 0);
  }

  // Training logits of a chunk into e; returns the highest.
  float training_logits(int64_t chunk, Softmax& s) const {
    vf top = splat(kLeast), bad{};
    const RowState<A, kMomentum> state = *row;  // a copy: no store can change it, so it stays in registers
    const M* const m = this->m;
    float* const e = this->e;
    const int64_t y = this->y;
    const float shift_y = this->shift_y;
    each(chunk, [&](int64_t k, auto part) ALWAYS_INLINE {
      vf v = load(m + k, part);
      bad += v * 0.0f;
      if constexpr (sizeof(A) > 1) v += state.alpha(k, part);
      if constexpr (sizeof(A) == 1) {
        if (holds(k, part.n, y)) v += with_lane(vf{}, y - k, shift_y);
      }
      store(e + k, v, part);
      top = max(first_lanes(v, part, kLeast), top);
    });
    s.finite = s.finite && sum_lanes(bad) == 0;
    return max_lane(top);
  }

  double smoothing_terms(int64_t chunk, float top) const {
    return sum(chunk, [&](int64_t k, auto part, vf* run) ALWAYS_INLINE {
      const vf w = weights(k, part);
      *run += w > 0 ? w * (top - load(e + k, part)) : vf{};
    });
  }

  double weight_of(int64_t chunk) const {
    if (!f.weight) return (double)(chunk_end(chunk) - chunk_begin(chunk));
    return sum(chunk, [&](int64_t k, auto part, vf* run) ALWAYS_INLINE { *run += weights(k, part); });
  }

  Softmax softmax() const {
    Softmax s;
    double weight_before = 0;
    for (int64_t begin = 0, end, chunk = 0; begin < f.classes; begin = end, ++chunk) {
      end = chunk_end(chunk);
      const float top = tops[chunk] = training_logits(chunk, s);
      const bool has_y = begin <= y && y < end;
      if (has_y) s.z_y = e[y];
      const double before = s.highest, smooth = f.smoothing > 0 ? smoothing_terms(chunk, top) : 0;
      const bool last = end == f.classes, fetch = f.classes > 512;
      const M* pm = last ? next_m : m + end;
      const A* pa = next_a;
      const A* pb = next_b;
      if constexpr (sizeof(A) > 1) {
        if (!last) pa = row->a + end, pb = row->b + end;
      }
      float* const e = this->e;
      const int64_t y = this->y;
      const double rest = sum(chunk, [&](int64_t k, auto part, vf* run) ALWAYS_INLINE {
        if (fetch) {
          if (!last || sizeof(A) == 1) prefetch(pm + (k - begin));
          if constexpr (sizeof(A) > 1) {
            prefetch(pa + (k - begin));
            if (kMomentum) prefetch(pb + (k - begin));
          }
        }
        vf v = exp_nonpositive(load(e + k, part, -INFINITY) - top);
        store(e + k, v, part);
        *run += holds(k, part.n, y) ? with_lane(v, y - k, 0) : v;
      });
      const float e_y = has_y ? e[y] : 0;
      s.highest = top > before ? top : before;
      const double older = begin ? exp(before - s.highest) : 0, newer = top == s.highest ? 1 : exp(top - s.highest);
      if (f.smoothing > 0) {
        const double weight = weight_of(chunk);
        s.smooth += begin ? weight_before * (s.highest - before) : 0;
        s.smooth += smooth + weight * (s.highest - top);
        weight_before += weight;
      }
      s.rest = s.rest * older + rest * newer;
      s.e_y = s.e_y * older + e_y * newer;
    }
    return s;
  }
};

template <class M, class G, class A, bool kMomentum>
void wide_forward(const Forward& f, int64_t begin, int64_t end) {
  const int64_t classes = f.classes, chunks = classes / kChunk + 1;
  float* scratch = (float*)aligned_alloc(64, ((classes + chunks + W) * 4 + 63) / 64 * 64);
  ForwardRow<M, A, kMomentum> r{f, scratch, scratch + classes + W};
  const bool stream = f.stream && classes >= 4 * W;
  constexpr bool has_alpha = sizeof(A) > 1;
  const double spread = f.smoothing / (double)classes;
  const int64_t ahead = rows_ahead(classes);

  for (int64_t i = begin; i < end; ++i) {
    const int64_t y = f.target[i];
    const int32_t slot = f.slot ? f.slot[i] : -1;
    G* grad = (G*)f.grad + i * classes;
    r.m = (const M*)f.logits + i * f.logits_stride;
    if (f.statistics) row_statistics(r.m, classes, y == f.ignore_index ? 0 : y, f.statistics + 5 * i);
    if (y == f.ignore_index) {
      memset(grad, 0, sizeof(G) * classes);
      f.loss[i] = 0;
      if (f.ids) f.ids[i] = -1;
      if (slot >= 0) f.deferred_ids[slot] = -1;
      continue;
    }
    const int64_t id = f.index ? f.index[i] : -1, following = i + 1 < end ? i + 1 : i;
    if (f.rows && i + ahead < end) {
      const int64_t later = f.index[i + ahead];
      prefetch(f.rows->last + later);
      if constexpr (has_alpha) {
        if (ahead > 1) prefetch_columns((const A*)f.rows->alpha + later * classes, classes);
        if (ahead > 1 && kMomentum) prefetch_columns((const A*)f.rows->momentum + later * classes, classes);
      } else {
        prefetch((const char*)f.rows->alpha + later * (f.rows->type == Type::float32 ? 4 : 2));
      }
    }
    RowState<A, kMomentum> row = [&] {
      if constexpr (has_alpha) return RowState<A, kMomentum>(*f.rows, id);
      else return RowState<A, kMomentum>();
    }();
    r.row = &row;
    r.head = classes >= 4 * W ? -(i * classes) & (W - 1) : 0;
    r.e = scratch + (-r.head & (W - 1));
    r.y = y;
    r.shift_y = 0;
    r.next_m = (const M*)f.logits + following * f.logits_stride;
    if constexpr (has_alpha) {
      r.next_a = (const A*)f.rows->alpha + f.index[following] * classes;
      if (kMomentum) r.next_b = (const A*)f.rows->momentum + f.index[following] * classes;
    } else if (f.rows) {
      read(*f.rows, &id, &r.shift_y, 0, 1);
    }

    const Softmax s = r.softmax();
    const double total = s.rest + s.e_y;
    const double w_y = f.weight ? f.weight[y] : 1, q_hard = (1 - f.smoothing) * w_y;
    const double q_y = q_hard + spread * w_y, q_sum = q_hard + spread * f.weight_sum;
    double loss = q_hard > 0 ? q_hard * (log(total) + (s.highest - s.z_y)) : 0;
    if (f.smoothing > 0) loss += spread * (f.weight_sum * log(total) + s.smooth);
    f.loss[i] = (float)loss;
    if (f.ids) f.ids[i] = s.finite ? id : -1;
    if (f.accumulators && s.finite && slot < 0) add_visit(*f.accumulators, id, f.statistics + 5 * i);

    // p_k Σq − q_k; at y so that nothing cancels where p_y is close to 1.
    const double scale = q_sum / (total * f.normaliser);
    const float grad_y = (float)((s.e_y * (q_sum - q_y) - q_y * s.rest) / (total * f.normaliser));
    const float q = (float)(spread / f.normaliser);
    bool write = f.sgd && s.finite && slot < 0;
    float* deferred = nullptr;
    if (slot >= 0) {
      f.deferred_ids[slot] = s.finite ? id : -1;
      if (has_alpha) deferred = f.deferred_grad + slot * classes;
      else f.deferred_grad[slot] = grad_y;
    }
    if constexpr (has_alpha) {
      write = write && isfinite((float)scale * f.grad_output) && isfinite(grad_y * f.grad_output);
      if (write) row.step_with(*f.sgd, f.rows->clock.steps + 1, id);
    }
    for (int64_t start = 0, chunk = 0; start < classes; start = r.chunk_end(chunk), ++chunk) {
      const bool one = r.chunk_end(0) == classes;
      const float factor = (float)(one ? scale : scale * exp(r.tops[chunk] - s.highest));
      const RowState<A, kMomentum> state = row;
      const float* const e = r.e;
      const M* const next_m = r.next_m;
      const bool smooth = f.smoothing > 0, fetch_m = has_alpha && one && classes > 512;
      const float grad_output = f.grad_output;
      r.each(chunk, [&](int64_t k, auto part) ALWAYS_INLINE {
        vf g = load(e + k, part) * factor;
        if (smooth) g -= r.weights(k, part) * q;
        if (holds(k, part.n, y)) g = with_lane(g, y - k, grad_y);
        if (fetch_m) prefetch(next_m + k);
        if (part.n == W && stream) store_stream(grad + k, g);
        else store(grad + k, g, part);
        if constexpr (has_alpha) {
          if (write) {
            g *= grad_output;
            if (k == 0) g = with_lane(g, 0, 0);
            state.write(k, part, g);
          } else if (deferred) {
            store(deferred + k, g, part);
          }
        }
      });
    }
    if constexpr (has_alpha) {
      if (write) f.rows->last[id] = (int32_t)(f.rows->clock.steps + 1);
    } else if (write && f.rows) {  // AC2: a row of one column
      const int32_t first = 0, next = -1;
      const Update one{*f.rows, *f.sgd, &id, &grad_y, &f.grad_output, 0, &first, &next};
      with_rows(f.rows, [&]<class B, bool kB>() { update_group<B, kB>(one, 0, nullptr); });
    }
  }
  if (f.stream) stream_fence();
  free(scratch);
}

template <class M, class G>
void forward_types(const Forward& f, int64_t begin, int64_t end) {
  const bool narrow = f.classes <= kNarrow;
  if (!f.rows)
    return narrow ? narrow_forward<M, G, None, false>(f, begin, end) : wide_forward<M, G, None, false>(f, begin, end);
  if (f.ac2 && !narrow) return wide_forward<M, G, None, false>(f, begin, end);
  with_rows(f.rows, [&]<class A, bool kMomentum>() {
    narrow ? narrow_forward<M, G, A, kMomentum>(f, begin, end) : wide_forward<M, G, A, kMomentum>(f, begin, end);
  });
}

void forward(const Forward& f, int64_t begin, int64_t end) {
  const bool half = f.grad_type != Type::float32;
  switch (f.logits_type) {
    case Type::bfloat16:
      return half ? forward_types<bf16, bf16>(f, begin, end) : forward_types<bf16, float>(f, begin, end);
    case Type::float16:
      return half ? forward_types<fp16, fp16>(f, begin, end) : forward_types<fp16, float>(f, begin, end);
    default: return forward_types<float, float>(f, begin, end);
  }
}

}  // namespace

#define FASTAC_JOIN_(a, b) a##b
#define FASTAC_JOIN(a, b) FASTAC_JOIN_(a, b)
#define FASTAC_TEXT_(a) #a
#define FASTAC_TEXT(a) FASTAC_TEXT_(a)
extern const Kernels FASTAC_JOIN(kernels_, FASTAC_CAPABILITY) = {
    FASTAC_TEXT(FASTAC_CAPABILITY), forward, update, record, scaled, read, sweep};

}  // namespace fastac::cpu
