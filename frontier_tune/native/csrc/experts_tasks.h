// What every kernel of the expert layer shares: the order of the work, and who does which part of it. Tokens are sorted by expert first
// and slot second, so that each expert's weights are read once whatever the number of adapters.
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "bf16.h"

namespace ft {
namespace FT_ISA {

constexpr int64_t ROWS_AT_ONCE = 64;  // of one expert: their tiles stay in the second-level cache

template <class F>
struct Task {  // rows of one expert
  int64_t expert, rows;
  const int32_t* order;
};

// Whether a layer's weights are more than what a cache near a core keeps until the next step.
template <class F>
static inline bool far(const ExpertsArgs<F>& g) {
  return g.E * g.H * g.I * 3 * int64_t{sizeof(F)} > int64_t{16} << 20;
}

// What row r of a task has for its expert; null: nothing.
template <class F>
static inline const F* adapter_of(const ExpertsArgs<F>& g, const Task<F>& task, int64_t r) {
  const int64_t slot = g.S ? g.slots[task.order[r] / g.K] : -1;
  return slot < 0 ? nullptr : g.lora + (slot * g.E + task.expert) * g.adapter_size();
}

// Stable sort of the T * K (token, expert) pairs by (expert, slot): order, and where each expert begins. Few pairs go by insertion, as
// counting passes over every slot of every expert.
template <class F>
static void sort_pairs(const ExpertsArgs<F>& g, std::vector<int32_t>& order, std::vector<int32_t>& begin) {
  constexpr int64_t FEW = 16;
  const int64_t n = g.T * g.K, groups = g.S + 1;
  auto key = [&](int64_t i) { return g.ids[i] * groups + (g.S && g.slots ? g.slots[i / g.K] + 1 : 0); };
  order.resize(n);
  begin.assign(g.E + 1, 0);
  if (n <= FEW) {
    int64_t sorted[FEW];
    for (int64_t i = 0; i < n; i++) {
      const int64_t own = key(i);
      int64_t at = i;
      for (; at > 0 && sorted[at - 1] > own; at--) sorted[at] = sorted[at - 1], order[at] = order[at - 1];
      sorted[at] = own, order[at] = static_cast<int32_t>(i);
      begin[g.ids[i] + 1]++;
    }
    for (int64_t e = 0; e < g.E; e++) begin[e + 1] += begin[e];
    return;
  }
  std::vector<int32_t> at(g.E * groups + 1, 0);
  for (int64_t i = 0; i < n; i++) at[key(i) + 1]++;
  for (size_t i = 1; i < at.size(); i++) at[i] += at[i - 1];
  for (int64_t e = 0; e <= g.E; e++) begin[e] = at[e * groups];
  for (int64_t i = 0; i < n; i++) order[at[key(i)]++] = static_cast<int32_t>(i);
}

// Worker(g, rows) is made once a thread, for tasks of up to so many rows; run(task) computes one.
template <class Worker, class F>
static void experts_by(const ExpertsArgs<F>& g, ParallelFor run) {
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
    Worker worker(g, most);
    for (size_t i = next++; i < tasks.size(); i = next++) worker.run(tasks[i]);
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
