// Training an expert layer with frozen weights and LoRA, forward and backward, without merged weights and without a full dW:
//   y_t = sum_k w_tk down_e(h),  h = silu(gate_e x_t) * up_e x_t,  e = ids_tk, every projection p as  p v + scale B (A v)
// Low-rank products run on the tile at hand: A on what was just gathered or computed, B as more terms of the same sum, and dA, dB from
// rows that are in the cache. (LoRA: arXiv:2106.09685.)
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "training_tile.h"

namespace ft {
namespace FT_ISA {
namespace training {

constexpr int64_t TASK_ROWS = 1024;  // most rows of an expert that one thread takes; their dA and dB are summed in order afterwards

static inline int64_t tiles(int64_t n) { return (n + TRAINING_TILE - 1) / TRAINING_TILE * TRAINING_TILE; }

// Rows first .. first + count of `order`, all of one expert; `place`: their first padded row.
struct Task {
  int64_t expert, first, count, place;
};

static std::vector<Task> divide(const TrainingArgs& g) {
  std::vector<Task> tasks;
  int64_t place = 0;
  for (int64_t e = 0; e < g.E; e++) {
    const int64_t count = g.begin[e + 1] - g.begin[e];
    for (int64_t r = 0; r < count; r += TASK_ROWS) tasks.push_back({e, g.begin[e] + r, std::min(TASK_ROWS, count - r), place + r});
    place += tiles(count);
  }
  return tasks;
}

// Calls body(scratch, number) for every task, scratch being one a thread.
template <class S, class F>
static void each_task(const TrainingArgs& g, const std::vector<Task>& tasks, ParallelFor run, const F& body) {
  std::atomic<size_t> next{0};
  parallel(run, g.T * g.K * g.H * g.I < 2000000 ? 1 : 64, 1, [&](int64_t, int64_t) {
    S scratch(g);
    for (size_t i = next++; i < tasks.size(); i = next++) body(scratch, i);
  });
}

// Pointers to one row of each token of a tile.
struct Rows {
  const float* from[TOKENS];
  float* to[TOKENS];
};

// Stable counting sort of the pairs by expert.
static void sort_pairs(const TrainingArgs& g) {
  std::fill(g.begin, g.begin + g.E + 1, 0);
  for (int64_t i = 0; i < g.T * g.K; i++) g.begin[g.ids[i] + 1]++;
  for (int64_t e = 0; e < g.E; e++) g.begin[e + 1] += g.begin[e];
  std::vector<int32_t> at(g.begin, g.begin + g.E);
  for (int64_t i = 0; i < g.T * g.K; i++) g.order[at[g.ids[i]]++] = static_cast<int32_t>(i);
}

// out[t] = sum_k weights[t, k] rows[t, k], or without weights.
static void combine(const TrainingArgs& g, const float* weights, ParallelFor run) {
  parallel(run, g.T, 1 + 65536 / (g.K * g.H), [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++)
      for (int64_t c = 0; c < g.H; c += VL) {
        vf total{};
        for (int64_t k = 0; k < g.K; k++) {
          const vf row = load(g.rows + (t * g.K + k) * g.H + c);
          total += weights ? weights[t * g.K + k] * row : row;
        }
        store(g.out + t * g.H + c, total);
      }
  });
}

struct ForwardScratch {
  std::vector<float> x, h, y;
  explicit ForwardScratch(const TrainingArgs& g) : x(g.H * TOKENS), h(g.I * TOKENS), y(g.H * TOKENS) {}
};

template <int V>
static void forward_tile(const TrainingArgs& g, ForwardScratch& s, int64_t e, const int32_t* order, int64_t tokens, int64_t next, int64_t place) {
  Rows rows;
  for (int64_t t = 0; t < tokens; t++) rows.from[t] = g.x + order[t] / g.K * g.H, rows.to[t] = g.rows + order[t] * g.H;
  gather(tokens, rows.from, g.H, s.x.data());
  for (int64_t t = 0; t < tokens; t++) fetch_to_write(rows.to[t], g.H);
  for (int64_t t = tokens; t < tokens + next; t++) fetch(g.x + order[t] / g.K * g.H, g.H);
  const TrainingLora &wide = g.wide, &narrow = g.narrow;
  float *z = g.z + place * 2 * g.I, *low = g.low_wide + place * wide.rank, *low_h = g.low_narrow + place * narrow.rank;
  project<V, false>(wide.rank, {wide.a + e * wide.rank * g.H, g.H, g.H, s.x.data()}, {}, wide.scale, low);
  project<V, false>(2 * g.I, {g.gate_up + e * 2 * g.I * g.H, g.H, g.H, s.x.data()},
                    {wide.b + e * wide.rank * 2 * g.I, 2 * g.I, wide.rank, low}, 1.0f, z);
  for (int64_t i = 0; i < g.I; i++)
    for (int64_t v = 0; v < V * VL; v += VL)
      store(&s.h[i * TOKENS + v], silu(load(z + i * TOKENS + v)) * load(z + (g.I + i) * TOKENS + v));
  project<V, false>(narrow.rank, {narrow.a + e * narrow.rank * g.I, g.I, g.I, s.h.data()}, {}, narrow.scale, low_h);
  project<V, false>(g.H, {g.down + e * g.H * g.I, g.I, g.I, s.h.data()}, {narrow.b + e * narrow.rank * g.H, g.H, narrow.rank, low_h}, 1.0f,
                    s.y.data());
  scatter(tokens, s.y.data(), g.H, rows.to);
}

static void forward(const TrainingArgs& g, ParallelFor run) {
  sort_pairs(g);
  const std::vector<Task> tasks = divide(g);
  each_task<ForwardScratch>(g, tasks, run, [&](ForwardScratch& s, size_t i) {
    const Task& task = tasks[i];
    for (int64_t t = 0; t < task.count; t += TOKENS) {
      const int64_t n = std::min(TOKENS, task.count - t), next = std::min(TOKENS, task.count - t - n);
      (n > VL ? forward_tile<2> : forward_tile<1>)(g, s, task.expert, g.order + task.first + t, n, next, task.place + t);
    }
  });
  combine(g, g.weights, run);
}

// Gradients of one task's adapters; dB of gate_up and dA of down are kept turned, [features, pairs(rank)].
struct Gradients {
  std::vector<float> da1, db1, da2, db2;
  explicit Gradients(const TrainingArgs& g)
      : da1(g.wide.rank * g.H), db1(2 * g.I * pairs(g.wide.rank)), da2(g.I * pairs(g.narrow.rank)), db2(g.narrow.rank * g.H) {}
};

struct BackwardScratch {
  std::vector<float> dy, dh, h, dz, dx, low, turned;
  explicit BackwardScratch(const TrainingArgs& g)
      : dy(g.H * TOKENS), dh(g.I * TOKENS), h(g.I * TOKENS), dz(2 * g.I * TOKENS), dx(g.H * TOKENS),
        low(std::max(g.wide.rank, g.narrow.rank) * TOKENS), turned(pairs(std::max(g.wide.rank, g.narrow.rank)) * TOKENS / 2) {}

