// The last step of a language model in one pass over the logits of a row.
#pragma once
#include <limits>

#include "norms.h"

namespace ft {
namespace FT_ISA {

// Of each row of z [rows, width]: log sum exp, log-probability of target and entropy (nats); z becomes the probabilities.
static void softmax_rows(float* z, const int64_t* target, float* lse, float* logprob, float* entropy, int64_t rows, int64_t width,
                         ParallelFor run) {
  parallel(run, rows, 1 + 8192 / width, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      float* x = z + i * width;
      const float chosen = x[target[i]];
      float top = -std::numeric_limits<float>::infinity();
      vf m = all(top);
      int64_t j = 0;
      for (; j + VL <= width; j += VL) {
        const vf v = load(x + j);
        m = m > v ? m : v;
      }
      float lanes[VL];
      store(lanes, m);
      for (int64_t l = 0; l < VL; l++) top = top > lanes[l] ? top : lanes[l];
      for (; j < width; j++) top = top > x[j] ? top : x[j];
      vf total{}, weighted{};
      for (j = 0; j + VL <= width; j += VL) {
        const vf d = load(x + j) - top, e = exp(d);
        total += e;
        weighted += e * d;  // e is 0 where d is very low, and d finite
        store(x + j, e);
      }
      float t = sum(total), s = sum(weighted);
      for (; j < width; j++) {
        const float d = x[j] - top, e = std::exp(d);
        t += e;
        s += e * d;
        x[j] = e;
      }
      const float log_total = std::log(t), r = 1.0f / t;
      for (j = 0; j + VL <= width; j += VL) store(x + j, load(x + j) * r);
      for (; j < width; j++) x[j] *= r;
      lse[i] = top + log_total;
      logprob[i] = (chosen - top) - log_total;
      entropy[i] = log_total - s * r;
    }
  });
}

// The gradient at the logits z, in their place, of sums of dlogprob log p(target) and dentropy H: with p = exp(z - lse),
//   dz_j = p_j (-dentropy (log p_j + H) - dlogprob) + dlogprob [j = target].
static void softmax_rows_backward(float* z, const int64_t* target, const float* lse, const float* entropy, const float* dlogprob,
                                  const float* dentropy, int64_t rows, int64_t width, ParallelFor run) {
  parallel(run, rows, 1 + 8192 / width, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      float* x = z + i * width;
      const float slope = -dentropy[i], constant = slope * entropy[i] - dlogprob[i];
      int64_t j = 0;
      for (; j + VL <= width; j += VL) {
        const vf d = load(x + j) - lse[i];
        store(x + j, exp(d) * (slope * d + constant));
      }
      for (; j < width; j++) {
        const float d = x[j] - lse[i];
        x[j] = std::exp(d) * (slope * d + constant);
      }
      x[target[i]] += dlogprob[i];
    }
  });
}

}  // namespace FT_ISA
}  // namespace ft
