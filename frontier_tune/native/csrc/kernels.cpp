// All kernels of one instruction set: compiled once for each, see build.py.
#include "attention_backward.h"
#include "elementwise.h"
#include "experts.h"
#include "head.h"
#include "lora.h"
#include "norms.h"
#include "route_backward.h"
#include "sample.h"
#include "training.h"

extern const ft::Kernels FT_CAT(ft_kernels_, FT_ISA);
const ft::Kernels FT_CAT(ft_kernels_, FT_ISA) = {
    ft::FT_ISA::rms_norm, ft::FT_ISA::add_rms_norm, ft::FT_ISA::lora_linear, ft::FT_ISA::pack_panels<float>,
    ft::FT_ISA::experts<float>,
    ft::FT_ISA::softmax_rows, ft::FT_ISA::softmax_rows_backward, ft::FT_ISA::rms_norm_backward, ft::FT_ISA::swiglu,
    ft::FT_ISA::swiglu_backward, ft::FT_ISA::rotary, ft::FT_ISA::rotary_cached, ft::FT_ISA::sample_tokens,
    ft::FT_ISA::routing::route, ft::FT_ISA::routing::route_backward,
    ft::FT_ISA::attention::forward, ft::FT_ISA::attention::backward,
    ft::FT_ISA::training::forward, ft::FT_ISA::training::backward,
};
