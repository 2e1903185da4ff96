// Gradients of packed attention in one sweep over tiles of queries (arXiv:2205.14135, algorithm 4):
//   P = exp(S - lse),  dV += P^T dO,  dS = P (dO V^T - <dO, O>),  dQ = scale dS K,  dK += scale dS^T Q.
#pragma once
#include "attention.h"
#include "lora.h"

namespace ft {
namespace FT_ISA {
namespace attention {

constexpr int64_t BACKWARD_TILE = 32, BACKWARD_KEYS = 128;

// Of one row: scores become the weights P, and `dp` = <dO, v> of each key becomes dS.
static inline void soften_backward(const std::vector<Piece>& pass, int64_t i, int64_t last, float* s, float* dp, float lse, float delta) {
  const vf lane = lanes();
  for (const Piece& piece : pass) {
    const int64_t seen = piece.seen(i), columns = piece.columns(last);
    float *x = s + piece.column, *y = dp + piece.column;
    int64_t c = 0;
    for (; c + VL <= seen; c += VL) {
      const vf p = exp2_negative(load(x + c) - lse);
      store(x + c, p);
      store(y + c, p * (load(y + c) - delta));
    }
    for (; c < columns; c += VL) {  // selected, not multiplied by zero: what lies there need not be finite
      const auto in = lane + static_cast<float>(c) < all(static_cast<float>(seen));
      const vf p = in ? exp2_negative(load(x + c) - lse) : vf{};
      store(x + c, p);
      store(y + c, in ? p * (load(y + c) - delta) : vf{});
    }
  }
}

// z[key, 0:wide] += sum over the rows that see it of weights[r, column of key] x[r].
static inline void scatter(const Tile& tile, const std::vector<Piece>& pass, const float* weights, const float* x, int64_t wide, float* z) {
  for (const Piece& piece : pass)
    for (int64_t c = 0; c < piece.count; c += MR) {
      const int64_t from = std::max<int64_t>(0, piece.ahead + c) / MR * MR;  // rows before this see none of these keys
      for (int64_t h = 0; h < tile.heads && from < tile.rows; h++) {
        const int64_t r = h * tile.height + from;
        products<true, true>(std::min<int64_t>(MR, piece.count - c), wide, tile.rows - from, weights + r * WIDE + piece.column + c, x + r * WIDE,
                             WIDE, z + (piece.at + c) * wide, wide);
      }
    }
}

static void backward(const AttentionArgs& g, ParallelFor run) {
  each_task(g, run, [&](const Tree& tree, int64_t kv_head) {
    const std::vector<float> keys = tree.copy(g.k, kv_head), panels = tree.turn(keys), value_panels = tree.turn(tree.copy(g.v, kv_head));
    std::vector<float> dk(tree.rows * tree.wide), dv(tree.rows * tree.wide);
    std::vector<float> q(BACKWARD_TILE * WIDE), dout(BACKWARD_TILE * WIDE), dq(BACKWARD_TILE * WIDE), p(BACKWARD_TILE * WIDE),
        ds(BACKWARD_TILE * WIDE), delta(BACKWARD_TILE), lse(BACKWARD_TILE);
    each_tile(tree, kv_head, BACKWARD_TILE, BACKWARD_KEYS, [&](const Tile& tile) {
      tile.each(g, [&](int64_t, int64_t r, int64_t from, int64_t row) {
        scaled(g.q + from, g.D, g.scale * LOG2_E, &q[r * WIDE]);
        scaled(g.dout + from, g.D, 1.0f, &dout[r * WIDE]);
        std::fill_n(dq.begin() + r * WIDE, tree.wide, 0.0f);
        delta[r] = dot(g.dout + from, g.out + from, g.D), lse[r] = g.lse[row];
      });
      for (const float* x : {g.q, g.dout, static_cast<const float*>(g.out), static_cast<const float*>(g.dq)}) tile.fetch_next(g, x);
      for (const auto& pass : tile.passes) {
        score(tile, pass, q.data(), panels.data(), g.D, p.data());
        score(tile, pass, dout.data(), value_panels.data(), g.D, ds.data());
        tile.blocks([&](int64_t i, int64_t rows, int64_t r) {
          for (int64_t n = 0; n < rows; n++)
            soften_backward(pass, i + n, i + rows - 1, &p[(r + n) * WIDE], &ds[(r + n) * WIDE], lse[r + n], delta[r + n]);
        });
        collect(tile, pass, ds.data(), keys.data(), tree.wide, dq.data());
        scatter(tile, pass, p.data(), dout.data(), tree.wide, dv.data());
        scatter(tile, pass, ds.data(), q.data(), tree.wide, dk.data());
      }
      tile.each(g, [&](int64_t, int64_t r, int64_t to, int64_t) {
        scaled(&dq[r * WIDE], g.D, g.scale, g.dq + to);
      });
    });
    tree.write(dk, g.dk, kv_head, LN_2);  // the scores' q was in bits
    tree.write(dv, g.dv, kv_head, 1.0f);
  });
}

}  // namespace attention
}  // namespace FT_ISA
}  // namespace ft
