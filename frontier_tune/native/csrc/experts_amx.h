// The expert layer in bfloat16 on AMX's tiles of 16 rows. A tile of activations is up to 16 rows by 32 inputs; of weights, 16 pairs of
// inputs by 16 columns, as they lie in packed panels. The instruction adds to each element the products of its own row and column alone, in
// an order that the size of a tile doesn't change, so that here too a row never depends on its neighbours. The low-rank path goes on top of
// the base's sums. Its activations are float32: they go in two parts, each rounded, which together have 16 bits.
#pragma once
#include <immintrin.h>

#include <memory>

#include "experts_tasks.h"

namespace ft {
namespace FT_ISA {
namespace amx {

constexpr int64_t BLOCK = 16, CHUNK = 32;  // rows, and inputs, of a tile of activations
static_assert(VL == 16 && PANEL == 2 * VL && ROWS_AT_ONCE % BLOCK == 0);

// Activations [rows, in] as tiles: [rows / BLOCK, in / CHUNK, BLOCK, CHUNK]. Where the chunk of row r lies that begins at input k.
static inline int64_t place(int64_t r, int64_t k, int64_t in) { return r / BLOCK * BLOCK * in + k * BLOCK + r % BLOCK * CHUNK; }

// What the eight tile registers hold, in rows and bytes of each: sums in 0 .. 3 and activations in 4, of `count` rows; weights in 5; of the
// low-rank path, `pairs` of ranks, activations in 6 and B in 7.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  Shapes(int64_t count, int64_t pairs) {
    for (int i = 0; i < 6; i++) bytes[i] = 64, rows[i] = static_cast<uint8_t>(i < 5 ? count : BLOCK);
    if (pairs == 0) return;  // a register has rows and bytes, or neither
    bytes[6] = static_cast<uint16_t>(4 * pairs), rows[6] = static_cast<uint8_t>(count);
    bytes[7] = 64, rows[7] = static_cast<uint8_t>(pairs);
  }
};

// Tile loads don't tell the compiler that they read memory: what was stored before has to be there.
static inline void stored() { asm volatile("" ::: "memory"); }

// Asks for the start of a panel that comes next, as many lines as a core waits for at once; that may be past the end, as nothing is read.
// While the low-rank path is at work, too few of the weights' loads are under way.
static inline void ask(const bf16* p) {
  constexpr int64_t LINE = 64 / sizeof(bf16);
  for (int64_t i = 0; i < 16 * LINE; i += LINE)
    __builtin_prefetch(reinterpret_cast<const bf16*>(reinterpret_cast<uintptr_t>(p) + i * sizeof(bf16)), 0, 2);
}

// Low-rank activations of some rows, in two parts [rows, width], and B of their slot and a panel; null: they have none.
struct Low {
  const bf16 *high, *rest, *b;
  int64_t width;

