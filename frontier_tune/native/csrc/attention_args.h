// What the kernels of packed attention are given.
#pragma once
#include "common.h"

namespace ft {

constexpr int64_t ATTENTION_WIDTH = 256;  // the widest head that they take

// Consecutive rows that attend to one another causally, and to all rows of the segments above: parent, its parent and so on.
struct Segment {
  int64_t first, rows, parent;  // parent: a segment before this one, or -1
};

// Sizes: T rows, D a head's width, S segments, which cover the rows in order; heads is a multiple of kv_heads.
struct AttentionArgs {
  const float* q;           // [T, heads, D]
  const float* k;           // [T, kv_heads, D]
  const float* v;           // [T, kv_heads, D]
  const Segment* segments;  // [S]
  float* out;               // [T, heads, D]
  float* lse;               // [T, heads]: log2 of the sum of exp(scores) of a row
  const float* dout;        // [T, heads, D]; the rest is for backward alone
  float* dq;
  float* dk;
  float* dv;
  int64_t T, heads, kv_heads, D, S;
  float scale;
};

}  // namespace ft
