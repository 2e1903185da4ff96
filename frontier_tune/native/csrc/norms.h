// RMS norm (arXiv:1910.07467, eq. 4): y = w x / sqrt(mean(x^2) + eps).
#pragma once
#include "vectors.h"

namespace ft {
namespace FT_ISA {

static inline float inverse_rms(const float* x, int64_t width, float eps) {
  vf s0{}, s1{};
  int64_t j = 0;
  for (; j + 2 * VL <= width; j += 2 * VL) {
    vf a = load(x + j), b = load(x + j + VL);
    s0 += a * a;
    s1 += b * b;
  }
  float s = sum(s0 + s1);
  for (; j < width; j++) s += x[j] * x[j];
  return 1.0f / std::sqrt(s / static_cast<float>(width) + eps);
}

static inline void scale_row(const float* x, const float* w, float* y, int64_t width, float r) {
  int64_t j = 0;
  for (; j + VL <= width; j += VL) store(y + j, load(x + j) * r * load(w + j));
  for (; j < width; j++) y[j] = x[j] * r * w[j];
}

// x and y [rows, width], contiguous.
static void rms_norm(const float* x, const float* w, float* y, int64_t rows, int64_t width, float eps, ParallelFor run) {
  parallel(run, rows, 1 + 32768 / width, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) scale_row(x + i * width, w, y + i * width, width, inverse_rms(x + i * width, width, eps));
  });
}

// residual += x; x = norm(residual).
static void add_rms_norm(float* x, float* residual, const float* w, int64_t rows, int64_t width, float eps, ParallelFor run) {
  parallel(run, rows, 1 + 32768 / width, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      float *xi = x + i * width, *ri = residual + i * width;
      int64_t j = 0;
      for (; j + VL <= width; j += VL) store(ri + j, load(ri + j) + load(xi + j));
      for (; j < width; j++) ri[j] += xi[j];
      scale_row(ri, w, xi, width, inverse_rms(ri, width, eps));
    }
  });
}

}  // namespace FT_ISA
}  // namespace ft