  Low from(int64_t row) const { return {high + row * width, rest + row * width, b, width}; }
};

// Sums of one block or two += low B.
template <bool TWO>
static inline void add_low(const Low& low) {
  const int64_t stride = 2 * low.width, next = BLOCK * low.width;
  _tile_loadd(7, low.b, 4 * PANEL);
  _tile_loadd(6, low.high, stride);
  _tile_dpbf16ps(0, 6, 7);
  _tile_loadd(6, low.rest, stride);
  _tile_dpbf16ps(0, 6, 7);
  if constexpr (TWO) {
    _tile_loadd(6, low.high + next, stride);
    _tile_dpbf16ps(2, 6, 7);
    _tile_loadd(6, low.rest + next, stride);
    _tile_dpbf16ps(2, 6, 7);
    _tile_loadd(7, low.b + 2 * VL, 4 * PANEL);
    _tile_dpbf16ps(3, 6, 7);
    _tile_loadd(6, low.high + next, stride);
    _tile_dpbf16ps(3, 6, 7);
    _tile_loadd(6, low.rest, stride);
  } else {
    _tile_loadd(7, low.b + 2 * VL, 4 * PANEL);
  }
  _tile_dpbf16ps(1, 6, 7);
  _tile_loadd(6, low.high, stride);
  _tile_dpbf16ps(1, 6, 7);
}

// z [BLOCK or 2 BLOCK, PANEL] = one block or two of activations times a panel, and low B, where there is one. `next`: the panel after this.
template <bool TWO>
static inline void product(const bf16* x, int64_t in, const bf16* panel, const Low& low, const bf16* next, float* z) {
  stored();
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (TWO) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < in; k += CHUNK) {
    _tile_loadd(5, panel + k * PANEL, 4 * PANEL);
    _tile_loadd(4, x + k * BLOCK, 2 * CHUNK);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (TWO) {
      _tile_loadd(4, x + (in + k) * BLOCK, 2 * CHUNK);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(5, panel + k * PANEL + 2 * VL, 4 * PANEL);
      _tile_dpbf16ps(3, 4, 5);
      _tile_loadd(4, x + k * BLOCK, 2 * CHUNK);
    } else {
      _tile_loadd(5, panel + k * PANEL + 2 * VL, 4 * PANEL);
    }
    _tile_dpbf16ps(1, 4, 5);
  }
  if (low.b) {
    ask(next);
    add_low<TWO>(low);
  }
  _tile_stored(0, z, 4 * PANEL);
  _tile_stored(1, z + VL, 4 * PANEL);
  if constexpr (TWO) {
    _tile_stored(2, z + BLOCK * PANEL, 4 * PANEL);
    _tile_stored(3, z + BLOCK * PANEL + VL, 4 * PANEL);
  }
}

static inline void products(int64_t rows, const bf16* x, int64_t in, const bf16* panel, const Low& low, const bf16* next, float* z) {
  for (int64_t r = 0; r < rows; r += 2 * BLOCK)
    if (rows - r > BLOCK)
      product<true>(x + r * in, in, panel, low.from(r), next, z + r * PANEL);
    else
      product<false>(x + r * in, in, panel, low.from(r), next, z + r * PANEL);
}

// z [rows, PANEL] += low B of up to BLOCK rows.
static inline void add_low_to(const Low& low, float* z) {
  _tile_loadd(0, z, 4 * PANEL);
  _tile_loadd(1, z + VL, 4 * PANEL);
  add_low<false>(low);
  _tile_stored(0, z, 4 * PANEL);
  _tile_stored(1, z + VL, 4 * PANEL);
}

// VL columns of A times up to BLOCK rows: sums [BLOCK, VL].
static inline void shrink(const bf16* x, int64_t in, const bf16* a, int64_t a_width, float* sums) {
  stored();
  _tile_zero(0);
  for (int64_t k = 0; k < in; k += CHUNK) {
    _tile_loadd(4, x + k * BLOCK, 2 * CHUNK);
    _tile_loadd(5, a + k * a_width, 4 * a_width);
    _tile_dpbf16ps(0, 4, 5);
  }
  _tile_stored(0, sums, 64);
}

