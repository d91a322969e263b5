// AutoCleansing's operations on a CUDA device: raw pointers and a stream, no torch, no Python.
//
// All pointers are device memory unless they say otherwise; matrices are row-major and contiguous unless a stride is
// given. Every function only launches: it never waits, allocates or reads device memory on the host, so all of them
// can be captured into a CUDA graph, and what may change between replays (learning rate, steps, skip) is read on the
// device. Each returns the first error of its launches. Results are the same bits whenever the inputs are.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace fastac::cuda {

enum class Type : int { none, float32, bfloat16, float16 };
enum class Reduction : int { none, sum, mean };

// The step clock. C(s), what the steps after s did to a row's state (α, b), is tail[s / S] · within[s], with
// S = window / blocks; 2x2 matrices, row by row.
struct Clock {
  double* within;       // (window, 2, 2)
  double* tail;         // (blocks, 2, 2)
  int64_t* steps;       // (), steps counted so far
  const double* lr;     // (), learning rate of the step to come
  int64_t window;       // a power of two, at most 2^30
  int64_t blocks;       // a power of two, at most window
};

// The table. columns: K of AC1, 1 of AC2.
struct Rows {
  Type type;            // float32 or bfloat16; none: α = 0 throughout, and nothing else here is read
  void* alpha;          // (num_rows, columns)
  void* momentum;       // like alpha, or null
  int32_t* last;        // (num_rows,), the step that a row's state is that of
  int64_t num_rows;
  int64_t columns;
  Clock clock;
};

// SGD of the step to come; its learning rate is the clock's.
struct Sgd {
  double momentum, weight_decay;
  bool nesterov;
  bool folded;          // history="folded": a gradient's whole momentum tail at once, and no buffer
  int64_t seed;         // of bfloat16's stochastic rounding
};

// Training dynamics of N samples. visits null: none are kept.
struct Accumulators {
  int64_t* visits;      // (N,)
  double* sums;         // (N, 6): margin, p, p², correct, el2n, loss
  int64_t* forgetting;  // (N,)
  bool* was_correct;    // (N,)
};

// Cross entropy of logits + α, its gradient, and with update=true the rows' step, in one pass.
struct Forward {
  Type logits_type;     // float32, bfloat16 or float16
  const void* logits;   // (batch, classes) at logits_stride
  int64_t logits_stride;
  int64_t batch;
  int64_t classes;      // 2 to 2^30
  const int64_t* target;  // (batch,)
  const void* index;    // (batch,) sample ids, int32 or int64; null without table, ids and statistics
  bool index_int32;
  int64_t num_samples;  // ids are in [0, num_samples)
  const float* weight;  // (classes,), or null for ones
  float label_smoothing;
  Reduction reduction;
  int64_t ignore_index;
  bool ac2;
  Rows rows;
  int64_t* flags;       // (2,): set to 1 where a target, an index is outside its range; such a row counts as ignored
  float* loss;          // (), or (batch,) for Reduction::none
  void* grad;           // (batch, classes): float32, with update the logits' type
  int64_t* ids;         // (batch,): the row that a sample's gradient goes to, -1 for none; null without index
  float* statistics;    // (batch, 5): margin, p, correct, el2n, loss of the network's own logits; null: not asked for
  bool update;          // write the rows, with grad_output times the gradient; index and rows are needed then
  Sgd sgd;
  float grad_output;
  Accumulators accumulators;  // of an update
  void* workspace;      // workspace_bytes(...) bytes, aligned to 16, not initialised
};

// Gradients into rows: `update` of the rows ids, with grad times scale summed over equal ids in their order.
struct Update {
  Rows rows;
  Sgd sgd;
  bool gauge;           // AC1: column 0 stays zero
  const int64_t* ids;   // (batch,), negative where nothing is to be written
  int64_t batch;
  const float* grad;    // (batch, columns); a row that is not finite counts as none
  const float* scale;   // null for 1, () with scale_stride 0, or (batch,)
  int64_t scale_stride;
  const bool* skip;     // null or (): true writes nothing
  void* workspace;      // workspace_bytes(...) bytes, aligned to 16, not initialised
};

// out = in × scale, elementwise over (rows, columns); in place where out == in.
struct Scale {
  Type in_type, out_type;  // float32 into any, or any into itself
  const void* in;
  void* out;
  int64_t rows, columns;
  const float* scale;   // () with scale_stride 0, or (rows,)
  int64_t scale_stride;
};

// Bytes of workspace that a call on `batch` rows of a table of num_rows needs; updates: whether it writes rows.
size_t workspace_bytes(int64_t batch, int64_t num_rows, bool updates);

cudaError_t forward(const Forward&, cudaStream_t);
cudaError_t update_rows(const Update&, cudaStream_t);

// In place and with a scalar scale of 1, nothing is touched.
cudaError_t scale(const Scale&, cudaStream_t);

// AC2: out (n,), the entry of grad (n, classes) at target (n,); 0 where that is outside, as all of grad's row is.
cudaError_t row_gradient(const float* grad, const int64_t* target, int64_t n, int64_t classes, float* out,
                         cudaStream_t);

// ids: (n,), negative where there was no visit. statistics: (n, 5) float32. workspace: workspace_bytes(n, N, true).
cudaError_t record(const Accumulators&, const int64_t* ids, const float* statistics, int64_t n, int64_t num_samples,
                   void* workspace, cudaStream_t);

// α of rows ids (n,), all in range, as they are now: out (n, columns) float32.
cudaError_t read_rows(const Rows&, const int64_t* ids, int64_t n, float* out, cudaStream_t);

// Brings those of the rows ids (n,), distinct and in range, to now that were not touched for sweep_every steps.
cudaError_t sweep(const Rows&, const int64_t* ids, int64_t n, int64_t sweep_every, int64_t seed, cudaStream_t);

// Counts one step of the clock. skip: null or (), true counts none.
cudaError_t advance(const Clock&, const Sgd&, const bool* skip, cudaStream_t);

}  // namespace fastac::cuda
