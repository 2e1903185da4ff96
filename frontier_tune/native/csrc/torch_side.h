// What the files that torch sees share: see ops.cpp.
#pragma once
#include "common.h"

namespace ft {

const Kernels& kernels();  // of the best instruction set here
void run(int64_t count, int64_t grain, Body body, void* context);
void check(bool ok, const char* op, const char* what);  // throws std::runtime_error

}  // namespace ft
