// The routing operators as torch sees them. `route_forward` and `route_dispatch_forward` are `route` and `route_dispatch` without
// a gradient: those two have an autograd kernel in Python, which costs more than a decode step's whole routing.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "route_args.h"
#include "torch_side.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

using ft::check, ft::kernels, ft::run;
using Optional = std::optional<Tensor>;

constexpr const char* OP = "route";
constexpr int64_t LEAST_A_THREAD = 32768;  // logits; waking a thread for fewer costs more than it saves

// Straight from torch's CPU allocator: going through the dispatcher costs as much as routing a token.
Tensor empty(std::initializer_list<int64_t> size, int32_t dtype) {  // of one or two dimensions
  const int64_t stride[2] = {size.size() == 2 ? size.begin()[1] : 1, 1};
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.begin(), stride, dtype,
                                                         aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}
Tensor floats(std::initializer_list<int64_t> size) { return empty(size, aoti_torch_dtype_float32()); }
Tensor ints(std::initializer_list<int64_t> size) { return empty(size, aoti_torch_dtype_int32()); }

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Whether all of `n` ids lie in 0 .. E - 1. Without a branch, so that it is done with vectors.
bool within(const int32_t* ids, int64_t n, int64_t E) {
  uint32_t sign = 0;
  for (int64_t i = 0; i < n; i++) sign |= static_cast<uint32_t>(ids[i]) | (static_cast<uint32_t>(E - 1) - static_cast<uint32_t>(ids[i]));
  return sign >> 31 == 0;
}

// Reads and checks what both operators take.
ft::RouteArgs arguments(const Tensor& logits, const Optional& bias, const Optional& forced, int64_t k, bool sigmoid, bool renormalize,
                        double scale, int64_t n_group, int64_t topk_group) {
  ft::RouteArgs g{};
  check(logits.dim() == 2 && logits.is_contiguous(), OP, "logits [T, E], contiguous");
  const ScalarType type = logits.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::BFloat16, OP, "logits are float32 or bfloat16");
  g.T = logits.size(0), g.E = logits.size(1), g.K = k, g.n_group = n_group, g.topk_group = topk_group;
  check(g.E >= 1 && g.E < INT32_MAX, OP, "one expert or more");
  check(k >= 1 && k <= g.E, OP, "k is between 1 and the number of experts");
  check(g.T * k <= INT32_MAX, OP, "more than 2^31 - 1 routes");
  check(n_group >= 1 && g.E % n_group == 0 && topk_group >= 1 && topk_group <= n_group, OP, "n_group divides E, and 1 <= topk_group <= n_group");
  check(topk_group == n_group || (g.E / n_group >= 2 && k <= g.E / n_group * topk_group), OP,
        "groups have two experts or more, and the chosen groups k or more");
  check(std::isfinite(scale) && scale > 0, OP, "scale is positive and finite");
  g.logits = logits.data_ptr(), g.bf16 = type == ScalarType::BFloat16;
  g.sigmoid = sigmoid, g.renormalize = renormalize, g.scale = static_cast<float>(scale);
  if (bias) {
    check(bias->scalar_type() == ScalarType::Float && bias->is_contiguous() && bias->numel() == g.E, OP, "bias is contiguous float32 [E]");
    g.bias = data<const float>(*bias);
  }
  if (forced) {
    check(forced->scalar_type() == ScalarType::Int && forced->is_contiguous() && forced->dim() == 2 && forced->size(0) == g.T && forced->size(1) == k,
          OP, "forced routes are contiguous int32 [T, k]");
    g.forced = data<const int32_t>(*forced);
    check(within(g.forced, g.T * k, g.E), OP, "a forced route names an expert that there is not");
  }
  return g;
}

void finish(const ft::RouteArgs& g, bool strict) {
  const int64_t bad = kernels().route(g, run);
  if (strict && bad >= 0)
    throw std::runtime_error("frontier_tune::route: token " + std::to_string(bad) + " of " + std::to_string(g.T) +
                             " has no routing: its logits hold a NaN or, under softmax, +inf or nothing but -inf (or the bias is not finite)");
}

int64_t threads_for(const ft::RouteArgs& g) {
  const int64_t wanted = g.T * g.E / LEAST_A_THREAD;
  if (wanted < 2) return 1;
  return std::min<int64_t>({wanted, torch::stable::get_num_threads(), (g.T + 15) / 16});
}

std::tuple<Tensor, Tensor> route(const Tensor& logits, Optional bias, Optional forced, int64_t k, bool sigmoid, bool renormalize, double scale,
                                 int64_t n_group, int64_t topk_group, bool strict) {
  ft::RouteArgs g = arguments(logits, bias, forced, k, sigmoid, renormalize, scale, n_group, topk_group);
  Tensor weights = floats({g.T, k}), ids = ints({g.T, k});
  g.weights = data<float>(weights), g.ids = data<int32_t>(ids), g.threads = threads_for(g);
  finish(g, strict);
  return {weights, ids};
}

