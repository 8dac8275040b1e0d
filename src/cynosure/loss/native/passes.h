// The dense passes over one row of V logits, which every instruction set implements. row.h has the threads, rows.cpp the targets.
//
// z = cap(scale * x) for a stored logit x. Passes with a range read only the logits in [begin, end).
#pragma once

#include <cstdint>

enum Stored_as : int64_t { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2 };

struct Cap {
    double scale;
    double softcap;  // 0: no cap
};

// The dense part of the target distribution, q_v = class_weight_v * (keep * probability_v + share), in the type of the
// computation. There is none if `probability` is null and share is 0.
struct Dense {
    const void* probability;   // (V,) or null
    const void* class_weight;  // (V,) or null: 1
    double keep, share;
    bool any() const { return probability || share != 0; }
};

struct Sums {
    double exp = 0;     // of e = exp(z - m)
    double dot = 0;     // of q (z - m), where terms with q = 0 are 0
    double mass = 0;    // of q
    double surprise = 0;  // of (z - m) e, if the entropy is asked for
};

struct StatSums {
    double exp = 0;         // of e
    double exp_square = 0;  // of e^2
    double surprise = 0;    // of (z - m) e
    int64_t above = 0;      // number of z > z_target
};

struct Top2 {
    double first, second;  // the two largest z of a row
};

// `stored` is the type of a row's logits.
struct Passes {
    double (*cap_one)(int64_t stored, double x, const Cap&);
    double (*top)(int64_t stored, const void* row, int64_t n, const Cap&);
    Top2 (*top2)(int64_t stored, const void* row, int64_t n, const Cap&);
    Sums (*sums)(int64_t stored, const void* row, int64_t begin, int64_t end, double m, const Cap&, const Dense&);
    // Overwrites x with scale * slope * (a e - up q), where slope is the derivative of the cap.
    void (*write)(int64_t stored, void* row, int64_t begin, int64_t end, double m, const Cap&, const Dense&, double a,
                  double up);
    // Overwrites x with scale * slope * e (a + b (z - m)), where impossible classes get 0.
    void (*write_entropy)(int64_t stored, void* row, int64_t begin, int64_t end, double m, const Cap&, double a,
                          double b);
    StatSums (*stats)(int64_t stored, const void* row, int64_t begin, int64_t end, double m, double z_target,
                      const Cap&);
    // Adds exp(beta_j (z - m)) to sums; beta is ascending.
    void (*temper)(int64_t stored, const void* row, int64_t n, double m, const Cap&, const double* beta,
                   int64_t n_beta, int64_t equal_steps, double* sums);
    // Writes the first indices from `begin` on with z > bound, at most `most`; returns their number.
    int64_t (*find)(int64_t stored, const void* row, int64_t begin, int64_t n, double bound, const Cap& cap,
                    int64_t* indices, int64_t most);
    void (*exp)(const float* x, float* y, int64_t n);
};

extern const Passes passes_portable;
#if defined(__x86_64__)
extern const Passes passes_avx2, passes_avx512;
#endif
