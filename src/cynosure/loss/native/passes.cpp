// The dense passes of one instruction set. Compiled once per instruction set, with -DPASSES=passes_<name>.
#include "passes.h"

#include <type_traits>

#include "simd.h"

namespace {

// ---- reading a logit: z = cap(scale x) -------------------------------------------------------------------------------

// Multiplying by a power of two does not round: then an FMA also computes with z itself, and saves an operation.
bool is_power_of_two(double x) {
    int exponent;
    return __builtin_fabs(__builtin_frexp(x, &exponent)) == 0.5;
}

template <class F, bool exact>
struct Plain {
    F scale;
    explicit Plain(const Cap& cap) : scale(F(cap.scale)) {}
    INLINE Vector<F> z(Vector<F> x) const { return exact ? x * scale : rounded<F>(x * scale); }
    INLINE Vector<F> slope(Vector<F>) const { return all<F>(scale); }
};

template <class F>
struct Capped {
    F scale, softcap;
    explicit Capped(const Cap& cap) : scale(F(cap.scale)), softcap(F(cap.softcap)) {}
    INLINE Vector<F> z(Vector<F> x) const { return rounded<F>(tanh_of<F>(x * scale / softcap) * softcap); }
    INLINE Vector<F> slope(Vector<F> z) const {
        Vector<F> t = z / softcap;
        return (1 - t * t) * scale;
    }
};

// ---- the dense part of the target ------------------------------------------------------------------------------------

template <class F>
struct NoTarget {
    static constexpr bool any = false, uniform = false;
    explicit NoTarget(const Dense&) {}
    template <class Lanes>
    INLINE Vector<F> q(int64_t, Lanes) const {
        return Vector<F>{};
    }
};

template <class F>
struct Uniform {
    static constexpr bool any = true, uniform = true;
    double share;
    explicit Uniform(const Dense& dense) : share(dense.share) {}
    template <class Lanes>
    INLINE Vector<F> q(int64_t, Lanes) const {
        return all<F>(F(share));
    }
};

template <class F>
struct General {
    static constexpr bool any = true, uniform = false;
    const F *probability, *class_weight;
    F keep, share;
    explicit General(const Dense& dense)
        : probability((const F*)dense.probability),
          class_weight((const F*)dense.class_weight),
          keep(F(dense.keep)),
          share(F(dense.share)) {}
    template <class Lanes>
    INLINE Vector<F> q(int64_t i, Lanes lanes) const {
        Vector<F> q = all<F>(share);
        if (probability) q = q + lanes.load(probability + i) * keep;
        if (class_weight) q = q * lanes.load(class_weight + i);
        return q;
    }
};

// ---- vector by vector, the last one in part --------------------------------------------------------------------------

template <class F>
struct AllLanes {
    template <class T>
    INLINE Vector<F> load(const T* x) const {
        return ::load(x);
    }
    template <class T>
    INLINE void store(T* x, Vector<F> v) const {
        ::store(x, v);
    }
    INLINE Vector<F> keep(Vector<F> v, F = 0) const { return v; }
    INLINE Mask<F> keep_mask(Mask<F> mask) const { return mask; }
};

template <class F>
struct SomeLanes {
    int n;
    template <class T>
    INLINE Vector<F> load(const T* x) const {
        return load_some<T, F>(x, n);
    }
    template <class T>
    INLINE void store(T* x, Vector<F> v) const {
        store_some(x, n, v);
    }
    INLINE Vector<F> keep(Vector<F> v, F otherwise = 0) const {
        for (int i = n; i < Real<F>::lanes; i++) v[i] = otherwise;
        return v;
    }
    INLINE Mask<F> keep_mask(Mask<F> mask) const {
        for (int i = n; i < Real<F>::lanes; i++) mask[i] = 0;
        return mask;
    }
};

template <class T, class F = typename Stored<std::remove_const_t<T>>::Computed, class Body>
INLINE void each(T* row, int64_t begin, int64_t end, Body body) {
    int64_t i = begin;
    for (; i + Real<F>::lanes <= end; i += Real<F>::lanes) body(AllLanes<F>{}.load(row + i), i, AllLanes<F>{});
    if (i < end) {
        SomeLanes<F> some{int(end - i)};
        body(some.load(row + i), i, some);
    }
}

// Calls body for runs of the range that are short enough to be summed in F; the runs are summed in double. Equal terms
// all round the same way, so the error of a longer run would grow with its length.
template <class F, class Body>
INLINE void runs(int64_t begin, int64_t end, Body body) {
    constexpr int64_t length = 32 * Real<F>::lanes;
    for (int64_t i = begin; i < end; i += length) body(i, i + length < end ? i + length : end);
}

#define ALONE __attribute__((noinline))  // otherwise a dozen loops share the registers of one function

// ---- the passes ------------------------------------------------------------------------------------------------------

template <class T, class C>
ALONE double top(const T* row, int64_t n, C cap) {
    typedef typename Stored<T>::Computed F;
    const F none = -F(__builtin_inf()), sign = cap.scale < 0 ? F(-1) : F(1);
    Vector<F> largest = all<F>(none);
    each<const T>(row, 0, n, [&](Vector<F> x, int64_t, auto lanes) {
        largest = larger<F>(largest, lanes.keep(x * sign, none));
    });
    F best = none;
    for (int i = 0; i < Real<F>::lanes; i++) best = largest[i] > best ? largest[i] : best;
    return double(cap.z(all<F>(best * sign))[0]);
}

template <class T, class C>
ALONE Top2 top2(const T* row, int64_t n, C cap) {
    typedef typename Stored<T>::Computed F;
    const F none = -F(__builtin_inf());
    Vector<F> first = all<F>(none), second = first;
    each<const T>(row, 0, n, [&](Vector<F> x, int64_t, auto lanes) {
        x = lanes.keep(x * cap.scale, none);
        second = larger<F>(second, where<F>(x > first, first, x));
        first = larger<F>(first, x);
    });
    F best = none, next = none;
    for (int i = 0; i < 2 * Real<F>::lanes; i++) {
        const F x = i % 2 ? second[i / 2] : first[i / 2];
        if (x > best) {
            next = best;
            best = x;
        } else if (x > next) {
            next = x;
        }
    }
    const F scale = cap.scale;
    cap.scale = 1;  // best and next are already scaled
    Top2 top{double(cap.z(all<F>(best))[0]), double(cap.z(all<F>(next))[0])};
    cap.scale = scale;
    return top;
}

template <class T, class C, class Q>
ALONE Sums sums(const T* row, int64_t begin, int64_t end, double m, C cap, Q target) {
    typedef typename Stored<T>::Computed F;
    Total<F> exp, dot, mass;
    runs<F>(begin, end, [&](int64_t from, int64_t to) {
        Vector<F> run_exp{}, run_dot{}, run_mass{};
        each<const T>(row, from, to, [&](Vector<F> x, int64_t i, auto lanes) {
            x = cap.z(x) - F(m);
            run_exp += lanes.keep(exp_of<F>(x));
            if constexpr (Q::uniform) {
                run_dot += lanes.keep(x);
            } else if constexpr (Q::any) {
                Vector<F> q = lanes.keep(target.q(i, lanes));
                run_mass += q;
                run_dot += where<F>(q == 0, Vector<F>{}, q * x);
            }
        });
        exp.add(run_exp);
        if (Q::any) dot.add(run_dot);
        if (Q::any && !Q::uniform) mass.add(run_mass);
    });
    if constexpr (Q::uniform) return {exp.sum(), target.share * dot.sum(), target.share * (end - begin)};
    return {exp.sum(), dot.sum(), mass.sum()};
}

template <class T, class C, class Q>
ALONE void write(T* row, int64_t begin, int64_t end, double m, C cap, Q target, double a, double up) {
    typedef typename Stored<T>::Computed F;
    each<T>(row, begin, end, [&](Vector<F> x, int64_t i, auto lanes) {
        Vector<F> z = cap.z(x);
        Vector<F> dz = exp_of<F>(z - F(m)) * F(a);
        if (Q::any) dz = dz - target.q(i, lanes) * F(up);
        lanes.store(row + i, dz * cap.slope(z));
    });
}

template <class T, class C>
ALONE void write_entropy(T* row, int64_t begin, int64_t end, double m, C cap, double a, double b) {
    typedef typename Stored<T>::Computed F;
    each<T>(row, begin, end, [&](Vector<F> x, int64_t i, auto lanes) {
        Vector<F> z = cap.z(x), below = not_lowest<F>(z - F(m));
        lanes.store(row + i, exp_not_lowest<F>(below) * (F(a) + below * F(b)) * cap.slope(z));
    });
}

template <class T, class C>
ALONE StatSums stats(const T* row, int64_t begin, int64_t end, double m, double z_target, C cap) {
    typedef typename Stored<T>::Computed F;
    Total<F> exp, square, surprise;
    Mask<F> above{};
    runs<F>(begin, end, [&](int64_t from, int64_t to) {
        Vector<F> run_exp{}, run_square{}, run_surprise{};
        each<const T>(row, from, to, [&](Vector<F> x, int64_t, auto lanes) {
            Vector<F> z = cap.z(x);
            Vector<F> below = not_lowest<F>(z - F(m)), e = lanes.keep(exp_not_lowest<F>(below));
            run_exp += e;
            run_square += e * e;
            run_surprise += below * e;
            above -= lanes.keep_mask(Mask<F>(z > F(z_target)));
        });
        exp.add(run_exp);
        square.add(run_square);
        surprise.add(run_surprise);
    });
    StatSums total{exp.sum(), square.sum(), surprise.sum()};
    for (int i = 0; i < Real<F>::lanes; i++) total.above += above[i];
    return total;
}

// beta is ascending. With equal steps, each further exponential takes one multiplication.
template <class T, class C>
ALONE void temper(const T* row, int64_t n, double m, C cap, const double* beta, int64_t n_beta, bool equal_steps,
            double* total) {
    typedef typename Stored<T>::Computed F;
    constexpr int group = 8;
    for (int64_t j = 0; j < n_beta; j += group) {
        const int n_group = n_beta - j < group ? int(n_beta - j) : group;
        const F step = n_beta > 1 ? F(beta[1] - beta[0]) : F(0);
        Total<F> sums[group];
        runs<F>(0, n, [&](int64_t from, int64_t to) {
            Vector<F> run[group] = {};
            each<const T>(row, from, to, [&](Vector<F> x, int64_t, auto lanes) {
                Vector<F> below = cap.z(x) - F(m);
                Vector<F> e = lanes.keep(exp_of<F>(below * F(beta[j])));
                const Vector<F> factor = equal_steps ? exp_of<F>(below * step) : e;
                run[0] += e;
                for (int k = 1; k < n_group; k++) {
                    e = equal_steps ? e * factor : lanes.keep(exp_of<F>(below * F(beta[j + k])));
                    run[k] += e;
                }
            });
            for (int k = 0; k < n_group; k++) sums[k].add(run[k]);
        });
        for (int k = 0; k < n_group; k++) total[j + k] += sums[k].sum();
    }
}

template <class T, class C>
ALONE int64_t find(const T* row, int64_t begin, int64_t n, double bound, C cap, int64_t* indices, int64_t most) {
    typedef typename Stored<T>::Computed F;
    constexpr int lanes = Real<F>::lanes, stride = 8 * lanes;  // vectors checked together: most have no hit
    int64_t n_found = 0;
    const auto look = [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to && n_found < most; i += lanes) {
            const int count = to - i < lanes ? int(to - i) : lanes;
            const Vector<F> x = count == lanes ? load(row + i) : load_some<T, F>(row + i, count);
            each_lane<F>(cap.z(x) > F(bound), [&](int lane) {
                if (lane < count && n_found < most) indices[n_found++] = i + lane;
            });
        }
    };
    int64_t i = begin;
    for (; i + stride <= n && n_found < most; i += stride) {
        Mask<F> over{};
        for (int j = 0; j < stride; j += lanes) over |= Mask<F>(cap.z(load(row + i + j)) > F(bound));
        if (any_lane<F>(over)) look(i, i + stride);
    }
    look(i, n);
    return n_found;
}

