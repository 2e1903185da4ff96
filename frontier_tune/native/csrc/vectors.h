// Vectors of the instruction set that this file is compiled for.
#pragma once
#include "common.h"

#define FT_CAT2(a, b) a##b
#define FT_CAT(a, b) FT_CAT2(a, b)

namespace ft {
namespace FT_ISA {

#if defined(__AVX512F__)
constexpr int64_t VL = 16;
#elif defined(__AVX2__)
constexpr int64_t VL = 8;
#else
constexpr int64_t VL = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef float vfu __attribute__((vector_size(VL * 4), aligned(4), may_alias));

static inline vf load(const float* p) { return *reinterpret_cast<const vfu*>(p); }
static inline void store(float* p, vf v) { *reinterpret_cast<vfu*>(p) = v; }
// s - 0 is s whatever its sign, so that this compiles to a broadcast from memory; s + 0 isn't for -0, and would be computed.
static inline vf all(float s) { return s - vf{}; }
// The lanes of v, turned by n: lane i has what lane i + n had.
template <int N>
static inline vf turned(vf v) {
  vi lane;
  for (int32_t i = 0; i < VL; i++) lane[i] = (i + N) % VL;
  return __builtin_shuffle(v, lane);
}
static inline float sum(vf v) {  // a tree of fixed shape
  if constexpr (VL > 8) v += turned<8>(v);
  if constexpr (VL > 4) v += turned<4>(v);
  v += turned<2>(v);
  v += turned<1>(v);
  return v[0];
}
// NaN may be lost.
static inline vf larger(vf a, vf b) { return a > b ? a : b; }
static inline float largest(vf v) {
  if constexpr (VL > 8) v = larger(v, turned<8>(v));
  if constexpr (VL > 4) v = larger(v, turned<4>(v));
  v = larger(v, turned<2>(v));
  v = larger(v, turned<1>(v));
  return v[0];
}
// e^x to about 2 ulp: x = n ln 2 + f, a polynomial of degree 6 for e^f on |f| <= ln 2 / 2 (coefficients of the Taylor series
// adjusted by minimax), then the exponent is set by bits. Saturates to 0 and to about 3e38; NaN stays NaN.
static inline vf exp(vf x) {
  const vf low = all(-87.0f), high = all(88.0f);
  vf c = x < low ? low : x;
  c = c > high ? high : c;
  const vf shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vf n = (c * 1.44269504088896341f + shift) - shift;
  vf f = c - n * 0.693359375f;
  f = f - n * -2.12194440e-4f;
  vf p = all(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
  vf power;
  std::memcpy(&power, &bits, sizeof power);
  vf y = p * power;
  y = x < low ? vf{} : y;
  return x != x ? x : y;
}
// 2^x for x <= 0, to about 1 ulp and cheaper than exp: x = n + f, a minimax polynomial for 2^f on |f| <= 1/2. 0 below 2^-125, NaN stays NaN.
static inline vf exp2_negative(vf x) {
  const vf low = all(-125.0f), shift = all(12582912.0f + 127.0f);  // 1.5 * 2^23 rounds to an integer, 127 biases the exponent
  const vf c = x < low ? low : x, t = c + shift, f = c - (t - shift);
  vf p = all(1.5353362008e-4f);
  p = p * f + 1.3398874475e-3f;
  p = p * f + 9.6184373578e-3f;
  p = p * f + 5.5503324710e-2f;
  p = p * f + 2.4022647914e-1f;
  p = p * f + 6.9314720286e-1f;
  p = p * f + 1.0f;
  vi bits;
  std::memcpy(&bits, &t, sizeof bits);
  bits <<= 23;  // of t only the biased integer is left
  vf power;
  std::memcpy(&power, &bits, sizeof power);
  const vf y = p * power;
  return x < low ? vf{} : y;
}
static inline vf silu(vf x) { return x / (1.0f + exp(-x)); }

}  // namespace FT_ISA
}  // namespace ft
