// A matmul of bfloat16 matrices with float32 sums: out (M, N) = A (M, K) B (K, N), or += with `add`. Strides are in
// elements; one stride of each matrix is 1. library.py mirrors the struct field by field.
//
// out is `sum` in float32, or `narrow` in bfloat16. With `low`, `narrow` holds the upper half of a float32 and `low` the
// lower half. `add` reads both, `keep_low` writes both. Without `keep_low` the result is rounded to `narrow`.
#pragma once

#include <cstdint>

extern "C" {

struct Matmul {
    const uint16_t* a;
    int64_t a_row, a_column;
    const uint16_t* b;
    int64_t b_row, b_column;
    int64_t m, n, k;
    float* sum;
    uint16_t *narrow, *low;
    int64_t stride;  // of the rows of the result
    int64_t add, keep_low;
    int64_t n_threads;
};

// Returns 0, or the bytes of memory that could not be allocated; then the result is undefined.
__attribute__((visibility("default"))) int64_t cynosure_product(const Matmul*);
}
