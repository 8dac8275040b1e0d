// The passes of divergence.h in one instruction set. Compiled once per instruction set, with -DPASSES=<name>.
//
// Logits of any type are read in blocks that stay in the cache; the arithmetic is written once, on blocks of F.
#include "divergence.h"

#include <type_traits>

#include "passes.h"
#include "simd.h"

namespace {

// ---- log -------------------------------------------------------------------------------------------------------------

// log w for 0 < w <= 1, where y is w - 1 before it is rounded to w; NaN for NaN. w = 2^n f with f in [sqrt(1/2), sqrt(2)),
// and log f is the series of 2 atanh(r) with r = (f - 1) / (f + 1). Near 1 what w lost is added, as its derivative.
template <class F>
INLINE Vector<F> log_of(Vector<F> w, Vector<F> y) {
    typedef Real<F> R;
    constexpr int terms = sizeof(F) == 4 ? 5 : 11;
    const Vector<F> lost = where<F>(w <= F(0.5), Vector<F>{}, (y - (w - 1)) / w);
    const Mask<F> bits = bitcast<Mask<F>>(w);
    const Mask<F> n = (bits - bitcast<typename R::Int>(F(0.70710678118654752440))) >> R::mantissa;
    const Vector<F> f = bitcast<Vector<F>>(bits - (n << R::mantissa));
    const Vector<F> r = (f - 1) / (f + 1), r2 = r * r;
    Vector<F> series = all<F>(F(1. / (2 * terms + 1)));
    for (int k = terms - 1; k >= 0; k--) series = series * r2 + F(1. / (2 * k + 1));
    const Vector<F> exponent = __builtin_convertvector(n, Vector<F>);
    return exponent * R::ln2_high + (exponent * R::ln2_low + (2 * r * series + lost));
}

// ---- reading and writing blocks --------------------------------------------------------------------------------------

template <class F>
constexpr int64_t BLOCK = 32 * Real<F>::lanes;  // short enough to be summed in F: see `runs` in passes.cpp

// One row of logits of a model, and the block of it that was read last.
template <class F>
struct Side {
    alignas(64) F x[BLOCK<F>];      // (z - top) / temperature, with -inf behind the block's end; then a gradient
    alignas(64) F slope[BLOCK<F>];  // of the cap
    const Logits& logits;
    char* data;
    F scale, softcap, top, per_temperature;
    bool written;
    double sum = 0;  // of exp(x)

    Side(const Logits& logits, int64_t i, double top, double temperature, bool written)
        : logits(logits),
          data((char*)logits.data + i * logits.stride * size()),
          scale(F(logits.scale)),
          softcap(F(logits.softcap)),
          top(F(top)),
          per_temperature(F(1 / temperature)),
          written(written) {}

