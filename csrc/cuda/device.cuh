// What the kernels are made of: number formats, wide loads and stores, teams of threads and their reductions.
//
// tests/cuda_host has a cuda_runtime.h that runs this on a CPU, with FASTAC_CUDA_HOST defined.
#pragma once
#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

#include "kernels.h"

#define FASTAC_DEVICE __device__ __forceinline__
#if !defined(FASTAC_CUDA_HOST)
#define FASTAC_SHARED(type, name) __shared__ type name
#endif

namespace fastac::cuda {

constexpr int kWarp = 32;
constexpr int kItems = 8;           // columns of a thread that lie together: 16 bytes of a 16-bit type
constexpr int kMaxThreads = 256;    // of a row in one block
constexpr int kMaxCluster = 16;     // blocks of a row
constexpr int kPortableCluster = 8; // more is up to the device
constexpr float kLeast = -FLT_MAX;

struct bf16 { uint16_t bits; };
struct Half { uint16_t bits; };  // bfloat16 or float16, which is known at run time

// The element where a row begins. 64 bits: a table outgrows 2^31 elements long before 2^31 rows.
__host__ __device__ __forceinline__ int64_t row_offset(int64_t row, int64_t stride) { return row * stride; }

// log2 of a power of two, to shift by where a 64-bit division would take a hundred instructions.
FASTAC_DEVICE int log_two(int64_t power) { return __ffs((int)power) - 1; }

// --- numbers ---

FASTAC_DEVICE float from_float16(uint16_t bits) {
#if defined(FASTAC_CUDA_HOST)
  return half_to_float(bits);
#elif defined(__CUDA_ARCH__)
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
#else
  return 0;  // the compiler's pass for the host
#endif
}

FASTAC_DEVICE uint16_t to_float16(float x) {
#if defined(FASTAC_CUDA_HOST)
  return float_to_half(x);
#else
  uint16_t bits = 0;
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#endif
  return bits;
#endif
}

FASTAC_DEVICE uint16_t to_bfloat16(float x) {
#if defined(FASTAC_CUDA_HOST)
  return float_to_bfloat16(x);
#else
  uint16_t bits = 0;
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#endif
  return bits;
#endif
}

// half: of a Half, whether it is float16.
FASTAC_DEVICE float to_float(float x, bool = false) { return x; }
FASTAC_DEVICE float to_float(bf16 x, bool = false) { return __uint_as_float((uint32_t)x.bits << 16); }
FASTAC_DEVICE float to_float(Half x, bool half) {
  return half ? from_float16(x.bits) : __uint_as_float((uint32_t)x.bits << 16);
}

FASTAC_DEVICE void round_to(float x, bool, float& out) { out = x; }
FASTAC_DEVICE void round_to(float x, bool half, Half& out) { out.bits = half ? to_float16(x) : to_bfloat16(x); }

// fastac/rng.py: lowbias32, and the absorption of a counter.
FASTAC_DEVICE uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}
FASTAC_DEVICE uint32_t absorb(uint32_t state, uint64_t counter) {
  state = mix((state ^ (uint32_t)counter) + 0x9e3779b9u);
  return mix((state ^ (uint32_t)(counter >> 32)) + 0x85ebca6bu);
}
FASTAC_DEVICE uint32_t hash_row(int64_t seed, int64_t step, int64_t id) {
  const uint32_t state = mix(mix((uint32_t)seed) ^ (uint32_t)((uint64_t)seed >> 32));
  return absorb(absorb(state, (uint64_t)step), (uint64_t)id);
}

// To bfloat16, stochastically where finite: `noise`, 16 random bits, is added below the kept ones.
FASTAC_DEVICE bf16 round_stored(float x, uint32_t noise) {
  const uint32_t bits = __float_as_uint(x);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return {finite ? (uint16_t)((bits + noise) >> 16) : to_bfloat16(x)};
}

// --- which columns a thread has ---

// The threads of a row share it in turns of threads * kItems columns. kWide: a thread's kItems columns of a turn lie
// together, and each access has 16 bytes. Else neighbours have neighbouring columns, so that rows of any width and
// alignment are still read in whole sectors.
template <bool kWide>
struct Columns {
  int count;    // K
  int threads;  // a power of two
  int turn;     // columns of a turn
  int first;    // the thread's first column of the first turn

  FASTAC_DEVICE Columns(int64_t count_, int threads_, int rank)
      : count((int)count_), threads(threads_), turn(threads_ * kItems), first(kWide ? rank * kItems : rank) {}

