// Computes the statistics of rows of logits, or of pieces of rows.
#include <algorithm>
#include <cmath>
#include <utility>

#include "row.h"

namespace {

class StatsOfRow {
    typedef std::pair<double, int64_t> Entry;

   public:
    StatsOfRow(const StatsRows& call, int64_t i, void* scratch)
        : call(call),
          i(i),
          row(call.logits, i),
          n(call.logits.vocab_size),
          target(call.target[i] - call.first),
          scratch(scratch) {
        z_target = row.passes.cap_one(call.logits.stored, Row(target_logits(call), i).stored(0), row.cap);
    }

    static int64_t scratch_bytes(const StatsRows& call) {
        return std::max(call.topk * int64_t(sizeof(Entry)), call.n_beta * int64_t(sizeof(double)));
    }

    void run() {
        Top2 top{-INF, -INF};
        over_others([&](int64_t begin, int64_t end) {
            const Top2 part = row.passes.top2(call.logits.stored, row.at(begin), end - begin, row.cap);
            top = {std::max(top.first, part.first),
                   std::max(std::min(top.first, part.first), std::max(top.second, part.second))};
        });
        const double base = base_of(top.first);
        const StatSums others = count(base);
        const int64_t undefined = others.exp != others.exp ? first_undefined() : n;
        call.target_z[i] = z_target;
        call.top[i] = undefined < n ? NaN : top.first;
        call.second[i] = top.second;
        call.exp[i] = others.exp;
        call.square[i] = others.exp_square;
        call.surprise[i] = others.surprise;
        call.above[i] = others.above;
        call.argmax[i] = call.first + (undefined < n ? undefined : first_of(top.first));
        largest();
        temperatures(base);
    }

   private:
    // One logit per row, of the logits' type.
    static Logits target_logits(const StatsRows& call) {
        Logits logits = call.logits;
        logits.data = const_cast<void*>(call.target_logit);
        logits.stride = 1;
        return logits;
    }

    template <class Pass>
    void over_others(Pass pass) const {
        if (target < 0 || target >= n) return pass(0, n);
        if (target > 0) pass(0, target);
        if (target + 1 < n) pass(target + 1, n);
    }

    StatSums count(double base) const {
        StatSums sum;
        over_others([&](int64_t begin, int64_t end) {
            const StatSums part =
                row.passes.stats(call.logits.stored, row.data, begin, end, base, z_target, row.cap);
            sum.exp += part.exp;
            sum.exp_square += part.exp_square;
            sum.surprise += part.surprise;
            sum.above += part.above;
        });
        return sum;
    }

    // The first other class with the largest z; if all are impossible, the first class of the piece.
    int64_t first_of(double z) const {
        if (z == -INF) return 0;
        const double below = call.logits.stored == FLOAT64 ? std::nextafter(z, -INF) : std::nextafter(float(z), -HUGE_VALF);
        int64_t v[2] = {n - 1, n - 1};
        row.passes.find(call.logits.stored, row.data, 0, n, below, row.cap, v, 2);
        return v[v[0] == target];
    }

    int64_t first_undefined() const {
        for (int64_t v = 0; v < n; v++)
            if (const double z = row.z(v); z != z && v != target) return v;
        return n;
    }

    // A heap of the k largest so far: only logits above its smallest are examined.
    void largest() const {
        const int64_t k = call.topk;
        if (k == 0) return;
        Entry* const heap = (Entry*)scratch;
        int64_t size = 0;
        const auto better = [](const Entry& a, const Entry& b) {
            return a.first > b.first || (a.first == b.first && a.second < b.second);
        };
        int64_t v = 0;
        for (int64_t j = i * k; j < i * k + k; j++)
            if (call.top_ids[j] >= 0) heap[size++] = {call.top_z[j], call.top_ids[j]};
        for (; v < n && size < k; v++)
            if (v != target) heap[size++] = {row.z(v), call.first + v};
        std::make_heap(heap, heap + size, better);
        int64_t indices[32];
        for (int64_t n_found = v < n ? 32 : 0; n_found == 32; v = indices[31] + 1) {  // the bound is renewed after 32
            n_found = row.passes.find(call.logits.stored, row.data, v, n, heap[0].first, row.cap, indices, 32);
            for (int64_t j = 0; j < n_found; j++) {
                const Entry entry{row.z(indices[j]), call.first + indices[j]};
                if (indices[j] == target || !better(entry, heap[0])) continue;
                std::pop_heap(heap, heap + size, better);
                heap[size - 1] = entry;
                std::push_heap(heap, heap + size, better);
            }
        }
        for (int64_t j = 0; j < size; j++) {
            call.top_z[i * k + j] = heap[j].first;
            call.top_ids[i * k + j] = heap[j].second;
        }
    }

    void temperatures(double base) const {
        if (call.n_beta == 0) return;
        double* const sums = (double*)scratch;
        std::fill_n(sums, call.n_beta, 0.);
        over_others([&](int64_t begin, int64_t end) {
            row.passes.temper(call.logits.stored, row.at(begin), end - begin, base, row.cap, call.beta, call.n_beta,
                              call.equal_steps, sums);
        });
        for (int64_t j = 0; j < call.n_beta; j++) call.tempered[j * call.logits.n_rows + i] = sums[j];
    }

    const StatsRows& call;
    int64_t i;
    Row row;
    int64_t n, target;
    void* scratch;  // of `largest`, then of `temperatures`
    double z_target;
};

}  // namespace

extern "C" {

int64_t cynosure_stats_rows(const StatsRows* call) {
    return for_rows(call->logits, StatsOfRow::scratch_bytes(*call),
                    [&](int64_t i, void* scratch) { StatsOfRow(*call, i, scratch).run(); });
}
}
