// What Python passes: flat arrays, all C-contiguous but for the row strides, in elements. `real` arrays are float32, or
// float64 where the logits are. Mirrored field by field in library.py.
#pragma once

#include <cstdint>

constexpr int64_t VERSION = 1;  // of what the functions take and return, apart from the structs' sizes

extern "C" {
#pragma GCC visibility push(default)

struct Logits {
    void* data;  // n_rows x vocab_size
    int64_t stored, n_rows, vocab_size, stride;
    double scale, softcap;        // softcap 0: none
    int64_t instructions;         // an index into the sets there are
    int64_t n_threads;
};

// The logits of a row may be a piece of it: classes first to first + vocab_size.
struct LossRows {
    Logits logits;
    int64_t first;
    const int64_t* classes;       // n_rows x n_classes, or null: probability covers the piece
    const void* probability;      // real, n_rows x n_classes, or n_rows x vocab_size
    int64_t n_classes, probability_stride;
    const void* k;                // real, n_rows
    const void* class_weight;     // real, vocab_size, or null
    const void* upstream;         // real, n_rows, or null: no gradient is wanted
    double keep, share, z_loss;   // the target is class_weight * (keep * probability + share)
    void* loss;                   // real, n_rows, of whole rows; or null for pieces, which leave
    double *top, *exp, *dot, *mass;  // n_rows each, as `LossPart` has them
};

// Pieces of rows, one after the other; `StatsPart` says what they leave. The target is not counted.
struct StatsRows {
    Logits logits;
    int64_t first;
    const int64_t* target;        // n_rows
    const void* target_logit;     // n_rows, stored as the logits
    const double* beta;           // n_beta inverse temperatures, ascending
    int64_t n_beta, equal_steps;
    double *target_z, *top, *second, *exp, *square, *surprise;  // n_rows each
    double* tempered;             // n_beta x n_rows
    int64_t *above, *argmax;      // n_rows each
    int64_t topk;                 // n_rows x topk of the largest so far, in no order, id -1 where there are fewer: brought up to date
    double* top_z;
    int64_t* top_ids;
};

// VERSION and the structs' sizes, with gemm.h's, which Python compares with its own: a library left over from older sources
// is not used.
int64_t cynosure_layout();
// Which instruction sets this processor has, as bits: 1 << index, and 8 for AVX-512's bfloat16 products.
int64_t cynosure_instructions();
// These return the bytes of memory that could not be had, the results being undefined then; 0 if all is done.
int64_t cynosure_loss_rows(const LossRows*);
int64_t cynosure_stats_rows(const StatsRows*);
void cynosure_exp(const float* x, float* y, int64_t n, int64_t instructions);

#pragma GCC visibility pop
}