class Worker {
 public:
  Worker(const ExpertsArgs<bf16>& args, int64_t most)
      : g(args), padded((most + BLOCK - 1) / BLOCK * BLOCK), x(zeros(padded * g.H)), h(zeros(padded * g.I)),
        width((g.P * g.R + VL - 1) / VL * VL), high(zeros(g.S ? padded * width : 0)), rest(zeros(g.S ? padded * width : 0)) {}
  ~Worker() { _tile_release(); }  // other code in the thread finds the registers released
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void run(const Task<bf16>& task) {
    const auto [e, rows, order] = task;
    for (int64_t r = 0; r < rows; r++) {
      const bf16* from = g.x + order[r] / g.K * g.H;
      for (int64_t k = 0; k < g.H; k += CHUNK) std::memcpy(x.get() + place(r, k, g.H), from + k, CHUNK * sizeof(bf16));
    }
    any = false, one = g.R <= CHUNK;
    for (int64_t r = 0; r < rows; r++) {
      own[r] = adapter_of(g, task, r);
      any |= own[r] != nullptr;
      one &= own[r] && own[r] == own[0];
    }
    const bf16 *w13 = g.w13 + e * 2 * g.I * g.H, *w2 = g.w2 + e * g.H * g.I;
    const auto activated = [&, rows = rows](int64_t p, const float* z) { activate(rows, p * PANEL, z, z + padded * PANEL); };
    const auto out = [&, rows = rows, order = order](int64_t p, const float* z) {
      for (int64_t r = 0; r < rows; r++) std::memcpy(g.y + order[r] * g.H + p * PANEL, z + r * PANEL, PANEL * sizeof(float));
    };
    project<2>(rows, x.get(), g.H, w13, g.I, 0, g.b13_at(), activated);
    project<1>(rows, h.get(), g.I, w2, g.H, g.a2_at(), g.b2_at(), out);
  }

