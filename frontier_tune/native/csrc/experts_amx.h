// The expert layer in bfloat16 on AMX's tiles of 16 rows. A tile of activations is 16 rows by 32 inputs; of weights, 16 pairs of inputs by
// 16 columns, as they lie in packed panels. The instruction adds to each element the products of its own row and column alone, in an order
// that the size of a tile doesn't change, so that here too a row never depends on its neighbours; rows that are missing are computed and
// left out. The low-rank path comes first, on the rows of each slot, and sums begin with it. Its activations are float32: they go in two parts,
// each rounded, which together have 16 bits.
#pragma once
#include <immintrin.h>

#include <memory>

#include "experts_tasks.h"

namespace ft {
namespace FT_ISA {
namespace amx {

constexpr int64_t BLOCK = 16, CHUNK = 32;  // rows, and inputs, of a tile of activations
constexpr int64_t SUMS = BLOCK * VL;       // floats of a tile of sums
static_assert(VL == 16 && PANEL == 2 * VL && ROWS_AT_ONCE % BLOCK == 0);

// Activations [rows, in] as tiles: [rows / BLOCK, in / CHUNK, BLOCK, CHUNK]. Where the chunk of row r lies that begins at input k.
static inline int64_t place(int64_t r, int64_t k, int64_t in) { return r / BLOCK * BLOCK * in + k * BLOCK + r % BLOCK * CHUNK; }

// What the eight tile registers hold: rows, and bytes of each.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  void use() const { asm volatile("ldtilecfg %0" ::"m"(*this)); }  // the intrinsic says that it reads eight bytes
  // Sums in 0 .. 3, activations in 4 and 5, weights in 6 and 7: all whole.
  static Shapes products() {
    Shapes s;
    for (int i = 0; i < 8; i++) s.bytes[i] = 64, s.rows[i] = BLOCK;
    return s;
  }
  // Of `rows` rows: sums in 0 and 1, low in 2 and 3, B in 4 and 5, activations in 6; A in 7. Ranks come in `pairs`.
  static Shapes low_rank(int64_t rows, int64_t pairs) {
    Shapes s = products();
    for (int i : {0, 1, 2, 3, 6}) s.rows[i] = static_cast<uint8_t>(rows);
    for (int i : {2, 3}) s.bytes[i] = static_cast<uint16_t>(4 * pairs);
    for (int i : {4, 5}) s.rows[i] = static_cast<uint8_t>(pairs);
    return s;
  }
};

// Other code in the thread finds the registers released.
struct Release {
  ~Release() { _tile_release(); }
};

// Tile loads don't tell the compiler that they read memory: what was stored before has to be there.
static inline void stored() { asm volatile("" ::: "memory"); }

// z [BLOCK or 2 BLOCK, PANEL] = start + one block or two of activations times a panel. No start: 0.
template <bool TWO>
static inline void product(const bf16* x, int64_t in, const bf16* panel, const float* start, float* z) {
  stored();
  if (start) {
    _tile_loadd(0, start, 4 * PANEL);
    _tile_loadd(1, start + VL, 4 * PANEL);
    if constexpr (TWO) {
      _tile_loadd(2, start + BLOCK * PANEL, 4 * PANEL);
      _tile_loadd(3, start + BLOCK * PANEL + VL, 4 * PANEL);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (TWO) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int64_t k = 0; k < in; k += CHUNK) {
    _tile_loadd(6, panel + k * PANEL, 4 * PANEL);
    _tile_loadd(7, panel + k * PANEL + 2 * VL, 4 * PANEL);
    _tile_loadd(4, x + k * BLOCK, 2 * CHUNK);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (TWO) {
      _tile_loadd(5, x + (in + k) * BLOCK, 2 * CHUNK);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, z, 4 * PANEL);
  _tile_stored(1, z + VL, 4 * PANEL);
  if constexpr (TWO) {
    _tile_stored(2, z + BLOCK * PANEL, 4 * PANEL);
    _tile_stored(3, z + BLOCK * PANEL + VL, 4 * PANEL);
  }
}

static inline void products(int64_t rows, const bf16* x, int64_t in, const bf16* panel, const float* start, float* z) {
  for (int64_t r = 0; r < rows; r += 2 * BLOCK) {
    const float* own = start ? start + r * PANEL : nullptr;
    if (rows - r > BLOCK)
      product<true>(x + r * in, in, panel, own, z + r * PANEL);
    else
      product<false>(x + r * in, in, panel, own, z + r * PANEL);
  }
}

// The two of part [2, BLOCK, VL] together are A's columns at hand of some rows. Chunks of inputs go to them in turn, as one sum alone waits
// for itself.
static inline void shrink(const bf16* x, int64_t in, const bf16* a, int64_t width, float* part) {
  stored();
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t k = 0; k < in; k += 2 * CHUNK) {
    _tile_loadd(6, x + k * BLOCK, 2 * CHUNK);
    _tile_loadd(7, a + k * width, 4 * width);
    _tile_dpbf16ps(0, 6, 7);
    if (k + CHUNK < in) {
      _tile_loadd(6, x + (k + CHUNK) * BLOCK, 2 * CHUNK);
      _tile_loadd(7, a + (k + CHUNK) * width, 4 * width);
      _tile_dpbf16ps(1, 6, 7);
    }
  }
  _tile_stored(0, part, 64);
  _tile_stored(1, part + SUMS, 64);
}

// sums[p] [rows, PANEL] = (ON_TOP: +=) low B for every panel p of B, `b_step` and `step` apart; low in two parts [rows, width].
template <bool ON_TOP>
static inline void expand(const bf16* high, const bf16* rest, int64_t width, const bf16* b, int64_t b_step, int64_t panels, float* sums,
                          int64_t step) {
  stored();
  _tile_loadd(2, high, 2 * width);
  _tile_loadd(3, rest, 2 * width);
  for (int64_t p = 0; p < panels; p++, b += b_step, sums += step) {
    if constexpr (ON_TOP) {
      _tile_loadd(0, sums, 4 * PANEL);
      _tile_loadd(1, sums + VL, 4 * PANEL);
    } else {
      _tile_zero(0);
      _tile_zero(1);
    }
    _tile_loadd(4, b, 4 * PANEL);
    _tile_loadd(5, b + 2 * VL, 4 * PANEL);
    _tile_dpbf16ps(0, 2, 4);
    _tile_dpbf16ps(1, 2, 5);
    _tile_dpbf16ps(0, 3, 4);
    _tile_dpbf16ps(1, 3, 5);
    _tile_stored(0, sums, 4 * PANEL);
    _tile_stored(1, sums + VL, 4 * PANEL);
  }
}

class Worker {
 public:
  Worker(const ExpertsArgs<bf16>& args, int64_t most)
      : g(args), padded((most + BLOCK - 1) / BLOCK * BLOCK), x(zeros(padded * g.H)), h(zeros(padded * g.I)),
        width((g.P * g.R + VL - 1) / VL * VL), high(zeros(g.S ? padded * width : 0)), rest(zeros(g.S ? padded * width : 0)),
        start(new float[g.S ? padded * std::max(2 * g.I, g.H) : 0]) {
    whole.use();
  }

  void run(const Task<bf16>& task) {
    const auto [e, rows, order] = task;
    for (int64_t r = 0; r < rows; r++) {
      const bf16* from = g.x + order[r] / g.K * g.H;
      for (int64_t k = 0; k < g.H; k += CHUNK) std::memcpy(x.get() + place(r, k, g.H), from + k, CHUNK * sizeof(bf16));
    }
    const int64_t gates = g.I / PANEL, downs = g.H / PANEL, step = padded * PANEL;
    const bf16 *w13 = g.w13 + e * 2 * g.I * g.H, *w2 = g.w2 + e * g.H * g.I;
    const float* begin = low_rank(task, x.get(), g.H, 0, g.P * g.R, g.b13_at(), 2 * gates, gates, (g.P - 1) * g.R);
    for (int64_t p = 0; p <= gates; p++) {  // a panel's sums are used when the tiles of the next are under way
      if (p < gates) {
        products(rows, x.get(), g.H, w13 + p * PANEL * g.H, begin ? begin + p * step : nullptr, z[p % 2][0]);
        products(rows, x.get(), g.H, w13 + (gates + p) * PANEL * g.H, begin ? begin + (gates + p) * step : nullptr, z[p % 2][1]);
      }
      if (p > 0) activate(rows, (p - 1) * PANEL, z[(p - 1) % 2][0], z[(p - 1) % 2][1]);
    }
    begin = low_rank(task, h.get(), g.I, g.a2_at(), g.R, g.b2_at(), downs, downs, 0);
    for (int64_t p = 0; p <= downs; p++) {
      if (p < downs) products(rows, h.get(), g.I, w2 + p * PANEL * g.I, begin ? begin + p * step : nullptr, z[p % 2][0]);
      for (int64_t r = 0; p > 0 && r < rows; r++)
        std::memcpy(g.y + order[r] * g.H + (p - 1) * PANEL, z[(p - 1) % 2][0] + r * PANEL, PANEL * sizeof(float));
    }
  }

 private:
  struct Free {
    void operator()(bf16* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  using Aligned = std::unique_ptr<bf16[], Free>;

  static Aligned zeros(int64_t size) { return Aligned(new (std::align_val_t(64)) bf16[size]()); }

  // What the adapters of a task's rows add to the sums of all panels: [panels, padded, PANEL]; null: no row has one. `columns` of A lie at
  // a_at of what a slot has, `panels` of B at b_at; those from `half` on take low from `rank_at` on.
  const float* low_rank(const Task<bf16>& task, const bf16* tiles, int64_t in, int64_t a_at, int64_t columns, int64_t b_at, int64_t panels,
                        int64_t half, int64_t rank_at) {
    const int64_t step = padded * PANEL, b_step = g.whole(g.R) * PANEL;
    bool any = false;
    for (int64_t r = 0; r < task.rows; r++) any |= adapter_of(g, task, r) != nullptr;
    if (!any) return nullptr;
    for (int64_t r = 0, end; r < task.rows; r = end) {  // rows of one slot, in one block
      const bf16* own = adapter_of(g, task, r);
      for (end = r + 1; end < task.rows && end % BLOCK && adapter_of(g, task, end) == own;) end++;
      float* sums = start.get() + r * PANEL;
      if (!own) {
        for (int64_t p = 0; p < panels; p++) std::memset(sums + p * step, 0, (end - r) * PANEL * sizeof(float));
        continue;
      }
      for (int64_t j = 0; j < g.R; j += CHUNK) {
        Shapes::low_rank(end - r, (std::min(g.R - j, CHUNK) + 1) / 2).use();
        if (j == 0)
          for (int64_t c = 0; c < columns; c += VL) shrink_rows(r, end, tiles, in, own + a_at + 2 * c, g.padded(columns), c, columns);
        const auto add = j == 0 ? expand<false> : expand<true>;
        const bf16 *b = own + b_at + j * PANEL, *of_rows = high.get() + r * width + j, *rest_of_rows = rest.get() + r * width + j;
        add(of_rows, rest_of_rows, width, b, b_step, half, sums, step);
        add(of_rows + rank_at, rest_of_rows + rank_at, width, b + half * b_step, b_step, panels - half, sums + half * step, step);
      }
    }
    whole.use();
    return start.get();
  }

  // low of rows begin .. end, columns c .. c + VL, in two parts: what bfloat16 has of it, and what is left. Beyond `columns` sums aren't A's.
  void shrink_rows(int64_t begin, int64_t end, const bf16* tiles, int64_t in, const bf16* a, int64_t a_width, int64_t c, int64_t columns) {
    alignas(64) float part[2 * SUMS];
    const vu column = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const auto useful = column < static_cast<uint32_t>(columns - c);
    shrink(tiles + place(begin, 0, in), in, a, a_width, part);
    for (int64_t r = begin; r < end; r++) {
      const float* at = part + (r - begin) * VL;
      const vf low = useful ? load(at) + load(at + SUMS) : vf{};
      const vf upper = bits_of<vf>(bits_of<vu>(low) & 0xffff0000u);
      store(high.get() + r * width + c, upper);
      store(rest.get() + r * width + c, low - upper);
    }
  }

  // h from column c on.
  void activate(int64_t rows, int64_t c, const float* gate, const float* up) {
    for (int64_t r = 0; r < rows; r++)
      for (int64_t v = 0; v < PANEL; v += VL)
        store(h.get() + place(r, c, g.I) + v, silu(load(gate + r * PANEL + v)) * load(up + r * PANEL + v));
  }

  const ExpertsArgs<bf16>& g;
  const int64_t padded;  // rows: whole blocks
  const Aligned x, h;    // as tiles
  const int64_t width;   // of low
  const Aligned high, rest;
  const std::unique_ptr<float[]> start;
  const Shapes whole = Shapes::products();
  const Release release;
  alignas(64) float z[2][2][ROWS_AT_ONCE * PANEL];
};

}  // namespace amx
}  // namespace FT_ISA
}  // namespace ft