// ---- by type -----------------------------------------------------------------------------------------------------------

// Calls body(row, cap) with the type of the row and of its cap.
template <class Body>
INLINE auto with_type(int64_t stored, const void* row, const Cap& cap, Body body) {
    auto with_cap = [&](auto* typed) {
        typedef typename Stored<std::remove_pointer_t<decltype(typed)>>::Computed F;
        if (cap.softcap > 0) return body(typed, Capped<F>(cap));
        return is_power_of_two(F(cap.scale)) ? body(typed, Plain<F, true>(cap)) : body(typed, Plain<F, false>(cap));
    };
    if (stored == FLOAT32) return with_cap((float*)row);
    if (stored == FLOAT64) return with_cap((double*)row);
    return with_cap((bfloat16*)row);
}

template <class F, class Body>
INLINE auto with_target(const Dense& dense, Body body) {
    if (!dense.any()) return body(NoTarget<F>(dense));
    if (!dense.probability && !dense.class_weight) return body(Uniform<F>(dense));
    return body(General<F>(dense));
}

template <class T>
using Computed = typename Stored<std::remove_pointer_t<T>>::Computed;

double cap_one_any(int64_t stored, double x, const Cap& cap) {
    return with_type(stored, nullptr, cap, [&](auto* row, auto c) {
        typedef Computed<decltype(row)> F;
        return double(c.z(all<F>(F(x)))[0]);
    });
}

