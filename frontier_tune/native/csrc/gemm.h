// Small matrix products over packed panels: the rows of one expert, or of one adapter, against weights that are read once.
#pragma once
#include "vectors.h"

namespace ft {
namespace FT_ISA {

constexpr int MR = VL == 16 ? 8 : 4;  // rows of a tile: with two vectors of columns they fill the registers
constexpr int64_t STRIP = 2 * VL;     // columns computed at once

// z[r, 0:STRIP] = sum_k x[k, r] w[k, 0:STRIP] for r < ROWS. x [in, MR] (a tile, transposed), w rows lie w_stride apart.
// The sum runs over k in order for every ROWS, so that a row's result doesn't depend on its neighbours.
template <int ROWS, int VECTORS>
static inline void strip(const float* x, const float* w, int64_t w_stride, int64_t in, float* z, int64_t z_stride) {
  vf acc[ROWS][VECTORS];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECTORS; v++) acc[r][v] = vf{};
  for (int64_t k = 0; k < in; k++) {
    vf column[VECTORS];
    for (int v = 0; v < VECTORS; v++) column[v] = load(w + k * w_stride + v * VL);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      vf s = all(x[k * MR + r]);
      for (int v = 0; v < VECTORS; v++) acc[r][v] += s * column[v];
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECTORS; v++) store(z + r * z_stride + v * VL, acc[r][v]);
}

// The same for any number of rows up to MR, starting at column `first` of the tile.
template <int VECTORS>
static inline void strip_rows(int64_t rows, const float* x, const float* w, int64_t w_stride, int64_t in, float* z, int64_t z_stride) {
  int64_t r = 0;
  if constexpr (MR == 8) {
    if (rows == 8) return strip<8, VECTORS>(x, w, w_stride, in, z, z_stride);
    if (rows - r >= 6) { strip<6, VECTORS>(x + r, w, w_stride, in, z + r * z_stride, z_stride); r += 6; }
  }
  if (rows - r >= 4) { strip<4, VECTORS>(x + r, w, w_stride, in, z + r * z_stride, z_stride); r += 4; }
  if (rows - r >= 2) { strip<2, VECTORS>(x + r, w, w_stride, in, z + r * z_stride, z_stride); r += 2; }
  if (rows - r >= 1) strip<1, VECTORS>(x + r, w, w_stride, in, z + r * z_stride, z_stride);
}

// z[0:rows, 0:PANEL] against one packed panel [in, PANEL].
static inline void panel_rows(int64_t rows, const float* x, const float* panel, int64_t in, float* z, int64_t z_stride) {
  for (int64_t c = 0; c < PANEL; c += STRIP) strip_rows<2>(rows, x, panel + c, PANEL, in, z + c, z_stride);
}

// Transpose `rows` rows [in] into a tile [in, MR].
static inline void make_tile(const float* const* row, int64_t rows, int64_t in, float* tile) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = 0; k < in; k++) tile[k * MR + r] = row[r][k];
}

// z[0:n] += sum_j s[j] b[j, 0:n]: a low-rank expansion of one row, b rows contiguous.
static inline void expand(const float* s, const float* b, int64_t rank, int64_t n, float* z) {
  int64_t c = 0;
  for (; c + STRIP <= n; c += STRIP) {
    vf z0 = load(z + c), z1 = load(z + c + VL);
    for (int64_t j = 0; j < rank; j++) {
      vf w = all(s[j]);
      z0 += w * load(b + j * n + c);
      z1 += w * load(b + j * n + c + VL);
    }
    store(z + c, z0);
    store(z + c + VL, z1);
  }
  for (; c < n; c++)
    for (int64_t j = 0; j < rank; j++) z[c] += s[j] * b[j * n + c];
}

// w [experts, out, in] -> [experts, out / PANEL, in, PANEL]. `out` is a multiple of PANEL.
static void pack_panels(const float* w, float* packed, int64_t experts, int64_t out, int64_t in, ParallelFor run) {
  const int64_t panels = out / PANEL;
  parallel(run, experts * panels, 1, [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const float* from = w + p * PANEL * in;  // panels of consecutive experts follow one another in both layouts
      float* to = packed + p * PANEL * in;
      for (int64_t c = 0; c < PANEL; c++)
        for (int64_t k = 0; k < in; k++) to[k * PANEL + c] = from[c * in + k];
    }
  });
}

}  // namespace FT_ISA
}  // namespace ft
