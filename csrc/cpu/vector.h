// Vectors of W floats, on the compiler's vector extension: one source for every processor. All of it has internal
// linkage, because it is compiled with the flags of several processors into one library.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));

struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

// What of a vector is in the row: all of it, or its first n lanes.
struct Full { static constexpr int n = W; };
struct Part { int n; };

// Of loops' bodies, which stand in three places each (see each_vector): what they capture must stay in registers.
#define ALWAYS_INLINE __attribute__((always_inline))

// Calls f(k, part) for the vectors of [begin, end); the first `head` columns are a part of their own.
template <class F>
ALWAYS_INLINE inline void each_vector(int64_t begin, int64_t end, F f, int64_t head = 0) {
  int64_t k = begin;
  if (head > 0) {
    const int64_t n = head < end - k ? head : end - k;
    f(k, Part{(int)n});
    k += n;
  }
  for (; k + W <= end; k += W) f(k, Full{});
  if (k < end) f(k, Part{(int)(end - k)});
}

inline bool holds(int64_t k, int n, int64_t column) { return (uint64_t)(column - k) < (uint64_t)n; }

inline vf splat(float x) { return vf{} + x; }

inline vu iota() {
  vu v;
  for (int i = 0; i < W; ++i) v[i] = i;
  return v;
}

// v with x in one lane; not by v[lane], which goes through memory.
inline vf with_lane(vf v, int64_t lane, float x) { return iota() == (uint32_t)lane ? splat(x) : v; }

// As maxps: b where either is NaN.
inline vf max(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

inline float max_lane(vf v) {
  float m = v[0];
  for (int i = 1; i < W; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

inline float sum_lanes(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s[W];
  std::memcpy(s, &v, sizeof s);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) s[i] += s[i + half];
  return s[0];
#endif
}

// A sum that keeps what each addition rounds away (Knuth's two-sum), off the chain of additions.
struct Sum {
  vf high{}, low{};
  ALWAYS_INLINE void add(vf term) {
    const vf next = high + term, added = next - high;
    low += (high - (next - added)) + (term - added);
    high = next;
  }
  vf total() const { return high + low; }
  // Over the lanes as well.
  double total_of_lanes() const {
    float a[W], b[W];
    double d[W / 2];
    std::memcpy(a, &high, sizeof a);
    std::memcpy(b, &low, sizeof b);
    for (int i = 0; i < W / 2; ++i) d[i] = ((double)a[i] + a[i + W / 2]) + ((double)b[i] + b[i + W / 2]);
    for (int half = W / 4; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) d[i] += d[i + half];
    return d[0];
  }
};

// Sums over the columns [begin, end), N at once: f(k, part, run) adds its terms to run[0..N), which after every few
// vectors, before their roundings add up, go on to sums[0..N).
template <int N, class F>
ALWAYS_INLINE inline void sum_columns(int64_t begin, int64_t end, int64_t head, Sum (&sums)[N], F f) {
  constexpr int64_t kRun = 16 * W;
  while (begin < end) {
    const int64_t stop = end - begin < head + kRun ? end : begin + head + kRun;
    vf run[N] = {};
    each_vector(begin, stop, [&](int64_t k, auto part) ALWAYS_INLINE { f(k, part, run); }, head);
    for (int i = 0; i < N; ++i) sums[i].add(run[i]);
    begin = stop;
    head = 0;
  }
}

// --- loads: lanes beyond the row are `fill` ---

inline vf load(const float* p, Full, float = 0) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline vf load(const float* p, Part part, float fill = 0) {
#if defined(__AVX512F__)
  return (vf)_mm512_mask_loadu_ps((__m512)splat(fill), (__mmask16)((1u << part.n) - 1), p);
#else
  vf v = splat(fill);
  for (int i = 0; i < part.n; ++i) v[i] = p[i];
  return v;
#endif
}

inline vh load_half(const uint16_t* p, Full) {
  vh v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline vh load_half(const uint16_t* p, Part part) {
#if defined(__AVX512F__)
  return (vh)_mm256_maskz_loadu_epi16((__mmask16)((1u << part.n) - 1), p);
#else
  vh v{};
  for (int i = 0; i < part.n; ++i) v[i] = p[i];
  return v;
#endif
}

inline vf first_lanes(vf v, Full, float) { return v; }
inline vf first_lanes(vf v, Part part, float fill) { return iota() < (uint32_t)part.n ? v : splat(fill); }

template <class P>
inline vf load(const bf16* p, P part, float fill = 0) {
  const vf v = (vf)(__builtin_convertvector(load_half(&p->bits, part), vu) << 16);
  return first_lanes(v, part, fill);
}

template <class P>
inline vf load(const fp16* p, P part, float fill = 0) {
  const vu h = __builtin_convertvector(load_half(&p->bits, part), vu);
  // The exponent moves from 5 bits to 8, and the product by 2^112 shifts its bias, subnormals too.
  const vf magnitude = (vf)((h & 0x7fffu) << 13) * 0x1p112f;
  const vu special = (vu)((h & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return first_lanes((vf)((vu)magnitude | special | ((h & 0x8000u) << 16)), part, fill);
}

// --- stores ---

inline void store(float* p, vf v, Full) { std::memcpy(p, &v, sizeof v); }

inline void store(float* p, vf v, Part part) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << part.n) - 1), (__m512)v);
#else
  for (int i = 0; i < part.n; ++i) p[i] = v[i];
#endif
}

inline void store_half(uint16_t* p, vh v, Full) { std::memcpy(p, &v, sizeof v); }

inline void store_half(uint16_t* p, vh v, Part part) {
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << part.n) - 1), (__m256i)v);
#else
  for (int i = 0; i < part.n; ++i) p[i] = v[i];
