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
static inline vf all(float s) { return vf{} + s; }
static inline float sum(vf v) {
  float s[VL];
  store(s, v);
  for (int64_t n = VL / 2; n > 0; n /= 2)  // a tree of fixed shape
    for (int64_t i = 0; i < n; i++) s[i] += s[i + n];
  return s[0];
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
static inline vf silu(vf x) { return x / (1.0f + exp(-x)); }

}  // namespace FT_ISA
}  // namespace ft
