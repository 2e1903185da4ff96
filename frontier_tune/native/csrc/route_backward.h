// dL/dlogits from dL/dweights; the equations are in docs/routing-op.md. Choosing has no gradient, the weights have.
#pragma once
#include "route.h"

namespace ft {
namespace FT_ISA {
namespace routing {

static FT_INLINE void put(float* p, float x) { *p = x; }
static FT_INLINE void put(uint16_t* p, float x) {  // to the nearest bfloat16, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *p = static_cast<uint16_t>(x != x ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// One token. `row` is a scratch row of E floats, all zero before and after.
template <class T>
static inline void route_backward_token(const RouteBackwardArgs& g, int64_t t, float* row) {
  const T* logits = static_cast<const T*>(g.logits) + t * g.E;
  T* out = static_cast<T*>(g.out) + t * g.E;
  const int32_t* ids = g.ids + t * g.K;
  const float *w = g.weights + t * g.K, *grad = g.grad + t * g.K;
  float dot = 0.0f;
  for (int64_t k = 0; k < g.K; k++) dot += grad[k] * w[k];
  if (!g.sigmoid && !g.renormalize) {  // every expert of the row takes part in the sum below a softmax
    for (int64_t k = 0; k < g.K; k++) row[ids[k]] += grad[k] * w[k];
    const float max = facts(logits, g.E).max, z = sum_exp(logits, g.E, max);
    over_row(logits, g.E, -INF, [&](vf x, int64_t e, int64_t n) {
      float p[VL];
      store(p, exp(x - max) * (dot / z));
      for (int64_t i = 0; i < n; i++) put(out + e + i, row[e + i] - p[i]), row[e + i] = 0.0f;
    });
    return;
  }
  std::fill(out, out + g.E, T{});
  float total = 0.0f;
  if (g.sigmoid && g.renormalize)
    for (int64_t k = 0; k < g.K; k++) total += sigmoid(all(to_float(logits[ids[k]])))[0];
  for (int64_t k = 0; k < g.K; k++) {
    float d;
    if (!g.sigmoid) {
      d = w[k] * (grad[k] - dot / g.scale);
    } else {
      const float x = to_float(logits[ids[k]]), s = sigmoid(all(x))[0], rest = sigmoid(all(-x))[0];
      if (!g.renormalize) d = g.scale * grad[k] * s * rest;
      else d = total > 0.0f ? (g.scale * grad[k] - dot) / total * s * rest : 0.0f * w[k];
    }
    row[ids[k]] += d;  // forced routes may name an expert twice
  }
  for (int64_t k = 0; k < g.K; k++) put(out + ids[k], row[ids[k]]);
  for (int64_t k = 0; k < g.K; k++) row[ids[k]] = 0.0f;
}

// a * b + c, rounded once where the instruction set does so: in either case the same whatever stands around it.
static FT_INLINE float multiply_add(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

template <int N>
struct Floats;
template <>
struct Floats<4> {
  typedef float Vector __attribute__((vector_size(16)));
};
template <>
struct Floats<8> {
  typedef float Vector __attribute__((vector_size(32)));
};

// The same for tokens begin .. end of renormalized softmax in float32, where the gradient itself can hold the sums. K 0: any.
template <int K>
static inline void renormalized_backward(const RouteBackwardArgs& g, int64_t begin, int64_t end) {
  const int64_t k_all = K ? K : g.K, strip = 1 + 2048 / g.E;  // rows that are still in the nearest cache after they were cleared
  const float scale = g.scale;
  for (int64_t t = begin; t < end; t++) {
    float* out = static_cast<float*>(g.out) + t * g.E;
    if ((t - begin) % strip == 0) std::fill(out, out + std::min(strip, end - t) * g.E, 0.0f);
    const int32_t* ids = g.ids + t * k_all;
    const float *w = g.weights + t * k_all, *grad = g.grad + t * k_all;
    float dot = 0.0f;
    if constexpr (K >= std::max<int64_t>(4, VL / 2)) {  // the products first, all at once, as compilers do it for any K so large
      typename Floats<K>::Vector a, b;
      std::memcpy(&a, grad, sizeof a), std::memcpy(&b, w, sizeof b);
      a *= b;
#pragma GCC unroll 8
      for (int k = 0; k < K; k++) dot += a[k];
    } else if constexpr (K > 0) {
#pragma GCC unroll 4
      for (int k = 0; k < K; k++) dot = multiply_add(grad[k], w[k], dot);
    } else {
      for (int64_t k = 0; k < k_all; k++) dot += grad[k] * w[k];
    }
    const float mean = dot / scale;
#pragma GCC unroll 8
    for (int64_t k = 0; k < k_all; k++) out[ids[k]] += multiply_add(w[k], grad[k] - mean, 0.0f);
  }
}

static void route_backward(const RouteBackwardArgs& g, ParallelFor run) {
  parallel(run, g.T, 1 + 65536 / (g.E + 8 * g.K), [&](int64_t begin, int64_t end) {
    if (!g.bf16 && !g.sigmoid && g.renormalize) {
      if (g.K == 2) renormalized_backward<2>(g, begin, end);
      else if (g.K == 4) renormalized_backward<4>(g, begin, end);
      else if (g.K == 8) renormalized_backward<8>(g, begin, end);
      else renormalized_backward<0>(g, begin, end);
      return;
    }
    std::vector<float> row(static_cast<size_t>(g.E));
    for (int64_t t = begin; t < end; t++) {
      if (g.bf16) route_backward_token<uint16_t>(g, t, row.data());
      else route_backward_token<float>(g, t, row.data());
    }
  });
}

}  // namespace routing
}  // namespace FT_ISA
}  // namespace ft
