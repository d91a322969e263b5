// The kernels' interface: raw pointers, no torch. kernels.cpp is compiled once for each capability.
#pragma once
#include <cstdint>

namespace fastac::cpu {

enum class Type { none, float32, bfloat16, float16 };

// The step clock (fastac/clock.py): the products C(s) of the window's steps, 2x2 float64.
struct Clock {
  const double* within;
  const double* tail;
  int64_t window, blocks, block_bits, steps;  // window and blocks are powers of two
};

// The table's storage. columns: K of AC1, 1 of AC2. momentum: null where there is none.
struct Rows {
  Type type;
  void* alpha;
  void* momentum;
  int32_t* last;
  int64_t columns;
  Clock clock;
};

// The linear optimizer of the step to come. lr: folded history's with the whole tail of momentum. seed: of bfloat16's
// stochastic rounding.
struct Sgd {
  float lr, momentum, weight_decay;
  bool nesterov, folded, gauge;  // gauge: column 0 stays zero (AC1)
  int64_t seed;
};

// TrainingDynamics' storage; sums (N, 6).
struct Accumulators {
  int64_t* visits;
  double* sums;
  int64_t* forgetting;
  bool* was_correct;
};

struct Forward {
  Type logits_type, grad_type;
  const void* logits;
  int64_t logits_stride, classes;
  const int64_t* target;
  const int64_t* index;      // null: no α and no ids
  const float* weight;       // null: ones
  double weight_sum, smoothing, normaliser;
  int64_t ignore_index;
  bool ac2;
  bool stream;               // write the gradient, which is aligned to 64 bytes, around the caches
  const Rows* rows;          // null: α = 0
  // update="forward": rows are written, but those with a slot (because their id is repeated), whose id and gradient
  // are left in deferred_ids[slot] and deferred_grad[slot]; slot -1: none. sgd null: no row is written.
  const Sgd* sgd;
  const int32_t* slot;
  int64_t* deferred_ids;
  float* deferred_grad;      // (slots, rows->columns)
  const Accumulators* accumulators;  // null, or where a row without a slot counts its visit
  float grad_output;
  float* loss;               // (B,)
  void* grad;                // (B, K)
  int64_t* ids;              // (B,) or null
  float* statistics;         // (B, 5) or null
};

// Groups of equal ids: first[0..) the first position of each, next[p] the position after p in its group, -1 at the end.
struct Update {
  Rows rows;
  Sgd sgd;
  const int64_t* ids;
  const float* grad;         // (n, columns)
  const float* scale;        // of position p: scale[p * scale_stride]
  int64_t scale_stride;
  const int32_t* first;
  const int32_t* next;
};

struct Record {
  Accumulators accumulators;
  const int64_t* ids;
  const float* statistics;   // (n, 5)
  const int32_t* first;      // groups, as in Update
  const int32_t* next;
};

// to = from times scale, in rows of `columns`, of which the last may end early, at `size`.
struct Scaled {
  Type from_type, to_type;   // float32 to any, or the same type
  const void* from;
  void* to;
  int64_t columns, size;
  const float* scale;        // of row i: scale[i * scale_stride]
  int64_t scale_stride;
  bool stream;
};

struct Kernels {
  const char* name;
  // Each does the rows [begin, end) of its list, alone on its thread.
  void (*forward)(const Forward&, int64_t begin, int64_t end);
  void (*update)(const Update&, int64_t begin, int64_t end);
  void (*record)(const Record&, int64_t begin, int64_t end);
  void (*scaled)(const Scaled&, int64_t begin, int64_t end);
  void (*read)(const Rows&, const int64_t* ids, float* out, int64_t begin, int64_t end);
  void (*sweep)(const Rows&, const int64_t* ids, int64_t sweep_every, int64_t seed, int64_t begin, int64_t end);
};

extern const Kernels kernels_default, kernels_avx2, kernels_avx512;

}  // namespace fastac::cpu
