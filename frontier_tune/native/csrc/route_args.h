// What the routing kernels are given. The specification is docs/routing-op.md.
#pragma once
#include "common.h"

namespace ft {

// Sizes: T tokens, E experts, K chosen, S adapter slots, G = E * (S + 1) groups of the dispatch.
struct RouteArgs {
  const void* logits;     // [T, E] float32, or bfloat16
  const float* bias;      // [E], added to the score for the choice alone; null: none
  const int32_t* forced;  // [T, K], routes to take instead of choosing; null: choose
  float* weights;         // [T, K]
  int32_t* ids;           // [T, K]
  const int64_t* slots;   // [T], -1: no adapter; null: none has one
  int32_t* counts;        // [G]; null: no dispatch
  int32_t* offsets;       // [G + 1]
  int32_t* order;         // [T * K], sorted position -> t * K + k
  int32_t* inverse;       // [T * K], t * K + k -> sorted position
  void* codes;            // [T, K] of code_bytes (1 or 2; 0: none) each
  int32_t* histograms;    // [threads, G] scratch
  int64_t T, E, K, S, n_group, topk_group, code_bytes, threads;
  float scale;
  bool bf16, sigmoid, renormalize;
};

struct RouteBackwardArgs {
  const void* logits;    // [T, E]
  const int32_t* ids;    // [T, K]
  const float* weights;  // [T, K], as the forward gave them
  const float* grad;     // [T, K]: dL/dweights
  void* out;             // [T, E] in the dtype of the logits
  int64_t T, E, K;
  float scale;
  bool bf16, sigmoid, renormalize;
};

}  // namespace ft
