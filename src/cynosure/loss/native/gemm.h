// A product of bfloat16 matrices: out (M, N) = add + A (M, K) B (K, N), summed in float32. Strides in elements; of each
// pair of strides one is 1. Mirrored field by field in library.py.
#pragma once

#include <cstdint>

extern "C" {

struct Product {
    const uint16_t* a;
    int64_t a_row, a_column;
    const uint16_t* b;
    int64_t b_row, b_column;
    int64_t m, n, k;
    const float* add;  // or null
    int64_t add_stride;
    float* sum;        // float32 result, or null
    uint16_t* narrow;  // bfloat16 result, or null
    int64_t stride;    // of the rows of the result
    int64_t n_threads;
};

__attribute__((visibility("default"))) void cynosure_product(const Product*);
}
