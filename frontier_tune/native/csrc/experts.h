// The expert layer with adapters, without merged copies; the low-rank path runs on the order and the tiles of the base's products.
//   y_t = sum_k w_tk down_e(silu(gate_e x_t) * up_e x_t),  e = ids_tk, every projection p as  p_e v + B_e,s (A_e,s v)
#pragma once
#include <memory>

#include "experts_tasks.h"
#include "gemm.h"
#ifdef __AMX_BF16__
#include "experts_amx.h"
#endif

namespace ft {
namespace FT_ISA {

// Whole vectors of low-rank activations: behind a row of A come the next row and B, so that a vector may be read past its end. What that
// gives is never used.
static inline int64_t low_width(int64_t rank) { return (rank + VL - 1) / VL * VL; }

// One low-rank path: low = A v of each row, and A and B of each row's slot (null: the row has no adapter).
template <class F>
struct LowRank {
  const F* a[ROWS_AT_ONCE];
  const F* b[ROWS_AT_ONCE];
  float* low;
  int64_t width, a_width, rank, whole;  // of a row of low, and of A; of B
  bool any = false, one = true;  // any row with an adapter; all rows with the same

  // A and B lie at `a_at` and `b_at` of what a slot has for an expert.
  LowRank(const Task<F>& task, const ExpertsArgs<F>& g, int64_t a_at, int64_t b_at, int64_t columns, float* low_)
      : low(low_), width(low_width(columns)), a_width(g.padded(columns)), rank(g.R), whole(g.whole(g.R)) {
    for (int64_t r = 0; r < task.rows; r++) {
      const F* own = adapter_of(g, task, r);
      a[r] = own ? own + a_at : nullptr;
      b[r] = own ? own + b_at : nullptr;
      any |= own != nullptr;
      one &= own && b[r] == b[0];
    }
  }
};

// Row j of b, of one panel.
template <int VECTORS>
static inline void rank_of(const float* b, int64_t j, vf (&column)[VECTORS]) {
  for (int v = 0; v < VECTORS; v++) column[v] = load(b + j * PANEL + v * VL);
}
template <int VECTORS>
static inline void rank_of(const bf16* b, int64_t j, vf (&column)[VECTORS]) {
  for (int v = 0; v < VECTORS; v++) {
    const vu pair = load_pairs(b + j / 2 * 2 * PANEL + 2 * v * VL);
    column[v] = j % 2 ? second(pair) : first(pair);
  }
}

// Added to a strip: sum_j low[r, j] b[j, 0:STRIP] of each row.
template <class F>
struct Expand {
  const LowRank<F>& path;
  int64_t tile, rank_at, at;
  template <int ROWS, int VECTORS>
  __attribute__((always_inline)) void operator()(vf (&acc)[ROWS][VECTORS]) const {
    const float* low = path.low + tile * path.width + rank_at;
    vf column[VECTORS];
    if (path.one) {
      for (int64_t j = 0; j < path.rank; j++) {
        rank_of(path.b[0] + at, j, column);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
          for (int v = 0; v < VECTORS; v++) acc[r][v] += all(low[r * path.width + j]) * column[v];
      }
      return;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      if (!path.b[tile + r]) continue;
      for (int64_t j = 0; j < path.rank; j++) {
        rank_of(path.b[tile + r] + at, j, column);
        for (int v = 0; v < VECTORS; v++) acc[r][v] += all(low[r * path.width + j]) * column[v];
      }
    }
  }
};

// The same on top of a strip that has been stored.
template <class F>
struct ExpandStored {
  Expand<F> expand;
  const float* z;
  int64_t stride;
  template <int ROWS, int VECTORS>
  __attribute__((always_inline)) void operator()(vf (&acc)[ROWS][VECTORS]) const {
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++) acc[r][v] = load(z + r * stride + v * VL);
    expand(acc);
  }
};

// low[r] = A x of ROWS rows (columns of a tile), each with an A of its own.
template <int ROWS, class F>
static inline void shrink_apart(const Tile<F>* tile, const int64_t* row, const LowRank<F>& path, int64_t first_row, int64_t in) {
  const F* a[ROWS];
  const Tile<F>* x[ROWS];
  for (int r = 0; r < ROWS; r++) a[r] = path.a[first_row + row[r]], x[r] = tile + row[r];
  for (int64_t c = 0; c < path.width; c += VL) {
    vf acc[ROWS];
    for (int r = 0; r < ROWS; r++) acc[r] = vf{};
    for (int64_t k = 0; k < in; k += Layout<F>::DEPTH)
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) acc[r] = step(acc[r], x[r] + k / Layout<F>::STEP * MR, a[r] + k * path.a_width + c * Layout<F>::DEPTH);
    for (int r = 0; r < ROWS; r++) store(path.low + (first_row + row[r]) * path.width + c, acc[r]);
  }
}

// low of a tile's rows. Rows of one slot share the loads of its A; of several, all go together, as one alone waits for its own sums.
template <class F>
static inline void shrink(int64_t rows, const Tile<F>* tile, const LowRank<F>& path, int64_t first_row, int64_t in) {
  int64_t row[MR], count = 0;
  bool one = true;
  for (int64_t r = 0; r < rows; r++)
    if (path.a[first_row + r]) {
      row[count++] = r;
      one &= path.a[first_row + r] == path.a[first_row + row[0]];
    }
  if (count == 0) return;
  if (one) {  // sorted by slot: they lie together
    const int64_t r = row[0];
    for (int64_t c = 0; c < path.width; c += VL)
      strip_rows<1>(count, tile + r, path.a[first_row + r] + c * Layout<F>::DEPTH, path.a_width, in,
                    path.low + (first_row + r) * path.width + c, path.width);
    return;
  }
  if (count % 2) row[count] = row[count - 1], count++;  // twice the same does no harm
  if constexpr (MR == 8) {
    if (count == 8) return shrink_apart<8, F>(tile, row, path, first_row, in);
    if (count == 6) return shrink_apart<6, F>(tile, row, path, first_row, in);
  }
  if (count == 4) return shrink_apart<4, F>(tile, row, path, first_row, in);
  shrink_apart<2, F>(tile, row, path, first_row, in);
}

