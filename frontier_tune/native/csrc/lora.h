// y[row, slice] += scale * (x[row] A^T) B^T, each row with the adapter of its slot; rows of slot -1 are left as they are.
#pragma once
#include <vector>

#include "gemm.h"

namespace ft {
namespace FT_ISA {

static inline float dot(const float* a, const float* b, int64_t n) {
  vf s0{}, s1{};
  int64_t k = 0;
  for (; k + 2 * VL <= n; k += 2 * VL) {
    s0 += load(a + k) * load(b + k);
    s1 += load(a + k + VL) * load(b + k + VL);
  }
  float s = sum(s0 + s1);
  for (; k < n; k++) s += a[k] * b[k];
  return s;
}

static void lora_linear(const float* x, const int64_t* slots, const LoraSlice* slices, int64_t count, float* y, int64_t rows, int64_t in,
                        int64_t rank, int64_t y_stride, float scale, ParallelFor run) {
  int64_t width = 0;
  for (int64_t s = 0; s < count; s++) width += slices[s].out;
  const int64_t work = (in + width) * rank * count;
  parallel(run, rows, 1 + 2000000 / (work + 1), [=](int64_t begin, int64_t end) {
    std::vector<float> turned(static_cast<size_t>(rank) * width);  // B of the slot at hand, as [rank, out] a slice
    int64_t known = -1;
    std::vector<float> low(rank);
    for (int64_t i = begin; i < end; i++) {
      const int64_t slot = slots[i];
      if (slot < 0) continue;
      if (slot != known) {
        float* to = turned.data();
        for (int64_t s = 0; s < count; s++) {
          const float* b = slices[s].b + slot * slices[s].out * rank;
          for (int64_t o = 0; o < slices[s].out; o++)
            for (int64_t j = 0; j < rank; j++) to[j * slices[s].out + o] = b[o * rank + j];
          to += rank * slices[s].out;
        }
        known = slot;
      }
      const float* b = turned.data();
      float* yi = y + i * y_stride;
      for (int64_t s = 0; s < count; s++) {
        const float* a = slices[s].a + slot * rank * in;
        for (int64_t j = 0; j < rank; j++) low[j] = scale * dot(x + i * in, a + j * in, in);
        expand(low.data(), b, rank, slices[s].out, yi);
        b += rank * slices[s].out;
        yi += slices[s].out;
      }
    }
  });
}

}  // namespace FT_ISA
}  // namespace ft
