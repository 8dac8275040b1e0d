// The sampled backward's work on columns of d(logits) and on rows of dW: the arguments from Python (as in rows.h), and
// the passes that every instruction set implements.
#pragma once

#include "rows.h"

extern "C" {
#pragma GCC visibility push(default)

// Sums over the rows i of d(logits) d, for each column v. Only `squares` is computed if `along` is null.
struct ColumnSums {
    Logits dlogits;       // scale and softcap are not read
    const void* weight;   // real, n_rows
    const void* along;    // real, n_rows
    void* squares;        // real, vocab_size: sum of d^2
    void* weighed;        // real, vocab_size: sum of weight_i d^2
    void* projected;      // real, vocab_size: sum of along_i d
};

// Columns of d(logits), each times its factor.
struct TakeColumns {
    Logits dlogits;
    const int64_t* ids;   // n_ids, ascending
    const void* factor;   // real, n_ids
    int64_t n_ids;
    void* taken;          // n_rows x n_ids, of the type of d(logits)
};

// The squared norms of rows.
struct RowSquares {
    Logits rows;          // vocab_size is their length; scale and softcap are not read
    void* squares;        // real, n_rows
};

// dW (n_rows x hidden_size). Rows that were never added to hold nothing, and count as 0.
struct WeightRows {
    void* dweight;        // float32, or with `low` the upper halves of float32
    uint16_t* low;        // the lower halves, or null
    uint8_t* touched;     // n_rows: whether a row holds a sum
    int64_t n_rows, hidden_size, instructions, n_threads;
};

struct AddRows {
    WeightRows to;
    const int64_t* ids;   // n_ids, distinct
    const float* part;    // n_ids x hidden_size
    int64_t n_ids;
};

// Adds the outer product of along and axis to all rows, and rounds those with `low` to bfloat16.
struct FinishRows {
    WeightRows to;
    const float* along;   // n_rows
    const float* axis;    // hidden_size
};

int64_t cynosure_column_sums(const ColumnSums*);
int64_t cynosure_take_columns(const TakeColumns*);
int64_t cynosure_row_squares(const RowSquares*);
int64_t cynosure_add_rows(const AddRows*);
int64_t cynosure_finish_rows(const FinishRows*);

#pragma GCC visibility pop
}

struct ColumnPasses {
    void (*sums)(const ColumnSums&, int64_t begin, int64_t end);  // of these columns
    double (*row_square)(int64_t stored, const void* row, int64_t n);
    void (*add_row)(const AddRows&, int64_t k);
    void (*finish_row)(const FinishRows&, int64_t row);
};

extern const ColumnPasses column_passes_portable;
#if defined(__x86_64__)
extern const ColumnPasses column_passes_avx2, column_passes_avx512;
#endif