  FASTAC_DEVICE int at(int begin, int item) const { return begin + first + item * (kWide ? 1 : threads); }

  // Which of the thread's items from `begin` on column k is: item + kItems * turns, −1 for none. One number to
  // compare constants with, where the items' columns would take a register each.
  FASTAC_DEVICE int item_of(int k, int begin) const {
    const int past = k - begin, turns = past / turn, within = past - turns * turn;
    const int item = kWide ? within - first : within / threads;
    const bool own = past >= 0 && (kWide ? item >= 0 && item < kItems : within - item * threads == first);
    return own ? turns * kItems + item : -1;
  }
};

FASTAC_DEVICE void unpack(const float* p, bool, float (&v)[kItems]) {
  const float4 x = *reinterpret_cast<const float4*>(p), y = *reinterpret_cast<const float4*>(p + 4);
  v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w, v[4] = y.x, v[5] = y.y, v[6] = y.z, v[7] = y.w;
}
template <class T>
FASTAC_DEVICE void unpack(const T* p, bool half, float (&v)[kItems]) {
  const uint4 x = *reinterpret_cast<const uint4*>(p);
  const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < kItems; ++i) v[i] = to_float(T{(uint16_t)(words[i / 2] >> (i % 2 * 16))}, half);
}
FASTAC_DEVICE void pack(float* p, const float (&v)[kItems]) {
  *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
  *reinterpret_cast<float4*>(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
}
template <class T>
FASTAC_DEVICE void pack(T* p, const T (&v)[kItems]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = v[2 * i].bits | (uint32_t)v[2 * i + 1].bits << 16;
  *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
}

// The thread's columns of n turns from `begin` on; `fill` beyond the row.
template <int n, bool kWide, class T>
FASTAC_DEVICE void load(const T* row, int begin, const Columns<kWide>& c, float fill, float (&v)[n][kItems],
                        bool half = false) {
  const int left = c.count - begin - c.first;
  row += begin + c.first;
#pragma unroll
  for (int t = 0; t < n; ++t) {
    if (kWide && t * c.turn < left) {
      unpack(row + t * c.turn, half, v[t]);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int k = (t * kItems + i) * c.threads;
      v[t][i] = !kWide && k < left ? to_float(row[k], half) : fill;
    }
  }
}

template <bool kWide, class T>
FASTAC_DEVICE void store(T* row, int begin, const Columns<kWide>& c, const T (&v)[kItems]) {
  const int left = c.count - begin - c.first;
  row += begin + c.first;
  if constexpr (kWide) {
    if (left > 0) pack(row, v);
  } else {
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (i * c.threads < left) row[i * c.threads] = v[i];
  }
}

template <bool kWide, class T>
FASTAC_DEVICE void store_rounded(T* row, int begin, const Columns<kWide>& c, const float (&v)[kItems], bool half) {
  T out[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) round_to(v[i], half, out[i]);
  store(row, begin, c, out);
}

// --- clusters: sm_90 and later; elsewhere no launch asks for one ---

#if defined(FASTAC_CUDA_HOST)
// the emulation has them
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
FASTAC_DEVICE int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return (int)rank;
}
FASTAC_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// Writes to where *p lies in the shared memory of another block of the cluster.
FASTAC_DEVICE void store_remote(float* p, int rank, float value) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(remote) : "r"((uint32_t)__cvta_generic_to_shared(p)), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(value) : "memory");
}
#else
FASTAC_DEVICE int cluster_rank() { return 0; }
FASTAC_DEVICE void cluster_sync() {}
FASTAC_DEVICE void store_remote(float*, int, float) {}
#endif

// --- teams ---

constexpr int kValues = 4;  // that one reduction takes

// Two copies in turn, so that one barrier a reduction is enough.
struct Exchange {
  float warps[2][kValues][kMaxThreads / kWarp];
  float blocks[2][kValues][kMaxCluster];
};

struct Sum {
  static constexpr float identity = 0;
  FASTAC_DEVICE float operator()(float a, float b) const { return a + b; }
};
struct Max {
  static constexpr float identity = kLeast;
  FASTAC_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

// The threads that work on one row: a power of two of them, a part of a warp, a warp, a block or a cluster's blocks.
// Several teams share a block only where each has at most a warp.
struct Team {
  int threads;  // of one block
  int rank;     // among them
  int blocks;
  int block;
  int width;    // threads of the team in this warp
  int shift;    // lanes before them
  uint32_t mask;
  int turn = 0;
  Exchange* exchange;