    int64_t size() const { return logits.stored == FLOAT64 ? 8 : logits.stored == FLOAT32 ? 4 : 2; }
    bool is_capped() const { return softcap > 0; }
};

// `lanes` elements of T as F.
template <class F, class T>
INLINE Vector<F> load_as(const T* x) {
    if constexpr (std::is_same_v<typename Stored<T>::Computed, F>) {
        return load(x);
    } else {
        Vector<F> v;
        for (int i = 0; i < Real<F>::lanes; i++) {
            if constexpr (std::is_same_v<T, bfloat16>)
                v[i] = F(bitcast<float>(uint32_t(x[i].bits) << 16));
            else
                v[i] = F(x[i]);
        }
        return v;
    }
}

template <class F, class T>
INLINE void store_as(T* x, Vector<F> v) {
    if constexpr (std::is_same_v<typename Stored<T>::Computed, F>) {
        store(x, v);
    } else if constexpr (!std::is_same_v<T, bfloat16>) {
        for (int i = 0; i < Real<F>::lanes; i++) x[i] = T(v[i]);
    } else {
        for (int i = 0; i < Real<F>::lanes; i++) {
            const float narrow = float(v[i]);
            const uint32_t w = bitcast<uint32_t>(narrow);
            x[i].bits = uint16_t((narrow != narrow ? w | 0x400000 : w + 0x7fff + ((w >> 16) & 1)) >> 16);
        }
    }
}

template <class F, class T>
void read_as(const T* from, int64_t n, Side<F>& side) {
    constexpr int64_t lanes = Real<F>::lanes;
    for (int64_t i = 0; i < n; i += lanes) {
        T some[lanes] = {};
        if (n - i < lanes) memcpy(some, from + i, (n - i) * sizeof(T));
        Vector<F> z = load_as<F>(n - i < lanes ? some : from + i) * side.scale;
        if (side.is_capped()) {
            const Vector<F> t = tanh_of<F>(z / side.softcap);
            store(side.slope + i, 1 - t * t);
            z = t * side.softcap;
        }
        // As rounded as the top is: a product left to an FMA could exceed it.
        store(side.x + i, (rounded<F>(z) - side.top) * side.per_temperature);
    }
    for (int64_t i = n; i % lanes; i++) side.x[i] = -F(__builtin_inf());
}

template <class F, class T>
void write_as(T* to, int64_t n, const Side<F>& side) {
    constexpr int64_t lanes = Real<F>::lanes;
    for (int64_t i = 0; i < n; i += lanes) {
        Vector<F> g = load(side.x + i) * side.scale;
        if (side.is_capped()) g = g * load(side.slope + i);
        if (n - i >= lanes) {
            store_as<F>(to + i, g);
        } else {
            T some[lanes];
            store_as<F>(some, g);
            memcpy(to + i, some, (n - i) * sizeof(T));
        }
    }
}

template <class F>
void read(Side<F>& side, int64_t begin, int64_t n) {
    if (side.logits.stored == FLOAT32) return read_as<F>((const float*)side.data + begin, n, side);
    if (side.logits.stored == FLOAT64) return read_as<F>((const double*)side.data + begin, n, side);
    read_as<F>((const bfloat16*)side.data + begin, n, side);
}

template <class F>
void write(Side<F>& side, int64_t begin, int64_t n) {
    if (!side.written) return;
    if (side.logits.stored == FLOAT32) return write_as<F>((float*)side.data + begin, n, side);
    if (side.logits.stored == FLOAT64) return write_as<F>((double*)side.data + begin, n, side);
    write_as<F>((bfloat16*)side.data + begin, n, side);
}

// ---- a pair of rows --------------------------------------------------------------------------------------------------

// The classes that `p` gives no probability add nothing, whatever the rest of their term.
template <class F>
INLINE Vector<F> term(Vector<F> p, Vector<F> rest) {
    return where<F>(p == 0, Vector<F>{}, p * rest);
}

// KL(left || right), or the Jensen-Shannon divergence whose mixture has the weight beta for left.
template <class F>
struct Pair {
    Side<F> left, right;
    F weight_left, weight_right;  // of the mixture

    int64_t n() const { return left.logits.vocab_size; }

    // Calls body(begin, length) with each block of both rows, read.
    template <class Body>
    void each_block(Body body) {
        for (int64_t begin = 0; begin < n(); begin += BLOCK<F>) {
            const int64_t length = n() - begin < BLOCK<F> ? n() - begin : BLOCK<F>;
            read(left, begin, length);
            read(right, begin, length);
            body(begin, length);
        }
    }

    // Sums exp(x) of both, and returns the sum of exp(x_left) (x_left - x_right).
    double sum_gaps() {
        Total<F> total_left, total_right, total_gap;
        each_block([&](int64_t, int64_t length) {
            Vector<F> run_left{}, run_right{}, run_gap{};
            for (int64_t i = 0; i < length; i += Real<F>::lanes) {
                const Vector<F> l = load(left.x + i), r = load(right.x + i), e = exp_of<F>(l);
                run_left += e;
                run_right += exp_of<F>(r);
                run_gap += term<F>(e, l - r);
            }
            total_left.add(run_left);
            total_right.add(run_right);
            total_gap.add(run_gap);
        });
        left.sum = total_left.sum();
        right.sum = total_right.sum();
        return total_gap.sum();
    }

    // KL(left || right) = mean_gap - log(sum_left / sum_right), where mean_gap is that of x over left.
    double kl(double mean_gap) const {
        const double kl = mean_gap - __builtin_log(left.sum) + __builtin_log(right.sum);
        return kl < 0 ? 0 : kl;  // only rounding makes it negative
    }

    // d KL / dx is softmax(x_right) - softmax(x_left) for right, and p (log(p / q) - KL) for left.
    void write_kl(double mean_gap, double upstream) {
        const F a = F(upstream / left.sum), b = F(upstream / right.sum);
        each_block([&](int64_t begin, int64_t length) {
            for (int64_t i = 0; i < length; i += Real<F>::lanes) {
                const Vector<F> l = load(left.x + i), r = load(right.x + i), p = exp_of<F>(l) * a;
                // Both products are rounded: those of equal rows cancel.
                store(right.x + i, rounded<F>(exp_of<F>(r) * b) - rounded<F>(p));
                store(left.x + i, term<F>(p, (l - r) - F(mean_gap)));
            }
            write(left, begin, length);
            write(right, begin, length);
        });
    }

    struct Logs {
        Vector<F> left, right;  // log(p / m) of each
    };

