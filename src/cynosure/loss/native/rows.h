// The arguments from Python: C-contiguous arrays, except for row strides in elements. `real` arrays are float32, or
// float64 if the logits are. library.py mirrors the structs field by field.
#pragma once

#include <cstdint>

constexpr int64_t VERSION = 2;  // of the functions' interface, apart from the sizes of the structs

extern "C" {
#pragma GCC visibility push(default)

struct Logits {
    void* data;  // n_rows x vocab_size
    int64_t stored, n_rows, vocab_size, stride;
    double scale, softcap;        // softcap 0: no cap
    int64_t instructions;         // index of the instruction set
    int64_t n_threads;
};

// The logits may be a piece of each row: classes first to first + vocab_size.
struct LossRows {
    Logits logits;
    int64_t first;
    const int64_t* classes;       // n_rows x n_classes, or null: probability covers the piece
    const void* probability;      // real, n_rows x n_classes, or n_rows x vocab_size
    int64_t n_classes, probability_stride;
    const void* k;                // real, n_rows
    const void* class_weight;     // real, vocab_size, or null
    const void* upstream;         // real, n_rows, or null: no gradient is computed
    const void* entropy;          // real, n_rows: multiplier of the entropy, a term of the loss; or null. Only if the
                                  // target has no dense part
    double keep, share, z_loss;   // the target is class_weight * (keep * probability + share)
    void* loss;                   // real, n_rows, of whole rows; or null for pieces, which fill the next line
    double *top, *exp, *dot, *mass, *surprise;  // n_rows each, as in `LossPart`; the last is null without the entropy
};

// Pieces of rows, in order; `StatsPart` documents the results. The sums exclude the target.
struct StatsRows {
    Logits logits;
    int64_t first;
    const int64_t* target;        // n_rows
    const void* target_logit;     // n_rows, of the logits' type
    const double* beta;           // n_beta inverse temperatures, ascending
    int64_t n_beta, equal_steps;
    double *target_z, *top, *second, *exp, *square, *surprise;  // n_rows each
    double* tempered;             // n_beta x n_rows
    int64_t *above, *argmax;      // n_rows each
    int64_t topk;                 // n_rows x topk, updated: the largest so far, in no order, padded with id -1
    double* top_z;
    int64_t* top_ids;
};

// A number made of VERSION and the sizes of all structs of calls. Python compares it with its own, so that it does not
// use a library compiled from older sources.
int64_t cynosure_layout();
// The instruction sets of this processor as bits: 1 << index, and 8 for AVX-512's bfloat16 instructions.
int64_t cynosure_instructions();
// These return 0, or the bytes of memory that could not be allocated; then the results are undefined.
int64_t cynosure_loss_rows(const LossRows*);
int64_t cynosure_stats_rows(const StatsRows*);
void cynosure_exp(const float* x, float* y, int64_t n, int64_t instructions);

#pragma GCC visibility pop
}
