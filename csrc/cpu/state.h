// The table's rows: catch-up, SGD's step, rounding to the storage; and the accumulators of training dynamics. Internal
// linkage, as in vector.h.
#pragma once
#include "kernels.h"
#include "vector.h"

namespace fastac::cpu {
namespace {

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// Rows that are fetched ahead of the one that is computed: α's rows lie anywhere, and memory takes long to answer.
inline int64_t rows_ahead(int64_t columns) {
  const int64_t rows = 1024 / columns;
  return rows < 1 ? 1 : rows > 16 ? 16 : rows;
}

template <class A>
inline void prefetch_columns(const A* p, int64_t n) {
  for (int64_t k = 0; k < n; k += 64 / (int64_t)sizeof(A)) prefetch(p + k);
  prefetch(p + n - 1);
}

// C(last) as float32: c[0] a + c[1] b and c[2] a + c[3] b are the row's state now. See StepClock.coefficients.
struct Coefficients {
  float c[4] = {1, 0, 0, 1};
  Coefficients() = default;
  Coefficients(const Clock& clock, int64_t last) {
    if (last >= clock.steps) return;
    const double* t = clock.tail + 4 * ((last >> clock.block_bits) & (clock.blocks - 1));
    const double* w = clock.within + 4 * (last & (clock.window - 1));
    c[0] = (float)(t[0] * w[0] + t[1] * w[2]);
    c[1] = (float)(t[0] * w[1] + t[1] * w[3]);
    c[2] = (float)(t[2] * w[0] + t[3] * w[2]);
    c[3] = (float)(t[2] * w[1] + t[3] * w[3]);
  }
};

// torch.optim.SGD's step of rows that are caught up; made of nothing, it leaves them so.
struct Optimizer {
  enum class Step { none, plain, heavy_ball, nesterov } step = Step::none;
  bool write_b = true;
  float lr = 0, momentum = 0, weight_decay = 0;

  Optimizer() = default;
  Optimizer(const Sgd& sgd, bool has_momentum) {
    step = sgd.folded || sgd.momentum == 0 || !has_momentum ? Step::plain
           : sgd.nesterov                                   ? Step::nesterov
                                                            : Step::heavy_ball;
    write_b = !sgd.folded;
    lr = sgd.lr;
    momentum = sgd.momentum;
    weight_decay = sgd.weight_decay;
  }

  ALWAYS_INLINE void move(vf& a, vf& b, vf g) const {
    if (step == Step::none) return;
    g += a * weight_decay;
    if (step != Step::plain) {
      b = b * momentum + g;
      g = step == Step::nesterov ? g + b * momentum : b;
    }
    a -= g * lr;
  }
};

// One row on its way to a new state: catch-up, then SGD's step, then rounding to the storage.
template <class A, bool kMomentum>
struct RowState {
  A* a;
  A* b;
  Coefficients c;
  Optimizer optimizer;
  uint32_t hash;

  RowState() = default;
  RowState(const Rows& rows, int64_t id) : c(rows.clock, rows.last[id]) {
    a = (A*)rows.alpha + id * rows.columns;
    b = kMomentum ? (A*)rows.momentum + id * rows.columns : nullptr;
  }

  void catch_up_only(int64_t seed, int64_t now, int64_t id) { hash = hash_row(seed, now, id); }

  void step_with(const Sgd& sgd, int64_t now, int64_t id) {
    optimizer = Optimizer(sgd, kMomentum);
    hash = sizeof(A) == 2 ? hash_row(sgd.seed, now, id) : 0;
  }

  template <class P>
  ALWAYS_INLINE vf alpha(int64_t k, P part) const {
    vf v = load(a + k, part) * c.c[0];
    if constexpr (kMomentum) v += load(b + k, part) * c.c[1];
    return v;
  }

  // g: the gradient of these columns.
  template <class P>
  ALWAYS_INLINE void write(int64_t k, P part, vf g) const {
    const vf a0 = load(a + k, part);
    vf a1 = a0 * c.c[0], b1{};
    if constexpr (kMomentum) {
      const vf b0 = load(b + k, part);
      a1 += b0 * c.c[1];
      b1 = a0 * c.c[2] + b0 * c.c[3];
    }
    optimizer.move(a1, b1, g);
    if constexpr (sizeof(A) == 2) {
      const vu noise = absorb(vu{} + hash, iota() + (uint32_t)k, 0u);
      store_half(&a[k].bits, round_bf16(a1, noise & 0xffffu), part);
      if (kMomentum && optimizer.write_b) store_half(&b[k].bits, round_bf16(b1, noise >> 16), part);
    } else {
      store(a + k, a1, part);
      if (kMomentum && optimizer.write_b) store(b + k, b1, part);
    }
  }
};

// Calls f.operator()<A, kMomentum>() for the table's storage.
template <class F>
inline void with_rows(const Rows* rows, F f) {
  if (rows->type == Type::float32)
    rows->momentum ? f.template operator()<float, true>() : f.template operator()<float, false>();
  else
    rows->momentum ? f.template operator()<bf16, true>() : f.template operator()<bf16, false>();
}

// One visit of a sample; seen: the columns of contract.STATISTICS.
inline void add_visit(const Accumulators& to, int64_t id, const float* seen) {
  const double visit[6] = {seen[0], seen[1], (double)seen[1] * seen[1], seen[2], seen[3], seen[4]};
  for (int c = 0; c < 6; ++c) to.sums[6 * id + c] += visit[c];
  const bool correct = seen[2] > 0;
  to.visits[id] += 1;
  to.forgetting[id] += to.was_correct[id] && !correct;
  to.was_correct[id] = correct;
}

}  // namespace
}  // namespace fastac::cpu
