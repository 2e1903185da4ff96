// What the training kernels of an expert layer are given.
#pragma once
#include "common.h"

namespace ft {

constexpr int64_t TRAINING_TILE = 32;  // rows of an expert are padded to a multiple of this in what is kept for backward

// LoRA on one projection of every expert: y += scale (x A^T) B^T. rank 0: none.
struct TrainingLora {
  const float* a;  // [E, rank, in]
  const float* b;  // [E, rank, out] (transposed)
  float* da;
  float* db;
  int64_t rank;
  float scale;
};

// Sizes: T tokens, K experts a token, E experts, H hidden, I expert width; N padded rows. Kept tensors are tiles [features, tile].
struct TrainingArgs {
  const float* x;         // [T, H]
  const int64_t* ids;     // [T, K]
  const float* weights;   // [T, K]
  const float* gate_up;   // [E, 2I, H]
  const float* down;      // [E, H, I]
  TrainingLora wide, narrow;  // on gate_up and on down
  int32_t* order;         // [T * K]: pairs sorted by expert
  int32_t* begin;         // [E + 1]: first of each expert in `order`
  float* z;               // [N, 2I]: what goes into the activation
  float* low_wide;        // [N, rank]: scale A x
  float* low_narrow;      // [N, rank]: scale A h
  float* rows;            // [T * K, H] scratch
  float* out;             // [T, H]; in backward the gradient of x, or null
  const float* dout;      // [T, H]
  float* dweights;        // [T, K]
  int64_t T, K, E, H, I;
};

}  // namespace ft
