// Causal attention over packed segments, forward: out = softmax(scale q k^T) v by tiles of queries, the softmax carried from pass to
// pass over the keys (arXiv:2205.14135, algorithm 1). No padded copies, no masks.
#pragma once
#include "attention_tile.h"

namespace ft {
namespace FT_ISA {
namespace attention {

constexpr int64_t TILE = 32;

// Of one row: hides the scores of keys ahead of it, and returns the largest of `top` and the others.
static inline float hide(const std::vector<Piece>& pass, int64_t i, int64_t last, float* s, float top) {
  const vf none = all(-std::numeric_limits<float>::infinity()), lane = lanes();
  vf m = all(top);
  for (const Piece& piece : pass) {
    float* x = s + piece.column;
    const int64_t seen = piece.seen(i), columns = piece.columns(last);
    int64_t c = 0;
    for (; c + VL <= seen; c += VL) m = larger(m, load(x + c));
    for (; c < columns; c += VL) {
      const vf v = lane + static_cast<float>(c) < all(static_cast<float>(seen)) ? load(x + c) : none;
      store(x + c, v);
      m = larger(m, v);
    }
  }
  return largest(m);
}

// Of one row: scores become 2^(score - top); returns their sum.
static inline float soften(const std::vector<Piece>& pass, int64_t last, float* s, float top) {
  vf total{};
  for (const Piece& piece : pass) {
    float* x = s + piece.column;
    const int64_t columns = piece.columns(last);
    for (int64_t c = 0; c < columns; c += VL) {
      const vf e = exp2_negative(load(x + c) - top);
      total += e;
      store(x + c, e);
    }
  }
  return sum(total);
}

static void forward(const AttentionArgs& g, ParallelFor run) {
  each_task(g, run, [&](const Tree& tree, int64_t kv_head) {
    const std::vector<float> values = tree.copy(g.v, kv_head), panels = tree.turn(tree.copy(g.k, kv_head));
    std::vector<float> q(TILE * WIDE), scores(TILE * WIDE), z(TILE * WIDE), top(TILE), total(TILE);
    each_tile(tree, kv_head, TILE, KEYS, [&](const Tile& tile) {
      tile.each(g, [&](int64_t, int64_t r, int64_t from, int64_t) {
        scaled(g.q + from, g.D, g.scale * LOG2_E, &q[r * WIDE]);  // scores in bits: powers of two are cheaper than of e
        std::fill_n(z.begin() + r * WIDE, tree.wide, 0.0f);
        top[r] = -std::numeric_limits<float>::infinity(), total[r] = 0;
      });
      tile.fetch_next(g, g.q);
      tile.fetch_next(g, g.out);
      for (const auto& pass : tile.passes) {
        score(tile, pass, q.data(), panels.data(), g.D, scores.data());
        tile.blocks([&](int64_t i, int64_t rows, int64_t r) {
          const int64_t last = i + rows - 1;
          if (pass.front().columns(last) == 0) return;  // all of these keys are ahead
          float now[MR];
          for (int64_t n = 0; n < rows; n++) now[n] = hide(pass, i + n, last, &scores[(r + n) * WIDE], top[r + n]);
          for (int64_t n = 0; n < rows; n++) {
            const float added = soften(pass, last, &scores[(r + n) * WIDE], now[n]), factor = std::exp2(top[r + n] - now[n]);
            total[r + n] = total[r + n] * factor + added, top[r + n] = now[n];
            if (&pass != &tile.passes.front())
              for (int64_t d = 0; d < tree.wide; d += VL) store(&z[(r + n) * WIDE + d], load(&z[(r + n) * WIDE + d]) * factor);
          }
        });
        collect(tile, pass, scores.data(), values.data(), tree.wide, z.data());
      }
      tile.each(g, [&](int64_t, int64_t r, int64_t to, int64_t row) {
        scaled(&z[r * WIDE], g.D, 1.0f / total[r], g.out + to);
        g.lse[row] = top[r] + std::log2(total[r]);
      });
    });
  });
}

}  // namespace attention
}  // namespace FT_ISA
}  // namespace ft
