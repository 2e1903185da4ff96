// Products for training an expert layer, on tiles of tokens that lie feature by feature: [features, TOKENS]. Vectors run along the
// tokens and weights are broadcast, so that weights are read as they are stored, forward and backward, an activation is the next
// product's operand as it comes, and a product with only r rows of A wastes no lane.
#pragma once
#include "training_args.h"
#include "gemm.h"

namespace ft {
namespace FT_ISA {
namespace training {

constexpr int64_t TOKENS = STRIP;  // of a tile
static_assert(TRAINING_TILE % TOKENS == 0 && TOKENS == 2 * VL);

// A matrix [rows, n] times a tile [n, TOKENS]; TURNED: it is stored as [n, rows].
struct Matrix {
  const float* w;
  int64_t stride, n;
  const float* tile;
};

template <int ROWS, int V, bool TURNED>
static inline void add_products(const Matrix& m, int64_t first, vf (&acc)[ROWS][V]) {
  if (m.n == 0) return;
  const float* w = m.w + first * (TURNED ? 1 : m.stride);
  const int64_t row = TURNED ? 1 : m.stride, step = TURNED ? m.stride : 1;
  for (int64_t k = 0; k < m.n; k++) {
    vf column[V];
    for (int v = 0; v < V; v++) column[v] = load(m.tile + k * TOKENS + v * VL);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const vf s = all(w[r * row + k * step]);
      for (int v = 0; v < V; v++) acc[r][v] += s * column[v];
    }
  }
}

template <int ROWS, int V, bool TURNED>
static inline void project_rows(const Matrix& base, const Matrix& low, float scale, int64_t first, float* out) {
  vf acc[ROWS][V];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < V; v++) acc[r][v] = vf{};
  add_products<ROWS, V, TURNED>(base, first, acc);
  add_products<ROWS, V, true>(low, first, acc);
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < V; v++) store(out + (first + r) * TOKENS + v * VL, acc[r][v] * scale);
}

// out [rows, TOKENS] = scale (base + low), low being stored turned. V: vectors of tokens in use.
template <int V, bool TURNED>
static void project(int64_t rows, const Matrix& base, const Matrix& low, float scale, float* out) {
  int64_t r = 0;
  for (; r + MR <= rows; r += MR) project_rows<MR, V, TURNED>(base, low, scale, r, out);
  if (MR > 4 && rows - r >= 4) { project_rows<4, V, TURNED>(base, low, scale, r, out); r += 4; }
  for (; r < rows; r++) project_rows<1, V, TURNED>(base, low, scale, r, out);
}

// out[j, 0:width] += sum over tokens of s[j, token] row[token][0:width]; width is a multiple of VL.
template <int ROWS, int V>
static inline void outer_strip(int64_t tokens, const float* s, const float* const* row, int64_t c, float* out, int64_t width) {
  vf acc[ROWS][V];
#pragma GCC unroll 8
  for (int j = 0; j < ROWS; j++)
    for (int v = 0; v < V; v++) acc[j][v] = load(out + j * width + c + v * VL);
  for (int64_t t = 0; t < tokens; t++) {
    vf column[V];
    for (int v = 0; v < V; v++) column[v] = load(row[t] + c + v * VL);
    if (c + 2 * STRIP <= width)
      for (int64_t n = 0; n < STRIP; n += 16) __builtin_prefetch(row[t] + c + STRIP + n);
#pragma GCC unroll 8
    for (int j = 0; j < ROWS; j++)
      for (int v = 0; v < V; v++) acc[j][v] += all(s[j * TOKENS + t]) * column[v];
  }
#pragma GCC unroll 8
  for (int j = 0; j < ROWS; j++)
    for (int v = 0; v < V; v++) store(out + j * width + c + v * VL, acc[j][v]);
}

template <int ROWS>
static inline void outer_block(int64_t tokens, const float* s, const float* const* row, int64_t width, float* out) {
  int64_t c = 0;
  for (; c + STRIP <= width; c += STRIP) outer_strip<ROWS, 2>(tokens, s, row, c, out, width);
  if (c < width) outer_strip<ROWS, 1>(tokens, s, row, c, out, width);
}

static void outer(int64_t rank, int64_t tokens, const float* s, const float* const* row, int64_t width, float* out) {
  int64_t j = 0;
  for (; j + MR <= rank; j += MR) outer_block<MR>(tokens, s + j * TOKENS, row, width, out + j * width);
  if (MR > 4 && rank - j >= 4) { outer_block<4>(tokens, s + j * TOKENS, row, width, out + j * width); j += 4; }
  for (; j < rank; j++) outer_block<1>(tokens, s + j * TOKENS, row, width, out + j * width);
}

