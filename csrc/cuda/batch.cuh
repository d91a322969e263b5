// One batch of the loss: its layout, its positions, what its mean is divided by.
#pragma once
#include "state.cuh"
#include "workspace.cuh"

namespace fastac::cuda {

struct Plan {
  int threads;   // of a block on one row
  int blocks;    // of a cluster
  int chunks;    // turns that registers hold, 0: streamed
  bool wide;     // see Columns
  bool contested;
  int partials;  // of the normaliser; 0: each block sums it up itself
};

// One position of the batch.
struct Position {
  int64_t i;
  int64_t id;   // −1: none, or outside its range
  int y;        // 0 where it is not kept
  bool kept;    // not ignored, and all in range

  FASTAC_DEVICE Position(const Forward& f, int64_t i_, bool notes) : i(i_), id(-1) {
    const int64_t target = f.target[i];
    const bool ignored = target == f.ignore_index, good = ignored || (target >= 0 && target < f.classes);
    bool inside = true;
    if (f.index) {
      id = Ids{f.index, f.index_int32, f.batch, nullptr}.at(i);
      inside = id >= 0 && id < f.num_samples;
      if (!inside) id = -1;
    }
    if (notes && !good) f.flags[0] = 1;
    if (notes && !inside) f.flags[1] = 1;
    kept = good && inside && !ignored;
    y = kept ? (int)target : 0;
  }
};

FASTAC_DEVICE float kept_weight(const Forward& f, int64_t i) {
  const Position p(f, i, false);
  return !p.kept ? 0.0f : f.weight ? f.weight[p.y] : 1.0f;
}

// Sum over the block's threads, all of which call; any number of warps up to kWarp.
FASTAC_DEVICE float block_sum(float v) {
  struct Partial { float v[kWarp]; };
  FASTAC_SHARED(Partial, partial);
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) v += __shfl_xor_sync(~0u, v, lanes);
  const int warps = ((int)blockDim.x + kWarp - 1) / kWarp, lane = (int)threadIdx.x % kWarp;
  if (lane == 0) partial.v[threadIdx.x / kWarp] = v;
  __syncthreads();
  v = lane < warps ? partial.v[lane] : 0;
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) v += __shfl_xor_sync(~0u, v, lanes);
  return v;
}

// What the gradient is divided by; all threads of the block call.
FASTAC_DEVICE float batch_normaliser(const Forward& f, const Workspace& w, int partials) {
  if (f.reduction != Reduction::mean) return 1;
  float sum = 0;
  if (partials > 0) {
    for (int i = (int)threadIdx.x; i < partials; i += (int)blockDim.x) sum += w.partials[i];
  } else {
    for (int64_t i = threadIdx.x; i < f.batch; i += blockDim.x) sum += kept_weight(f, i);
  }
  sum = block_sum(sum);
  if (blockIdx.x == 0 && threadIdx.x == 0) *w.normaliser = sum;
  return sum;
}

// What a row of logits is added to: nothing (or AC2's one number), a row of α, or one with its momentum buffer.
enum class Alpha { none, plain, momentum };

// The main launch, for logits of float or Half. Each combination is compiled on its own (see loss.cuh and loss/).
template <class M, Alpha kAlpha>
cudaError_t launch_loss(const Forward& f, const Plan& plan, const Workspace& w, cudaStream_t stream);

}  // namespace fastac::cuda
