// A row of the table on its way to a new state: catch-up, SGD's step, rounding to the storage. And a sample's dynamics.
#pragma once
#include "device.cuh"

namespace fastac::cuda {

// C(last) as float32: c[0] a + c[1] b and c[2] a + c[3] b are the row's state now. See StepClock.coefficients.
struct Coefficients {
  float c[4] = {1, 0, 0, 1};

  FASTAC_DEVICE Coefficients() {}
  FASTAC_DEVICE Coefficients(const Clock& clock, int64_t last) {
    // No branch: the row's own loads need not wait for these. Any `last` gives an address in the window.
    const bool behind = last < *clock.steps;
    const double* w = clock.within + 4 * (last & (clock.window - 1));
    const double* t = clock.tail + 4 * ((last / (clock.window / clock.blocks)) & (clock.blocks - 1));
    c[0] = behind ? (float)(t[0] * w[0] + t[1] * w[2]) : 1.0f;
    c[1] = behind ? (float)(t[0] * w[1] + t[1] * w[3]) : 0.0f;
    c[2] = behind ? (float)(t[2] * w[0] + t[3] * w[2]) : 0.0f;
    c[3] = behind ? (float)(t[2] * w[1] + t[3] * w[3]) : 1.0f;
  }
};

// The step as one form for all kinds of momentum, with g the gradient and weight decay in it:
// b' = keep b + add g,  α' = α − lr (direct g + buffer b').
struct Step {
  float lr, weight_decay, keep, add, direct, buffer;
  bool write_momentum;

  FASTAC_DEVICE Step(const Sgd& sgd, const Clock& clock, bool has_momentum) {
    const bool plain = sgd.folded || sgd.momentum == 0 || !has_momentum;
    lr = (float)*clock.lr;
    if (sgd.folded) lr /= (float)(1 - sgd.momentum);
    weight_decay = (float)sgd.weight_decay;
    keep = plain ? 1 : (float)sgd.momentum;
    add = plain ? 0 : 1;
    direct = plain || sgd.nesterov ? 1 : 0;
    buffer = plain ? 0 : sgd.nesterov ? (float)sgd.momentum : 1;
    write_momentum = has_momentum && !sgd.folded;
  }

  FASTAC_DEVICE void operator()(float& a, float& b, float g) const {
    g += weight_decay * a;
    b = keep * b + add * g;
    a -= lr * (direct * g + buffer * b);
  }
};

// Where row id is stored.
template <class A, bool kMomentum>
struct Storage {
  A* alpha;
  A* momentum;

  FASTAC_DEVICE Storage(const Rows& rows, int64_t id)
      : alpha((A*)rows.alpha + row_offset(id, rows.columns)),
        momentum(kMomentum ? (A*)rows.momentum + row_offset(id, rows.columns) : nullptr) {}

  template <int n, bool kWide>
  FASTAC_DEVICE void load_stored(int begin, const Columns<kWide>& columns, float (&a)[n][kItems],
                                 float (&b)[kMomentum ? n : 1][kItems]) const {
    load(alpha, begin, columns, 0, a);
    if constexpr (kMomentum) load(momentum, begin, columns, 0, b);
  }

  template <bool kWide>
  FASTAC_DEVICE void store_state(int begin, const Columns<kWide>& columns, const float (&a)[kItems],
                                 const float (&b)[kItems], uint32_t hash, bool write_momentum) const {
    A out[kItems], out_b[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const uint32_t noise = sizeof(A) == 2 ? absorb(hash, (uint64_t)columns.at(begin, i)) : 0;
      round_stored(a[i], noise & 0xffffu, out[i]);
      if constexpr (kMomentum) round_stored(b[i], noise >> 16, out_b[i]);
    }
    store(alpha, begin, columns, out);
    if constexpr (kMomentum)
      if (write_momentum) store(momentum, begin, columns, out_b);
  }
};

// The state of a row now, of what is stored.
template <bool kMomentum>
FASTAC_DEVICE void catch_up(const Coefficients& now, float (&a)[kItems], float (&b)[kItems]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const float a0 = a[i];
    a[i] = now.c[0] * a0;
    if constexpr (kMomentum) {
      a[i] += now.c[1] * b[i];
      b[i] = now.c[2] * a0 + now.c[3] * b[i];
    }
  }
}

// The state that the step brings.
template <bool kMomentum>
FASTAC_DEVICE void take_step(const Step& step, float (&a)[kItems], float (&b)[kItems], const float (&g)[kItems]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    float none = 0;
    step(a[i], kMomentum ? b[i] : none, g[i]);
  }
}

template <class A>
FASTAC_DEVICE uint32_t row_hash(int64_t seed, int64_t step, int64_t id) {
  return sizeof(A) == 2 ? hash_row(seed, step, id) : 0;
}

// --- AC2's rows, of one number: of a type known at run time ---

template <class A, bool kMomentum>
FASTAC_DEVICE float read_number(const Rows& rows, int64_t id) {
  const Coefficients now(rows.clock, rows.last[id]);
  const Storage<A, kMomentum> row(rows, id);
  const float a = now.c[0] * to_float(*row.alpha);
  return kMomentum ? a + now.c[1] * to_float(*row.momentum) : a;
}

FASTAC_DEVICE float read_number(const Rows& rows, int64_t id) {
  if (rows.type == Type::float32)
    return rows.momentum ? read_number<float, true>(rows, id) : read_number<float, false>(rows, id);
  return rows.momentum ? read_number<bf16, true>(rows, id) : read_number<bf16, false>(rows, id);
}

template <class A, bool kMomentum>
FASTAC_DEVICE void step_number(const Rows& rows, const Sgd& sgd, int64_t id, float g) {
  const Coefficients now(rows.clock, rows.last[id]);
  const Storage<A, kMomentum> row(rows, id);
  const Step step(sgd, rows.clock, kMomentum);
  const int64_t next = *rows.clock.steps + 1;
  const float a0 = to_float(*row.alpha), b0 = kMomentum ? to_float(*row.momentum) : 0;
  float a = now.c[0] * a0, b = 0;
  if (kMomentum) a += now.c[1] * b0, b = now.c[2] * a0 + now.c[3] * b0;
  step(a, b, g);
  const uint32_t noise = sizeof(A) == 2 ? absorb(hash_row(sgd.seed, next, id), 0) : 0;
  round_stored(a, noise & 0xffffu, *row.alpha);
  if constexpr (kMomentum)
    if (step.write_momentum) round_stored(b, noise >> 16, *row.momentum);
  rows.last[id] = (int32_t)next;
}

FASTAC_DEVICE void step_number(const Rows& rows, const Sgd& sgd, int64_t id, float g) {
  if (rows.type == Type::float32)
    rows.momentum ? step_number<float, true>(rows, sgd, id, g) : step_number<float, false>(rows, sgd, id, g);
  else
    rows.momentum ? step_number<bf16, true>(rows, sgd, id, g) : step_number<bf16, false>(rows, sgd, id, g);
}

// --- training dynamics ---

// One visit with v, the statistics of a sample.
FASTAC_DEVICE void add_visit(const Accumulators& a, int64_t id, const float* v) {
  double* sums = a.sums + 6 * id;
  const double values[6] = {v[0], v[1], (double)v[1] * v[1], v[2], v[3], v[4]};
#pragma unroll
  for (int i = 0; i < 6; ++i) sums[i] += values[i];
  const bool right = v[2] > 0;
  a.visits[id] += 1;
  if (a.was_correct[id] && !right) a.forgetting[id] += 1;
  a.was_correct[id] = right;
}

}  // namespace fastac::cuda
