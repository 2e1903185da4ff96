// The expert layer in bfloat16 on AMX's tiles of 16 rows. A tile of activations is 16 rows by 32 inputs; of weights, 16 pairs of inputs by
// 16 columns, as they lie in packed panels. The instruction adds to each element the products of its own row and column alone, in an order
// that the size of a tile doesn't change, so that here too a row never depends on its neighbours; rows that are missing are computed and
// left out. The low-rank path takes A as one more tile of weights, and B by vectors, while the tiles of the next panel are at work.
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

// All eight tile registers whole, while this lives. Other code in the thread finds them released.
struct Registers {
  Registers() {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } shape{};
    shape.palette = 1;
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = BLOCK;
    _tile_loadconfig(&shape);
  }
  ~Registers() { _tile_release(); }
  Registers(const Registers&) = delete;
  Registers& operator=(const Registers&) = delete;
};

// Tile loads don't tell the compiler that they read memory: what was stored before has to be there.
static inline void stored() { asm volatile("" ::: "memory"); }

// z [BLOCK or 2 BLOCK, PANEL] = one block or two of activations times a panel.
template <bool TWO>
static inline void product(const bf16* x, int64_t in, const bf16* panel, float* z) {
  stored();
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (TWO) {
    _tile_zero(2);
    _tile_zero(3);
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

static inline void products(int64_t rows, const bf16* x, int64_t in, const bf16* panel, float* z) {
  for (int64_t r = 0; r < rows; r += 2 * BLOCK)
    if (rows - r > BLOCK)
      product<true>(x + r * in, in, panel, z + r * PANEL);
    else
      product<false>(x + r * in, in, panel, z + r * PANEL);
}

// The two of part [2, BLOCK, VL] together are A's columns at hand of a block's rows. Chunks of inputs go to them in turn, as one sum alone
// waits for itself.
static inline void shrink(const bf16* x, int64_t in, const bf16* a, int64_t width, float* part) {
  stored();
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t k = 0; k < in; k += 2 * CHUNK) {
    _tile_loadd(4, x + k * BLOCK, 2 * CHUNK);
    _tile_loadd(6, a + k * width, 4 * width);
    _tile_dpbf16ps(0, 4, 6);
    if (k + CHUNK < in) {
      _tile_loadd(5, x + (k + CHUNK) * BLOCK, 2 * CHUNK);
      _tile_loadd(7, a + (k + CHUNK) * width, 4 * width);
      _tile_dpbf16ps(1, 5, 7);
    }
  }
  _tile_stored(0, part, 64);
  _tile_stored(1, part + SUMS, 64);
}

// z [ROWS, PANEL] += low [ROWS, stride] b [rank, PANEL].
template <int ROWS>
static inline void expand(const float* low, int64_t stride, const bf16* b, int64_t rank, float* z) {
  vf acc[ROWS][2];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++) acc[r][v] = load(z + r * PANEL + v * VL);
  for (int64_t j = 0; j < rank; j++) {
    const vf b0 = load(b + j * PANEL), b1 = load(b + j * PANEL + VL);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const vf s = all(low[r * stride + j]);
      acc[r][0] += s * b0;
      acc[r][1] += s * b1;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++) store(z + r * PANEL + v * VL, acc[r][v]);
}

class Worker {
 public:
  Worker(const ExpertsArgs<bf16>& args, int64_t most)
      : g(args), blocks((most + BLOCK - 1) / BLOCK), x(new (std::align_val_t(64)) bf16[blocks * BLOCK * g.H]()),
        h(new (std::align_val_t(64)) bf16[blocks * BLOCK * g.I]()), width((g.P * g.R + VL - 1) / VL * VL),
        low(new float[g.S ? blocks * BLOCK * width : 0]) {}

