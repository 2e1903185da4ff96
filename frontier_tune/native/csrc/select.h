// The K largest of each of 16 rows, K <= 8, in the order of topk.h, with AVX-512 and a lane a row.
//
// Up to 16 experts: all of a row's keys go through one sorting network. More: the K-th largest of the row's 16 lane maxima is at
// most its K-th largest logit, so that only the few logits not below it (about 16 ln(16 / (16 - K)): 11 for K = 8, 2 for K = 2)
// can be chosen; their places are taken from bit masks, and their keys alone are sorted. What is chosen is the same, since keys
// are distinct and in a total order.
#pragma once
#include <type_traits>

#include "topk.h"

#if defined(__AVX512F__)

namespace ft {
namespace FT_ISA {
namespace routing {

constexpr int SLOTS = 64;  // candidates of a row at most; where there are more (many ties), topk.h sorts them all
constexpr int64_t MOST_EXPERTS = 1024;

// 16 rows of E floats, `stride` apart.
struct Block {
  const float* rows;
  int64_t stride, E;
};

// Columns of 16 rows of 16 floats that lie `stride` apart. Three quarters of the moves are loads, and half of the rest are saved.
static FT_INLINE void columns(const float* p, int64_t stride, vf* out) {
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    __m512 a[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const float* q = p + i * stride + 4 * c;
      a[i] = _mm512_castps128_ps512(_mm_loadu_ps(q));
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(q + 4 * stride), 1);
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(q + 8 * stride), 2);
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(q + 12 * stride), 3);
    }
    const __m512d low0 = _mm512_castps_pd(_mm512_unpacklo_ps(a[0], a[1])), low1 = _mm512_castps_pd(_mm512_unpacklo_ps(a[2], a[3]));
    const __m512d high0 = _mm512_castps_pd(_mm512_unpackhi_ps(a[0], a[1])), high1 = _mm512_castps_pd(_mm512_unpackhi_ps(a[2], a[3]));
    out[4 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(low0, low1));
    out[4 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low0, low1));
    out[4 * c + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high0, high1));
    out[4 * c + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high0, high1));
  }
}

// The N-th largest of 16 vectors, lane by lane. NaN may be lost.
template <int N>
static FT_INLINE vf nth_largest(const vf* x) {
  auto exchange = [](vf& a, vf& b) __attribute__((always_inline)) {
    const vf low = _mm512_min_ps(a, b);
    a = _mm512_max_ps(a, b), b = low;
  };
  auto network = [&]<auto NET, int... C>(vf* v, std::integral_constant<decltype(NET), NET>, std::integer_sequence<int, C...>)
      __attribute__((always_inline)) { (exchange(v[NET.i[C]], v[NET.j[C]]), ...); };
  constexpr auto SORT = sorting<N>(), MERGE = bitonic<N>();
  vf best[N], chunk[N];
  std::copy(x, x + N, best);
  network(best, std::integral_constant<decltype(SORT), SORT>(), std::make_integer_sequence<int, SORT.count>());
#pragma GCC unroll 8
  for (int c = N; c < 16; c += N) {
    std::copy(x + c, x + c + N, chunk);
    network(chunk, std::integral_constant<decltype(SORT), SORT>(), std::make_integer_sequence<int, SORT.count>());
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) best[N - 1 - i] = _mm512_max_ps(best[N - 1 - i], chunk[i]);
    if (c + N < 16) network(best, std::integral_constant<decltype(MERGE), MERGE>(), std::make_integer_sequence<int, MERGE.count>());
  }
#pragma GCC unroll 8
  for (int i = 1; i < N; i++) best[0] = _mm512_min_ps(best[0], best[i]);
  return best[0];
}

// Candidates of 16 rows as keys, a slot at a time: each slot has a key for every row, as two vectors, see pack.
struct Candidates {
  vd key[SLOTS][2];
  int count = 0;
};