// One projection of up to ROWS_AT_ONCE rows: z = x W^T, tile by tile under each panel, so that the panel is read once; the low-rank path
// goes on top while a strip is in registers, or (`far`) behind all products, so that the weights' loads follow one another. `parts`: how many matrices (gate, up) lie one above the other, the second one's low-rank
// activations `rank_step` behind the first's.
template <class F>
static inline void project(int64_t rows, const Tile<F>* tiles, const F* w, int64_t in, int64_t out, const LowRank<F>& path, int64_t parts,
                           int64_t rank_step, bool far, float* z) {
  const int64_t tile = in / Layout<F>::STEP, width = out / parts;
  if (path.any)
    for (int64_t t = 0; t < rows; t += MR) shrink(std::min<int64_t>(MR, rows - t), tiles + t * tile, path, t, in);
  const auto strips = [&](const auto& each) __attribute__((always_inline)) {
    for (int64_t p = 0; p < out; p += PANEL)
      for (int64_t t = 0; t < rows; t += MR)
        for (int64_t c = p; c < p + PANEL; c += STRIP) each(p, t, c, std::min<int64_t>(MR, rows - t), z + t * out + c);
  };
  const auto low = [&](int64_t p, int64_t t, int64_t c) {
    return Expand<F>{path, t, c / width * rank_step, p * path.whole + (c - p) * Layout<F>::DEPTH};
  };
  const auto columns = [&](int64_t p, int64_t c) { return w + p * in + (c - p) * Layout<F>::DEPTH; };
  if (path.any && !far)
    return strips([&](int64_t p, int64_t t, int64_t c, int64_t n, float* to) {
      strip_rows<2>(n, tiles + t * tile, columns(p, c), PANEL, in, to, out, low(p, t, c));
    });
  strips([&](int64_t p, int64_t t, int64_t c, int64_t n, float* to) { strip_rows<2>(n, tiles + t * tile, columns(p, c), PANEL, in, to, out); });
  if (path.any)
    strips([&](int64_t p, int64_t t, int64_t c, int64_t n, float* to) {
      strip_rows<2>(n, tiles, w, PANEL, 0, to, out, ExpandStored<F>{low(p, t, c), to, out});
    });
}

// Rows [in], wherever they lie, as tiles.
template <class F, class RowOf>
static inline void make_tiles(int64_t rows, int64_t in, Tile<F>* tiles, const RowOf& row_of) {
  for (int64_t t = 0; t < rows; t += MR) {
    decltype(row_of(0)) row[MR];
    const int64_t n = std::min<int64_t>(MR, rows - t);
    for (int64_t r = 0; r < n; r++) row[r] = row_of(t + r);
    make_tile<F>(row, n, in, tiles + t * (in / Layout<F>::STEP));
  }
}

template <class F>
class VectorWorker {
 public:
  VectorWorker(const ExpertsArgs<F>& args, int64_t most)
      : g(args), most_((most + MR - 1) / MR * MR), x_tiles(new Tile<F>[most_ * g.H / Layout<F>::STEP]),
        h_tiles(new Tile<F>[most_ * g.I / Layout<F>::STEP]), z_(new float[most_ * std::max(2 * g.I, g.H)]),
        low_(new float[g.S ? most_ * low_width(g.P * g.R) : 0]) {}

  void run(const Task<F>& task) {
    const auto [e, rows, order] = task;
    float *z = z_.get(), *low = low_.get();
    make_tiles<F>(rows, g.H, x_tiles.get(), [&, order = order](int64_t r) { return g.x + order[r] / g.K * g.H; });
    const LowRank<F> in(task, g, 0, g.b13_at(), g.P * g.R, low), down(task, g, g.a2_at(), g.b2_at(), g.R, low);
    project(rows, x_tiles.get(), g.w13 + e * 2 * g.I * g.H, g.H, 2 * g.I, in, 2, (g.P - 1) * g.R, far(g), z);
    for (int64_t r = 0; r < rows; r++) {
      float *gate = z + r * 2 * g.I, *up = gate + g.I;
      for (int64_t c = 0; c < g.I; c += VL) store(gate + c, silu(load(gate + c)) * load(up + c));
    }
    make_tiles<F>(rows, g.I, h_tiles.get(), [&](int64_t r) { return static_cast<const float*>(z) + r * 2 * g.I; });
    project(rows, h_tiles.get(), g.w2 + e * g.H * g.I, g.I, g.H, down, 1, 0, far(g), z);
    for (int64_t r = 0; r < rows; r++) std::memcpy(g.y + static_cast<int64_t>(order[r]) * g.H, z + r * g.H, g.H * sizeof(float));
  }

 private:
  const ExpertsArgs<F>& g;
  const int64_t most_;
  std::unique_ptr<Tile<F>[]> x_tiles, h_tiles;
  std::unique_ptr<float[]> z_, low_;
};

template <class F>
static void experts(const ExpertsArgs<F>& g, ParallelFor run) {
#ifdef __AMX_BF16__
  if constexpr (std::is_same_v<F, bf16>) return experts_by<amx::Worker>(g, run);
#endif
  experts_by<VectorWorker<F>>(g, run);
}

}  // namespace FT_ISA
}  // namespace ft
