// bfloat16 in vectors. Matrices are stored in pairs: the values of two consecutive k of one column lie side by side, as dot products of
// AVX512-BF16 take them; elsewhere one operation a vector makes a float of either.
#pragma once
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "vectors.h"

namespace ft {
namespace FT_ISA {

typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));

template <class To, class From>
static inline To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

static inline float number(float x) { return x; }
static inline float number(bf16 x) { return bits_of<float>(static_cast<uint32_t>(x.bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
static inline bf16 rounded(bf16 x) { return x; }
static inline bf16 rounded(float x) {
  const uint32_t u = bits_of<uint32_t>(x);
  return {static_cast<uint16_t>(x != x ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

static inline vf load(const bf16* p) {
  vh h;
  std::memcpy(&h, p, sizeof h);
  return bits_of<vf>(__builtin_convertvector(h, vu) << 16);
}

static inline void store(bf16* p, vf x) {
  vu u = bits_of<vu>(x);
  u = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  u = x != x ? vu{} + 0x7fc0 : u;
  const vh h = __builtin_convertvector(u, vh);
  std::memcpy(p, &h, sizeof h);
}

// VL pairs.
static inline vu load_pairs(const bf16* p) {
  vu u;
  std::memcpy(&u, p, sizeof u);
  return u;
}
static inline vf first(vu pair) { return bits_of<vf>(pair << 16); }
static inline vf second(vu pair) { return bits_of<vf>(pair & 0xffff0000u); }

#ifdef __AVX512BF16__
// sum + x[0] w[0] + x[1] w[1] in each lane, x being one pair for all of them.
static inline vf dot_pair(vf sum, uint32_t x, vu w) {
  const __m512i all = _mm512_set1_epi32(static_cast<int>(x));
  return bits_of<vf>(_mm512_dpbf16_ps(bits_of<__m512>(sum), bits_of<__m512bh>(all), bits_of<__m512bh>(w)));
}
#endif

}  // namespace FT_ISA
}  // namespace ft
