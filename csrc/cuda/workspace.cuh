// The scratch memory of one call.
#pragma once
#include "device.cuh"

namespace fastac::cuda {

constexpr int64_t kScanned = 1024;      // positions at most that each team compares its id with by itself
constexpr int64_t kScannedEach = 128;   // of them, a thread
constexpr int kThreads = 128;           // of a block that teams of at most a warp share
constexpr int kMaxPartials = 64;        // of the mean's normaliser
constexpr int kMaxLossPartials = 256;

// Of one position, between the passes over its row. write: 1, or 0 where its gradient must not be used.
struct Numbers {
  float top, scale, grad_y, write;
};

struct Workspace {
  float* normaliser;    // ()
  float* partials;      // (kMaxPartials,)
  double* losses;       // (kMaxLossPartials,)
  float* row_loss;      // (batch,)
  Numbers* numbers;     // (batch,), of an update
  uint8_t* contested;   // (batch,), of an update of a large batch
  int32_t* slot;        // (num_rows,), likewise
  size_t bytes;

  Workspace(void* base, int64_t batch, int64_t num_rows, bool updates) {
    bytes = 0;
    const bool marks = updates && batch > kScannedEach;
    losses = (double*)take(base, sizeof(double) * kMaxLossPartials);
    partials = (float*)take(base, sizeof(float) * kMaxPartials);
    normaliser = (float*)take(base, sizeof(float));
    row_loss = (float*)take(base, sizeof(float) * batch);
    numbers = (Numbers*)take(base, updates ? sizeof(Numbers) * batch : 0);
    contested = (uint8_t*)take(base, marks ? batch : 0);
    slot = (int32_t*)take(base, marks ? sizeof(int32_t) * num_rows : 0);
  }

 private:
  char* take(void* base, size_t size) {
    char* p = (char*)base + bytes;
    bytes += (size + 15) / 16 * 16;
    return p;
  }
};

}  // namespace fastac::cuda
