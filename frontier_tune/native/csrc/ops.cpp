// What torch sees: checks of shapes and types, the choice of the instruction set, and registration through torch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "torch_side.h"

using torch::stable::Tensor;
using torch::headeronly::ScalarType;

#ifdef FT_HAS_AVX512
extern const ft::Kernels ft_kernels_avx512;
extern const ft::KernelsBf16 ft_kernels_bf16_avx512;
#endif
#ifdef FT_HAS_AVX2
extern const ft::Kernels ft_kernels_avx2;
extern const ft::KernelsBf16 ft_kernels_bf16_avx2;
#endif
extern const ft::Kernels ft_kernels_portable;
extern const ft::KernelsBf16 ft_kernels_bf16_portable;
#ifdef FT_HAS_AVX512_BF16
extern const ft::KernelsBf16 ft_kernels_bf16_avx512_bf16;
#endif
#ifdef FT_HAS_AMX_BF16
extern const ft::KernelsBf16 ft_kernels_bf16_amx_bf16;
#endif

namespace {

struct Isa {
  int64_t kernels, bf16;  // 0 portable, 1 AVX2, 2 AVX-512, and of kernels in bfloat16 3: AVX512-BF16, 4: AMX
};

// The processor has AMX with bfloat16, and the system lets this process use its registers, for which a process has to ask.
bool may_use_amx() {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  unsigned a, b, c, d;
  constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE) &&
         syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

Isa best_isa() {
  const char* wanted = std::getenv("FRONTIER_TUNE_ISA");
  const std::string name = wanted ? wanted : "";
#ifdef FT_HAS_AVX512
  if ((name.empty() || name == "amx_bf16" || name == "avx512_bf16" || name == "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    if (name == "avx512" || !__builtin_cpu_supports("avx512bf16")) return {2, 2};
    return {2, name != "avx512_bf16" && may_use_amx() ? 4 : 3};
  }
#endif
#ifdef FT_HAS_AVX2
  if (name != "portable" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {1, 1};
#endif
  return {0, 0};
}

const Isa& chosen() {
  static const Isa chosen = best_isa();
  return chosen;
}

int64_t isa(bool bf16) { return bf16 ? chosen().bf16 : chosen().kernels; }

}  // namespace

namespace ft {

const Kernels& kernels() {
#ifdef FT_HAS_AVX512
  if (chosen().kernels == 2) return ft_kernels_avx512;
#endif
#ifdef FT_HAS_AVX2
  if (chosen().kernels == 1) return ft_kernels_avx2;
#endif
  return ft_kernels_portable;
}

static const KernelsBf16& kernels_bf16() {
#ifdef FT_HAS_AMX_BF16
  if (chosen().bf16 == 4) return ft_kernels_bf16_amx_bf16;
#endif
#ifdef FT_HAS_AVX512_BF16
  if (chosen().bf16 == 3) return ft_kernels_bf16_avx512_bf16;
#endif
#ifdef FT_HAS_AVX512
  if (chosen().bf16 == 2) return ft_kernels_bf16_avx512;
#endif
#ifdef FT_HAS_AVX2
  if (chosen().bf16 == 1) return ft_kernels_bf16_avx2;
#endif
  return ft_kernels_bf16_portable;
}

void run(int64_t count, int64_t grain, Body body, void* context) {
  if (count <= grain) {  // no threads for little work: waking one costs more
    if (count > 0) body(0, count, context);
    return;
  }
  torch::stable::parallel_for(0, count, grain, [=](int64_t b, int64_t e) { body(b, e, context); });
}

void check(bool ok, const char* op, const char* what) {
  if (!ok) throw std::runtime_error(std::string("frontier_tune::") + op + ": " + what);
}

}  // namespace ft

namespace {

using ft::check, ft::kernels, ft::run;

const float* floats(const Tensor& t, const char* op) {
  check(t.scalar_type() == ScalarType::Float && t.is_contiguous(), op, "takes contiguous float32 tensors");
  return static_cast<const float*>(t.data_ptr());
}

float* mutable_floats(const Tensor& t, const char* op) { return const_cast<float*>(floats(t, op)); }

void rms_norm(const Tensor& x, const Tensor& w, double eps, Tensor y) {
  const int64_t width = w.numel();
  check(width > 0 && x.dim() > 0 && x.size(-1) == width && y.numel() == x.numel(), "rms_norm", "x and y [..., H], weight [H]");
  kernels().rms_norm(floats(x, "rms_norm"), floats(w, "rms_norm"), mutable_floats(y, "rms_norm"), x.numel() / width, width,
                     static_cast<float>(eps), run);
}

void add_rms_norm(Tensor x, Tensor residual, const Tensor& w, double eps) {
  const int64_t width = w.numel();
  check(width > 0 && x.dim() > 0 && x.size(-1) == width && residual.numel() == x.numel(), "add_rms_norm", "x and residual [..., H], weight [H]");
  kernels().add_rms_norm(mutable_floats(x, "add_rms_norm"), mutable_floats(residual, "add_rms_norm"), floats(w, "add_rms_norm"),
                         x.numel() / width, width, static_cast<float>(eps), run);
}

void lora_linear(Tensor y, const Tensor& x, const Tensor& slots, std::vector<Tensor> a, std::vector<Tensor> b, double scale) {
  const char* op = "lora_linear";
  check(y.dim() == 2 && x.dim() == 2 && y.size(0) == x.size(0) && slots.numel() >= x.size(0) && !a.empty() && a.size() == b.size(), op,
        "y [T, out], x [T, in], slots [T], as many A as B");
  check(slots.scalar_type() == ScalarType::Long && slots.is_contiguous(), op, "slots are contiguous int64");
  check(y.scalar_type() == ScalarType::Float && y.stride(1) == 1, op, "y is float32 with contiguous rows");
  const int64_t in = x.size(1), count = a[0].size(0), rank = a[0].size(-2);
  std::vector<ft::LoraSlice> slices;
  int64_t width = 0;
  for (size_t i = 0; i < a.size(); i++) {
    const int64_t out = b[i].size(-2);
    check(a[i].size(-1) == in && a[i].size(-2) == rank && a[i].numel() == count * rank * in, op, "A [slots, 1, R, in]");
    check(b[i].size(-1) == rank && b[i].numel() == count * out * rank, op, "B [slots, 1, out, R]");
    slices.push_back({floats(a[i], op), floats(b[i], op), out});
    width += out;
  }
  check(width <= y.size(1), op, "the slices are wider than y");
  const auto* slot = static_cast<const int64_t*>(slots.data_ptr());
  for (int64_t i = 0; i < x.size(0); i++) check(slot[i] >= -1 && slot[i] < count, op, "a slot is out of range");
  kernels().lora_linear(floats(x, op), slot, slices.data(), static_cast<int64_t>(slices.size()), static_cast<float*>(y.data_ptr()), x.size(0),
                        in, rank, y.stride(0), static_cast<float>(scale), run);
}

template <class F>
F* elements(const Tensor& t, const char* op) {
  constexpr bool whole = std::is_same_v<F, float>;
  check(t.scalar_type() == (whole ? ScalarType::Float : ScalarType::BFloat16) && t.is_contiguous(), op,
        whole ? "takes contiguous float32 tensors" : "takes contiguous bfloat16 tensors beside bfloat16 ones");
  return static_cast<F*>(t.data_ptr());
}

void pack_panels(const Tensor& w, Tensor packed) {
  const char* op = "pack_panels";
  check(w.dim() == 3 && w.size(1) % ft::PANEL == 0 && packed.numel() == w.numel(), op, "w [E, out, in] with out a multiple of 32");
  if (w.scalar_type() == ScalarType::BFloat16) {
    check(w.size(2) % 2 == 0, op, "in bfloat16 `in` is even");
    ft::kernels_bf16().pack_panels(elements<ft::bf16>(w, op), elements<ft::bf16>(packed, op), w.size(0), w.size(1), w.size(2), run);
  } else {
    kernels().pack_panels(floats(w, op), mutable_floats(packed, op), w.size(0), w.size(1), w.size(2), run);
  }
}

// Asks the system to keep t's memory in large pages, new or in use: weights that are read once a step are read faster so. Where it can't
// nothing changes.
void large_pages(Tensor t) {
#if defined(__linux__)
  constexpr uintptr_t PAGE = uintptr_t{2} << 20;
  constexpr int COLLAPSE = 25;  // MADV_COLLAPSE, which older headers don't have
  const bool half = t.scalar_type() == ScalarType::BFloat16 || t.scalar_type() == ScalarType::Half;
  check(t.is_contiguous() && (half || t.scalar_type() == ScalarType::Float), "large_pages", "takes contiguous tensors of 16 or 32 bits");
  const auto at = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t begin = (at + PAGE - 1) / PAGE * PAGE, end = (at + static_cast<uintptr_t>(t.numel()) * (half ? 2 : 4)) / PAGE * PAGE;
  if (begin >= end) return;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  madvise(reinterpret_cast<void*>(begin), end - begin, COLLAPSE);
#endif
}

template <class F>
void experts_of(Tensor& out, const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& w13, const Tensor& w2, const Tensor& slots,
                const Tensor& lora, int64_t rank, bool shared_a, void (*kernel)(const ft::ExpertsArgs<F>&, ft::ParallelFor)) {
  const char* op = "experts";
  ft::ExpertsArgs<F> g{};
  check(x.dim() == 2 && ids.dim() == 2 && w2.dim() == 3 && w13.dim() == 3 && ids.size(0) == x.size(0), op, "x [T, H], ids [T, K], w13 [E, 2I, H], w2 [E, H, I]");
  g.T = x.size(0), g.H = x.size(1), g.K = ids.size(1), g.E = w2.size(0), g.I = w2.size(2);
  check(w2.size(1) == g.H && w13.size(0) == g.E && w13.size(1) == 2 * g.I && w13.size(2) == g.H, op, "w13 [E, 2I, H], w2 [E, H, I]");
  check(g.H > 0 && g.I > 0 && g.H % ft::PANEL == 0 && g.I % ft::PANEL == 0, op, "H and I are multiples of 32");
  check(g.K > 0 && g.T <= INT32_MAX / g.K, op, "K is positive and T * K fits 31 bits");
  check(weights.numel() == g.T * g.K && out.numel() == g.T * g.H, op, "weights [T, K], out [T, H]");
  check(ids.scalar_type() == ScalarType::Int && ids.is_contiguous(), op, "ids are contiguous int32");
  g.x = elements<F>(x, op), g.w13 = elements<F>(w13, op), g.w2 = elements<F>(w2, op), g.out = elements<F>(out, op), g.weights = floats(weights, op);
  g.ids = static_cast<const int32_t*>(ids.data_ptr());
  for (int64_t i = 0; i < g.T * g.K; i++) check(g.ids[i] >= 0 && g.ids[i] < g.E, op, "an expert id is out of range");
  if (lora.numel() > 0) {
    check(slots.scalar_type() == ScalarType::Long && slots.is_contiguous() && slots.numel() >= g.T, op, "slots are contiguous int64 [T]");
    check(lora.dim() == 3 && rank > 0, op, "lora [S, E, what a slot has for an expert], of a positive rank");
    g.S = lora.size(0), g.R = rank, g.P = shared_a ? 1 : 2, g.lora = elements<F>(lora, op);
    check(lora.size(1) == g.E && lora.size(2) == g.adapter_size(), op, "lora [S, E, A13 (H, 8n), B13 (2I, R), A2 (I, 8n), B2 (H, R)]; in bfloat16 R is even there");
    g.slots = static_cast<const int64_t*>(slots.data_ptr());
    for (int64_t t = 0; t < g.T; t++) check(g.slots[t] >= -1 && g.slots[t] < g.S, op, "a slot is out of range");
  }
  const std::unique_ptr<float[]> y(new float[g.T * g.K * g.H]);  // a tensor costs as much as the rest of a call
  g.y = y.get();
  kernel(g, run);
}

// In the type of x, float32 or bfloat16: weights, adapters and out are of the same; sums are float32.
void experts(Tensor out, const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& w13, const Tensor& w2, const Tensor& slots,
             const Tensor& lora, int64_t rank, bool shared_a) {
  if (x.scalar_type() == ScalarType::BFloat16)
    experts_of<ft::bf16>(out, x, ids, weights, w13, w2, slots, lora, rank, shared_a, ft::kernels_bf16().experts);
  else
    experts_of<float>(out, x, ids, weights, w13, w2, slots, lora, rank, shared_a, kernels().experts);
}

void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, double eps, Tensor dx) {
  const char* op = "rms_norm_backward";
  const int64_t width = w.numel();
  check(width > 0 && x.dim() > 0 && x.size(-1) == width && dy.numel() == x.numel() && dx.numel() == x.numel(), op, "dy, x, dx [..., H], weight [H]");
  kernels().rms_norm_backward(floats(dy, op), floats(x, op), floats(w, op), mutable_floats(dx, op), x.numel() / width, width,
                              static_cast<float>(eps), run);
}

void swiglu(const Tensor& z, Tensor h) {
  const char* op = "swiglu";
  check(z.dim() == 2 && h.dim() == 2 && h.size(1) > 0 && z.size(0) == h.size(0) && z.size(1) == 2 * h.size(1), op, "z [N, 2I], h [N, I]");
  kernels().swiglu(floats(z, op), mutable_floats(h, op), h.size(0), h.size(1), run);
}

void swiglu_backward(const Tensor& z, const Tensor& dh, const Tensor& weight, Tensor h, Tensor dz, Tensor dweight) {
  const char* op = "swiglu_backward";
  const int64_t n = z.size(0);
  check(z.dim() == 2 && dh.dim() == 2 && h.dim() == 2 && h.size(1) > 0 && z.size(1) == 2 * h.size(1) && dh.numel() == h.numel() && h.size(0) == n &&
            dz.numel() == z.numel() && weight.numel() == n && dweight.numel() == n,
        op, "z, dz [N, 2I], dh, h [N, I], weight, dweight [N]");
  kernels().swiglu_backward(floats(z, op), floats(dh, op), floats(weight, op), mutable_floats(h, op), mutable_floats(dz, op),
                            mutable_floats(dweight, op), n, h.size(1), run);
}

void softmax_rows(Tensor z, const Tensor& target, Tensor lse, Tensor logprob, Tensor entropy) {
  const char* op = "softmax_rows";
  check(z.dim() == 2 && z.size(1) > 0 && target.numel() == z.size(0) && lse.numel() == z.size(0) && logprob.numel() == z.size(0) && entropy.numel() == z.size(0),
        op, "z [N, V], target, lse, logprob, entropy [N]");
  check(target.scalar_type() == ScalarType::Long && target.is_contiguous(), op, "targets are contiguous int64");
  const auto* at = static_cast<const int64_t*>(target.data_ptr());
  for (int64_t i = 0; i < z.size(0); i++) check(at[i] >= 0 && at[i] < z.size(1), op, "a target is out of range");
  kernels().softmax_rows(mutable_floats(z, op), at, mutable_floats(lse, op), mutable_floats(logprob, op), mutable_floats(entropy, op), z.size(0),
                         z.size(1), run);
}

void softmax_rows_backward(Tensor z, const Tensor& target, const Tensor& lse, const Tensor& entropy, const Tensor& dlogprob, const Tensor& dentropy) {
  const char* op = "softmax_rows_backward";
  const int64_t n = z.size(0);
  check(z.dim() == 2 && z.size(1) > 0 && target.numel() == n && lse.numel() == n && entropy.numel() == n && dlogprob.numel() == n && dentropy.numel() == n,
        op, "z [N, V], target, lse, entropy, dlogprob, dentropy [N]");
  check(target.scalar_type() == ScalarType::Long && target.is_contiguous(), op, "targets are contiguous int64");
  const auto* at = static_cast<const int64_t*>(target.data_ptr());
  for (int64_t i = 0; i < n; i++) check(at[i] >= 0 && at[i] < z.size(1), op, "a target is out of range");
  kernels().softmax_rows_backward(mutable_floats(z, op), at, floats(lse, op), floats(entropy, op), floats(dlogprob, op), floats(dentropy, op), n,
                                  z.size(1), run);
}

void rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, bool transposed, Tensor y) {
  const char* op = "rotary";
  check(x.dim() == 3 && x.size(1) > 0 && x.size(2) > 0 && y.numel() == x.numel() && x.size(2) % 2 == 0 && cos.numel() == x.size(0) * x.size(2) && sin.numel() == cos.numel(), op,
        "x and y [T, heads, D], cos and sin [T, D]");
  kernels().rotary(floats(x, op), floats(cos, op), floats(sin, op), mutable_floats(y, op), x.size(0), x.size(1), x.size(2),
                   transposed ? -1.0f : 1.0f, run);
}

const int64_t* longs(const Tensor& t, int64_t count, const char* op, const char* what) {
  check(t.scalar_type() == ScalarType::Long && t.is_contiguous() && t.numel() >= count, op, what);
  return static_cast<const int64_t*>(t.data_ptr());
}

void rotary_cached(const Tensor& positions, Tensor x, const Tensor& cache, int64_t width) {
  const char* op = "rotary_cached";
  check(x.dim() == 2 && width > 0 && width % 2 == 0 && x.size(1) > 0 && x.size(1) % width == 0 && cache.dim() == 2 && cache.size(1) == width, op,
        "x [T, heads * D], cache [positions, D]");
  check(x.scalar_type() == ScalarType::Float && x.stride(1) == 1, op, "x is float32 with contiguous rows");
  const int64_t* at = longs(positions, x.size(0), op, "positions are contiguous int64 [T]");
  for (int64_t i = 0; i < x.size(0); i++) check(at[i] >= 0 && at[i] < cache.size(0), op, "a position is out of range");
  kernels().rotary_cached(static_cast<float*>(x.data_ptr()), x.stride(0), x.size(1) / width, width, floats(cache, op), at, x.size(0), run);
}

void sample_tokens(const Tensor& logits, const Tensor& temperature, const Tensor& seeds, const Tensor& counts, Tensor tokens, Tensor logprobs,
                   Tensor ranks) {
  const char* op = "sample_tokens";
  check(logits.dim() == 2 && logits.size(1) > 0 && logits.scalar_type() == ScalarType::Float && logits.stride(1) == 1, op,
        "logits [N, V] are float32 with contiguous rows");
  const int64_t n = logits.size(0), width = logits.size(1);
  check(width <= INT32_MAX && temperature.numel() == n && logprobs.numel() == n, op, "temperature, logprobs [N]");
  kernels().sample_tokens(static_cast<const float*>(logits.data_ptr()), logits.stride(0), floats(temperature, op),
                          longs(seeds, n, op, "seeds are contiguous int64 [N]"), longs(counts, n, op, "counts are contiguous int64 [N]"),
                          const_cast<int64_t*>(longs(tokens, n, op, "tokens are contiguous int64 [N]")), mutable_floats(logprobs, op),
                          const_cast<int64_t*>(longs(ranks, n, op, "ranks are contiguous int64 [N]")), n, width, run);
}

}  // namespace

