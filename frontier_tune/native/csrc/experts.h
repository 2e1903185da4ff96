// An expert layer with adapters, without merged copies: tokens sorted by expert first and slot second, so that each expert's weights are
// read once whatever the number of adapters; the low-rank path runs on the same order and the same tiles.
//   y_t = sum_k w_tk down_e(silu(gate_e x_t) * up_e x_t),  e = ids_tk, every projection p as  p_e v + B_e,s (A_e,s v)
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "gemm.h"

namespace ft {
namespace FT_ISA {

constexpr int64_t ROWS_AT_ONCE = 64;  // of one expert: their tiles stay in the second-level cache

// Whole vectors of low-rank activations: behind a row of A come the next row and B, so that a vector may be read past its end. What that
// gives is never used.
static inline int64_t low_width(int64_t rank) { return (rank + VL - 1) / VL * VL; }

template <class F>
struct Scratch {
  std::unique_ptr<Tile<F>[]> x_tiles, h_tiles;
  std::unique_ptr<float[]> z, low;
  Scratch(const ExpertsArgs<F>& g, int64_t rows)  // a multiple of MR
      : x_tiles(new Tile<F>[rows * g.H / Layout<F>::STEP]), h_tiles(new Tile<F>[rows * g.I / Layout<F>::STEP]),
        z(new float[rows * std::max(2 * g.I, g.H)]), low(new float[g.S ? rows * low_width(g.P * g.R) : 0]) {}
};

// One low-rank path: low = A v of each row, and A and B of each row's slot (null: the row has no adapter).
template <class F>
struct LowRank {
  const F* a[ROWS_AT_ONCE];
  const F* b[ROWS_AT_ONCE];
  float* low;
  int64_t width, a_width, rank;  // of a row of low, and of A
  bool any = false, one = true;  // any row with an adapter; all rows with the same

