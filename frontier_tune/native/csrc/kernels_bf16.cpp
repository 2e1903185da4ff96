// The expert layer in bfloat16: compiled once for each instruction set, one more than kernels.cpp, see build.py.
#include "experts.h"

extern const ft::KernelsBf16 FT_CAT(ft_kernels_bf16_, FT_ISA);
const ft::KernelsBf16 FT_CAT(ft_kernels_bf16_, FT_ISA) = {ft::FT_ISA::pack_panels<ft::bf16>, ft::FT_ISA::experts<ft::bf16>};
