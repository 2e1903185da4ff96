// Small matrix products over packed panels: the rows of one expert, or of one adapter, against weights that are read once.
#pragma once
#include <type_traits>

#include "bf16.h"

namespace ft {
namespace FT_ISA {

constexpr int MR = VL == 16 ? 8 : 4;  // rows of a tile: with two vectors of columns they fill the registers
constexpr int64_t STRIP = 2 * VL;     // columns computed at once

// How F lies in matrices and tiles. DEPTH: consecutive k of a column that lie side by side in a matrix. A tile is [in / STEP, MR].
template <class F>
struct Layout {
  static constexpr int64_t DEPTH = 1, STEP = 1;
  using Tile = float;
};
template <>
struct Layout<bf16> {
  static constexpr int64_t DEPTH = 2;
#ifdef __AVX512BF16__
  static constexpr int64_t STEP = 2;
  using Tile = uint32_t;  // a pair
#else
  static constexpr int64_t STEP = 1;
  using Tile = float;
#endif
};
template <class F>
using Tile = typename Layout<F>::Tile;

// Asks for what lies some way behind p [BYTES]; that may be past the end, as nothing is read. Weights are read once and come from far: the
// processor's own prefetcher knows runs, but stops at the end of every page, and takes its time to see that a new one began.
template <int64_t BYTES>
static inline void ask_ahead(const void* p) {
  constexpr int64_t LINE = 64, AHEAD = 2048;
  for (int64_t i = 0; i < BYTES; i += LINE) __builtin_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(p) + AHEAD + i));
}

// acc[r] += sum_k x[k, r] w[k, 0:VECTORS * VL], w's rows `stride` columns apart. The sum runs over k in order for every ROWS, so
// that a row's result doesn't depend on its neighbours.
template <int ROWS, int VECTORS>
__attribute__((always_inline)) static inline void multiply(const float* x, const float* w, int64_t stride, int64_t in,
                                                           vf (&acc)[ROWS][VECTORS]) {
  for (int64_t k = 0; k < in; k++) {
    ask_ahead<VECTORS * VL * sizeof(float)>(w + k * stride);
    vf column[VECTORS];
    for (int v = 0; v < VECTORS; v++) column[v] = load(w + k * stride + v * VL);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      vf s = all(x[k * MR + r]);
      for (int v = 0; v < VECTORS; v++) acc[r][v] += s * column[v];
    }
  }
}

template <int ROWS, int VECTORS>
__attribute__((always_inline)) static inline void multiply(const Tile<bf16>* x, const bf16* w, int64_t stride, int64_t in,
                                                           vf (&acc)[ROWS][VECTORS]) {
  for (int64_t k = 0; k < in; k += 2) {
    ask_ahead<2 * VECTORS * VL * sizeof(bf16)>(w + k * stride);
    vu pair[VECTORS];
    for (int v = 0; v < VECTORS; v++) pair[v] = load_pairs(w + k * stride + 2 * v * VL);
#ifdef __AVX512BF16__
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++) acc[r][v] = dot_pair(acc[r][v], x[k / 2 * MR + r], pair[v]);
#else
    for (int half = 0; half < 2; half++) {
      vf column[VECTORS];
      for (int v = 0; v < VECTORS; v++) column[v] = half ? second(pair[v]) : first(pair[v]);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) acc[r][v] += all(x[(k + half) * MR + r]) * column[v];
    }
#endif
  }
}

// One step of that sum, of one row and one vector: x at its row's place in the tile.
static inline vf step(vf sum, const float* x, const float* w) { return sum + all(x[0]) * load(w); }
static inline vf step(vf sum, const Tile<bf16>* x, const bf16* w) {
#ifdef __AVX512BF16__
  return dot_pair(sum, x[0], load_pairs(w));
#else
  const vu pair = load_pairs(w);
  sum += all(x[0]) * first(pair);
  return sum + all(x[MR]) * second(pair);
#endif
}

// What is added to a strip while it is in registers: nothing.
struct Nothing {
  template <int ROWS, int VECTORS>
  void operator()(vf (&)[ROWS][VECTORS]) const {}
};

// z[r, 0:VECTORS * VL] = the product for r < ROWS, then more(sums). x is a tile.
template <int ROWS, int VECTORS, class F, class More>
static inline void strip(const Tile<F>* x, const F* w, int64_t w_stride, int64_t in, float* z, int64_t z_stride, const More& more) {
  vf acc[ROWS][VECTORS];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECTORS; v++) acc[r][v] = vf{};
  multiply(x, w, w_stride, in, acc);
  more(acc);
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECTORS; v++) store(z + r * z_stride + v * VL, acc[r][v]);
}

// The same for any number of rows up to MR: one pass over w, whatever it is.
template <int VECTORS, class F, class More = Nothing>
static inline void strip_rows(int64_t rows, const Tile<F>* x, const F* w, int64_t w_stride, int64_t in, float* z, int64_t z_stride,
                              const More& more = {}) {
  if constexpr (MR == 8) {
    if (rows == 8) return strip<8, VECTORS, F>(x, w, w_stride, in, z, z_stride, more);
    if (rows == 7) return strip<7, VECTORS, F>(x, w, w_stride, in, z, z_stride, more);
    if (rows == 6) return strip<6, VECTORS, F>(x, w, w_stride, in, z, z_stride, more);
    if (rows == 5) return strip<5, VECTORS, F>(x, w, w_stride, in, z, z_stride, more);
  }
  if (rows == 4) return strip<4, VECTORS, F>(x, w, w_stride, in, z, z_stride, more);
  if (rows == 3) return strip<3, VECTORS, F>(x, w, w_stride, in, z, z_stride, more);
  if (rows == 2) return strip<2, VECTORS, F>(x, w, w_stride, in, z, z_stride, more);
  if (rows == 1) return strip<1, VECTORS, F>(x, w, w_stride, in, z, z_stride, more);
}

// Transpose `rows` rows [in] into a tile of F. Floats are rounded where F is narrower.
template <class F, class S>
static inline void make_tile(const S* const* row, int64_t rows, int64_t in, Tile<F>* tile) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = 0; k < in; k += Layout<F>::STEP)
      if constexpr (std::is_same_v<F, float>)
        tile[k * MR + r] = row[r][k];
      else if constexpr (Layout<F>::STEP == 1)
        tile[k * MR + r] = number(rounded(row[r][k]));
      else
        tile[k / 2 * MR + r] = rounded(row[r][k]).bits | static_cast<uint32_t>(rounded(row[r][k + 1]).bits) << 16;
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

// w [experts, out, in] -> [experts, out / PANEL, in / DEPTH, PANEL, DEPTH]. `out` is a multiple of PANEL, `in` of DEPTH.
template <class F>
static void pack_panels(const F* w, F* packed, int64_t experts, int64_t out, int64_t in, ParallelFor run) {
  constexpr int64_t D = Layout<F>::DEPTH;
  const int64_t panels = out / PANEL;
  parallel(run, experts * panels, 1, [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const F* from = w + p * PANEL * in;  // panels of consecutive experts follow one another in both layouts
      F* to = packed + p * PANEL * in;
      for (int64_t c = 0; c < PANEL; c++)
        for (int64_t k = 0; k < in; k++) to[(k / D * PANEL + c) * D + k % D] = from[c * in + k];
    }
  });
}

}  // namespace FT_ISA
}  // namespace ft
