// Routing of a mixture of experts: the choice, its weights and the order of work, in one pass. The specification, with all
// equations, is docs/routing-op.md.
#pragma once
#include <cfloat>
#include <limits>

#include "select.h"

namespace ft {
namespace FT_ISA {
namespace routing {

constexpr float INF = std::numeric_limits<float>::infinity();

static inline vf sigmoid(vf x) {
  const vf s = 1.0f / (1.0f + exp(-x));
  return s < FLT_MIN ? vf{} : s;
}
static inline float larger_lane(vf v) {
  float s[VL];
  store(s, v);
  return *std::max_element(s, s + VL);
}

struct RowFacts {
  float max;
  bool nan;
};
template <class T>
static inline RowFacts facts(const T* row, int64_t E) {
  vf max = all(-INF);
  vi nan{};
  over_row(row, E, -INF, [&](vf x, int64_t, int64_t) {
    max = x > max ? x : max;
    nan |= x != x;
  });
  int32_t any = 0;
  for (int i = 0; i < VL; i++) any |= nan[i];
  return {larger_lane(max), any != 0};
}
// A row has a routing unless it holds a NaN or, under softmax, its largest logit is infinite.
static inline bool answerable(const RouteArgs& g, const RowFacts& f) { return !f.nan && (g.sigmoid || std::fabs(f.max) < INF); }

template <class T>
static inline float sum_exp(const T* row, int64_t E, float max) {
  vf z{};
  over_row(row, E, -INF, [&](vf x, int64_t, int64_t) { z += exp(x - max); });
  return sum(z);
}

// What the choice goes by where it is not the logit itself: score + bias, with -inf for every expert outside of the best
// groups. Returns false for a row that has no answer.
template <class T>
static inline bool choice_scores(const RouteArgs& g, const T* row, float* c) {
  const RowFacts f = facts(row, g.E);
  if (!answerable(g, f)) return false;
  const float z = g.sigmoid ? 1.0f : sum_exp(row, g.E, f.max);
  float spread = 0.0f;
  over_row(row, g.E, 0.0f, [&](vf x, int64_t e, int64_t n) {
    float s[VL];
    store(s, g.sigmoid ? sigmoid(x) : exp(x - f.max) / z);
    for (int64_t i = 0; i < n; i++) c[e + i] = s[i] + (g.bias ? g.bias[e + i] : 0.0f);
    for (int64_t i = 0; i < n; i++) spread += c[e + i] - c[e + i];  // 0, or NaN for a bias that is not finite
  });
  if (spread != 0.0f) return false;
  if (g.topk_group >= g.n_group) return true;
  const int64_t size = g.E / g.n_group;
  std::vector<std::pair<float, int64_t>> groups;
  for (int64_t j = 0; j < g.n_group; j++) {
    float one = -INF, two = -INF;
    for (int64_t i = j * size; i < (j + 1) * size; i++) {
      two = std::max(two, std::min(one, c[i]));
      one = std::max(one, c[i]);
    }
    groups.emplace_back(-(one + two), j);  // ascending order: the larger sum, then the lower group
  }
  std::nth_element(groups.begin(), groups.begin() + g.topk_group, groups.end());
  for (auto it = groups.begin() + g.topk_group; it != groups.end(); ++it)
    for (int64_t i = it->second * size; i < (it->second + 1) * size; i++) c[i] = -INF;
  return true;
}

template <class T>
static inline void choose_best(const Rows<T>& rows, int64_t K, float* values, int32_t* ids) {
#if defined(__AVX512F__)
  if (select(rows, K, values, ids)) return;
#endif
  topk(rows, K, values, ids);
}

// Scratch of one thread: [K, VL] each, a lane a token.
struct Lanes {
  int32_t *ids, ok[VL];
  float *logit, *weight, *scores;
};

// Choose for tokens t .. t + n, n <= VL: fills ids, logit and ok.
template <class T>
static void choose(const RouteArgs& g, int64_t t, int64_t n, Lanes& l) {
  const T* rows = static_cast<const T*>(g.logits) + t * g.E;
  const bool direct = !g.bias && g.topk_group >= g.n_group;
  if (!g.forced && direct) {
    choose_best<T>({rows, g.E, n, l.ok}, g.K, l.logit, l.ids);
    for (int64_t i = 0; i < n; i++)
      if (!l.ok[i]) l.ok[i] = answerable(g, facts(rows + i * g.E, g.E));
    return;
  }
  if (g.forced) {
    for (int64_t i = 0; i < n; i++) {
      l.ok[i] = answerable(g, facts(rows + i * g.E, g.E));
      for (int64_t k = 0; k < g.K; k++) l.ids[k * VL + i] = g.forced[(t + i) * g.K + k];
    }
  } else {
    int32_t ok[VL];
    for (int64_t i = 0; i < n; i++) {
      ok[i] = choice_scores(g, rows + i * g.E, l.scores + i * g.E);
      if (!ok[i]) std::fill(l.scores + i * g.E, l.scores + (i + 1) * g.E, 0.0f);
    }
    choose_best<float>({l.scores, g.E, n, l.ok}, g.K, l.logit, l.ids);
    std::copy(ok, ok + n, l.ok);
  }
  for (int64_t k = 0; k < g.K; k++)
    for (int64_t i = 0; i < VL; i++) l.logit[k * VL + i] = i < n ? to_float(rows[i * g.E + l.ids[k * VL + i]]) : 0.0f;
}

// Weights from the chosen logits, all tokens of `l` at once.
template <class T>
static inline void weigh(const RouteArgs& g, int64_t t, int64_t n, Lanes& l) {
  const T* rows = static_cast<const T*>(g.logits) + t * g.E;
  vf max = all(-INF), total{};
  if (!g.sigmoid && g.renormalize) {  // softmax over the chosen alone
    for (int64_t k = 0; k < g.K; k++) {
      const vf x = load(l.logit + k * VL);
      max = x > max ? x : max;
    }
    max = max > -INF ? max : vf{};
  } else if (!g.sigmoid) {
    float m[VL] = {}, z[VL] = {};
    for (int64_t i = 0; i < n; i++) {
      const T* row = rows + i * g.E;
      if (!l.ok[i]) continue;
      m[i] = facts(row, g.E).max;
      z[i] = sum_exp(row, g.E, m[i]);
    }
    max = load(m), total = load(z);
  }
  vf chosen{};
  for (int64_t k = 0; k < g.K; k++) {
    const vf x = load(l.logit + k * VL), s = g.sigmoid ? sigmoid(x) : exp(x - max);
    store(l.weight + k * VL, s);
    chosen += s;
  }
  vf factor = all(g.scale);
  if (g.renormalize) factor = chosen > 0.0f ? g.scale / chosen : vf{};
  else if (!g.sigmoid) factor = g.scale / total;
  for (int64_t k = 0; k < g.K; k++) store(l.weight + k * VL, load(l.weight + k * VL) * factor);
}

// The group of work that a route belongs to: by expert, then by adapter slot.
static FT_INLINE int64_t group_of(const RouteArgs& g, int64_t id, int64_t token) { return id * (g.S + 1) + (g.slots ? g.slots[token] + 1 : 0); }

// K vectors with a lane a token -> VL rows of K, for a K that is a power of two: log2(K) perfect shuffles.
template <int K, class V>
static FT_INLINE void to_rows(V* v) {
  auto shuffle = [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    V out[K];
#pragma GCC unroll 8
    for (int i = 0; i < K / 2; i++) {
      out[2 * i] = __builtin_shufflevector(v[i], v[i + K / 2], (I / 2 + I % 2 * static_cast<int>(VL))...);
      out[2 * i + 1] = __builtin_shufflevector(v[i], v[i + K / 2], (I / 2 + static_cast<int>(VL / 2) + I % 2 * static_cast<int>(VL))...);
    }
    std::copy(out, out + K, v);
  };
#pragma GCC unroll 8
  for (int done = 1; done < K; done *= 2) shuffle(std::make_integer_sequence<int, VL>());
}

// out [n, K] from lanes [K, VL].
template <int K>
static FT_INLINE void write_rows(const float* lanes, float* out, int64_t n) {
  vf v[K];
  for (int k = 0; k < K; k++) v[k] = load(lanes + k * VL);
  to_rows<K>(v);
  if (n == VL) {
    for (int k = 0; k < K; k++) store(out + k * VL, v[k]);
  } else {
    std::memcpy(out, v, static_cast<size_t>(n * K) * sizeof *out);
  }
}

// Tokens t .. t + n from lanes to rows, counted. `inverse` becomes each route's rank within its thread and group for now.
template <int KNOWN>
static inline void write(const RouteArgs& g, int64_t t, int64_t n, const Lanes& l, int32_t* histogram) {
  const int64_t K = KNOWN ? KNOWN : g.K;
  int32_t* ids = g.ids + t * K;
  float* weights = g.weights + t * K;
  if constexpr (KNOWN > 0) {
    write_rows<KNOWN>(l.weight, weights, n);
    write_rows<KNOWN>(reinterpret_cast<const float*>(l.ids), reinterpret_cast<float*>(ids), n);
  } else {
    for (int64_t i = 0; i < n; i++)
      for (int64_t k = 0; k < K; k++) ids[i * K + k] = l.ids[k * VL + i], weights[i * K + k] = l.weight[k * VL + i];
  }
  if (!histogram) return;
  int32_t* rank = g.inverse + t * K;
  auto count = [&](auto group) __attribute__((always_inline)) {
    for (int64_t i = 0; i < n; i++, rank += K)
#pragma GCC unroll 8
      for (int64_t k = 0; k < K; k++) rank[k] = histogram[group(l.ids[k * VL + i], t + i)]++;
  };
  if (g.S == 0) count([](int64_t id, int64_t) { return id; });
  else count([&](int64_t id, int64_t token) { return group_of(g, id, token); });
}

// Tokens t .. t + n from start to end. Returns the first that has no answer, or -1.
template <class T>
static int64_t route_tokens(const RouteArgs& g, int64_t t, int64_t n, Lanes& l, int32_t* histogram) {
  choose<T>(g, t, n, l);
  weigh<T>(g, t, n, l);
  int64_t bad = -1;
  for (int64_t i = n; i-- > 0;) {
    if (l.ok[i]) continue;
    bad = t + i;
    for (int64_t k = 0; k < g.K; k++) {
      if (!g.forced) l.ids[k * VL + i] = static_cast<int32_t>(k);
      l.weight[k * VL + i] = NAN;
    }
  }
  if (g.K == 2) write<2>(g, t, n, l, histogram);
  else if (g.K == 4) write<4>(g, t, n, l, histogram);
  else if (g.K == 8) write<8>(g, t, n, l, histogram);
  else write<0>(g, t, n, l, histogram);
  if (g.code_bytes == 1)
    for (int64_t i = t * g.K; i < (t + n) * g.K; i++) static_cast<uint8_t*>(g.codes)[i] = static_cast<uint8_t>(g.ids[i]);
  if (g.code_bytes == 2)
    for (int64_t i = t * g.K; i < (t + n) * g.K; i++) static_cast<uint16_t*>(g.codes)[i] = static_cast<uint16_t>(g.ids[i]);
  return bad;
}

// A thread's part: whole blocks of VL tokens.
static inline std::pair<int64_t, int64_t> part(const RouteArgs& g, int64_t thread) {
  const int64_t blocks = (g.T + VL - 1) / VL;
  return {std::min(blocks * thread / g.threads * VL, g.T), std::min(blocks * (thread + 1) / g.threads * VL, g.T)};
}

static int64_t route_part(const RouteArgs& g, int64_t thread) {
  constexpr int64_t SMALL = 32 * VL;
  int32_t small[3 * SMALL];
  std::vector<int32_t> large;
  const int64_t size = g.K * VL;
  int32_t* at = small;
  if (size > SMALL) large.resize(static_cast<size_t>(3 * size)), at = large.data();
  std::vector<float> scores;
  if (g.bias || g.topk_group < g.n_group) scores.resize(static_cast<size_t>(VL * g.E));
  Lanes l{at, {}, reinterpret_cast<float*>(at + size), reinterpret_cast<float*>(at + 2 * size), scores.data()};
  std::fill(at, at + 3 * size, 0);
  int32_t* histogram = g.counts ? g.histograms + thread * g.E * (g.S + 1) : nullptr;
  const auto [begin, end] = part(g, thread);
  int64_t bad = -1;
  for (int64_t t = begin; t < end; t += VL) {
    const int64_t n = std::min<int64_t>(VL, end - t);
    const int64_t one = g.bf16 ? route_tokens<uint16_t>(g, t, n, l, histogram) : route_tokens<float>(g, t, n, l, histogram);
    if (bad < 0) bad = one;
  }
  return bad;
}

// Where each thread's share of each group begins; counts and offsets on the way.
static inline void scan(const RouteArgs& g) {
  const int64_t G = g.E * (g.S + 1);
  int32_t at = 0;
  for (int64_t j = 0; j < G; j++) {
    g.offsets[j] = at;
    for (int64_t thread = 0; thread < g.threads; thread++) {
      int32_t& own = g.histograms[thread * G + j];
      const int32_t n = own;
      own = at;
      at += n;
    }
    g.counts[j] = at - g.offsets[j];
  }
  g.offsets[G] = at;
}

static inline void scatter(const RouteArgs& g, int64_t thread) {
  const int32_t* base = g.histograms + thread * g.E * (g.S + 1);
  const auto [begin, end] = part(g, thread);
  const int64_t K = g.K;
  const int32_t* ids = g.ids;
  int32_t *order = g.order, *inverse = g.inverse;
  auto place = [=](int64_t i, int64_t group) __attribute__((always_inline)) {
    const int32_t to = base[group] + inverse[i];
    order[to] = static_cast<int32_t>(i);
    inverse[i] = to;
  };
  if (g.S == 0) {
    int64_t i = begin * K;
#if defined(__AVX512F__)
    for (; i + VL <= end * K; i += VL) {
      alignas(64) int32_t to[VL];
      const __m512i at = _mm512_i32gather_epi32(_mm512_loadu_si512(ids + i), base, 4);
      _mm512_store_si512(to, _mm512_add_epi32(at, _mm512_loadu_si512(inverse + i)));
      _mm512_storeu_si512(inverse + i, _mm512_load_si512(to));
#pragma GCC unroll 16
      for (int j = 0; j < VL; j++) order[to[j]] = static_cast<int32_t>(i + j);
    }
#endif
    for (; i < end * K; i++) place(i, ids[i]);
  } else {
    for (int64_t t = begin; t < end; t++)
      for (int64_t i = t * K; i < (t + 1) * K; i++) place(i, group_of(g, ids[i], t));
  }
}

// Returns the first token that has no answer, or -1.
static int64_t route(const RouteArgs& g, ParallelFor run) {
  if (g.counts) std::fill(g.histograms, g.histograms + g.threads * g.E * (g.S + 1), 0);
  std::vector<int64_t> bad;
  int64_t first = -1;
  if (g.threads == 1) {
    first = route_part(g, 0);
  } else {
    bad.resize(static_cast<size_t>(g.threads));
    parallel(run, g.threads, 1, [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; i++) bad[static_cast<size_t>(i)] = route_part(g, i);
    });
    for (int64_t i = g.threads; i-- > 0;)
      if (bad[static_cast<size_t>(i)] >= 0) first = bad[static_cast<size_t>(i)];
  }
  if (g.counts) {
    scan(g);
    parallel(run, g.threads, 1, [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; i++) scatter(g, i);
    });
  }
  return first;
}

}  // namespace routing
}  // namespace FT_ISA
}  // namespace ft
