// The divergence between two softmaxes, row by row: threads, and the choice of passes.
#include "divergence.h"

#include <algorithm>
#include <atomic>

#include "passes.h"
#include "threads.h"

namespace {

constexpr int64_t ENOUGH = 1 << 15;  // pairs of elements that make a thread worthwhile

struct Chosen {
    const Passes& logits;
    const DivergencePasses& pairs;
};

Chosen passes_of(int64_t instructions) {
#if defined(__x86_64__)
    if (instructions == 2) return {passes_avx512, divergence_passes_avx512};
    if (instructions == 1) return {passes_avx2, divergence_passes_avx2};
#endif
    return {passes_portable, divergence_passes_portable};
}

double top_of(const Logits& logits, int64_t i, const Passes& passes) {
    const int64_t size = logits.stored == FLOAT64 ? 8 : logits.stored == FLOAT32 ? 4 : 2;
    const char* const row = (const char*)logits.data + i * logits.stride * size;
    return passes.top(logits.stored, row, logits.vocab_size, {logits.scale, logits.softcap});
}

}  // namespace

extern "C" {

int64_t cynosure_divergence_rows(const DivergenceRows* call) {
    const Logits &student = call->student, &teacher = call->teacher;
    const Chosen passes = passes_of(student.instructions);
    const int64_t busy = student.n_rows * student.vocab_size / ENOUGH;
    const int64_t n_threads = std::max<int64_t>(1, std::min({student.n_threads, student.n_rows, busy}));
    std::atomic<int64_t> next{0};
    in_threads(n_threads, [&](int64_t) {
        for (int64_t i; (i = next++) < student.n_rows;)
            passes.pairs.row(*call, i, top_of(student, i, passes.logits), top_of(teacher, i, passes.logits));
    });
    return 0;
}
}
