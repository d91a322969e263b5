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

// The linear optimizer of the step to come. seed: of bfloat16's stochastic rounding.
struct Sgd {
  float lr, momentum, weight_decay;
  bool nesterov, folded, gauge;  // gauge: column 0 stays zero (AC1)
  int64_t seed;
};

struct Forward {
  Type logits_type;
  const void* logits;
  int64_t logits_stride, classes;
  const int64_t* target;
  const int64_t* index;      // null: no α and no ids
  const float* weight;       // null: ones
  double weight_sum, smoothing, normaliser;
  int64_t ignore_index;
  bool ac2;
  bool stream;               // write the gradient around the caches
  const Rows* rows;          // null: α = 0
  // update="forward": rows but those that are deferred (because their id is repeated) are written; null: none is.
  const Sgd* sgd;
  const uint8_t* deferred;
  float grad_output;
  float* loss;               // (B,)
  float* grad;               // (B, K)
  int64_t* ids;              // (B,) or null
  float* statistics;         // (B, 5) or null
};

// Groups of equal ids: first[0..) the first position of each, next[p] the position after p in its group, -1 at the end.
struct Update {
  Rows rows;
  Sgd sgd;
  const int64_t* ids;
  const float* grad;         // (n, columns), at grad_stride
  int64_t grad_stride;
  float scale;
  const int32_t* first;
  const int32_t* next;
};

struct Kernels {
  const char* name;
  // Each does the rows [begin, end) of its list, alone on its thread.
  void (*forward)(const Forward&, int64_t begin, int64_t end);
  void (*update)(const Update&, int64_t begin, int64_t end);
  void (*read)(const Rows&, const int64_t* ids, float* out, int64_t begin, int64_t end);
  void (*sweep)(const Rows&, const int64_t* ids, int64_t sweep_every, int64_t seed, int64_t begin, int64_t end);
};

extern const Kernels kernels_default, kernels_avx2, kernels_avx512;

}  // namespace fastac::cpu