  FASTAC_DEVICE Team(int threads_, int blocks_, Exchange* exchange_)
      : threads(threads_), rank((int)threadIdx.x & (threads_ - 1)), blocks(blocks_), exchange(exchange_) {
    width = threads < kWarp ? threads : kWarp;
    shift = (int)threadIdx.x & (kWarp - 1) & ~(width - 1);
    mask = (width == kWarp ? ~0u : (1u << width) - 1) << shift;
    block = 0;
    if (blocks > 1) {
      block = cluster_rank();
      cluster_sync();  // all blocks must have begun before one writes to another
    }
  }

  FASTAC_DEVICE bool leads() const { return rank == 0 && block == 0; }

  // Orders the memory accesses of the team's threads of this block.
  FASTAC_DEVICE void sync() const {
    if (threads > kWarp) __syncthreads();
    else __syncwarp(mask);
  }

  // Every thread gets the same bits.
  template <class Op, int N>
  FASTAC_DEVICE void all(Op op, float (&v)[N]) {
    static_assert(N <= kValues);
    for (int lanes = width / 2; lanes > 0; lanes /= 2)
#pragma unroll
      for (int n = 0; n < N; ++n) v[n] = op(v[n], __shfl_xor_sync(mask, v[n], lanes));
    if (threads <= kWarp) return;
    const int lane = rank % kWarp, warp = rank / kWarp, warps = threads / kWarp;
    turn ^= 1;
    if (lane == 0)
#pragma unroll
      for (int n = 0; n < N; ++n) exchange->warps[turn][n][warp] = v[n];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = lane < warps ? exchange->warps[turn][n][lane] : Op::identity;
    for (int lanes = kMaxThreads / kWarp / 2; lanes > 0; lanes /= 2)
#pragma unroll
      for (int n = 0; n < N; ++n) v[n] = op(v[n], __shfl_xor_sync(mask, v[n], lanes));
    // Lanes from kMaxThreads / kWarp on hold no warp's value.
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = __shfl_sync(mask, v[n], 0);
    if (blocks == 1) return;
    if (rank < blocks)
#pragma unroll
      for (int n = 0; n < N; ++n) store_remote(&exchange->blocks[turn][n][block], rank, v[n]);
    cluster_sync();
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = exchange->blocks[turn][n][0];
    for (int b = 1; b < blocks; ++b)
#pragma unroll
      for (int n = 0; n < N; ++n) v[n] = op(v[n], exchange->blocks[turn][n][b]);
  }
};

// --- a batch's repeated ids ---

// Ids of a batch, and where the batch is large, which positions share theirs with another (see mark_ids).
struct Ids {
  const void* ids;
  bool int32;
  int64_t count;
  const uint8_t* contested;  // null: each team looks for itself

  FASTAC_DEVICE int64_t at(int64_t i) const {
    return int32 ? (int64_t)((const int32_t*)ids)[i] : ((const int64_t*)ids)[i];
  }

  // The first position in [begin, end) that holds id, −1 for none; the same in all threads of the team.
  FASTAC_DEVICE int64_t find(const Team& team, int64_t id, int64_t begin, int64_t end) const {
    const int lane = team.rank & (team.width - 1);
    for (int64_t start = begin; start < end; start += team.width) {
      const int64_t i = start + lane;
      const uint32_t hits = __ballot_sync(team.mask, i < end && at(i) == id) >> team.shift;
      if (hits) return start + __ffs((int)hits) - 1;
    }
    return -1;
  }
};

enum class Role { leaves, alone, leads };  // leads: the first of several positions with one id does all of them

FASTAC_DEVICE Role role_of(const Team& team, const Ids& ids, int64_t i, int64_t id) {
  if (id < 0 || (ids.contested && !ids.contested[i])) return Role::alone;
  if (ids.contested) return ids.find(team, id, 0, i) < 0 ? Role::leads : Role::leaves;
  bool before = false, after = false;
#pragma unroll 4
  for (int64_t j = team.rank & (team.width - 1); j < ids.count; j += team.width) {
    const bool same = ids.at(j) == id;
    before |= same && j < i;
    after |= same && j > i;
  }
  if (__ballot_sync(team.mask, before)) return Role::leaves;
  return __ballot_sync(team.mask, after) ? Role::leads : Role::alone;
}

}  // namespace fastac::cuda
