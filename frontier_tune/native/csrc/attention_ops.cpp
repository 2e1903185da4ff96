// Packed attention as torch sees it.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "attention_args.h"
#include "torch_side.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

using ft::check, ft::kernels, ft::run;

constexpr const char* OP = "packed_attention";

float* rows(const Tensor& t, int64_t total, int64_t heads, int64_t width) {
  check(t.scalar_type() == ScalarType::Float && t.is_contiguous(), OP, "takes contiguous float32 tensors");
  check(t.numel() == total * heads * width, OP, "q, out [T, heads, D], k, v [T, kv_heads, D], lse [T, heads]");
  return static_cast<float*>(t.data_ptr());
}

// Checks sizes and the plan, so that the kernels stay inside whatever they are given.
ft::AttentionArgs arguments(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse, const Tensor& segments,
                            double scale) {
  ft::AttentionArgs g{};
  check(q.dim() == 3 && k.dim() == 3, OP, "q [T, heads, D], k [T, kv_heads, D]");
  g.T = q.size(0), g.heads = q.size(1), g.D = q.size(2), g.kv_heads = k.size(1);
  check(g.kv_heads > 0 && g.heads > 0 && g.heads % g.kv_heads == 0, OP, "heads is a multiple of kv_heads");
  check(g.D > 0 && g.D % 8 == 0 && g.D <= ft::ATTENTION_WIDTH, OP, "D is a multiple of 8 up to 256");
  g.q = rows(q, g.T, g.heads, g.D), g.out = rows(out, g.T, g.heads, g.D), g.lse = rows(lse, g.T, g.heads, 1);
  g.k = rows(k, g.T, g.kv_heads, g.D), g.v = rows(v, g.T, g.kv_heads, g.D);
  check(segments.scalar_type() == ScalarType::Long && segments.is_contiguous() && segments.dim() == 2 && segments.size(1) == 3, OP,
        "segments [S, 3], contiguous int64");
  g.S = segments.size(0), g.scale = static_cast<float>(scale);
  g.segments = static_cast<const ft::Segment*>(segments.data_ptr());
  int64_t covered = 0, root = 0;
  for (int64_t s = 0; s < g.S; s++) {
    const ft::Segment& segment = g.segments[s];
    if (segment.parent < 0) root = s;
    check(segment.first == covered && segment.rows > 0 && segment.rows <= g.T - covered, OP, "segments cover the rows in order");
    check(segment.parent == -1 || (segment.parent >= root && segment.parent < s), OP, "a segment's parent comes before it in its tree");
    covered += segment.rows;
  }
  check(covered == g.T, OP, "segments cover the rows in order");
  return g;
}

void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& segments, double scale, Tensor out, Tensor lse) {
  kernels().attention(arguments(q, k, v, out, lse, segments, scale), run);
}

void attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                        const Tensor& segments, double scale, Tensor dq, Tensor dk, Tensor dv) {
  ft::AttentionArgs g = arguments(q, k, v, out, lse, segments, scale);
  g.dout = rows(dout, g.T, g.heads, g.D), g.dq = rows(dq, g.T, g.heads, g.D);
  g.dk = rows(dk, g.T, g.kv_heads, g.D), g.dv = rows(dv, g.T, g.kv_heads, g.D);
  kernels().attention_backward(g, run);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(frontier_tune, m) {
  m.def("packed_attention(Tensor q, Tensor k, Tensor v, Tensor segments, float scale, Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def(
      "packed_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor segments, float scale, "
      "Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(frontier_tune, CPU, m) {
  m.impl("packed_attention", TORCH_BOX(&attention));
  m.impl("packed_attention_backward", TORCH_BOX(&attention_backward));
}
