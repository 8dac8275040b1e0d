// The sampled backward's work on columns of d(logits) and on rows of dW: threads, and the choice of passes.
#include "columns.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "passes.h"
#include "threads.h"

namespace {

constexpr int64_t COLUMNS = 2048;   // of d(logits) summed at a time: their sums stay in the cache
constexpr int64_t ENOUGH = 1 << 16;  // elements that make a thread worthwhile

const ColumnPasses& passes_of(int64_t instructions) {
#if defined(__x86_64__)
    if (instructions == 2) return column_passes_avx512;
    if (instructions == 1) return column_passes_avx2;
#endif
    return column_passes_portable;
}

// Calls work(begin, end) for each run of `length` of n items.
template <class Work>
void in_runs(int64_t n, int64_t length, int64_t n_elements, int64_t n_threads, const Work& work) {
    const int64_t n_runs = (n + length - 1) / length;
    const int64_t n_busy = std::max<int64_t>(1, std::min({n_threads, n_runs, n_elements / ENOUGH}));
    std::atomic<int64_t> next{0};
    in_threads(n_busy, [&](int64_t) {
        for (int64_t i; (i = next++) < n_runs;) work(i * length, std::min(n, (i + 1) * length));
    });
}

template <class T>
void take_bits(const TakeColumns& call, int64_t i) {
    const T* const row = (const T*)call.dlogits.data + i * call.dlogits.stride;
    T* const taken = (T*)call.taken + i * call.n_ids;
    const T* const factor = (const T*)call.factor;
    for (int64_t k = 0; k < call.n_ids; k++) taken[k] = row[call.ids[k]] * factor[k];
}

// bfloat16: to nearest, ties to even; NaN stays NaN.
void take_halves(const TakeColumns& call, int64_t i) {
    const uint16_t* const row = (const uint16_t*)call.dlogits.data + i * call.dlogits.stride;
    uint16_t* const taken = (uint16_t*)call.taken + i * call.n_ids;
    const float* const factor = (const float*)call.factor;
    for (int64_t k = 0; k < call.n_ids; k++) {
        const uint32_t wide = uint32_t(row[call.ids[k]]) << 16;
        float d;
        std::memcpy(&d, &wide, sizeof d);
        d *= factor[k];
        uint32_t w;
        std::memcpy(&w, &d, sizeof w);
        taken[k] = uint16_t((d != d ? w | 0x400000 : w + 0x7fff + (w >> 16 & 1)) >> 16);
    }
}

}  // namespace

extern "C" {

int64_t cynosure_column_sums(const ColumnSums* call) {
    const Logits& d = call->dlogits;
    in_runs(d.vocab_size, COLUMNS, d.n_rows * d.vocab_size, d.n_threads,
            [&](int64_t begin, int64_t end) { passes_of(d.instructions).sums(*call, begin, end); });
    return 0;
}

int64_t cynosure_take_columns(const TakeColumns* call) {
    const Logits& d = call->dlogits;
    in_runs(d.n_rows, 1, d.n_rows * call->n_ids, d.n_threads, [&](int64_t i, int64_t) {
        if (d.stored == FLOAT32) return take_bits<float>(*call, i);
        if (d.stored == FLOAT64) return take_bits<double>(*call, i);
        take_halves(*call, i);
    });
    return 0;
}

int64_t cynosure_row_squares(const RowSquares* call) {
    const Logits& x = call->rows;
    const bool wide = x.stored == FLOAT64;
    const int64_t size = wide ? 8 : x.stored == FLOAT32 ? 4 : 2;
    in_runs(x.n_rows, 1024, x.n_rows * x.vocab_size, x.n_threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            const char* const row = (const char*)x.data + i * x.stride * size;
            const double square = passes_of(x.instructions).row_square(x.stored, row, x.vocab_size);
            if (wide)
                ((double*)call->squares)[i] = square;
            else
                ((float*)call->squares)[i] = float(square);
        }
    });
    return 0;
}

int64_t cynosure_add_rows(const AddRows* call) {
    const WeightRows& to = call->to;
    in_runs(call->n_ids, 64, call->n_ids * to.hidden_size, to.n_threads, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; k++) passes_of(to.instructions).add_row(*call, k);
    });
    return 0;
}

int64_t cynosure_finish_rows(const FinishRows* call) {
    const WeightRows& to = call->to;
    in_runs(to.n_rows, 1024, to.n_rows * to.hidden_size, to.n_threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) passes_of(to.instructions).finish_row(*call, row);
    });
    return 0;
}
}
