// What the forward and the backward of packed attention share: which keys a tile of queries sees, the packed keys, the products.
//
// Segments are laid out depth first (see frontier_tune/learning/packing.py): a row attends to all rows of the segments above its
// own, and causally to its own. A task is one tree of segments and one key head, with all query heads that read it: nobody else
// writes to the gradients of its keys, so that the order of additions is the same whatever the number of threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "attention_args.h"
#include "gemm.h"

namespace ft {
namespace FT_ISA {
namespace attention {

constexpr int64_t KEYS = 256;       // most keys that a tile is scored against at once
constexpr int64_t WIDE = KEYS + 16; // between the rows of a tile; no power of two, so that rows fall into different cache sets
static_assert(ATTENTION_WIDTH <= KEYS && KEYS % PANEL == 0 && PANEL % STRIP == 0 && PANEL % MR == 0);

static inline int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// z[r, 0:VECTORS * VL] (+)= sum_k x[r, k] w[k, :], k in order. x holds rows WIDE apart, or is read TURNED: its columns are the rows.
template <int ROWS, int VECTORS, bool TURNED, bool ADD>
static inline void product(int64_t n, const float* x, const float* w, int64_t w_stride, float* z, int64_t z_stride) {
  constexpr int64_t row = TURNED ? 1 : WIDE, step = TURNED ? WIDE : 1;
  vf acc[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECTORS; v++) acc[r][v] = ADD ? load(z + r * z_stride + v * VL) : vf{};
  for (int64_t k = 0; k < n; k++) {
    vf column[VECTORS];
    for (int v = 0; v < VECTORS; v++) column[v] = load(w + k * w_stride + v * VL);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const vf s = all(x[r * row + k * step]);
      for (int v = 0; v < VECTORS; v++) acc[r][v] += s * column[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECTORS; v++) store(z + r * z_stride + v * VL, acc[r][v]);
}

template <int VECTORS, bool TURNED, bool ADD>
static inline void product_rows(int64_t rows, int64_t n, const float* x, const float* w, int64_t w_stride, float* z, int64_t z_stride) {
  constexpr int64_t row = TURNED ? 1 : WIDE;
  if (rows == MR) return product<MR, VECTORS, TURNED, ADD>(n, x, w, w_stride, z, z_stride);
  int64_t r = 0;
  if constexpr (MR == 8) {
    if (rows >= 4) { product<4, VECTORS, TURNED, ADD>(n, x, w, w_stride, z, z_stride); r = 4; }
  }
  if (rows - r >= 2) { product<2, VECTORS, TURNED, ADD>(n, x + r * row, w, w_stride, z + r * z_stride, z_stride); r += 2; }
  if (rows - r >= 1) product<1, VECTORS, TURNED, ADD>(n, x + r * row, w, w_stride, z + r * z_stride, z_stride);
}

// The same for up to MR rows and `columns` columns, a multiple of VL.
template <bool TURNED, bool ADD>
static inline void products(int64_t rows, int64_t columns, int64_t n, const float* x, const float* w, int64_t w_stride, float* z,
                            int64_t z_stride) {
  int64_t c = 0;
  for (; c + STRIP <= columns; c += STRIP) product_rows<2, TURNED, ADD>(rows, n, x, w + c, w_stride, z + c, z_stride);
  if (c < columns) product_rows<1, TURNED, ADD>(rows, n, x, w + c, w_stride, z + c, z_stride);
}

// y = factor x, [width].
static inline void scaled(const float* x, int64_t width, float factor, float* y) {
  int64_t d = 0;
  for (; d + VL <= width; d += VL) store(y + d, load(x + d) * factor);
  for (; d < width; d++) y[d] = x[d] * factor;
}

// One tree of segments, and where each of its segments lies in the task's copies of keys and values: each begins with a panel.
struct Tree {
  const AttentionArgs& g;
  int64_t first, end;            // segments
  std::vector<int64_t> place;    // of each segment, in padded rows
  int64_t rows;                  // padded rows in all
  int64_t wide;                  // D, padded to whole vectors

  Tree(const AttentionArgs& args, int64_t segment) : g(args), first(segment), end(segment), rows(0), wide(up(args.D, VL)) {
    do {
      place.push_back(rows);
      rows += up(g.segments[end].rows, PANEL);
      end++;
    } while (end < g.S && g.segments[end].parent >= 0);
  }

  // Calls f(segment row, padded row) for the rows of the tree.
  template <class F>
  void each(const F& f) const {
    for (int64_t s = first; s < end; s++)
      for (int64_t i = 0; i < g.segments[s].rows; i++) f(g.segments[s].first + i, place[s - first] + i);
  }

  // Rows of one head, [padded rows, wide]; padding is zero.
  std::vector<float> copy(const float* x, int64_t head) const {
    std::vector<float> to(rows * wide);
    each([&](int64_t from, int64_t at) { scaled(x + (from * g.kv_heads + head) * g.D, g.D, 1.0f, to.data() + at * wide); });
    return to;
  }

  void write(const std::vector<float>& from, float* x, int64_t head, float factor) const {
    each([&](int64_t to, int64_t at) { scaled(from.data() + at * wide, g.D, factor, x + (to * g.kv_heads + head) * g.D); });
  }

  // Copied rows as panels [padded rows / PANEL, D, PANEL], to be multiplied from the left.
  std::vector<float> turn(const std::vector<float>& x) const {
    std::vector<float> to(rows * g.D);
    for (int64_t p = 0; p < rows; p += PANEL)
      for (int64_t j = 0; j < PANEL; j++)
        for (int64_t d = 0; d < g.D; d++) to[p * g.D + d * PANEL + j] = x[(p + j) * wide + d];
    return to;
  }
};

// Up to KEYS keys of one segment: `count` from padded row `at`, scored in columns from `column` on. `ahead`: how far the first of
// them lies ahead of the tile's first query in the same segment; those ahead of a query are not seen by it.
struct Piece {
  int64_t at, count, column, ahead;

  // How many of the keys row i of the tile sees.
  int64_t seen(int64_t i) const { return std::min(count, std::max<int64_t>(0, i + 1 - ahead)); }
  // Columns that are computed for the rows up to i.
  int64_t columns(int64_t i) const { return up(seen(i), VL); }
};

constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.693147180559945309f;
constexpr int64_t ABOVE = std::numeric_limits<int64_t>::min() / 2;  // of keys that all rows see

// A tile: `rows` queries of a segment from its row `start`, of `heads` heads; row i of head h is row h * height + i.
struct Tile {
  int64_t segment, start, rows, head, heads, height;
  std::vector<std::vector<Piece>> passes;  // each of at most `most` keys

  void pieces(const Tree& tree, int64_t most) {
    passes.assign(1, {});
    std::vector<int64_t> chain;
    for (int64_t s = segment; s >= 0; s = tree.g.segments[s].parent) chain.push_back(s);
    int64_t column = 0;
    for (size_t c = chain.size(); c-- > 0;) {
      const int64_t s = chain[c], place = tree.place[s - tree.first];
      const int64_t total = c ? tree.g.segments[s].rows : start + rows;
      for (int64_t from = 0; from < total;) {
        if (most - column < PANEL) {
          passes.emplace_back();
          column = 0;
        }
        const int64_t count = std::min(total - from, (most - column) / PANEL * PANEL);
        passes.back().push_back({place + from, count, column, c ? ABOVE : from - start});
        column += up(count, VL);
        from += count;
      }
    }
  }

  // Calls f(first row, rows, tile row) for blocks of at most MR rows, head by head.
  template <class F>
  void blocks(const F& f) const {
    for (int64_t h = 0; h < heads; h++)
      for (int64_t i = 0; i < rows; i += MR) f(i, std::min<int64_t>(MR, rows - i), h * height + i);
  }

  // Calls f(row, tile row, offset of its [D] in a tensor [T, heads, D], offset in one [T, heads]).
  template <class F>
  void each(const AttentionArgs& g, const F& f) const {
    for (int64_t h = 0; h < heads; h++)
      for (int64_t i = 0; i < rows; i++) {
        const int64_t at = (g.segments[segment].first + start + i) * g.heads + head + h;
        f(i, h * height + i, at * g.D, at);
      }
  }

  // Asks for the rows of the tile after this one, of a tensor [T, heads, D]: they lie too far apart for the processor to guess.
  void fetch_next(const AttentionArgs& g, const float* x) const {
    const int64_t from = g.segments[segment].first + start + rows;
    for (int64_t i = from; i < std::min(from + height, g.T); i++)
      for (int64_t d = 0; d < heads * g.D; d += 16) __builtin_prefetch(x + (i * g.heads + head) * g.D + d);
  }
};

// scores[r, column of key] = <x_r, key> for the keys that a block of rows may see.
static inline void score(const Tile& tile, const std::vector<Piece>& pass, const float* x, const float* panels, int64_t width, float* scores) {
  for (const Piece& piece : pass)
    for (int64_t c = 0; c < piece.count; c += PANEL)
      tile.blocks([&](int64_t i, int64_t rows, int64_t r) {
        const int64_t columns = std::min<int64_t>(PANEL, piece.columns(i + rows - 1) - c);
        if (columns > 0)
          products<false, false>(rows, columns, width, x + r * WIDE, panels + (piece.at + c) * width, PANEL, scores + r * WIDE + piece.column + c, WIDE);
      });
}

// z[r, 0:wide] += sum over the keys seen of weights[r, column of key] key.
static inline void collect(const Tile& tile, const std::vector<Piece>& pass, const float* weights, const float* keys, int64_t wide, float* z) {
  constexpr int64_t CHUNK = 2 * PANEL;  // of keys that stay in the first-level cache
  for (const Piece& piece : pass)
    for (int64_t c = 0; c < piece.count; c += CHUNK)
      tile.blocks([&](int64_t i, int64_t rows, int64_t r) {
        const int64_t n = std::min(CHUNK, piece.seen(i + rows - 1) - c);
        if (n > 0) products<false, true>(rows, wide, n, weights + r * WIDE + piece.column + c, keys + (piece.at + c) * wide, wide, z + r * WIDE, WIDE);
      });
}

static inline vf lanes() {
  float i[VL];
  for (int64_t l = 0; l < VL; l++) i[l] = static_cast<float>(l);
  return load(i);
}

// Calls body(tree, key head) for all of them, each by one thread; threads take the next when they are done.
template <class F>
static void each_task(const AttentionArgs& g, ParallelFor run, const F& body) {
  std::vector<int64_t> roots;
  for (int64_t s = 0; s < g.S; s++)
    if (g.segments[s].parent < 0) roots.push_back(s);
  const int64_t tasks = static_cast<int64_t>(roots.size()) * g.kv_heads;
  std::atomic<int64_t> next{0};
  parallel(run, g.T * g.heads * g.D < 16384 ? 1 : std::min<int64_t>(tasks, 64), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < tasks; i = next++) body(Tree(g, roots[i / g.kv_heads]), i % g.kv_heads);
  });
}

// Calls body(tile) for all tiles of a tree and key head.
template <class F>
static void each_tile(const Tree& tree, int64_t kv_head, int64_t tile_rows, int64_t most, const F& body) {
  const int64_t share = tree.g.heads / tree.g.kv_heads, together = std::min<int64_t>(share, tile_rows / MR);
  Tile tile{};
  tile.height = tile_rows / together / MR * MR;
  for (int64_t s = tree.first; s < tree.end; s++)
    for (int64_t start = 0; start < tree.g.segments[s].rows; start += tile.height) {
      tile.segment = s, tile.start = start, tile.rows = std::min(tile.height, tree.g.segments[s].rows - start);
      tile.pieces(tree, most);
      for (int64_t h = 0; h < share; h += together) {
        tile.head = kv_head * share + h, tile.heads = std::min(together, share - h);
        body(tile);
      }
    }
}

}  // namespace attention
}  // namespace FT_ISA
}  // namespace ft
