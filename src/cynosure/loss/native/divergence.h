// The divergence between two softmaxes of the same classes, row by row: the arguments from Python (as in rows.h), and the
// passes that every instruction set implements.
#pragma once

#include "rows.h"

enum Direction : int64_t { FORWARD = 0, REVERSE = 1, JSD = 2 };

extern "C" {
#pragma GCC visibility push(default)

// KL(teacher || student), KL(student || teacher), or beta KL(teacher || m) + (1 - beta) KL(student || m) of the mixture
// m = beta teacher + (1 - beta) student. `real` arrays are float64 if either of the logits are.
struct DivergenceRows {
    Logits student, teacher;  // as many rows and classes, each of its own type
    int64_t direction;
    double beta, temperature;  // the logits are divided by the temperature after the cap
    const void* upstream;      // real, n_rows, or null: no gradient is computed
    int64_t write_student, write_teacher;  // whether the gradient overwrites these logits
    void* divergence;          // real, n_rows
};

int64_t cynosure_divergence_rows(const DivergenceRows*);

#pragma GCC visibility pop
}

struct DivergencePasses {
    // Computes row i, given the largest z = cap(scale * logit) of each model.
    void (*row)(const DivergenceRows&, int64_t i, double student_top, double teacher_top);
};

extern const DivergencePasses divergence_passes_portable;
#if defined(__x86_64__)
extern const DivergencePasses divergence_passes_avx2, divergence_passes_avx512;
#endif