  void run(const Task<bf16>& task) {
    const auto [e, rows, order] = task;
    for (int64_t r = 0; r < rows; r++) {
      const bf16* from = g.x + order[r] / g.K * g.H;
      for (int64_t k = 0; k < g.H; k += CHUNK) std::memcpy(x.get() + place(r, k, g.H), from + k, CHUNK * sizeof(bf16));
    }
    find_runs(task);
    const bf16 *w13 = g.w13 + e * 2 * g.I * g.H, *w2 = g.w2 + e * g.H * g.I;
    shrink_runs(x.get(), g.H, 0, g.P * g.R);
    for (int64_t p = 0; p <= g.I / PANEL; p++) {  // a panel's sums are used when the tiles of the next are under way
      if (p < g.I / PANEL) {
        products(rows, x.get(), g.H, w13 + p * PANEL * g.H, z[p % 2][0]);
        products(rows, x.get(), g.H, w13 + (g.I + p * PANEL) * g.H, z[p % 2][1]);
      }
      if (p > 0) activate(rows, (p - 1) * PANEL, z[(p - 1) % 2][0], z[(p - 1) % 2][1]);
    }
    shrink_runs(h.get(), g.I, g.a2_at(), g.R);
    for (int64_t p = 0; p <= g.H / PANEL; p++) {
      if (p < g.H / PANEL) products(rows, h.get(), g.I, w2 + p * PANEL * g.I, z[p % 2][0]);
      if (p > 0) {
        float* done = z[(p - 1) % 2][0];
        expand_runs(g.b2_at() + (p - 1) * PANEL * g.R, 0, done);
        for (int64_t r = 0; r < rows; r++)
          std::memcpy(g.y + order[r] * g.H + (p - 1) * PANEL, done + r * PANEL, PANEL * sizeof(float));
      }
    }
  }

 private:
  struct Run {  // rows of one slot that follow one another, and what it has for the expert
    int64_t begin, end;
    const bf16* own;
  };
  struct Free {
    void operator()(bf16* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  using Aligned = std::unique_ptr<bf16[], Free>;

  void find_runs(const Task<bf16>& task) {
    runs = 0;
    for (int64_t r = 0; r < task.rows; r++) {
      const bf16* own = adapter_of(g, task, r);
      if (own && runs && run_[runs - 1].own == own)
        run_[runs - 1].end = r + 1;
      else if (own)
        run_[runs++] = {r, r + 1, own};
    }
  }

  // low of all rows with adapters: [rows, width], of which `columns` are of use.
  void shrink_runs(const bf16* tiles, int64_t in, int64_t a_at, int64_t columns) {
    float part[2 * SUMS];
    for (int64_t n = 0; n < runs; n++)
      for (int64_t block = run_[n].begin / BLOCK * BLOCK; block < run_[n].end; block += BLOCK)
        for (int64_t c = 0; c < columns; c += VL) {
          shrink(tiles + block * in, in, run_[n].own + a_at + 2 * c, g.padded(columns), part);
          for (int64_t r = std::max(run_[n].begin, block); r < std::min(run_[n].end, block + BLOCK); r++)
            store(low.get() + r * width + c, load(part + (r - block) * VL) + load(part + SUMS + (r - block) * VL));
        }
  }

  // Panel of sums += low B, for B at `b_at` of what a slot has, and low from `rank_at` on.
  void expand_runs(int64_t b_at, int64_t rank_at, float* to) {
    for (int64_t n = 0; n < runs; n++) {
      const bf16* b = run_[n].own + b_at;
      const float* from = low.get() + rank_at;
      const int64_t end = run_[n].end;
      int64_t r = run_[n].begin;
      for (; r + 8 <= end; r += 8) expand<8>(from + r * width, width, b, g.R, to + r * PANEL);
      for (; r + 4 <= end; r += 4) expand<4>(from + r * width, width, b, g.R, to + r * PANEL);
      for (; r < end; r++) expand<1>(from + r * width, width, b, g.R, to + r * PANEL);
    }
  }

  // h from column c on.
  void activate(int64_t rows, int64_t c, float* gate, float* up) {
    expand_runs(g.b13_at() + c * g.R, 0, gate);
    expand_runs(g.b13_at() + (g.I + c) * g.R, (g.P - 1) * g.R, up);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t v = 0; v < PANEL; v += VL)
        store(h.get() + place(r, c, g.I) + v, silu(load(gate + r * PANEL + v)) * load(up + r * PANEL + v));
  }

  const ExpertsArgs<bf16>& g;
  const int64_t blocks;
  const Aligned x, h;
  const int64_t width;  // of a row of low
  const std::unique_ptr<float[]> low;
  const Registers registers;
  Run run_[ROWS_AT_ONCE];
  int64_t runs = 0;
  alignas(64) float z[2][2][ROWS_AT_ONCE * PANEL];
};

}  // namespace amx
}  // namespace FT_ISA
}  // namespace ft