#endif
}

// To the nearest, ties to even.
inline vh nearest_bf16(vf v) {
  const vu bits = (vu)v;
  const vu nan = (vu)((bits & 0x7fffffffu) > 0x7f800000u);
  const vu r = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector(nan ? vu{} + 0x7fc0u : r, vh);
}

inline vh nearest_fp16(vf v) {
  const vu sign = (vu)v & 0x80000000u, magnitude = (vu)v ^ sign;
  // The exponent's bias shrinks from 127 to 15. A subnormal's bits fall to the end of a sum with 0.5.
  const vu normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const vu subnormal = (vu)((vf)magnitude + 0.5f) - 0x3f000000u;
  vu r = magnitude < (113u << 23) ? subnormal : normal;
  r = magnitude >= 0x47800000u ? vu{} + 0x7c00u : r;
  r = magnitude > 0x7f800000u ? vu{} + 0x7e00u : r;
  return __builtin_convertvector(r | (sign >> 16), vh);
}

template <class P>
inline void store(bf16* p, vf v, P part) { store_half(&p->bits, nearest_bf16(v), part); }
template <class P>
inline void store(fp16* p, vf v, P part) { store_half(&p->bits, nearest_fp16(v), part); }

// Past the caches; p is aligned to a vector.
inline void store_stream(float* p, vf v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#elif defined(__SSE2__)
  _mm_stream_ps(p, (__m128)v);
#else
  store(p, v, Full{});
#endif
}

template <class H>
inline void store_stream(H* p, vf v) {
#if defined(__AVX2__)
  H half[W];
  store(half, v, Full{});
  typedef long long bytes __attribute__((vector_size(W * 2)));
  bytes b;
  std::memcpy(&b, half, sizeof b);
#if defined(__AVX512F__)
  _mm256_stream_si256((__m256i*)p, (__m256i)b);
#else
  _mm_stream_si128((__m128i*)p, (__m128i)b);
#endif
#else
  store(p, v, Full{});
#endif
}

inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// --- functions ---

// e^x for x <= 0, 0 below -87.3 (where float32 has subnormals left); NaN stays NaN. Cephes' polynomial, about 1 ulp.
inline vf exp_nonpositive(vf x) {
  const float shift = 0x1.8p23f;  // adding it rounds to an integer, which then lies in the low bits
  const vf t = x * 1.44269504088896341f + shift;
  const vf n = t - shift;
  const vf r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const vf power = (vf)(((vu)t << 23) + 0x3f800000u);
  return x < -87.3f ? vf{} : p * power;
}

// log(1 + x) for x >= -1, about 1 ulp, of a small x too; not for infinity; NaN stays NaN. Cephes' polynomial.
inline vf log1p_finite(vf x) {
  const vf u = 1.0f + x;
  const vf lost = x < 1.0f ? x - (u - 1.0f) : 1.0f - (u - x);
  const vi exponent = (vi)((vu)u - 0x3f3504f3u) >> 23;  // u = m 2^exponent, m in [√½, √2)
  const vf m = (vf)((vu)u - ((vu)exponent << 23)), n = __builtin_convertvector(exponent, vf);
  const vf f = (m - 1.0f) + lost * (vf)((vu)(127 - exponent) << 23), square = f * f;
  vf p = splat(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const vf tail = f * square * p + n * -2.12194440e-4f - 0.5f * square;
  return u == 0.0f ? splat(-__builtin_inff()) : (f + tail) + n * 0.693359375f;
}

inline vf square_root(vf v) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__)
  return (vf)_mm_sqrt_ps((__m128)v);
#else
  for (int i = 0; i < W; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// fastac/rng.py: lowbias32, and the absorption of a counter. T: uint32_t or a vector of them.
template <class T>
inline T mix(T x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

template <class T, class U>
inline T absorb(T state, T low, U high) {
  return mix((mix((state ^ low) + 0x9e3779b9u) ^ high) + 0x85ebca6bu);
}

inline uint32_t hash_step(int64_t seed, int64_t step) {
  uint32_t state = mix((uint32_t)seed);
  state = mix(state ^ (uint32_t)((uint64_t)seed >> 32));
  return absorb(state, (uint32_t)step, (uint32_t)((uint64_t)step >> 32));
}

inline uint32_t hash_row(int64_t seed, int64_t step, int64_t id) {
  return absorb(hash_step(seed, step), (uint32_t)id, (uint32_t)((uint64_t)id >> 32));
}

// To bfloat16: stochastically where finite (16 random bits are added below the kept ones), else to the nearest.
inline vh round_bf16(vf v, vu noise) {
  const vu bits = (vu)v;
  const vu finite = (vu)((bits & 0x7f800000u) != 0x7f800000u);
  const vu nan = (vu)((bits & 0x7fffffffu) > 0x7f800000u);
  vu r = (bits + (finite & noise)) >> 16;
  r = nan ? vu{} + 0x7fc0u : r;
  return __builtin_convertvector(r, vh);
}

}  // namespace