// E <= 16: every expert is a candidate. Returns the rows (bits) that have a NaN or an infinity.
static FT_INLINE uint32_t all_candidates(const Block& block, Candidates& out) {
  vf x[16];
  columns(block.rows, block.stride, x);
  vf zero{};
#pragma GCC unroll 16
  for (int e = 0; e < 16; e++) {
    if (e >= block.E) break;
    zero += x[e] * 0.0f;
    pack(x[e], vi{} + e, out.key[e]);
  }
  out.count = static_cast<int>(block.E);
  return _mm512_cmp_ps_mask(zero, zero, _CMP_UNORD_Q);
}

// E > 16. Returns false where there are too many candidates.
template <int N>
static FT_INLINE bool few_candidates(const Block& block, uint32_t& infinite, Candidates& out) {
  const auto [rows, stride, E] = block;
  alignas(64) float maxima[16][16];
  alignas(64) uint64_t words[MOST_EXPERTS / 64][2][8];  // of the rows with an even, with an odd number: a bit an expert
  const int64_t whole = E / 16 * 16, last = (E + 63) / 64 - 1;
  const int64_t ahead = E >= 128 ? 16 * stride : 0;  // wide rows: the next 16 come from memory while these are worked on
  const __mmask16 tail = static_cast<__mmask16>((1u << (E - whole)) - 1);
  infinite = 0;
  for (int r = 0; r < 16; r++) {
    const float* row = rows + r * stride;
    __m512 max = _mm512_set1_ps(-INFINITY), zero = _mm512_setzero_ps();
    auto take = [&](__m512 x) __attribute__((always_inline)) { max = _mm512_max_ps(x, max), zero += x * 0.0f; };
    int64_t e = 0;
    for (; e + 64 <= whole; e += 64)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) take(_mm512_loadu_ps(row + e + 16 * j));
    for (; e < whole; e += 16) take(_mm512_loadu_ps(row + e));
    if (tail) {
      const __m512 x = _mm512_maskz_loadu_ps(tail, row + whole);
      max = _mm512_mask_max_ps(max, tail, x, max);
      zero += x * 0.0f;
    }
    _mm512_store_ps(maxima[r], max);
    infinite |= static_cast<uint32_t>(_mm512_cmp_ps_mask(zero, zero, _CMP_UNORD_Q) != 0) << r;
  }
  alignas(64) float least[16];
  {
    vf x[16];
    columns(maxima[0], 16, x);
    _mm512_store_ps(least, nth_largest<N>(x));
  }
  if (E % 64) std::memset(words[last], 0, sizeof words[last]);
  for (int r = 0; r < 16; r++) {
    const float* row = rows + r * stride;
    const __m512 bar = _mm512_set1_ps(least[r]);
    char* bits = reinterpret_cast<char*>(&words[0][r & 1][r >> 1]);
    auto keep = [&](uint16_t mask, int place) __attribute__((always_inline)) { std::memcpy(bits + 2 * place, &mask, 2); };
    int64_t e = 0;
    for (; e + 64 <= whole; e += 64, bits += sizeof words[0])
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        if (ahead) __builtin_prefetch(row + e + 16 * j + ahead, 0, 2);
        keep(_mm512_cmp_ps_mask(_mm512_loadu_ps(row + e + 16 * j), bar, _CMP_GE_OQ), j);
      }
    int place = 0;
    for (; e < whole; e += 16) keep(_mm512_cmp_ps_mask(_mm512_loadu_ps(row + e), bar, _CMP_GE_OQ), place++);
    if (tail) keep(_mm512_mask_cmp_ps_mask(tail, _mm512_maskz_loadu_ps(tail, row + whole), bar, _CMP_GE_OQ), place);
  }
  vi from;
  for (int r = 0; r < 16; r++) from[r] = static_cast<int32_t>(r * stride);
  const __m512i one = _mm512_set1_epi64(1);
  int count = 0;
  for (int64_t w = 0; w <= last; w++) {
    __m512i even = _mm512_load_si512(words[w][0]), odd = _mm512_load_si512(words[w][1]);
    const vi base = vi{} + static_cast<int32_t>(64 * w - 1023);
    while (_mm512_test_epi64_mask(_mm512_or_si512(even, odd), _mm512_or_si512(even, odd))) {
      if (count == SLOTS) return false;
      const __m512i below_even = _mm512_sub_epi64(even, one), below_odd = _mm512_sub_epi64(odd, one);
      // The lowest bit as a double: its exponent is the bit's place + 1023, or 0 where no bit is left.
      const __m512i a = _mm512_castpd_si512(_mm512_cvtepu64_pd(_mm512_andnot_si512(below_even, even)));
      const __m512i b = _mm512_castpd_si512(_mm512_cvtepu64_pd(_mm512_andnot_si512(below_odd, odd)));
      even = _mm512_and_si512(even, below_even), odd = _mm512_and_si512(odd, below_odd);
      const __m512i place = _mm512_or_si512(_mm512_srli_epi64(a, 52), _mm512_srli_epi64(b, 20));  // a lane a row again
      const __mmask16 has = _mm512_test_epi32_mask(place, place);
      const vi id = reinterpret_cast<vi>(place) + base;
      // A row that has no candidate left gets -inf with an id that no other -inf is behind.
      const vf x = _mm512_mask_i32gather_ps(_mm512_set1_ps(-INFINITY), has, reinterpret_cast<__m512i>(id + from), rows, 4);
      pack(x, id, out.key[count++]);
    }
  }
  out.count = count;
  return true;
}

