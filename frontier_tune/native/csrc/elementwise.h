// Elementwise parts of a step that eager mode reads and writes many times over, each in one pass: forward and backward.
#pragma once
#include "norms.h"

namespace ft {
namespace FT_ISA {

// dx = r g - x r^3 <g, x> / width, g = dy w, r = 1 / rms(x): the gradient of rms_norm with a frozen w.
static void rms_norm_backward(const float* dy, const float* x, const float* w, float* dx, int64_t rows, int64_t width, float eps,
                              ParallelFor run) {
  parallel(run, rows, 1 + 16384 / width, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float *d = dy + i * width, *xi = x + i * width;
      float* to = dx + i * width;
      const float r = inverse_rms(xi, width, eps);
      vf s{};
      int64_t j = 0;
      for (; j + VL <= width; j += VL) s += load(d + j) * load(w + j) * load(xi + j);
      float dot = sum(s);
      for (; j < width; j++) dot += d[j] * w[j] * xi[j];
      const float c = dot * r * r * r / static_cast<float>(width);
      for (j = 0; j + VL <= width; j += VL) store(to + j, load(d + j) * load(w + j) * r - load(xi + j) * c);
      for (; j < width; j++) to[j] = d[j] * w[j] * r - xi[j] * c;
    }
  });
}

// h = silu(gate) up of z = [gate | up]; z [rows, 2 I], h [rows, I].
static void swiglu(const float* z, float* h, int64_t rows, int64_t width, ParallelFor run) {
  parallel(run, rows, 1 + 8192 / width, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float *gate = z + 2 * i * width, *up = gate + width;
      int64_t j = 0;
      for (; j + VL <= width; j += VL) store(h + i * width + j, silu(load(gate + j)) * load(up + j));
      for (; j < width; j++) h[i * width + j] = gate[j] / (1.0f + std::exp(-gate[j])) * up[j];
    }
  });
}

// From z and dh (the gradient at h without the row's weight): h itself, dz = w [dh up silu'(gate) | dh silu(gate)], and the gradient
// of the weight <dh, h>.
static void swiglu_backward(const float* z, const float* dh, const float* weight, float* h, float* dz, float* dweight, int64_t rows,
                            int64_t width, ParallelFor run) {
  parallel(run, rows, 1 + 8192 / width, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float *gate = z + 2 * i * width, *up = gate + width, *d = dh + i * width;
      float *dgate = dz + 2 * i * width, *dup = dgate + width, *hi = h + i * width;
      const float w = weight[i];
      vf total{};
      int64_t j = 0;
      for (; j + VL <= width; j += VL) {
        const vf g = load(gate + j), u = load(up + j), dj = load(d + j), sig = 1.0f / (1.0f + exp(-g)), act = g * sig, hj = act * u;
        store(hi + j, hj);
        total += dj * hj;
        store(dup + j, w * dj * act);
        store(dgate + j, w * dj * u * (sig + act * (1.0f - sig)));
      }
      float t = sum(total);
      for (; j < width; j++) {
        const float sig = 1.0f / (1.0f + std::exp(-gate[j])), act = gate[j] * sig;
        hi[j] = act * up[j];
        t += d[j] * hi[j];
        dup[j] = w * d[j] * act;
        dgate[j] = w * d[j] * up[j] * (sig + act * (1.0f - sig));
      }
      dweight[i] = t;
    }
  });
}

// y = x cos + rotate_half(x) sin (sign 1), or its transpose (sign -1); x and y [rows, heads, D], cos and sin [rows, D].
static void rotary(const float* x, const float* cos, const float* sin, float* y, int64_t rows, int64_t heads, int64_t width, float sign,
                   ParallelFor run) {
  const int64_t half = width / 2;
  parallel(run, rows, 1 + 16384 / (heads * width), [=](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const float *c = cos + t * width, *s = sin + t * width;
      for (int64_t n = 0; n < heads; n++) {
        const float* xi = x + (t * heads + n) * width;
        float* yi = y + (t * heads + n) * width;
        int64_t j = 0;
        if (sign > 0) {
          for (; j + VL <= half; j += VL) {
            const vf a = load(xi + j), b = load(xi + half + j);
            store(yi + j, a * load(c + j) - b * load(s + j));
            store(yi + half + j, b * load(c + half + j) + a * load(s + half + j));
          }
          for (; j < half; j++) {
            yi[j] = xi[j] * c[j] - xi[half + j] * s[j];
            yi[half + j] = xi[half + j] * c[half + j] + xi[j] * s[half + j];
          }
        } else {
          for (; j + VL <= half; j += VL) {
            const vf a = load(xi + j), b = load(xi + half + j);
            store(yi + j, a * load(c + j) + b * load(s + half + j));
            store(yi + half + j, b * load(c + half + j) - a * load(s + j));
          }
          for (; j < half; j++) {
            yi[j] = xi[j] * c[j] + xi[half + j] * s[half + j];
            yi[half + j] = xi[half + j] * c[half + j] - xi[j] * s[j];
          }
        }
      }
    }
  });
}

// Rotates x [rows, heads, D], rows `stride` apart, in place by the angles of each row's position; cache [positions, D]: cosines of
// the D / 2 frequencies, then sines.
static void rotary_cached(float* x, int64_t stride, int64_t heads, int64_t width, const float* cache, const int64_t* positions, int64_t rows,
                          ParallelFor run) {
  const int64_t half = width / 2;
  parallel(run, rows, 1 + 16384 / (heads * width), [=](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const float *c = cache + positions[t] * width, *s = c + half;
      for (int64_t n = 0; n < heads; n++) {
        float *a = x + t * stride + n * width, *b = a + half;
        int64_t j = 0;
        for (; j + VL <= half; j += VL) {
          const vf u = load(a + j), v = load(b + j), cj = load(c + j), sj = load(s + j);
          store(a + j, u * cj - v * sj);
          store(b + j, v * cj + u * sj);
        }
        for (; j < half; j++) {
          const float u = a[j], v = b[j];
          a[j] = u * c[j] - v * s[j];
          b[j] = v * c[j] + u * s[j];
        }
      }
    }
  });
}

}  // namespace FT_ISA
}  // namespace ft
