// Draws a token from the softmax of each row, and says how likely it was: one pass over the logits for the largest, one for all
// the rest.
//
// The draw is an exponential race: with E_j = -log(1 - u_j), the argmax of p_j / E_j has the distribution p (Gumbel-max,
// arXiv:1611.01144, appendix, without the outer logarithm), and p need not be normalized. u_j depends on the row's seed, on how
// many tokens its request has, and on j alone, so that a draw is the same whatever else is in the batch.
#pragma once
#include <limits>

#include "vectors.h"

namespace ft {
namespace FT_ISA {
namespace sampling {

typedef uint32_t vu __attribute__((vector_size(VL * 4)));

constexpr float GREEDY = 1e-5f;  // a temperature below it means the largest logit, as in vLLM

static inline uint64_t mix64(uint64_t z) {  // SplitMix64 (Steele, Lea, Flood 2014)
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// A permutation of 32 bits in which every bit of the input flips every bit of the output about half of the time.
template <class U>
static inline U mix32(U h) {
  h = (h ^ (h >> 16)) * 0x21f0aaadu;
  h = (h ^ (h >> 15)) * 0xd35a2d97u;
  return h ^ (h >> 15);
}

struct Key {
  uint32_t first, second;
  template <class U>
  U bits(U j) const {
    return mix32(mix32(j + first) ^ second);
  }
};

// log of positive normal numbers to about 2 ulp: mantissa in [sqrt(1/2), sqrt(2)), a polynomial of degree 8 on it.
static inline vf log(vf x) {
  vi bits;
  std::memcpy(&bits, &x, sizeof bits);
  vi exponent = (bits >> 23) - 126;
  bits = (bits & 0x007fffff) | 0x3f000000;
  vf m;
  std::memcpy(&m, &bits, sizeof m);
  const vi small = m < 0.707106781186547524f;  // -1 where true
  exponent += small;
  m = (small ? m + m : m) - 1.0f;
  const vf e = __builtin_convertvector(exponent, vf), z = m * m;
  vf p = all(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  vf y = p * m * z + e * -2.12194440e-4f - 0.5f * z;
  return m + y + e * 0.693359375f;
}

// -log(1 - u) with u = (h + 1/2) / 2^31, exact in relative terms for small u, too, where rare tokens are decided.
static inline vf exponential(vu h) {
  const vf u = (__builtin_convertvector(reinterpret_cast<vi>(h >> 1), vf) + 0.5f) * 0x1p-31f;
  const vf w = 1.0f - u, lost = 1.0f - w;  // lost is u as w has it
  const vf safe = lost > 0.0f ? lost : all(1.0f), low = all(std::numeric_limits<float>::min());
  return lost > 0.0f ? -log(w > low ? w : low) * (u / safe) : u;
}

static inline float exponential(uint32_t h) { return -std::log1p(-((static_cast<float>(h >> 1) + 0.5f) * 0x1p-31f)); }

static inline float largest(const float* x, int64_t width) {
  vf m = all(-std::numeric_limits<float>::infinity());
  int64_t j = 0;
  for (; j + VL <= width; j += VL) {
    const vf v = load(x + j);
    m = m > v ? m : v;
  }
  float lanes[VL], top = -std::numeric_limits<float>::infinity();
  store(lanes, m);
  for (int64_t l = 0; l < VL; l++) top = top > lanes[l] ? top : lanes[l];
  for (; j < width; j++) top = top > x[j] ? top : x[j];
  return top;
}

// The winner of the race, and (in total) the sum of exp((x - top) / temperature).
static inline int64_t race(const float* x, int64_t width, float top, float inverse, Key key, float* total) {
  vf sums{}, weight{}, delay = all(1.0f);
  vi winner{}, index;
  for (int64_t l = 0; l < VL; l++) index[l] = static_cast<int32_t>(l);
  int64_t j = 0;
  for (; j + VL <= width; j += VL) {
    const vf p = exp((load(x + j) - top) * inverse), e = exponential(key.bits(reinterpret_cast<vu>(index)));
    sums += p;
    const vi better = p * delay > weight * e;  // p / e > weight / delay, without dividing
    weight = better ? p : weight;
    delay = better ? e : delay;
    winner = better ? index : winner;
    index += static_cast<int32_t>(VL);
  }
  float best = 0.0f, wait = 1.0f, t = sum(sums);
  int64_t first = -1;
  for (int64_t l = 0; l < VL; l++) {
    const float a = weight[l] * wait, b = best * delay[l];
    if (a > b || (a == b && a > 0.0f && winner[l] < first)) best = weight[l], wait = delay[l], first = winner[l];
  }
  for (; j < width; j++) {
    const float p = std::exp((x[j] - top) * inverse), e = exponential(key.bits(static_cast<uint32_t>(j)));
    t += p;
    if (p * wait > best * e) best = p, wait = e, first = j;
  }
  *total = t;
  return first;
}

}  // namespace sampling

// Of each row of x [rows, width], stride apart: a token drawn at its temperature (below 1e-5: the first largest, reported at
// temperature 1), its log-probability and its rank (how many logits are at least as large).
static void sample_tokens(const float* x, int64_t stride, const float* temperature, const int64_t* seeds, const int64_t* counts,
                          int64_t* tokens, float* logprobs, int64_t* ranks, int64_t rows, int64_t width, ParallelFor run) {
  parallel(run, rows, 1 + 4096 / width, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float* row = x + i * stride;
      const bool greedy = temperature[i] < sampling::GREEDY;
      const float top = sampling::largest(row, width), inverse = greedy ? 1.0f : 1.0f / temperature[i];
      const uint64_t key = sampling::mix64(sampling::mix64(static_cast<uint64_t>(seeds[i])) + static_cast<uint64_t>(counts[i]));
      float total;
      int64_t token = sampling::race(row, width, top, inverse, {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)}, &total);
      if (greedy || token < 0) {  // no token wins where logits are not numbers: the log-probability then isn't one either
        for (token = 0; token < width && row[token] != top; token++) {
        }
        if (token == width) token = 0;
      }
      int64_t rank = 0;
      for (int64_t j = 0; j < width; j++) rank += row[j] >= row[token];
      tokens[i] = token;
      logprobs[i] = (row[token] - top) * inverse - std::log(total);
      ranks[i] = rank;
    }
  });
}

}  // namespace FT_ISA
}  // namespace ft
