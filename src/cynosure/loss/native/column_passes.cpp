// The passes of columns.h in one instruction set. Compiled once per instruction set, with -DPASSES=<name>.
#include "columns.h"
#include "passes.h"
#include "simd.h"

namespace {

// ---- sums over the rows ----------------------------------------------------------------------------------------------

// The sums of some columns stay in the cache while the rows pass, ROWS at a time.
constexpr int64_t ROWS = 4;

// `some` is the number of valid lanes, or 0 for all.
template <class T, class F>
INLINE Vector<F> load_lanes(const T* x, int some) {
    return some ? load_some<T, F>(x, some) : load(x);
}
template <class F>
INLINE void store_lanes(F* x, int some, Vector<F> v) {
    some ? store_some(x, some, v) : store(x, v);
}

template <class T, bool all_sums>
INLINE void add_rows_to_sums(const ColumnSums& call, int64_t row, int64_t n_rows, int64_t v, int some) {
    typedef typename Stored<T>::Computed F;
    F* const squares = (F*)call.squares + v;
    F* const weighed = (F*)call.weighed + v;
    F* const projected = (F*)call.projected + v;
    Vector<F> square = load_lanes<F, F>(squares, some), weigh{}, project{};
    if (all_sums) {
        weigh = load_lanes<F, F>(weighed, some);
        project = load_lanes<F, F>(projected, some);
    }
    for (int64_t i = row; i < row + n_rows; i++) {
        const Vector<F> d = load_lanes<T, F>((const T*)call.dlogits.data + i * call.dlogits.stride + v, some);
        const Vector<F> d2 = d * d;
        square += d2;
        if (all_sums) {
            weigh += d2 * ((const F*)call.weight)[i];
            project += d * ((const F*)call.along)[i];
        }
    }
    store_lanes<F>(squares, some, square);
    if (!all_sums) return;
    store_lanes<F>(weighed, some, weigh);
    store_lanes<F>(projected, some, project);
}

template <class T, bool all_sums>
void sums_of(const ColumnSums& call, int64_t begin, int64_t end) {
    typedef typename Stored<T>::Computed F;
    constexpr int64_t lanes = Real<F>::lanes;
    for (int64_t i = 0; i < call.dlogits.n_rows; i += ROWS) {
        const int64_t n_rows = call.dlogits.n_rows - i < ROWS ? call.dlogits.n_rows - i : ROWS;
        int64_t v = begin;
        if (n_rows == ROWS)
            for (; v + lanes <= end; v += lanes) add_rows_to_sums<T, all_sums>(call, i, ROWS, v, 0);
        for (; v + lanes <= end; v += lanes) add_rows_to_sums<T, all_sums>(call, i, n_rows, v, 0);
        if (v < end) add_rows_to_sums<T, all_sums>(call, i, n_rows, v, int(end - v));
    }
}

template <class T>
void sums_in(const ColumnSums& call, int64_t begin, int64_t end) {
    call.along ? sums_of<T, true>(call, begin, end) : sums_of<T, false>(call, begin, end);
}

void sums(const ColumnSums& call, int64_t begin, int64_t end) {
    if (call.dlogits.stored == FLOAT32) return sums_in<float>(call, begin, end);
    if (call.dlogits.stored == FLOAT64) return sums_in<double>(call, begin, end);
    sums_in<bfloat16>(call, begin, end);
}

// ---- squared norms of rows -------------------------------------------------------------------------------------------

template <class T>
double square_of(const T* row, int64_t n) {
    typedef typename Stored<T>::Computed F;
    constexpr int64_t lanes = Real<F>::lanes;
    Vector<F> sums[2] = {};
    int64_t j = 0;
    for (; j + 2 * lanes <= n; j += 2 * lanes)
        for (int k = 0; k < 2; k++) {
            const Vector<F> x = load(row + j + k * lanes);
            sums[k] += x * x;
        }
    for (; j < n; j += lanes) {
        const Vector<F> x = load_some<T, F>(row + j, int(n - j < lanes ? n - j : lanes));
        sums[0] += x * x;
    }
    double total = 0;
    for (int i = 0; i < lanes; i++) total += double(sums[0][i]) + double(sums[1][i]);
    return total;
}

double row_square(int64_t stored, const void* row, int64_t n) {
    if (stored == FLOAT32) return square_of((const float*)row, n);
    if (stored == FLOAT64) return square_of((const double*)row, n);
    return square_of((const bfloat16*)row, n);
}

// ---- rows of dW ------------------------------------------------------------------------------------------------------

typedef Vector<float> Floats;
constexpr int64_t LANES = Real<float>::lanes;

// A float32 as two halves: the upper ones are bfloat16 numbers, rounded towards 0.
INLINE Floats join(const uint16_t* high, const uint16_t* low) {
    Halves h, l;
    memcpy(&h, high, sizeof h);
    memcpy(&l, low, sizeof l);
    return bitcast<Floats>(__builtin_convertvector(h, Words) << 16 | __builtin_convertvector(l, Words));
}

INLINE void split(uint16_t* high, uint16_t* low, Floats v) {
    const Words w = bitcast<Words>(v);
    const Halves h = upper_halves(w), l = lower_halves(w);
    memcpy(high, &h, sizeof h);
    memcpy(low, &l, sizeof l);
}

float join_one(uint16_t high, uint16_t low) { return bitcast<float>(uint32_t(high) << 16 | low); }

void add_row(const AddRows& call, int64_t k) {
    const WeightRows& to = call.to;
    const int64_t n = to.hidden_size, row = call.ids[k];
    const float* const part = call.part + k * n;
    const bool fresh = !to.touched[row];
    to.touched[row] = 1;
    int64_t j = 0;
    if (!to.low) {
        float* const sum = (float*)to.dweight + row * n;
        for (; j < n; j++) sum[j] = fresh ? part[j] : sum[j] + part[j];
        return;
    }
    uint16_t* const high = (uint16_t*)to.dweight + row * n;
    uint16_t* const low = to.low + row * n;
    for (; j + LANES <= n; j += LANES) {
        const Floats v = load(part + j);
        split(high + j, low + j, fresh ? v : v + join(high + j, low + j));
    }
    for (; j < n; j++) {
        const float v = fresh ? part[j] : part[j] + join_one(high[j], low[j]);
        const uint32_t w = bitcast<uint32_t>(v);
        high[j] = uint16_t(w >> 16);
        low[j] = uint16_t(w);
    }
}

void finish_row(const FinishRows& call, int64_t row) {
    const WeightRows& to = call.to;
    const int64_t n = to.hidden_size;
    const float along = call.along[row];
    const bool touched = to.touched[row];
    int64_t j = 0;
    if (!to.low) {
        float* const sum = (float*)to.dweight + row * n;
        for (; j < n; j++) sum[j] = (touched ? sum[j] : 0.f) + along * call.axis[j];
        return;
    }
    bfloat16* const narrow = (bfloat16*)to.dweight + row * n;
    const uint16_t *const high = (const uint16_t*)narrow, *const low = to.low + row * n;
    for (; j + LANES <= n; j += LANES) {
        const Floats v = load(call.axis + j) * along;
        store(narrow + j, touched ? v + join(high + j, low + j) : v);
    }
    if (j == n) return;
    float rest[LANES] = {};
    for (int64_t i = j; i < n; i++) rest[i - j] = along * call.axis[i] + (touched ? join_one(high[i], low[i]) : 0.f);
    store_some(narrow + j, int(n - j), load(rest));
}

}  // namespace

extern const ColumnPasses PASSES = {sums, row_square, add_row, finish_row};