  // low [rank, TOKENS] in pairs of tokens: [TOKENS / 2, pairs(rank)].
  const float* turn(const float* from, int64_t rank) {
    for (int64_t j = 0; j < rank; j++)
      for (int64_t t = 0; t < TOKENS; t += 2) std::memcpy(&turned[t / 2 * pairs(rank) + 2 * j], from + j * TOKENS + t, 2 * sizeof(float));
    return turned.data();
  }
};

// to = from, each token times its weight; [rank, TOKENS].
static inline void weigh(int64_t rank, const float* from, const float* weight, float* to) {
  for (int64_t j = 0; j < rank; j++)
    for (int64_t v = 0; v < TOKENS; v += VL) store(to + j * TOKENS + v, load(from + j * TOKENS + v) * load(weight + v));
}

// From z and dh: h, dz = w [dh up silu'(gate) | dh silu(gate)] and the weights' gradient <dh, h>.
template <int V>
static void swiglu_tile(const float* z, const float* dh, const float* weight, int64_t width, float* h, float* dz, float* dweight) {
  for (int64_t v = 0; v < V * VL; v += VL) {
    const vf w = load(weight + v);
    vf total{};
    for (int64_t i = 0; i < width; i++) {
      const vf gate = load(z + i * TOKENS + v), u = load(z + (width + i) * TOKENS + v), d = load(dh + i * TOKENS + v);
      const vf sig = 1.0f / (1.0f + exp(-gate)), act = gate * sig, out = act * u, wd = w * d;
      total += d * out;
      store(h + i * TOKENS + v, out);
      store(dz + (width + i) * TOKENS + v, wd * act);
      store(dz + i * TOKENS + v, wd * u * (sig + act * (1.0f - sig)));
    }
    store(dweight + v, total);
  }
}

template <int V>
static void backward_tile(const TrainingArgs& g, BackwardScratch& s, Gradients* sums, int64_t e, const int32_t* order, int64_t tokens,
                          int64_t next, int64_t place) {
  const TrainingLora &wide = g.wide, &narrow = g.narrow;
  Rows x, dy;
  float weight[TOKENS] = {}, dweight[TOKENS];
  for (int64_t t = 0; t < tokens; t++) {
    const int64_t token = order[t] / g.K;
    x.from[t] = g.x + token * g.H, x.to[t] = g.rows + order[t] * g.H, dy.from[t] = g.dout + token * g.H, weight[t] = g.weights[order[t]];
  }
  gather(tokens, dy.from, g.H, s.dy.data());
  for (int64_t t = 0; t < tokens && g.out; t++) fetch_to_write(x.to[t], g.H);
  for (int64_t t = tokens; t < tokens + next; t++) {
    fetch(g.dout + order[t] / g.K * g.H, g.H);
    if (wide.rank) fetch(g.x + order[t] / g.K * g.H, g.H);
  }
  const float *z = g.z + place * 2 * g.I, *low = g.low_wide + place * wide.rank, *low_h = g.low_narrow + place * narrow.rank;
  project<V, false>(narrow.rank, {narrow.b + e * narrow.rank * g.H, g.H, g.H, s.dy.data()}, {}, narrow.scale, s.low.data());
  project<V, true>(g.I, {g.down + e * g.H * g.I, g.I, g.H, s.dy.data()}, {narrow.a + e * narrow.rank * g.I, g.I, narrow.rank, s.low.data()}, 1.0f,
                   s.dh.data());
  swiglu_tile<V>(z, s.dh.data(), weight, g.I, s.h.data(), s.dz.data(), dweight);
  for (int64_t t = 0; t < tokens; t++) g.dweights[order[t]] = dweight[t];
  if (narrow.rank) {
    weigh(narrow.rank, s.low.data(), weight, s.low.data());
    inner(g.I, tokens, s.h.data(), s.turn(s.low.data(), narrow.rank), pairs(narrow.rank), sums->da2.data());
    weigh(narrow.rank, low_h, weight, s.low.data());
    outer(narrow.rank, tokens, s.low.data(), dy.from, g.H, sums->db2.data());
  }
  if (wide.rank) {
    inner(2 * g.I, tokens, s.dz.data(), s.turn(low, wide.rank), pairs(wide.rank), sums->db1.data());
    project<V, false>(wide.rank, {wide.b + e * wide.rank * 2 * g.I, 2 * g.I, 2 * g.I, s.dz.data()}, {}, wide.scale, s.low.data());
    outer(wide.rank, tokens, s.low.data(), x.from, g.H, sums->da1.data());
  }
  if (!g.out) return;
  project<V, true>(g.H, {g.gate_up + e * 2 * g.I * g.H, g.H, 2 * g.I, s.dz.data()}, {wide.a + e * wide.rank * g.H, g.H, wide.rank, s.low.data()},
                   1.0f, s.dx.data());
  scatter(tokens, s.dx.data(), g.H, x.to);
}

// to += from, where `from` may be turned [n, wide].
static void add(const std::vector<float>& from, float* to) {
  for (size_t i = 0; i < from.size(); i++) to[i] += from[i];
}
static void add_turned(const std::vector<float>& from, int64_t rank, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < rank; j++) to[j * n + i] += from[i * pairs(rank) + 2 * j] + from[i * pairs(rank) + 2 * j + 1];
}

static void backward(const TrainingArgs& g, ParallelFor run) {
  const std::vector<Task> tasks = divide(g);
  std::vector<Gradients> sums;
  for (size_t i = 0; i < tasks.size(); i++) sums.emplace_back(g);
  each_task<BackwardScratch>(g, tasks, run, [&](BackwardScratch& s, size_t i) {
    const Task& task = tasks[i];
    for (int64_t t = 0; t < task.count; t += TOKENS) {
      const int64_t n = std::min(TOKENS, task.count - t), next = std::min(TOKENS, task.count - t - n);
      (n > VL ? backward_tile<2> : backward_tile<1>)(g, s, &sums[i], task.expert, g.order + task.first + t, n, next, task.place + t);
    }
  });
  const int64_t r1 = g.wide.rank, r2 = g.narrow.rank;
  parallel(run, g.E, 1 + 65536 / (1 + (r1 + r2) * (g.H + g.I)), [&](int64_t first, int64_t end) {
    for (int64_t e = first; e < end; e++) {
      std::fill_n(g.wide.da + e * r1 * g.H, r1 * g.H, 0.0f);
      std::fill_n(g.wide.db + e * r1 * 2 * g.I, r1 * 2 * g.I, 0.0f);
      std::fill_n(g.narrow.da + e * r2 * g.I, r2 * g.I, 0.0f);
      std::fill_n(g.narrow.db + e * r2 * g.H, r2 * g.H, 0.0f);
    }
    for (size_t i = 0; i < tasks.size(); i++) {
      const int64_t e = tasks[i].expert;
      if (e < first || e >= end) continue;
      add(sums[i].da1, g.wide.da + e * r1 * g.H);
      add_turned(sums[i].db1, r1, 2 * g.I, g.wide.db + e * r1 * 2 * g.I);
      add_turned(sums[i].da2, r2, g.I, g.narrow.da + e * r2 * g.I);
      add(sums[i].db2, g.narrow.db + e * r2 * g.H);
    }
  });
  if (g.out) combine(g, nullptr, run);
}

}  // namespace training
}  // namespace FT_ISA
}  // namespace ft