double top_any(int64_t stored, const void* row, int64_t n, const Cap& cap) {
    return with_type(stored, row, cap, [&](auto* x, auto c) { return top(x, n, c); });
}

Top2 top2_any(int64_t stored, const void* row, int64_t n, const Cap& cap) {
    return with_type(stored, row, cap, [&](auto* x, auto c) { return top2(x, n, c); });
}

Sums sums_any(int64_t stored, const void* row, int64_t begin, int64_t end, double m, const Cap& cap,
              const Dense& dense) {
    return with_type(stored, row, cap, [&](auto* x, auto c) {
        return with_target<Computed<decltype(x)>>(dense, [&](auto q) { return sums(x, begin, end, m, c, q); });
    });
}

void write_any(int64_t stored, void* row, int64_t begin, int64_t end, double m, const Cap& cap, const Dense& dense,
               double a, double up) {
    with_type(stored, row, cap, [&](auto* x, auto c) {
        with_target<Computed<decltype(x)>>(dense, [&](auto q) { write(x, begin, end, m, c, q, a, up); });
    });
}

void write_entropy_any(int64_t stored, void* row, int64_t begin, int64_t end, double m, const Cap& cap, double a,
                       double b) {
    with_type(stored, row, cap, [&](auto* x, auto c) { write_entropy(x, begin, end, m, c, a, b); });
}

