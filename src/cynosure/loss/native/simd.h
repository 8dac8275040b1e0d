// Vectors of one instruction set, with the compiler's vector types. This file is compiled once per instruction set.
//
// F is the type of the computation (float, double), T the stored type (also bfloat16). Nothing here may be instantiated
// outside the anonymous namespace: two instruction sets must never share a function.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

struct bfloat16 {
    uint16_t bits;
};

template <class F>
struct Real;

template <>
struct Real<float> {
    typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef int32_t Mask __attribute__((vector_size(VECTOR_BYTES)));  // -1 where true
    typedef int32_t Int;
    static constexpr int lanes = VECTOR_BYTES / 4, mantissa = 23, bias = 127, terms = 7;
    static constexpr float round = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    static constexpr float lowest = -88.f;      // exp of this and of anything below is 0
    static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
};

template <>
struct Real<double> {
    typedef double Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t Mask __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t Int;
    static constexpr int lanes = VECTOR_BYTES / 8, mantissa = 52, bias = 1023, terms = 13;
    static constexpr double round = 6755399441055744.;
    static constexpr double lowest = -709.;
    static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
};

template <class T>
struct Stored {
    typedef T Computed;
};
template <>
struct Stored<bfloat16> {
    typedef float Computed;
};

template <class F>
using Vector = typename Real<F>::Vector;
template <class F>
using Mask = typename Real<F>::Mask;

template <class To, class From>
INLINE To bitcast(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

template <class F>
INLINE Vector<F> all(F x) {
    return x - Vector<F>{};
}

#if defined(__x86_64__)
#define REGISTER "+v"
#elif defined(__aarch64__)
#define REGISTER "+w"
#else
#define REGISTER "+m"
#endif

// Rounds x to F. Otherwise the compiler may fuse a product into an FMA, whose exact value can exceed the rounded one.
template <class F>
INLINE Vector<F> rounded(Vector<F> x) {
    asm("" : REGISTER(x));
    return x;
}

template <class F>
INLINE Vector<F> where(Mask<F> mask, Vector<F> a, Vector<F> b) {
    return mask ? a : b;
}

// ---- loading and storing -------------------------------------------------------------------------------------------

template <class F>
INLINE Vector<F> load(const F* x) {
    Vector<F> v;
    memcpy(&v, x, sizeof v);
    return v;
}

template <class F>
INLINE void store(F* x, Vector<F> v) {
    memcpy(x, &v, sizeof v);
}

typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));

INLINE Vector<float> load(const bfloat16* x) {
    Halves h;
    memcpy(&h, x, sizeof h);
    return bitcast<Vector<float>>(__builtin_convertvector(h, Words) << 16);
}

// The halves of each word. GCC 12 compiles the plain conversion to scalar code.
#if VECTOR_BYTES == 64
#define UPPER 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LOWER 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#elif VECTOR_BYTES == 32
#define UPPER 1, 3, 5, 7, 9, 11, 13, 15
#define LOWER 0, 2, 4, 6, 8, 10, 12, 14
#else
#define UPPER 1, 3, 5, 7
#define LOWER 0, 2, 4, 6
#endif

typedef uint16_t Parts __attribute__((vector_size(VECTOR_BYTES)));

INLINE Halves upper_halves(Words w) {
    const Parts parts = bitcast<Parts>(w);
    return __builtin_shufflevector(parts, parts, UPPER);
}

INLINE Halves lower_halves(Words w) {
    const Parts parts = bitcast<Parts>(w);
    return __builtin_shufflevector(parts, parts, LOWER);
}

INLINE void store(bfloat16* x, Vector<float> v) {  // to nearest, ties to even; NaN stays NaN
    Words w = bitcast<Words>(v);
    w = (v != v) ? w | 0x400000 : w + 0x7fff + ((w >> 16) & 1);
    const Halves h = upper_halves(w);
    memcpy(x, &h, sizeof h);
}

// Loads the first n < lanes elements, followed by zeros.
template <class T, class F = typename Stored<T>::Computed>
INLINE Vector<F> load_some(const T* x, int n) {
    T copy[Real<F>::lanes] = {};
    memcpy(copy, x, n * sizeof(T));
    return load(copy);
}

template <class T, class F>
INLINE void store_some(T* x, int n, F v) {
    T copy[sizeof(v) / sizeof(v[0])];
    store(copy, v);
    memcpy(x, copy, n * sizeof(T));
}

// ---- sums and functions --------------------------------------------------------------------------------------------

