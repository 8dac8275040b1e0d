// What Python passes: flat arrays, all C-contiguous but for the row strides, in elements. `real` arrays are float32, or
// float64 where the logits are. Mirrored field by field in library.py.
#pragma once

#include <cstdint>

extern "C" {
#pragma GCC visibility push(default)

struct Logits {
    void* data;  // n_rows x vocab_size
    int64_t stored, n_rows, vocab_size, stride;
    double scale, softcap;        // softcap 0: none
    int64_t instructions;         // an index into the sets there are
    int64_t n_threads;
};

struct LossRows {
    Logits logits;
    const int64_t* classes;       // n_rows x n_classes, or null: probability covers the vocabulary
    const void* probability;      // real, n_rows x n_classes, or n_rows x vocab_size
    int64_t n_classes, probability_stride;
    const void* k;                // real, n_rows
    const void* class_weight;     // real, vocab_size, or null
    const void* upstream;         // real, n_rows, or null: no gradient is wanted
    double label_smoothing, z_loss;
    void* loss;                   // real, n_rows
};

struct StatsRows {
    Logits logits;
    const int64_t* target;        // n_rows
    const double* beta;           // n_beta inverse temperatures, ascending
    int64_t topk, n_beta, equal_steps;
    void *nll, *lse, *entropy, *confidence, *margin, *brier;  // real, n_rows
    int64_t *rank, *argmax;       // n_rows
    int64_t* top_ids;             // n_rows x topk
    void *top_logprobs, *nll_at_temperature;  // real, n_rows x topk, n_rows x n_beta
};

// The structs' sizes, with gemm.h's, which Python compares with its own: a library left over from older sources is not used.
int64_t cynosure_layout();
// Which instruction sets this processor has, as bits: 1 << index, and 8 for AVX-512's bfloat16 products.
int64_t cynosure_instructions();
void cynosure_loss_rows(const LossRows*);
void cynosure_stats_rows(const StatsRows*);
void cynosure_exp(const float* x, float* y, int64_t n, int64_t instructions);

#pragma GCC visibility pop
}