    // The logs of each softmax over their mixture m, from d = log(p_left / p_right). The larger of both is taken out:
    // m over it is w = w_larger + w_smaller e^-|d|, which is 1 + y with y = w_smaller (e^-|d| - 1).
    INLINE Logs over_mixture(Vector<F> d) const {
        const Mask<F> is_left = d >= 0;
        const Vector<F> of_left = all<F>(weight_left), of_right = all<F>(weight_right);
        const Vector<F> larger = where<F>(is_left, of_left, of_right), smaller = where<F>(is_left, of_right, of_left);
        const Vector<F> below = where<F>(is_left, -d, d);
        Vector<F> power, less_one;
        split_exp<F>(not_lowest<F>(below), power, less_one);
        const Vector<F> y = smaller * (power * less_one + (power - 1));
        const Vector<F> log = log_of<F>(rounded<F>(larger + smaller * (power + power * less_one)), y);
        return {where<F>(is_left, -log, below - log), where<F>(is_left, below - log, -log)};
    }

    struct Divergences {
        double left, right;  // KL(left || m), KL(right || m)
    };

    Divergences sum_mixture(F log_ratio) {
        Total<F> total_left, total_right;
        each_block([&](int64_t, int64_t length) {
            Vector<F> run_left{}, run_right{};
            for (int64_t i = 0; i < length; i += Real<F>::lanes) {
                const Vector<F> l = load(left.x + i), r = load(right.x + i);
                const Logs logs = over_mixture((l - r) - log_ratio);
                run_left += term<F>(exp_of<F>(l), logs.left);
                run_right += term<F>(exp_of<F>(r), logs.right);
            }
            total_left.add(run_left);
            total_right.add(run_right);
        });
        return {total_left.sum() / left.sum, total_right.sum() / right.sum};
    }

    // The gradient of each is weight p (log(p / m) - KL(p || m)).
    void write_mixture(F log_ratio, Divergences mean, double upstream) {
        const F a = F(upstream * weight_left / left.sum), b = F(upstream * weight_right / right.sum);
        each_block([&](int64_t begin, int64_t length) {
            for (int64_t i = 0; i < length; i += Real<F>::lanes) {
                const Vector<F> l = load(left.x + i), r = load(right.x + i);
                const Logs logs = over_mixture((l - r) - log_ratio);
                store(left.x + i, term<F>(exp_of<F>(l) * a, logs.left - F(mean.left)));
                store(right.x + i, term<F>(exp_of<F>(r) * b, logs.right - F(mean.right)));
            }
            write(left, begin, length);
            write(right, begin, length);
        });
    }
};

template <class F>
double kl_of(Pair<F>& pair, double upstream, bool with_gradient) {
    const double mean_gap = pair.sum_gaps() / pair.left.sum;
    if (with_gradient) pair.write_kl(mean_gap, upstream);
    return pair.kl(mean_gap);
}

template <class F>
double jsd_of(Pair<F>& pair, double beta, double upstream, bool with_gradient) {
    pair.sum_gaps();
    const F log_ratio = F(__builtin_log(pair.left.sum) - __builtin_log(pair.right.sum));
    const auto mean = pair.sum_mixture(log_ratio);
    if (with_gradient) pair.write_mixture(log_ratio, mean, upstream);
    const double jsd = beta * mean.left + (1 - beta) * mean.right;
    return jsd < 0 ? 0 : jsd;
}

template <class F>
void row_of(const DivergenceRows& call, int64_t i, double student_top, double teacher_top) {
    const bool reverse = call.direction == REVERSE, with_gradient = call.upstream != nullptr;
    const double beta = call.beta;
    const auto student = [&] { return Side<F>(call.student, i, student_top, call.temperature, call.write_student); };
    const auto teacher = [&] { return Side<F>(call.teacher, i, teacher_top, call.temperature, call.write_teacher); };
    Pair<F> pair{reverse ? student() : teacher(), reverse ? teacher() : student(), F(beta), F(1 - beta)};
    const double upstream = with_gradient ? ((const F*)call.upstream)[i] / call.temperature : 0;
    ((F*)call.divergence)[i] = F(call.direction == JSD ? jsd_of(pair, beta, upstream, with_gradient)
                                                       : kl_of(pair, upstream, with_gradient));
}

void row_any(const DivergenceRows& call, int64_t i, double student_top, double teacher_top) {
    if (call.student.stored == FLOAT64 || call.teacher.stored == FLOAT64)
        row_of<double>(call, i, student_top, teacher_top);
    else
        row_of<float>(call, i, student_top, teacher_top);
}

}  // namespace

extern const DivergencePasses PASSES = {row_any};
