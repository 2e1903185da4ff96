// What all kernels share: vectors as wide as the instruction set has them, and the table through which they are called.
//
// Kernels are written once with GCC's vector extensions and compiled for each instruction set (FT_ISA); they take raw pointers,
// allocate nothing that lasts, and know nothing of torch. Rows are never mixed: whatever a row shares a tile with, the order of
// additions that make its result is the same, so that it is the same bit by bit.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace ft {

// Runs body(begin, end) over [0, count) on torch's own threads, at least `grain` a thread.
using Body = void (*)(int64_t, int64_t, void*);
using ParallelFor = void (*)(int64_t count, int64_t grain, Body body, void* context);

template <class F>
inline void parallel(ParallelFor run, int64_t count, int64_t grain, const F& f) {
  run(count, grain, [](int64_t b, int64_t e, void* c) { (*static_cast<const F*>(c))(b, e); }, const_cast<F*>(&f));
}

struct LoraSlice {
  const float* a;  // [slots, R, in]
  const float* b;  // [slots, out, R]
  int64_t out;     // width of this slice of y
};

constexpr int64_t PANEL = 32;  // columns of a packed weight panel, the same for all instruction sets
constexpr int64_t LANES = 8;   // rows of A are padded to a multiple of this

struct bf16 {  // the upper half of a float
  uint16_t bits;
};

// One expert layer with adapters, in F (float or bf16). Sizes: T tokens, K experts a token, E experts, H hidden, I expert width, S slots.
template <class F>
struct ExpertsArgs {
  const F* x;             // [T, H]
  const int32_t* ids;     // [T, K]
  const float* weights;   // [T, K]
  const int64_t* slots;   // [T], -1: no adapter; null: none has one
  const F* w13;           // packed: see pack_panels; [E, panels(2I), H, PANEL]
  const F* w2;            // packed; [E, panels(H), I, PANEL]
  const F* lora;          // [S, E, adapter_size()]; null: no adapters
  float* y;               // [T * K, H] scratch
  F* out;                 // [T, H]
  int64_t T, K, E, H, I, S, R, P;  // P = 2: gate and up have an A each; 1: they share it

  // What one slot has for one expert, in the order in which it is read. Matrices as packed weights are: their columns side by side, and in
  // bfloat16 each with its neighbour in the sum.
  static int64_t padded(int64_t rank) { return (rank + LANES - 1) / LANES * LANES; }
  int64_t whole(int64_t rank) const { return sizeof(F) == 2 ? rank + rank % 2 : rank; }
  int64_t b13_at() const { return H * padded(P * R); }              // behind A13 [H, P * R padded]
  int64_t a2_at() const { return b13_at() + 2 * I * whole(R); }     // behind B13 [2I / PANEL, R whole, PANEL]
  int64_t b2_at() const { return a2_at() + I * padded(R); }         // behind A2 [I, R padded]
  int64_t adapter_size() const { return b2_at() + H * whole(R); }   // behind B2 [H / PANEL, R whole, PANEL]
};

struct AttentionArgs;  // attention_args.h
struct RouteArgs;      // route_args.h
struct RouteBackwardArgs;
struct TrainingArgs;  // training_args.h

struct Kernels {
  void (*rms_norm)(const float* x, const float* w, float* y, int64_t rows, int64_t width, float eps, ParallelFor run);
  void (*add_rms_norm)(float* x, float* residual, const float* w, int64_t rows, int64_t width, float eps, ParallelFor run);
  void (*lora_linear)(const float* x, const int64_t* slots, const LoraSlice* slices, int64_t count, float* y, int64_t rows, int64_t in,
                      int64_t rank, int64_t y_stride, float scale, ParallelFor run);
  void (*pack_panels)(const float* w, float* packed, int64_t experts, int64_t out, int64_t in, ParallelFor run);
  void (*experts)(const ExpertsArgs<float>& args, ParallelFor run);
  void (*softmax_rows)(float* z, const int64_t* target, float* lse, float* logprob, float* entropy, int64_t rows, int64_t width,
                       ParallelFor run);
  void (*softmax_rows_backward)(float* z, const int64_t* target, const float* lse, const float* entropy, const float* dlogprob,
                                const float* dentropy, int64_t rows, int64_t width, ParallelFor run);
  void (*rms_norm_backward)(const float* dy, const float* x, const float* w, float* dx, int64_t rows, int64_t width, float eps,
                            ParallelFor run);
  void (*swiglu)(const float* z, float* h, int64_t rows, int64_t width, ParallelFor run);
  void (*swiglu_backward)(const float* z, const float* dh, const float* weight, float* h, float* dz, float* dweight, int64_t rows,
                          int64_t width, ParallelFor run);
  void (*rotary)(const float* x, const float* cos, const float* sin, float* y, int64_t rows, int64_t heads, int64_t width, float sign,
                 ParallelFor run);
  void (*rotary_cached)(float* x, int64_t stride, int64_t heads, int64_t width, const float* cache, const int64_t* positions, int64_t rows,
                        ParallelFor run);
  void (*sample_tokens)(const float* x, int64_t stride, const float* temperature, const int64_t* seeds, const int64_t* counts,
                        int64_t* tokens, float* logprobs, int64_t* ranks, int64_t rows, int64_t width, ParallelFor run);
  int64_t (*route)(const RouteArgs& args, ParallelFor run);  // returns the first token without an answer, or -1
  void (*route_backward)(const RouteBackwardArgs& args, ParallelFor run);
  void (*attention)(const AttentionArgs& args, ParallelFor run);
  void (*attention_backward)(const AttentionArgs& args, ParallelFor run);
  void (*training_experts)(const TrainingArgs& args, ParallelFor run);
  void (*training_experts_backward)(const TrainingArgs& args, ParallelFor run);
};

// The same of kernels in bfloat16, compiled for more instruction sets: kernels_bf16.cpp.
struct KernelsBf16 {
  void (*pack_panels)(const bf16* w, bf16* packed, int64_t experts, int64_t out, int64_t in, ParallelFor run);
  void (*experts)(const ExpertsArgs<bf16>& args, ParallelFor run);
};

}  // namespace ft
