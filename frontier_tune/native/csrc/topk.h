// The K largest of each row, by (value descending, index ascending), for VL rows at a time.
//
// A value and its index make one number that is compared as a double, so that a comparison settles ties as well, any sorting
// network gives the same answer, and every instruction set has the instructions (floating-point minimum and maximum run on
// more ports than those of integers). A row is read as vectors of such keys: each lane sees every LANES-th expert and keeps its
// own sorted list of N >= K keys, by Batcher's networks (K. E. Batcher, "Sorting networks and their applications", 1968). The
// lanes' lists are then merged in pairs while pairs of rows are put side by side, so that no lane idles: after log2(LANES)
// such merges, lane j holds the list of row j.
#pragma once
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "route_args.h"
#include "vectors.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define FT_INLINE inline __attribute__((always_inline))

namespace ft {
namespace FT_ISA {
namespace routing {

using FT_ISA::load, FT_ISA::store, FT_ISA::exp;

constexpr int LANES = VL / 2;  // of doubles
typedef double vd __attribute__((vector_size(VL * 4)));
typedef uint64_t vuq __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));
typedef uint16_t vhu __attribute__((vector_size(VL * 2), aligned(2), may_alias));
typedef int32_t vihalf __attribute__((vector_size(VL * 2)));

static FT_INLINE vi bits_of(vf x) { return reinterpret_cast<vi>(x); }
static FT_INLINE vf float_of(vi x) { return reinterpret_cast<vf>(x); }

// bfloat16 is the upper half of a float32.
static FT_INLINE vf load(const uint16_t* p) {
  return float_of(__builtin_convertvector(static_cast<vh>(*reinterpret_cast<const vhu*>(p)), vi) << 16);
}
static FT_INLINE float to_float(float x) { return x; }
static FT_INLINE float to_float(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

// f(values of VL experts, first expert, how many of them there are) over a row; beyond the row's end lies `pad`.
template <class T, class F>
static inline void over_row(const T* row, int64_t E, float pad, const F& f) {
  int64_t e = 0;
  for (; e + VL <= E; e += VL) f(load(row + e), e, VL);
  if (e < E) {
    float rest[VL];
    for (int64_t i = 0; i < VL; i++) rest[i] = e + i < E ? to_float(row[e + i]) : pad;
    f(load(rest), e, E - e);
  }
}

static FT_INLINE vd larger(vd a, vd b) {
#if defined(__AVX512F__)
  return _mm512_max_pd(a, b);
#elif defined(__AVX2__)
  return _mm256_max_pd(a, b);
#elif defined(__SSE2__)
  return _mm_max_pd(a, b);
#else
  return a > b ? a : b;
#endif
}
static FT_INLINE vd smaller(vd a, vd b) {
#if defined(__AVX512F__)
  return _mm512_min_pd(a, b);
#elif defined(__AVX2__)
  return _mm256_min_pd(a, b);
#elif defined(__SSE2__)
  return _mm_min_pd(a, b);
#else
  return a < b ? a : b;
#endif
}

// A key's upper half is the float32's bits, its magnitude raised by SHIFT: as the upper half of a double this is a normal, finite
// number for every float but a NaN, in the same order. The lower half breaks ties: the lowest id must win, which is the largest
// lower half among positive numbers and the smallest among negative ones.
constexpr int32_t SHIFT = 0x00100000;
constexpr double NONE = -1.7e308;  // below every key

template <int HIGH, int... I>
static FT_INLINE vd interleave(vi low, vi high, std::integer_sequence<int, I...>) {
  // within each 128 bits, as the instruction does it: which lane an expert falls into does not matter
  return reinterpret_cast<vd>(__builtin_shufflevector(low, high, (I / 4 * 4 + HIGH * 2 + I % 4 / 2 + I % 2 * static_cast<int>(VL))...));
}
// Two vectors of keys of VL experts.
static FT_INLINE void pack(vf x, vi ids, vd* keys) {
  constexpr auto lanes = std::make_integer_sequence<int, VL>();
  const vi bits = bits_of(x + 0.0f);  // -0 becomes 0
  const vi low = ~(ids ^ (bits >> 31)), high = bits + SHIFT;
  keys[0] = interleave<0>(low, high, lanes);
  keys[1] = interleave<1>(low, high, lanes);
}
static FT_INLINE void unpack(vd key, float* x, int32_t* ids) {
  const vihalf high = __builtin_convertvector(reinterpret_cast<vuq>(key) >> 32, vihalf), low = __builtin_convertvector(reinterpret_cast<vuq>(key), vihalf);
  const vihalf bits = high - SHIFT, id = ~low ^ (bits >> 31);
  std::memcpy(x, &bits, sizeof bits);
  std::memcpy(ids, &id, sizeof id);
}

// Comparators (i, j), i < j, that put the larger key at i.
template <int N>
struct Network {
  int count = 0;
  std::array<short, N * N> i{}, j{};
  constexpr void add(int a, int b) { i[count] = static_cast<short>(a), j[count++] = static_cast<short>(b); }
};
template <int N>
constexpr Network<N> sorting() {  // odd-even merge sort
  Network<N> net;
  for (int p = 1; p < N; p *= 2)
    for (int k = p; k >= 1; k /= 2)
      for (int j = k % p; j + k < N; j += 2 * k)
        for (int i = 0; i < std::min(k, N - j - k); i++)
          if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) net.add(i + j, i + j + k);
  return net;
}
template <int N>
constexpr Network<N> bitonic() {  // sorts a sequence that rises and falls once
  Network<N> net;
  for (int k = N / 2; k >= 1; k /= 2)
    for (int i = 0; i < N; i++)
      if (!(i & k)) net.add(i, i + k);
  return net;
}
template <auto NET, int... C>
static FT_INLINE void apply(vd* v, std::integer_sequence<int, C...>) {
  auto exchange = [](vd& a, vd& b) __attribute__((always_inline)) {
    const vd low = smaller(a, b);
    a = larger(a, b);
    b = low;
  };
  (exchange(v[NET.i[C]], v[NET.j[C]]), ...);
}
template <auto NET>
static FT_INLINE void apply(vd* v) {
  apply<NET>(v, std::make_integer_sequence<int, NET.count>());
}
template <int N>
static FT_INLINE void sort(vd* v) {
  apply<sorting<N>()>(v);
}

// best = the N largest of two sorted lists, of which the second has M <= N keys.
template <int N, int M>
static FT_INLINE void merge(vd* best, const vd* other) {
#pragma GCC unroll 32
  for (int i = 0; i < M; i++) best[N - 1 - i] = larger(best[N - 1 - i], other[i]);
  apply<bitonic<N>()>(best);
}

// Sorted lists of one row, one a lane. Returns false where the row may have a NaN: an infinity gives the same.
template <int N, class T>
static FT_INLINE bool row_lists(const T* row, int64_t E, vd* out) {
  constexpr int BLOCKS = N / 2;  // VL experts are a block, and two vectors of keys
  vi ids;
  for (int i = 0; i < VL; i++) ids[i] = i;
  vf zero{};
  vd best[N], chunk[N], last[N];
  const T* next = row + LANES * E;  // rows are not read in their order, so that the processor does not see what comes
  auto block = [&](vf x, vd* keys) __attribute__((always_inline)) {
    __builtin_prefetch(next);
    next += VL;
    zero += x * 0.0f;
    pack(x, ids, keys);
    ids += static_cast<int32_t>(VL);
  };
  bool first = true;
  int64_t e = 0;
  for (; e + BLOCKS * VL <= E; e += BLOCKS * VL) {
#pragma GCC unroll 32
    for (int b = 0; b < BLOCKS; b++) block(load(row + e + b * VL), chunk + 2 * b);
    sort<N>(chunk);
    if (first) std::copy(chunk, chunk + N, best);
    else merge<N, N>(best, chunk);
    first = false;
  }
  if (e < E) {  // a last, shorter chunk
    const vd none = vd{} + NONE;
    int n = 0;
    for (; e + VL <= E; e += VL, n += 2) block(load(row + e), last + n);
    if (e < E) {
      T rest[VL] = {};
      std::copy(row + e, row + E, rest);
      block(load(rest), last + n);
      for (int i = static_cast<int>(E - e); i < VL; i++) last[n + i % 4 / 2][i / 4 * 2 + i % 2] = NONE;  // see interleave
      n += 2;
    }
    auto finish = [&]<int M>(std::integral_constant<int, M>) __attribute__((always_inline)) {
      for (int i = n; i < M; i++) last[i] = none;
      sort<M>(last);
      if (first) {
        std::copy(last, last + M, best);
        std::fill(best + M, best + N, none);
      } else {
        merge<N, M>(best, last);
      }
    };
    if (n <= 2 || N == 2) finish(std::integral_constant<int, 2>());
    else if (n <= 4 || N == 4) finish(std::integral_constant<int, std::min(N, 4)>());
    else if (n <= 8 || N == 8) finish(std::integral_constant<int, std::min(N, 8)>());
    else finish(std::integral_constant<int, N>());
  }
  std::copy(best, best + N, out);
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(zero, zero, _CMP_UNORD_Q) == 0;
#else
  int32_t any = 0;
  const vi nan = zero != zero;
  for (int i = 0; i < VL; i++) any |= nan[i];
  return any == 0;
#endif
}

// `count` rows of E values each, one after the other; `finite[i]` becomes 0 for a row with a NaN or an infinity.
template <class T>
struct Rows {
  const T* first;
  int64_t E, count;
  int32_t* finite;
};

// Lists of rows t, t + stride, ...: each has LANES / 2^LEVEL lanes. Returns false where there is no such row.
template <int N, int LEVEL, class T>
static __attribute__((noinline)) bool lists(const Rows<T>& rows, int64_t t, int64_t stride, vd* out) {
  if (t >= rows.count) return false;
  if constexpr (LEVEL == 0) {
    rows.finite[t] = row_lists<N>(rows.first + t * rows.E, rows.E, out);
  } else {
    constexpr int W = LANES >> LEVEL;
    vd other[N], a[N];
    lists<N, LEVEL - 1>(rows, t, 2 * stride, a);
    const vd* b = lists<N, LEVEL - 1>(rows, t + stride, 2 * stride, other) ? other : a;
    // Lanes j and j ^ W of `a` are of one row, and so with `b`. Lanes with j & W == 0 go on with a's row, the others with b's.
    vd mine[N], theirs[N];
    auto pair = [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
#pragma GCC unroll 32
      for (int i = 0; i < N; i++) {
        mine[i] = __builtin_shufflevector(a[i], b[i], (I & W ? I + LANES : I)...);
        theirs[i] = __builtin_shufflevector(a[i], b[i], (I & W ? (I ^ W) + LANES : I ^ W)...);
      }
    };
    pair(std::make_integer_sequence<int, LANES>());
    merge<N, N>(mine, theirs);
    std::copy(mine, mine + N, out);
  }
  return true;
}

template <int N, class T>
static void topk_network(const Rows<T>& rows, int64_t K, float* values, int32_t* ids) {
  for (int64_t from = 0; from < rows.count; from += LANES) {
    const Rows<T> some{rows.first + from * rows.E, rows.E, std::min<int64_t>(LANES, rows.count - from), rows.finite + from};
    vd list[N];
    lists<N, __builtin_ctz(LANES)>(some, 0, 1, list);
    for (int64_t k = 0; k < K; k++) unpack(list[k], values + k * VL + from, ids + k * VL + from);
  }
}

// Any K: the same order, sorted as far as it is wanted.
template <class T>
static void topk_any(const Rows<T>& rows, int64_t K, float* values, int32_t* ids) {
  std::vector<std::pair<float, int32_t>> keys(static_cast<size_t>(rows.E));
  for (int64_t t = 0; t < rows.count; t++) {
    const T* row = rows.first + t * rows.E;
    for (int64_t e = 0; e < rows.E; e++) {
      const float x = to_float(row[e]);
      if (!std::isfinite(x)) rows.finite[t] = 0;
      keys[e] = {x == x ? -x : 0.0f, static_cast<int32_t>(e)};  // a NaN would leave them without an order
    }
    std::partial_sort(keys.begin(), keys.begin() + K, keys.end());
    for (int64_t k = 0; k < K; k++) values[k * VL + t] = -keys[k].first, ids[k * VL + t] = keys[k].second;
  }
}

// values and ids [K, VL] of the K largest: lane t is row t. rows.count <= VL, K <= E. A row with a NaN gets some ids.
template <class T>
static void topk(const Rows<T>& rows, int64_t K, float* values, int32_t* ids) {
  std::fill(rows.finite, rows.finite + rows.count, 1);
  if (K <= 2) topk_network<2>(rows, K, values, ids);
  else if (K <= 4) topk_network<4>(rows, K, values, ids);
  else if (K <= 8) topk_network<8>(rows, K, values, ids);
  else if (K <= 16) topk_network<16>(rows, K, values, ids);
  else if (K <= 32) topk_network<32>(rows, K, values, ids);
  else topk_any(rows, K, values, ids);
}

}  // namespace routing
}  // namespace FT_ISA
}  // namespace ft