  // A and B lie at `a_at` and `b_at` of what a slot has for an expert.
  LowRank(int64_t rows, const int32_t* order, const ExpertsArgs<F>& g, int64_t e, int64_t a_at, int64_t b_at, int64_t columns, float* low_)
      : low(low_), width(low_width(columns)), a_width(g.padded(columns)), rank(g.R) {
    for (int64_t r = 0; r < rows; r++) {
      const int64_t slot = g.S ? g.slots[order[r] / g.K] : -1;
      const F* own = slot < 0 ? nullptr : g.lora + (slot * g.E + e) * g.adapter_size();
      a[r] = own ? own + a_at : nullptr;
      b[r] = own ? own + b_at : nullptr;
      any |= slot >= 0;
      one &= slot >= 0 && b[r] == b[0];
    }
  }
};

// Added to a strip: sum_j low[r, j] b[j, 0:STRIP] of each row.
template <class F>
struct Expand {
  const LowRank<F>& path;
  int64_t tile, rank_at, at;
  template <int ROWS, int VECTORS>
  __attribute__((always_inline)) void operator()(vf (&acc)[ROWS][VECTORS], int64_t first_row) const {
    const float* low = path.low + (tile + first_row) * path.width + rank_at;
    if (path.one) {
      const F* b = path.b[0] + at;
      for (int64_t j = 0; j < path.rank; j++) {
        vf column[VECTORS];
        for (int v = 0; v < VECTORS; v++) column[v] = load(b + j * PANEL + v * VL);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
          for (int v = 0; v < VECTORS; v++) acc[r][v] += all(low[r * path.width + j]) * column[v];
      }
      return;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const F* b = path.b[tile + first_row + r];
      if (!b) continue;
      b += at;
      for (int64_t j = 0; j < path.rank; j++)
        for (int v = 0; v < VECTORS; v++) acc[r][v] += all(low[r * path.width + j]) * load(b + j * PANEL + v * VL);
    }
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
// goes on top while a strip is in registers. `parts`: how many matrices (gate, up) lie one above the other, the second one's low-rank
// activations `rank_step` behind the first's. Meanwhile `soon` [soon_size], which is needed next, is asked for.
template <class F>
static inline void project(int64_t rows, const Tile<F>* tiles, const F* w, int64_t in, int64_t out, const LowRank<F>& path, int64_t parts,
                           int64_t rank_step, const F* soon, int64_t soon_size, float* z) {
  const int64_t tile = in / Layout<F>::STEP, width = out / parts, piece = soon_size / (out / PANEL) + 1;
  if (path.any)
    for (int64_t t = 0; t < rows; t += MR) shrink(std::min<int64_t>(MR, rows - t), tiles + t * tile, path, t, in);
  for (int64_t p = 0; p < out; p += PANEL) {
    for (int64_t i = p / PANEL * piece; soon && i < std::min(soon_size, (p / PANEL + 1) * piece); i += 64 / sizeof(F))
      __builtin_prefetch(soon + i, 0, 2);
    for (int64_t t = 0; t < rows; t += MR)
      for (int64_t c = p; c < p + PANEL; c += STRIP) {
        const int64_t n = std::min<int64_t>(MR, rows - t);
        const F* columns = w + p * in + (c - p) * Layout<F>::DEPTH;
        if (path.any)
          strip_rows<2>(n, tiles + t * tile, columns, PANEL, in, z + t * out + c, out,
                        Expand<F>{path, t, c / width * rank_step, p * path.rank + c - p});
        else
          strip_rows<2>(n, tiles + t * tile, columns, PANEL, in, z + t * out + c, out);
      }
  }
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
struct Task {  // rows of one expert
  int64_t expert, rows;
  const int32_t* order;
};

// What the slot of a task's last row has for its expert; null: nothing.
template <class F>
static inline const F* adapter_of(const ExpertsArgs<F>& g, const Task<F>& task) {
  const int64_t slot = g.S ? g.slots[task.order[task.rows - 1] / g.K] : -1;
  return slot < 0 ? nullptr : g.lora + (slot * g.E + task.expert) * g.adapter_size();
}

template <class F>
static void expert_rows(const ExpertsArgs<F>& g, const Task<F>& task, const Task<F>* next, Scratch<F>& s) {
  const auto [e, rows, order] = task;
  float *z = s.z.get(), *low = s.low.get();
  make_tiles<F>(rows, g.H, s.x_tiles.get(), [&](int64_t r) { return g.x + order[r] / g.K * g.H; });
  const LowRank<F> in(rows, order, g, e, 0, g.b13_at(), g.P * g.R, low), down(rows, order, g, e, g.a2_at(), g.b2_at(), g.R, low);
  const F* own = adapter_of(g, task);
  project(rows, s.x_tiles.get(), g.w13 + e * 2 * g.I * g.H, g.H, 2 * g.I, in, 2, (g.P - 1) * g.R, own ? own + g.a2_at() : nullptr,
          g.adapter_size() - g.a2_at(), z);
  for (int64_t r = 0; r < rows; r++) {
    float *gate = z + r * 2 * g.I, *up = gate + g.I;
    for (int64_t c = 0; c < g.I; c += VL) store(gate + c, silu(load(gate + c)) * load(up + c));
  }
  make_tiles<F>(rows, g.I, s.h_tiles.get(), [&](int64_t r) { return static_cast<const float*>(z) + r * 2 * g.I; });
  project(rows, s.h_tiles.get(), g.w2 + e * g.H * g.I, g.I, g.H, down, 1, 0, next ? adapter_of(g, *next) : nullptr, g.a2_at(), z);
  for (int64_t r = 0; r < rows; r++) std::memcpy(g.y + static_cast<int64_t>(order[r]) * g.H, z + r * g.H, g.H * sizeof(float));
}

// Stable counting sort of the T * K (token, expert) pairs by (expert, slot): order, and where each expert begins.
template <class F>
static void sort_pairs(const ExpertsArgs<F>& g, std::vector<int32_t>& order, std::vector<int32_t>& begin) {
  const int64_t n = g.T * g.K, groups = g.S + 1;
  std::vector<int32_t> at(g.E * groups + 1, 0);
  auto key = [&](int64_t i) { return g.ids[i] * groups + (g.S && g.slots ? g.slots[i / g.K] + 1 : 0); };
  for (int64_t i = 0; i < n; i++) at[key(i) + 1]++;
  for (size_t i = 1; i < at.size(); i++) at[i] += at[i - 1];
  begin.resize(g.E + 1);
  for (int64_t e = 0; e <= g.E; e++) begin[e] = at[e * groups];
  order.resize(n);
  for (int64_t i = 0; i < n; i++) order[at[key(i)]++] = static_cast<int32_t>(i);
}

template <class F>
static void experts(const ExpertsArgs<F>& g, ParallelFor run) {
  std::vector<int32_t> order, begin;
  sort_pairs(g, order, begin);
  std::vector<Task<F>> tasks;
  int64_t most = 0;
  for (int64_t e = 0; e < g.E; e++)
    for (int64_t r = begin[e]; r < begin[e + 1]; r += ROWS_AT_ONCE) {
      tasks.push_back({e, std::min<int64_t>(ROWS_AT_ONCE, begin[e + 1] - r), order.data() + r});
      most = std::max(most, tasks.back().rows);
    }
  std::atomic<size_t> next{0};
  const int64_t work = g.T * g.K * g.H * g.I * 3;
  // One call a thread; each takes tasks until there are none, as experts differ in rows.
  parallel(run, work < 4000000 ? 1 : 64, 1, [&](int64_t, int64_t) {
    Scratch<F> scratch(g, (most + MR - 1) / MR * MR);
    for (size_t i = next++; i < tasks.size(); i = next++) {
      const size_t soon = next;
      expert_rows(g, tasks[i], soon < tasks.size() ? &tasks[soon] : nullptr, scratch);
    }
  });
  parallel(run, g.T, 1 + 65536 / (g.K * g.H), [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++)
      for (int64_t c = 0; c < g.H; c += VL) {
        vf total{};
        for (int64_t k = 0; k < g.K; k++) total += g.weights[t * g.K + k] * load(g.y + (t * g.K + k) * g.H + c);
        store(g.out + t * g.H + c, total);
      }
  });
}

}  // namespace FT_ISA
}  // namespace ft
