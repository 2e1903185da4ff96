// An expert layer with adapters, without merged copies: tokens sorted by expert first and slot second, so that each expert's weights are
// read once whatever the number of adapters; the low-rank path runs on the same order and the same tiles.
//   y_t = sum_k w_tk down_e(silu(gate_e x_t) * up_e x_t),  e = ids_tk, every projection p as  p_e v + B_e,s (A_e,s v)
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "gemm.h"

namespace ft {
namespace FT_ISA {

constexpr int64_t ROWS_AT_ONCE = 64;  // of one expert: their tiles stay in the second-level cache
constexpr int64_t LANES = 16;         // low-rank activations are padded to a multiple of this

static inline int64_t padded(int64_t rank) { return (rank + LANES - 1) / LANES * LANES; }

// low[r, 0:padded] = A x for the rows of one slot in a tile; a [in, padded].
static inline void shrink(int64_t rows, const float* tile, const float* a, int64_t in, int64_t width, float* low) {
  for (int64_t c = 0; c < width; c += VL) strip_rows<1>(rows, tile, a + c, width, in, low + c, width);
}

struct Scratch {
  std::vector<float> x_tiles, h_tiles, z, low;
  explicit Scratch(const ExpertsArgs& g)
      : x_tiles(ROWS_AT_ONCE * g.H), h_tiles(ROWS_AT_ONCE * g.I), z(ROWS_AT_ONCE * std::max(2 * g.I, g.H)),
        low(g.S ? ROWS_AT_ONCE * padded(g.P * g.R) : 0) {}
};

// One projection of up to ROWS_AT_ONCE rows: z = x W^T, tile by tile under each panel, so that the panel is read once.
static inline void project(int64_t rows, const float* tiles, const float* w, int64_t in, int64_t out, float* z) {
  for (int64_t p = 0; p < out / PANEL; p++)
    for (int64_t t = 0; t < rows; t += MR)
      panel_rows(std::min<int64_t>(MR, rows - t), tiles + t * in, w + p * PANEL * in, in, z + t * out + p * PANEL, out);
}

// low = A x for all rows, each with its slot's A; rows of no slot are skipped. Runs of one slot within a tile go together.
static inline void shrink_all(int64_t rows, const int32_t* order, const ExpertsArgs& g, const float* tiles, const float* a, int64_t e,
                              int64_t in, int64_t width, float* low) {
  for (int64_t t = 0; t < rows; t += MR) {
    const int64_t end = std::min<int64_t>(t + MR, rows);
    for (int64_t r = t; r < end;) {
      const int64_t slot = g.slots[order[r] / g.K];
      int64_t next = r + 1;
      while (next < end && g.slots[order[next] / g.K] == slot) next++;
      if (slot >= 0) shrink(next - r, tiles + t * in + (r - t), a + (slot * g.E + e) * in * width, in, width, low + r * width);
      r = next;
    }
  }
}

static void expert_rows(const ExpertsArgs& g, int64_t e, const int32_t* order, int64_t rows, Scratch& s) {
  const int64_t wide = g.S ? padded(g.P * g.R) : 0, narrow = g.S ? padded(g.R) : 0;
  for (int64_t t = 0; t < rows; t += MR) {
    const float* row[MR];
    const int64_t n = std::min<int64_t>(MR, rows - t);
    for (int64_t r = 0; r < n; r++) row[r] = g.x + order[t + r] / g.K * g.H;
    make_tile(row, n, g.H, s.x_tiles.data() + t * g.H);
  }
  float* z = s.z.data();
  project(rows, s.x_tiles.data(), g.w13 + e * 2 * g.I * g.H, g.H, 2 * g.I, z);
  if (g.S && g.a13) shrink_all(rows, order, g, s.x_tiles.data(), g.a13, e, g.H, wide, s.low.data());
  for (int64_t r = 0; r < rows; r++) {
    float *gate = z + r * 2 * g.I, *up = gate + g.I;
    const int64_t slot = g.S && g.a13 ? g.slots[order[r] / g.K] : -1;
    if (slot >= 0) {
      const float *low = s.low.data() + r * wide, *b = g.b13 + (slot * g.E + e) * 2 * g.R * g.I;
      expand(low, b, g.R, g.I, gate);
      expand(low + (g.P - 1) * g.R, b + g.R * g.I, g.R, g.I, up);
    }
    for (int64_t c = 0; c < g.I; c += VL) store(gate + c, silu(load(gate + c)) * load(up + c));
  }
  for (int64_t t = 0; t < rows; t += MR) {
    const float* row[MR];
    const int64_t n = std::min<int64_t>(MR, rows - t);
    for (int64_t r = 0; r < n; r++) row[r] = z + (t + r) * 2 * g.I;
    make_tile(row, n, g.I, s.h_tiles.data() + t * g.I);
  }
  project(rows, s.h_tiles.data(), g.w2 + e * g.H * g.I, g.I, g.H, z);
  if (g.S && g.a2) shrink_all(rows, order, g, s.h_tiles.data(), g.a2, e, g.I, narrow, s.low.data());
  for (int64_t r = 0; r < rows; r++) {
    const int64_t slot = g.S && g.a2 ? g.slots[order[r] / g.K] : -1;
    if (slot >= 0) expand(s.low.data() + r * narrow, g.b2 + (slot * g.E + e) * g.R * g.H, g.R, g.H, z + r * g.H);
    std::memcpy(g.y + static_cast<int64_t>(order[r]) * g.H, z + r * g.H, g.H * sizeof(float));
  }
}

// Stable counting sort of the T * K (token, expert) pairs by (expert, slot): order, and where each expert begins.
static void sort_pairs(const ExpertsArgs& g, std::vector<int32_t>& order, std::vector<int32_t>& begin) {
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

static void experts(const ExpertsArgs& g, ParallelFor run) {
  std::vector<int32_t> order, begin;
  sort_pairs(g, order, begin);
  struct Task {
    int64_t expert, first, rows;
  };
  std::vector<Task> tasks;
  for (int64_t e = 0; e < g.E; e++)
    for (int64_t r = begin[e]; r < begin[e + 1]; r += ROWS_AT_ONCE) tasks.push_back({e, r, std::min<int64_t>(ROWS_AT_ONCE, begin[e + 1] - r)});
  std::atomic<size_t> next{0};
  const int64_t work = g.T * g.K * g.H * g.I * 3;
  // One call a thread; each takes tasks until there are none, as experts differ in rows.
  parallel(run, work < 4000000 ? 1 : 64, 1, [&](int64_t, int64_t) {
    Scratch scratch(g);
    for (size_t i = next++; i < tasks.size(); i = next++) expert_rows(g, tasks[i].expert, order.data() + tasks[i].first, tasks[i].rows, scratch);
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
