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
    const double* t = clock.tail + 4 * ((last >> (log_two(clock.window) - log_two(clock.blocks))) & (clock.blocks - 1));
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

// Where row id is stored, as float32 or bfloat16.
template <bool kMomentum>
struct Storage {
  bool half;  // bfloat16
  char* alpha;
  char* momentum;

  FASTAC_DEVICE Storage(const Rows& rows, int64_t id) : half(rows.type == Type::bfloat16) {
    const int64_t offset = row_offset(id, rows.columns) * (half ? 2 : 4);
    alpha = (char*)rows.alpha + offset;
    momentum = kMomentum ? (char*)rows.momentum + offset : nullptr;
  }

  template <int n, bool kWide>
  FASTAC_DEVICE void load_stored(int begin, const Columns<kWide>& columns, float (&a)[n][kItems],
                                 float (&b)[kMomentum ? n : 1][kItems]) const {
    if (half) {
      load((const bf16*)alpha, begin, columns, 0, a);
      if constexpr (kMomentum) load((const bf16*)momentum, begin, columns, 0, b);
    } else {
      load((const float*)alpha, begin, columns, 0, a);
      if constexpr (kMomentum) load((const float*)momentum, begin, columns, 0, b);
    }
  }

  // hash: of hash_row, for bfloat16's rounding.
  template <bool kWide>
  FASTAC_DEVICE void store_state(int begin, const Columns<kWide>& columns, const float (&a)[kItems],
                                 const float (&b)[kItems], uint32_t hash, bool write_momentum) const {
    if (half) {
      bf16 out[kItems], out_b[kItems];
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const uint32_t noise = absorb(hash, (uint64_t)columns.at(begin, i));
        out[i] = round_stored(a[i], noise & 0xffffu);
        if constexpr (kMomentum) out_b[i] = round_stored(b[i], noise >> 16);
      }
      store((bf16*)alpha, begin, columns, out);
      if constexpr (kMomentum)
        if (write_momentum) store((bf16*)momentum, begin, columns, out_b);
    } else {
      store((float*)alpha, begin, columns, a);
      if constexpr (kMomentum)
        if (write_momentum) store((float*)momentum, begin, columns, b);
    }
  }

  // AC2's rows have one number.
  FASTAC_DEVICE float number(const char* p) const { return half ? to_float(*(const bf16*)p) : *(const float*)p; }
  FASTAC_DEVICE void put_number(char* p, float x, uint32_t noise) const {
    if (half) *(bf16*)p = round_stored(x, noise);
    else *(float*)p = x;
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

// --- AC2's rows, of one number ---

FASTAC_DEVICE float read_number(const Rows& rows, int64_t id) {
  const Coefficients now(rows.clock, rows.last[id]);
  const Storage<true> row(rows, id);
  const float a = now.c[0] * row.number(row.alpha);
  return rows.momentum ? a + now.c[1] * row.number(row.momentum) : a;
}

FASTAC_DEVICE void step_number(const Rows& rows, const Sgd& sgd, int64_t id, float g) {
  const Coefficients now(rows.clock, rows.last[id]);
  const Storage<true> row(rows, id);
  const Step step(sgd, rows.clock, rows.momentum != nullptr);
  const int64_t next = *rows.clock.steps + 1;
  const float a0 = row.number(row.alpha);
  float a = now.c[0] * a0, b = 0;
  if (rows.momentum) {
    const float b0 = row.number(row.momentum);
    a += now.c[1] * b0;
    b = now.c[2] * a0 + now.c[3] * b0;
  }
  step(a, b, g);
  const uint32_t noise = absorb(hash_row(sgd.seed, next, id), 0);
  row.put_number(row.alpha, a, noise & 0xffffu);
  if (step.write_momentum) row.put_number(row.momentum, b, noise >> 16);
  rows.last[id] = (int32_t)next;
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