// The same where the wide operand is a tile. Tokens go in pairs: lanes 2j and 2j + 1 of out[i, 0:wide] += tile[i, token] s[token, j]
// for even and odd tokens, so that a rank of half a vector fills it; s [TOKENS / 2, wide], wide = pairs(rank).
static inline int64_t pairs(int64_t rank) { return (2 * rank + VL - 1) / VL * VL; }

static inline vf all_pairs(const float* p) {
  typedef int64_t v64 __attribute__((vector_size(VL * 4)));
  int64_t both;
  std::memcpy(&both, p, sizeof both);
  const v64 v = v64{} + both;
  vf out;
  std::memcpy(&out, &v, sizeof out);
  return out;
}

template <int ROWS>
static inline void inner_rows(int64_t tokens, const float* tile, const float* s, int64_t wide, float* out) {
  for (int64_t c = 0; c < wide; c += VL) {
    vf acc[ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) acc[i] = load(out + i * wide + c);
    for (int64_t t = 0; t < tokens; t += 2) {
      const vf column = load(s + t / 2 * wide + c);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; i++) acc[i] += all_pairs(tile + i * TOKENS + t) * column;
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) store(out + i * wide + c, acc[i]);
  }
}

static void inner(int64_t rows, int64_t tokens, const float* tile, const float* s, int64_t wide, float* out) {
  int64_t i = 0;
  for (; i + 8 <= rows; i += 8) inner_rows<8>(tokens, tile + i * TOKENS, s, wide, out + i * wide);
  for (; i < rows; i++) inner_rows<1>(tokens, tile + i * TOKENS, s, wide, out + i * wide);
}

// VL vectors, transposed: pairs of lanes at distance 1, 2, 4, .. are exchanged between pairs of vectors at that distance.
template <int N>
static inline void exchange(vf (&v)[VL]) {
  vi low, high;
  for (int32_t i = 0; i < VL; i++) {
    low[i] = i & N ? i - N + VL : i;
    high[i] = i & N ? i + VL : i + N;
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < VL; i++)
    if (!(i & N)) {
      const vf a = v[i], b = v[i + N];
      v[i] = __builtin_shuffle(a, b, low);
      v[i + N] = __builtin_shuffle(a, b, high);
    }
}

static inline void transpose(vf (&v)[VL]) {
  exchange<1>(v);
  exchange<2>(v);
  if constexpr (VL > 4) exchange<4>(v);
  if constexpr (VL > 8) exchange<8>(v);
}

// Asks for a row that is read or written later: rows lie anywhere, so the processor can't guess.
static inline void fetch(const float* row, int64_t width) {
  for (int64_t c = 0; c < width; c += 16) __builtin_prefetch(row + c, 0, 2);
}
static inline void fetch_to_write(float* row, int64_t width) {
  for (int64_t c = 0; c < width; c += 16) __builtin_prefetch(row + c, 1, 2);
}

// Rows [width] of up to TOKENS tokens as a tile, and back; width is a multiple of VL. Missing tokens are zero.
static void gather(int64_t tokens, const float* const* row, int64_t width, float* tile) {
  for (int64_t t = 0; t < tokens; t += VL)
    for (int64_t c = 0; c < width; c += VL) {
      vf v[VL];
#pragma GCC unroll 16
      for (int64_t i = 0; i < VL; i++) v[i] = t + i < tokens ? load(row[t + i] + c) : vf{};
      transpose(v);
#pragma GCC unroll 16
      for (int64_t i = 0; i < VL; i++) store(tile + (c + i) * TOKENS + t, v[i]);
    }
}

static void scatter(int64_t tokens, const float* tile, int64_t width, float* const* row) {
  for (int64_t t = 0; t < tokens; t += VL)
    for (int64_t c = 0; c < width; c += VL) {
      vf v[VL];
#pragma GCC unroll 16
      for (int64_t i = 0; i < VL; i++) v[i] = load(tile + (c + i) * TOKENS + t);
      transpose(v);
#pragma GCC unroll 16
      for (int64_t i = 0; i < VL; i++)
        if (t + i < tokens) store(row[t + i] + c, v[i]);
    }
}

}  // namespace training
}  // namespace FT_ISA
}  // namespace ft
