// A product of bfloat16 matrices, summed in float32: out (M, N) = A (M, K) B (K, N), or += with `add`. Strides in
// elements; of each pair of strides one is 1. Mirrored field by field in library.py.
//
// out is `sum` in float32, or `narrow` in bfloat16. With `low` beside it `narrow` is the upper half of a float32: read
// where `add` asks for it, written where `keep_low` does; without `keep_low` the result is rounded to `narrow`.
#pragma once

#include <cstdint>

extern "C" {

struct Product {
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

// Returns the bytes of memory that could not be had, the result being undefined then; 0 if it is done.
__attribute__((visibility("default"))) int64_t cynosure_product(const Product*);
}