STABLE_TORCH_LIBRARY(frontier_tune, m) {
  m.def("isa(bool bf16=False) -> int");
  m.def("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) y) -> ()");
  m.def("add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float eps) -> ()");
  m.def("lora_linear(Tensor(a!) y, Tensor x, Tensor slots, Tensor[] a, Tensor[] b, float scale) -> ()");
  m.def("pack_panels(Tensor w, Tensor(a!) packed) -> ()");
  m.def("large_pages(Tensor(a!) t) -> ()");
  m.def(
      "experts(Tensor(a!) out, Tensor x, Tensor ids, Tensor weights, Tensor w13, Tensor w2, Tensor slots, Tensor lora, int rank, "
      "bool shared_a) -> ()");
  m.def("rms_norm_backward(Tensor dy, Tensor x, Tensor weight, float eps, Tensor(a!) dx) -> ()");
  m.def("swiglu(Tensor z, Tensor(a!) h) -> ()");
  m.def("swiglu_backward(Tensor z, Tensor dh, Tensor weight, Tensor(a!) h, Tensor(b!) dz, Tensor(c!) dweight) -> ()");
  m.def("softmax_rows(Tensor(a!) z, Tensor target, Tensor(b!) lse, Tensor(c!) logprob, Tensor(d!) entropy) -> ()");
  m.def("softmax_rows_backward(Tensor(a!) z, Tensor target, Tensor lse, Tensor entropy, Tensor dlogprob, Tensor dentropy) -> ()");
  m.def("rotary(Tensor x, Tensor cos, Tensor sin, bool transposed, Tensor(a!) y) -> ()");
  m.def("rotary_cached(Tensor positions, Tensor(a!) x, Tensor cache, int width) -> ()");
  m.def(
      "sample_tokens(Tensor logits, Tensor temperature, Tensor seeds, Tensor counts, Tensor(a!) tokens, Tensor(b!) logprobs, "
      "Tensor(c!) ranks) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(frontier_tune, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&isa)); }

STABLE_TORCH_LIBRARY_IMPL(frontier_tune, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("lora_linear", TORCH_BOX(&lora_linear));
  m.impl("pack_panels", TORCH_BOX(&pack_panels));
  m.impl("large_pages", TORCH_BOX(&large_pages));
  m.impl("experts", TORCH_BOX(&experts));
  m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
  m.impl("swiglu", TORCH_BOX(&swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
  m.impl("softmax_rows", TORCH_BOX(&softmax_rows));
  m.impl("softmax_rows_backward", TORCH_BOX(&softmax_rows_backward));
  m.impl("rotary", TORCH_BOX(&rotary));
  m.impl("rotary_cached", TORCH_BOX(&rotary_cached));
  m.impl("sample_tokens", TORCH_BOX(&sample_tokens));
}