std::tuple<Tensor, Tensor, Tensor> route_dispatch(
    const Tensor& logits, Optional bias, Optional forced, int64_t k, bool sigmoid, bool renormalize, double scale, int64_t n_group,
    int64_t topk_group, bool strict, Optional slots, int64_t adapters, int64_t code_bytes) {
  ft::RouteArgs g = arguments(logits, bias, forced, k, sigmoid, renormalize, scale, n_group, topk_group);
  check(adapters >= 0 && g.E * (adapters + 1) < INT32_MAX, OP, "adapters is 0 or more");
  check(code_bytes == 0 || (code_bytes == 1 && g.E <= 256) || (code_bytes == 2 && g.E <= 65536), OP,
        "code_bytes is 0, 1 (up to 256 experts) or 2 (up to 65536)");
  if (slots) {
    check(slots->scalar_type() == ScalarType::Long && slots->is_contiguous() && slots->numel() == g.T, OP, "slots are contiguous int64 [T]");
    g.slots = data<const int64_t>(*slots);
    bool outside = false;
    for (int64_t t = 0; t < g.T; t++) outside |= static_cast<uint64_t>(g.slots[t]) + 1 > static_cast<uint64_t>(adapters);
    check(!outside, OP, "a slot is not between -1 and adapters - 1");
  }
  g.S = adapters, g.code_bytes = code_bytes, g.threads = threads_for(g);
  const int64_t groups = g.E * (adapters + 1), routes = g.T * k;
  // One tensor for all that is int32: each more would cost a decode step a microsecond.
  Tensor weights = floats({g.T, k}), ids = ints({g.T, k}), plan = ints({2 * groups + 1 + 2 * routes + (routes * code_bytes + 3) / 4});
  g.weights = data<float>(weights), g.ids = data<int32_t>(ids), g.counts = data<int32_t>(plan);
  g.offsets = g.counts + groups, g.order = g.offsets + groups + 1, g.inverse = g.order + routes, g.codes = g.inverse + routes;
  int32_t small[1024];
  std::vector<int32_t> large;
  g.histograms = small;
  if (g.threads * groups > 1024) large.resize(static_cast<size_t>(g.threads * groups)), g.histograms = large.data();
  finish(g, strict);
  return {weights, ids, plan};
}

Tensor route_backward(const Tensor& grad, const Tensor& logits, const Tensor& ids, const Tensor& weights, bool sigmoid, bool renormalize,
                      double scale) {
  const char* op = "route_backward";
  check(logits.dim() == 2 && logits.is_contiguous(), op, "logits [T, E], contiguous");
  const ScalarType type = logits.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::BFloat16, op, "logits are float32 or bfloat16");
  check(ids.dim() == 2 && ids.size(0) == logits.size(0) && ids.scalar_type() == ScalarType::Int && ids.is_contiguous(), op, "ids are contiguous int32 [T, K]");
  for (const Tensor* t : {&grad, &weights})
    check(t->scalar_type() == ScalarType::Float && t->is_contiguous() && t->numel() == ids.numel(), op, "grad and weights are contiguous float32 [T, K]");
  check(std::isfinite(scale) && scale > 0, op, "scale is positive and finite");
  ft::RouteBackwardArgs g{logits.data_ptr(), data<const int32_t>(ids), data<const float>(weights), data<const float>(grad), nullptr,
                          logits.size(0), logits.size(1), ids.size(1), static_cast<float>(scale), type == ScalarType::BFloat16, sigmoid, renormalize};
  check(within(g.ids, g.T * g.K, g.E), op, "an expert id is out of range");
  Tensor out = empty({g.T, g.E}, g.bf16 ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32());
  g.out = out.data_ptr();
  kernels().route_backward(g, run);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(frontier_tune, m) {
// Arguments that are left out are not converted, which is most of a call's time.
#define FT_ROUTE                                                                                             \
  "(Tensor logits, Tensor? bias, Tensor? forced, int k, bool sigmoid=False, bool renormalize=True, float scale=1.0, " \
  "int n_group=1, int topk_group=1, bool strict=False"
#define FT_DISPATCH FT_ROUTE ", Tensor? slots=None, int adapters=0, int code_bytes=0) -> (Tensor, Tensor, Tensor)"
  m.def("route" FT_ROUTE ") -> (Tensor, Tensor)");
  m.def("route_forward" FT_ROUTE ") -> (Tensor, Tensor)");
  m.def("route_dispatch" FT_DISPATCH);
  m.def("route_dispatch_forward" FT_DISPATCH);
  m.def("route_backward(Tensor grad, Tensor logits, Tensor ids, Tensor weights, bool sigmoid=False, bool renormalize=True, "
        "float scale=1.0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(frontier_tune, CPU, m) {
  m.impl("route", TORCH_BOX(&route));
  m.impl("route_forward", TORCH_BOX(&route));
  m.impl("route_dispatch", TORCH_BOX(&route_dispatch));
  m.impl("route_dispatch_forward", TORCH_BOX(&route_dispatch));
  m.impl("route_backward", TORCH_BOX(&route_backward));
}