// The N largest keys of every row, sorted: values and ids [K, 16].
template <int N>
static FT_INLINE void best(Candidates& c, int64_t K, float* values, int32_t* ids) {
  for (; c.count % N; c.count++) c.key[c.count][0] = c.key[c.count][1] = vd{} + NONE;
  vd list[2][N], chunk[N];
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    for (int i = 0; i < N; i++) list[half][i] = c.key[i][half];
    sort<N>(list[half]);
    for (int from = N; from < c.count; from += N) {
      for (int i = 0; i < N; i++) chunk[i] = c.key[from + i][half];
      sort<N>(chunk);
      merge<N, N>(list[half], chunk);
    }
  }
  for (int64_t k = 0; k < K; k++) {  // the reverse of pack
    const __m512 a = reinterpret_cast<__m512>(list[0][k]), b = reinterpret_cast<__m512>(list[1][k]);
    const vi low = reinterpret_cast<vi>(_mm512_shuffle_ps(a, b, 0x88)), bits = reinterpret_cast<vi>(_mm512_shuffle_ps(a, b, 0xdd)) - SHIFT;
    const vi id = ~low ^ (bits >> 31);
    _mm512_storeu_si512(values + k * VL, reinterpret_cast<__m512i>(bits));
    _mm512_storeu_si512(ids + k * VL, reinterpret_cast<__m512i>(id));
  }
}

template <int N>
static __attribute__((noinline)) bool select(const Block& block, int64_t K, float* values, int32_t* ids, int32_t* finite) {
  Candidates c;
  uint32_t infinite;
  if (block.E <= 16) infinite = all_candidates(block, c);
  else if (!few_candidates<N>(block, infinite, c)) return false;
  best<N>(c, K, values, ids);
  for (int r = 0; r < 16; r++) finite[r] = !(infinite >> r & 1);
  return true;
}

// What topk does, for 16 rows and K <= 8; false where it can't.
template <class T>
static bool select(const Rows<T>& rows, int64_t K, float* values, int32_t* ids) {
  if (rows.count != VL || K > 8 || rows.E > MOST_EXPERTS) return false;
  alignas(64) float scratch[VL * MOST_EXPERTS];
  const float* first = scratch;
  int64_t stride = (rows.E + VL - 1) / VL * VL;
  if constexpr (std::is_same_v<T, float>) {
    if (rows.E >= VL) first = rows.first, stride = rows.E;
  }
  if (first == scratch)
    for (int64_t i = 0; i < VL; i++)
      over_row(rows.first + i * rows.E, rows.E, 0.0f, [&](vf x, int64_t e, int64_t) { store(scratch + i * stride + e, x); });
  const Block block{first, stride, rows.E};
  if (K <= 2) return select<2>(block, K, values, ids, rows.finite);
  if (K <= 4) return select<4>(block, K, values, ids, rows.finite);
  return select<8>(block, K, values, ids, rows.finite);
}

}  // namespace routing
}  // namespace FT_ISA
}  // namespace ft

#endif