StatSums stats_any(int64_t stored, const void* row, int64_t begin, int64_t end, double m, double z_target,
                   const Cap& cap) {
    return with_type(stored, row, cap, [&](auto* x, auto c) { return stats(x, begin, end, m, z_target, c); });
}

void temper_any(int64_t stored, const void* row, int64_t n, double m, const Cap& cap, const double* beta,
                int64_t n_beta, int64_t equal_steps, double* sums) {
    with_type(stored, row, cap, [&](auto* x, auto c) { temper(x, n, m, c, beta, n_beta, equal_steps != 0, sums); });
}

int64_t find_any(int64_t stored, const void* row, int64_t begin, int64_t n, double bound, const Cap& cap,
                 int64_t* indices, int64_t most) {
    return with_type(stored, row, cap, [&](auto* x, auto c) { return find(x, begin, n, bound, c, indices, most); });
}

void exp_any(const float* x, float* y, int64_t n) {
    each<const float>(x, 0, n, [&](Vector<float> v, int64_t i, auto lanes) { lanes.store(y + i, exp_of<float>(v)); });
}

}  // namespace

extern const Passes PASSES = {cap_one_any, top_any,   top2_any,   sums_any, write_any, write_entropy_any,
                              stats_any,   temper_any, find_any, exp_any};