// Sums vectors of F in double, lane by lane.
template <class F>
struct Total {
    static constexpr int parts = sizeof(double) / sizeof(F), part_lanes = Real<F>::lanes / parts;
    Vector<double> lanes[parts] = {};

    INLINE void add(Vector<F> v) {
        typedef F Part __attribute__((vector_size(part_lanes * sizeof(F))));
        Part part[parts];
        memcpy(part, &v, sizeof v);
        for (int i = 0; i < parts; i++) lanes[i] += __builtin_convertvector(part[i], Vector<double>);
    }
    double sum() const {
        double sum = 0;
        for (Vector<double> part : lanes)
            for (int i = 0; i < part_lanes; i++) sum += part[i];
        return sum;
    }
};

template <class F>
INLINE bool any_lane(Mask<F> mask) {
    uint64_t words[sizeof mask / 8], any = 0;
    memcpy(words, &mask, sizeof mask);
    for (uint64_t word : words) any |= word;
    return any != 0;
}

// Calls body(lane) for every lane that is set, in ascending order.
template <class F, class Body>
INLINE void each_lane(Mask<F> mask, Body body) {
    typedef int8_t Bytes __attribute__((vector_size(Real<F>::lanes)));
    const Bytes bytes = __builtin_convertvector(mask, Bytes);
    uint64_t words[(Real<F>::lanes + 7) / 8] = {};
    memcpy(words, &bytes, sizeof bytes);
    for (int w = 0; w < int(sizeof words / 8); w++)
        for (uint64_t left = words[w]; left; left &= ~(uint64_t(255) << (__builtin_ctzll(left) & ~7)))
            body(w * 8 + __builtin_ctzll(left) / 8);
}

template <class F>
INLINE Vector<F> larger(Vector<F> a, Vector<F> b) {
    return where<F>(a > b, a, b);
}

constexpr double inverse_factorial(int k) { return k <= 1 ? 1. : inverse_factorial(k - 1) / k; }

// Splits x = n ln 2 + r with |r| <= ln 2 / 2. Returns 2^n, and e^r - 1 from its Taylor series (relative error of e^r:
// 5e-9 in float, 4e-18 in double). n is at least -bias, where 2^n is taken as 0.
template <class F>
INLINE void split_exp(Vector<F> x, Vector<F>& power, Vector<F>& less_one) {
    typedef Real<F> R;
    Vector<F> shifted = x * all<F>(F(1.44269504088896340736)) + R::round;
    Vector<F> n = shifted - R::round;
    Vector<F> r = x - n * R::ln2_high;
    r = r - n * R::ln2_low;
    typename R::Mask bits = bitcast<typename R::Mask>(shifted) - bitcast<typename R::Int>(R::round) + R::bias;
    power = bitcast<Vector<F>>(bits << R::mantissa);
    Vector<F> series = all<F>(F(inverse_factorial(R::terms)));  // (e^r - 1) / r = sum of r^(k-1) / k!
    for (int k = R::terms - 1; k >= 1; k--) series = series * r + F(inverse_factorial(k));
    less_one = r * series;
}

// e^x for lowest <= x <= 88 (709 in double); 0 at lowest.
template <class F>
INLINE Vector<F> exp_not_lowest(Vector<F> x) {
    Vector<F> power, less_one;
    split_exp<F>(x, power, less_one);
    return power + power * less_one;
}

template <class F>
INLINE Vector<F> not_lowest(Vector<F> x) {
    return where<F>(x < Real<F>::lowest, all<F>(Real<F>::lowest), x);
}

// e^x for x <= 88 (709 in double); 0 instead of a subnormal result, NaN for NaN.
template <class F>
INLINE Vector<F> exp_of(Vector<F> x) {
    return exp_not_lowest<F>(not_lowest<F>(x));
}

// tanh(x) = (e^2x - 1) / (e^2x + 1), without cancellation near 0; NaN for NaN.
template <class F>
INLINE Vector<F> tanh_of(Vector<F> x) {
    const F most = sizeof(F) == 4 ? F(10) : F(20);  // its tanh is 1 to the last bit
    Vector<F> a = where<F>(x < 0, -x, x);
    a = where<F>(a > most, all<F>(most), a);
    Vector<F> power, less_one;
    split_exp<F>(a + a, power, less_one);
    Vector<F> t = power * less_one + (power - 1);
    t = t / (t + 2);
    return where<F>(x < 0, -t, t);
}

}  // namespace
