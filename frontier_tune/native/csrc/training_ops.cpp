// The training kernels of an expert layer as torch sees them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "torch_side.h"
#include "training_args.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

using ft::check, ft::kernels, ft::run;
using Tensors = std::vector<Tensor>;

constexpr const char* OP = "training_experts";

float* floats(const Tensor& t, int64_t count, const char* what) {
  check(t.scalar_type() == ScalarType::Float && t.is_contiguous(), OP, "takes contiguous float32 tensors");
  check(t.numel() == count, OP, what);
  return static_cast<float*>(t.data_ptr());
}

int32_t* ints(const Tensor& t, int64_t count) {
  check(t.scalar_type() == ScalarType::Int && t.is_contiguous() && t.numel() == count, OP, "order [T * K] and begin [E + 1], int32");
  return static_cast<int32_t*>(t.data_ptr());
}

ft::TrainingLora lora(const Tensors& ab, double scale, int64_t experts, int64_t in, int64_t out) {
  ft::TrainingLora g{};
  if (ab.empty()) return g;
  check(ab.size() == 2 && ab[0].dim() == 3, OP, "LoRA is A [E, R, in] and B [E, R, out], or nothing");
  g.rank = ab[0].size(1), g.scale = static_cast<float>(scale);
  g.a = floats(ab[0], experts * g.rank * in, "A [E, R, in]"), g.b = floats(ab[1], experts * g.rank * out, "B [E, R, out]");
  return g;
}

void gradients(ft::TrainingLora& g, const Tensors& ab, int64_t experts, int64_t in, int64_t out) {
  check(ab.size() == (g.a ? 2 : 0), OP, "as many gradients as adapters");
  if (!g.a) return;
  g.da = floats(ab[0], experts * g.rank * in, "dA [E, R, in]"), g.db = floats(ab[1], experts * g.rank * out, "dB [E, R, out]");
}

ft::TrainingArgs arguments(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up, const Tensor& down,
                           const Tensors& wide, const Tensors& narrow, double wide_scale, double narrow_scale, const Tensors& kept) {
  ft::TrainingArgs g{};
  check(x.dim() == 2 && ids.dim() == 2 && down.dim() == 3 && ids.size(0) == x.size(0), OP, "x [T, H], ids [T, K], down [E, H, I]");
  g.T = x.size(0), g.H = x.size(1), g.K = ids.size(1), g.E = down.size(0), g.I = down.size(2);
  check(g.H > 0 && g.H % 16 == 0 && g.I > 0 && g.K > 0 && g.E > 0, OP, "H is a multiple of 16; I, K and E are positive");
  check(g.T <= INT32_MAX / g.K, OP, "T * K fits 31 bits");
  g.x = floats(x, g.T * g.H, "x [T, H]"), g.weights = floats(weights, g.T * g.K, "weights [T, K]");
  g.gate_up = floats(gate_up, g.E * 2 * g.I * g.H, "gate_up [E, 2I, H]"), g.down = floats(down, g.E * g.H * g.I, "down [E, H, I]");
  g.wide = lora(wide, wide_scale, g.E, g.H, 2 * g.I), g.narrow = lora(narrow, narrow_scale, g.E, g.I, g.H);
  check(ids.scalar_type() == ScalarType::Long && ids.is_contiguous(), OP, "ids are contiguous int64");
  g.ids = static_cast<const int64_t*>(ids.data_ptr());
  const int64_t pairs = g.T * g.K, places = pairs + (ft::TRAINING_TILE - 1) * (g.E < pairs ? g.E : pairs);
  for (int64_t i = 0; i < pairs; i++) check(g.ids[i] >= 0 && g.ids[i] < g.E, OP, "an expert id is out of range");
  check(kept.size() == 5, OP, "kept is order, begin, z and two low-rank activations");
  g.order = ints(kept[0], pairs), g.begin = ints(kept[1], g.E + 1);
  g.z = floats(kept[2], places * 2 * g.I, "z [T * K + 31 min(E, T * K), 2I]");
  g.low_wide = floats(kept[3], places * g.wide.rank, "low-rank activations [T * K + 31 min(E, T * K), R]");
  g.low_narrow = floats(kept[4], places * g.narrow.rank, "low-rank activations [T * K + 31 min(E, T * K), R]");
  return g;
}

void training_experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up, const Tensor& down, Tensors wide,
                      Tensors narrow, double wide_scale, double narrow_scale, Tensors kept, Tensor out) {
  ft::TrainingArgs g = arguments(x, ids, weights, gate_up, down, wide, narrow, wide_scale, narrow_scale, kept);
  g.out = floats(out, g.T * g.H, "out [T, H]");
  const Tensor rows = torch::stable::new_empty(x, {g.T * g.K, g.H});
  g.rows = static_cast<float*>(rows.data_ptr());
  kernels().training_experts(g, run);
}

void training_experts_backward(const Tensor& dout, const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate_up,
                               const Tensor& down, Tensors wide, Tensors narrow, double wide_scale, double narrow_scale, Tensors kept,
                               Tensor dx, Tensor dweights, Tensors dwide, Tensors dnarrow) {
  ft::TrainingArgs g = arguments(x, ids, weights, gate_up, down, wide, narrow, wide_scale, narrow_scale, kept);
  g.dout = floats(dout, g.T * g.H, "dout [T, H]"), g.dweights = floats(dweights, g.T * g.K, "dweights [T, K]");
  gradients(g.wide, dwide, g.E, g.H, 2 * g.I);
  gradients(g.narrow, dnarrow, g.E, g.I, g.H);
  // What forward kept is checked as if it came from anywhere.
  check(g.begin[0] == 0 && g.begin[g.E] == g.T * g.K, OP, "begin is what forward made");
  for (int64_t e = 0; e < g.E; e++) check(g.begin[e] <= g.begin[e + 1], OP, "begin is what forward made");
  for (int64_t i = 0; i < g.T * g.K; i++) check(g.order[i] >= 0 && g.order[i] < g.T * g.K, OP, "order is what forward made");
  const bool wanted = dx.numel() > 0;
  g.out = wanted ? floats(dx, g.T * g.H, "dx [T, H], or empty") : nullptr;
  const Tensor rows = torch::stable::new_empty(x, {wanted ? g.T * g.K : 0, g.H});
  g.rows = static_cast<float*>(rows.data_ptr());
  kernels().training_experts_backward(g, run);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(frontier_tune, m) {
  m.def(
      "training_experts(Tensor x, Tensor ids, Tensor weights, Tensor gate_up, Tensor down, Tensor[] wide, Tensor[] narrow, float wide_scale, "
      "float narrow_scale, Tensor(a!)[] kept, Tensor(b!) out) -> ()");
  m.def(
      "training_experts_backward(Tensor dout, Tensor x, Tensor ids, Tensor weights, Tensor gate_up, Tensor down, Tensor[] wide, "
      "Tensor[] narrow, float wide_scale, float narrow_scale, Tensor[] kept, Tensor(a!) dx, Tensor(b!) dweights, Tensor(c!)[] dwide, "
      "Tensor(d!)[] dnarrow) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(frontier_tune, CPU, m) {
  m.impl("training_experts", TORCH_BOX(&training_experts));
  m.impl("training_experts_backward", TORCH_BOX(&training_experts_backward));
}
