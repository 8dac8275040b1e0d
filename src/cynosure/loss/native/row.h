// One row of logits, and the threads that share the rows of a call. For the files that pass over whole rows.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>

#include "passes.h"
#include "rows.h"
#include "threads.h"

namespace {

constexpr double NaN = std::numeric_limits<double>::quiet_NaN();
constexpr double INF = std::numeric_limits<double>::infinity();

const Passes& passes_of(int64_t instructions) {
#if defined(__x86_64__)
    if (instructions == 2) return passes_avx512;
    if (instructions == 1) return passes_avx2;
#endif
    return passes_portable;
}

// Calls work(row, scratch of n_bytes) for every row. Returns 0, or the bytes of memory that could not be allocated.
template <class Work>
int64_t for_rows(const Logits& logits, int64_t n_bytes, Work work) {
    constexpr int64_t enough = 1 << 16;  // elements that make a thread worthwhile
    const int64_t busy = logits.n_rows * logits.vocab_size / enough;
    const int64_t n_threads = std::max<int64_t>(1, std::min({logits.n_threads, logits.n_rows, busy}));
    const Scratch scratch(0, n_bytes, n_threads);
    if (scratch.missing()) return scratch.missing();
    std::atomic<int64_t> next{0};
    in_threads(n_threads, [&](int64_t thread) {
        for (int64_t i; (i = next++) < logits.n_rows;) work(i, scratch.of<void>(thread));
    });
    return 0;
}

int64_t size_of(int64_t stored) { return stored == FLOAT64 ? 8 : stored == FLOAT32 ? 4 : 2; }

// One row of logits.
struct Row {
    const Logits& of;
    const Passes& passes;
    char* data;
    Cap cap;

    Row(const Logits& logits, int64_t i)
        : of(logits),
          passes(passes_of(logits.instructions)),
          data((char*)logits.data + i * logits.stride * size_of(logits.stored)),
          cap{logits.scale, logits.softcap} {}

    const void* at(int64_t v) const { return data + v * size_of(of.stored); }
    double stored(int64_t v) const {
        if (of.stored == FLOAT64) return ((double*)data)[v];
        if (of.stored == FLOAT32) return ((float*)data)[v];
        const uint32_t bits = uint32_t(((uint16_t*)data)[v]) << 16;
        float x;
        std::copy_n((const char*)&bits, sizeof x, (char*)&x);
        return x;
    }
    void store(int64_t v, double x) const {
        if (of.stored == FLOAT64) {
            ((double*)data)[v] = x;
        } else if (of.stored == FLOAT32) {
            ((float*)data)[v] = float(x);
        } else {
            const float narrow = float(x);
            uint32_t bits;
            std::copy_n((const char*)&narrow, sizeof bits, (char*)&bits);
            const bool nan = narrow != narrow;
            ((uint16_t*)data)[v] = nan ? uint16_t(bits >> 16 | 0x40) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        }
    }
    double z(int64_t v) const { return passes.cap_one(of.stored, stored(v), cap); }
    double slope(double z) const {
        return cap.softcap > 0 ? cap.scale * (1 - z / cap.softcap * (z / cap.softcap)) : cap.scale;
    }
};

// A `real` array of the call, by index.
struct Reals {
    const void* data;
    bool wide;
    Reals(const void* data, const Logits& logits) : data(data), wide(logits.stored == FLOAT64) {}
    double operator[](int64_t i) const { return wide ? ((const double*)data)[i] : ((const float*)data)[i]; }
    void put(int64_t i, double x) const {
        if (wide)
            ((double*)data)[i] = x;
        else
            ((float*)data)[i] = float(x);
    }
    const void* at(int64_t i) const { return (const char*)data + i * (wide ? 8 : 4); }
};

// The base of a piece's exponentials: its largest logit, or 0 if all its classes are impossible.
double base_of(double top) { return top == -INF ? 0 : top; }

}  // namespace