 private:
  struct Free {
    void operator()(bf16* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  using Aligned = std::unique_ptr<bf16[], Free>;

  static Aligned zeros(int64_t size) { return Aligned(new (std::align_val_t(64)) bf16[size]()); }

  void use(int64_t rows, int64_t pairs) {
    const int64_t count = std::min(rows, BLOCK);
    if (count == rows_in_use && pairs == pairs_in_use) return;
    const Shapes shapes(count, pairs);
    asm volatile("ldtilecfg %0" ::"m"(shapes));  // the intrinsic says that it reads eight bytes
    rows_in_use = count, pairs_in_use = pairs;
  }

  // A projection's sums, panel by panel, for use_sums(p, z [PARTS, padded, PANEL]); PARTS matrices [in, out] (gate, up) go side by side. The
  // additions and their order are the same in both ways.
  template <int PARTS, class Use>
  void project(int64_t rows, const bf16* tiles, int64_t in, const bf16* w, int64_t out, int64_t a_at, int64_t b_at, const Use& use_sums) {
    if (any && (!one || far(g)))
      apart<PARTS>(rows, tiles, in, w, out, a_at, b_at, use_sums);
    else
      together<PARTS>(rows, tiles, in, w, out, a_at, b_at, use_sums);
  }

  // All rows have the same adapter, or none: a panel's sums take the low-rank path while they are in registers, and are used when the tiles
  // of the next panel are under way.
  template <int PARTS, class Use>
  void together(int64_t rows, const bf16* tiles, int64_t in, const bf16* w, int64_t out, int64_t a_at, int64_t b_at, const Use& use_sums) {
    const int64_t panels = out / PANEL;
    use(rows, any ? g.whole(g.R) / 2 : 0);
    if (any) shrink_rows(0, rows, tiles, in, own[0] + a_at, low_columns<PARTS>());
    for (int64_t p = 0; p <= panels; p++) {
      for (int64_t part = 0; p < panels && part < PARTS; part++) {
        const bf16 *panel = w + (part * panels + p) * PANEL * in, *next = w + (part + 1 < PARTS ? panels + p : p + 1) * PANEL * in;
        const Low low = any ? low_of(0, 0, part, own[0] + b_at, part * panels + p) : Low{};
        products(rows, tiles, in, panel, low, next, z[p % 2] + part * padded * PANEL);
      }
      if (p > 0) use_sums(p - 1, z[(p - 1) % 2]);
    }
  }

  // Rows of several slots, or weights that come from far: the sums of all panels first, so that the weights' loads follow one another, and
  // what each slot's rows add to them then.
  template <int PARTS, class Use>
  void apart(int64_t rows, const bf16* tiles, int64_t in, const bf16* w, int64_t out, int64_t a_at, int64_t b_at, const Use& use_sums) {
    const int64_t panels = out / PANEL, step = padded * PANEL;
    if (!sums) sums.reset(new float[padded * std::max(2 * g.I, g.H)]);
    use(rows, one ? g.whole(g.R) / 2 : 0);
    for (int64_t p = 0; p < panels; p++)
      for (int64_t part = 0; part < PARTS; part++)
        products(rows, tiles, in, w + (part * panels + p) * PANEL * in, {}, nullptr, sums.get() + (p * PARTS + part) * step);
    const auto add_low_of = [&](int64_t r, int64_t j, int64_t p) {  // ranks j .. j + CHUNK of a panel, of the block that begins at row r
      for (int64_t part = 0; part < PARTS; part++)
        add_low_to(low_of(r, j, part, own[r] + b_at, part * panels + p), sums.get() + (p * PARTS + part) * step + r * PANEL);
    };
    if (one) shrink_rows(0, rows, tiles, in, own[0] + a_at, low_columns<PARTS>());
    for (int64_t r = 0, end; !one && r < rows; r = end) {  // rows of one slot, in one block
      for (end = r + 1; end < rows && end % BLOCK && own[end] == own[r];) end++;
      for (int64_t j = 0; own[r] && j < g.R; j += CHUNK) {
        use(end - r, std::min(g.whole(g.R) - j, CHUNK) / 2);
        if (j == 0) shrink_rows(r, end, tiles, in, own[r] + a_at, low_columns<PARTS>());
        for (int64_t p = 0; p < panels; p++) add_low_of(r, j, p);
      }
    }
    for (int64_t p = 0; p <= panels; p++) {
      for (int64_t r = 0; one && p < panels && r < rows; r += BLOCK) add_low_of(r, 0, p);
      if (p > 0) use_sums(p - 1, sums.get() + (p - 1) * PARTS * step);
    }
  }

  // Columns of A.
  template <int PARTS>
  int64_t low_columns() const {
    return PARTS == 2 ? g.P * g.R : g.R;
  }

  // Of row r and those behind it, from rank j on, for panel n of B, which is of the gate's part or the up's.
  Low low_of(int64_t r, int64_t j, int64_t part, const bf16* b, int64_t n) const {
    const int64_t at = r * width + part * (g.P - 1) * g.R + j;
    return {high.get() + at, rest.get() + at, b + (n * g.whole(g.R) + j) * PANEL, width};
  }

  // low of rows begin .. end in two parts: what bfloat16 has of it, and what is left. A register holds up to `end - begin` rows; all but the
  // last block are whole. Beyond `columns` sums aren't A's.
  void shrink_rows(int64_t begin, int64_t end, const bf16* tiles, int64_t in, const bf16* a, int64_t columns) {
    alignas(64) float part[BLOCK * VL];
    const vu column = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t c = 0; c < columns; c += VL)
      for (int64_t first = begin; first < end; first += BLOCK) {
        shrink(tiles + place(first, 0, in), in, a + 2 * c, g.padded(columns), part);
        const auto useful = column < static_cast<uint32_t>(columns - c);
        for (int64_t r = first; r < std::min(first + BLOCK, end); r++) {
          const vf low = useful ? load(part + (r - first) * VL) : vf{};
          const vf upper = bits_of<vf>(bits_of<vu>(low) & 0xffff0000u);
          store(high.get() + r * width + c, upper);
          store(rest.get() + r * width + c, low - upper);
        }
      }
    stored();
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
  std::unique_ptr<float[]> sums;
  int64_t rows_in_use = 0, pairs_in_use = 0;
  bool any = false, one = false;  // of the task's rows: any has an adapter; all have the same, of which registers hold all ranks
  const bf16* own[ROWS_AT_ONCE];  // what each row has for the expert
  alignas(64) float z[2][2 * ROWS_AT_ONCE * PANEL];
};

}  // namespace amx
}  // namespace FT_ISA
}  // namespace ft
