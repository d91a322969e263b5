// See cuda_runtime_api.h.
#pragma once
#include <cmath>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#include "cuda_runtime_api.h"

#define __device__
#define __host__
#define __global__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define FASTAC_SHARED(type, name)  \
  static const char name##_key = 0; \
  type& name = *static_cast<type*>(emulation::shared(&name##_key, sizeof(type)))

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct { uint3 clusterDim; } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {
extern int capability_major;

cudaError_t launch(const cudaLaunchConfig_t&, const std::function<void()>& kernel);
void* shared(const char* key, size_t size);           // the block's
void sync_block();
void sync_cluster();
int cluster_rank();
void* in_block_of_cluster(void* shared, int rank);    // where it lies in another block's shared memory
const uint32_t* exchange(uint32_t mask, uint32_t value);  // the values of the mask's lanes, by lane
int lane();
}  // namespace emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<std::decay_t<Parameters>...> copies(arguments...);
  return emulation::launch(*config, [&] { std::apply(kernel, copies); });
}

enum cudaFuncAttribute { cudaFuncAttributeNonPortableClusterSizeAllowed };
struct cudaFuncAttributes { int ptxVersion; };
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  return attributes->ptxVersion = 10 * emulation::capability_major, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) { return cudaSuccess; }
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* count, Kernel, const cudaLaunchConfig_t*) {
  return *count = 1, cudaSuccess;
}

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float half_to_float(uint16_t bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return (float)x;
}
inline uint16_t float_to_half(float x) {
  const _Float16 h = (_Float16)x;
  uint16_t bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}
inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return 0x7fff;
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline int __ffs(int x) { return __builtin_ffs(x); }

inline void __syncthreads() { emulation::sync_block(); }
inline void __syncwarp(uint32_t mask) { emulation::exchange(mask, 0); }
inline float __shfl_xor_sync(uint32_t mask, float value, int lanes) {
  return __uint_as_float(emulation::exchange(mask, __float_as_uint(value))[emulation::lane() ^ lanes]);
}
inline float __shfl_sync(uint32_t mask, float value, int lane) {
  return __uint_as_float(emulation::exchange(mask, __float_as_uint(value))[lane]);
}
inline uint32_t __ballot_sync(uint32_t mask, bool predicate) {
  const uint32_t* values = emulation::exchange(mask, predicate);
  uint32_t ballot = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) ballot |= values[lane] << lane;
  return ballot;
}

namespace fastac::cuda {
inline int cluster_rank() { return emulation::cluster_rank(); }
inline void cluster_sync() { emulation::sync_cluster(); }
inline void store_remote(float* p, int rank, float value) {
  *static_cast<float*>(emulation::in_block_of_cluster(p, rank)) = value;
}
}  // namespace fastac::cuda

using std::isfinite;
