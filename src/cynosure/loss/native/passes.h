// The dense passes over one row of V logits: what an instruction set has to offer. Everything about targets is outside.
//
// z = cap(scale * x) for a stored logit x. Sums leave out what the caller excludes by the range [begin, end) it gives.
#pragma once

#include <cstdint>

enum Stored_as : int64_t { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2 };

struct Cap {
    double scale;
    double softcap;  // 0: none
};

// The dense part of the target distribution, q_v = class_weight_v * (keep * probability_v + share), in the type
// computed in. Without `probability` and with share 0 there is none.
struct Dense {
    const void* probability;   // (V,) or null
    const void* class_weight;  // (V,) or null: 1
    double keep, share;
    bool any() const { return probability || share != 0; }
};

struct Sums {
    double exp = 0;     // of e = exp(z - m)
    double dot = 0;     // of q (z - m), terms with q = 0 counting 0
    double mass = 0;    // of q
};

struct Figures {
    double exp = 0;         // of e
    double exp_square = 0;  // of e^2
    double surprise = 0;    // of (z - m) e
    int64_t above = 0;      // how many z > z_target
};

struct Top2 {
    double first, second;  // the largest z of a row and the next
};

// Rows are of `stored` logits; a range [begin, end) leaves the others out.
struct Passes {
    double (*cap_one)(int64_t stored, double x, const Cap&);
    double (*top)(int64_t stored, const void* row, int64_t n, const Cap&);
    Top2 (*top2)(int64_t stored, const void* row, int64_t n, const Cap&);
    Sums (*sums)(int64_t stored, const void* row, int64_t begin, int64_t end, double m, const Cap&, const Dense&);
    // Overwrites x by scale * slope * (a e - up q), slope being the cap's derivative.
    void (*write)(int64_t stored, void* row, int64_t begin, int64_t end, double m, const Cap&, const Dense&, double a,
                  double up);
    Figures (*figures)(int64_t stored, const void* row, int64_t begin, int64_t end, double m, double z_target,
                       const Cap&);
    // Adds up exp(beta_j (z - m)), beta in ascending order.
    void (*temper)(int64_t stored, const void* row, int64_t n, double m, const Cap&, const double* beta,
                   int64_t n_beta, int64_t equal_steps, double* sums);
    // The first indices from `begin` on with z > bound, `most` of them; returns how many there are.
    int64_t (*find)(int64_t stored, const void* row, int64_t begin, int64_t n, double bound, const Cap& cap,
                    int64_t* found, int64_t most);
    void (*exp)(const float* x, float* y, int64_t n);
};

extern const Passes passes_portable;
#if defined(__x86_64__)
extern const Passes passes_avx2, passes_avx512;
#endif
