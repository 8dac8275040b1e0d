// Computes losses and gradients, or statistics, of rows of logits. Handles targets, threads and instruction sets.
#include "rows.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <utility>

#include "columns.h"
#include "divergence.h"
#include "gemm.h"
#include "passes.h"
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

// ---- loss and gradient -----------------------------------------------------------------------------------------------

struct Share {
    int64_t v;
    double q;  // of class v, without the dense part
    double z;
};

class LossOfRow {
   public:
    LossOfRow(const LossRows& call, int64_t i, void* scratch)
        : call(call),
          i(i),
          row(call.logits, i),
          n(call.logits.vocab_size),
          m(row.passes.top(call.logits.stored, row.data, n, row.cap)),
          shares((Share*)scratch) {
        dense = {nullptr, call.class_weight, call.keep, call.share};
        if (!call.classes) dense.probability = Reals(call.probability, call.logits).at(i * call.probability_stride);
        for (int64_t j = 0; call.classes && j < call.n_classes; j++) add_share(j);
        if (n_shares > 1) merge_shares();
    }

    static int64_t scratch_bytes(const LossRows& call) { return call.classes ? call.n_classes * sizeof(Share) : 0; }

    void run() {
        if (!call.loss) return leave_sums();
        if (!std::isfinite(m)) return spoil();
        const Sums sums = all_sums();
        if (sums.exp != sums.exp) return spoil();
        const double log_s = std::log(sums.exp), k = Reals(call.k, call.logits)[i], lse = m + log_s;
        double loss = sums.mass * log_s - sums.dot + k * call.z_loss * lse * lse;
        double per_p = sums.mass + 2 * k * call.z_loss * lse, entropy = 0;
        if (call.entropy) {
            const double mean = sums.surprise / sums.exp;
            entropy = Reals(call.entropy, call.logits)[i];
            loss += entropy * (log_s - mean);
            per_p += entropy * mean;
        }
        Reals(call.loss, call.logits).put(i, loss);
        if (call.upstream) write_gradient(sums.exp, per_p, entropy);
    }

   private:
    void add_share(int64_t j) {
        const int64_t v = call.classes[i * call.n_classes + j] - call.first;
        if (v < 0 || v >= n) return;
        double q = Reals(call.probability, call.logits)[i * call.probability_stride + j] * dense.keep;
        if (call.class_weight) q *= Reals(call.class_weight, call.logits)[v];
        shares[n_shares++] = {v, q, row.z(v)};
    }

    void merge_shares() {
        std::sort(shares, shares + n_shares, [](const Share& a, const Share& b) { return a.v < b.v; });
        int64_t last = 0;
        for (int64_t j = 1; j < n_shares; j++) {
            if (shares[j].v == shares[last].v)
                shares[last].q += shares[j].q;
            else
                shares[++last] = shares[j];
        }
        n_shares = last + 1;
    }

    void leave_sums() {
        call.top[i] = m;
        m = base_of(m);
        const Sums sums = all_sums();
        call.exp[i] = sums.exp;
        call.dot[i] = sums.dot;
        call.mass[i] = sums.mass;
        if (call.entropy) call.surprise[i] = sums.surprise;
    }

    // The dense part of q for class v.
    double dense_q(int64_t v) const {
        return dense.share * (call.class_weight ? Reals(call.class_weight, call.logits)[v] : 1.);
    }

    // A single class is left out of the dense pass and added in double, so that 1 - p stays exact if p is near 1.
    bool alone() const { return n_shares == 1; }

    template <class Pass>
    void over_ranges(Pass pass) const {
        if (!alone()) return pass(0, n);
        pass(0, shares[0].v);
        pass(shares[0].v + 1, n);
    }

    Sums all_sums() const {
        Sums sums;
        over_ranges([&](int64_t begin, int64_t end) {
            if (call.entropy) {
                const StatSums part = row.passes.stats(call.logits.stored, row.data, begin, end, m, INF, row.cap);
                sums.exp += part.exp;
                sums.surprise += part.surprise;
                return;
            }
            const Sums part = row.passes.sums(call.logits.stored, row.data, begin, end, m, row.cap, dense);
            sums.exp += part.exp;
            sums.dot += part.dot;
            sums.mass += part.mass;
        });
        for (int64_t j = 0; j < n_shares; j++) {
            const Share& share = shares[j];
            const double q = share.q + (alone() ? dense_q(share.v) : 0);
            if (alone()) {
                const double e = std::exp(share.z - m);
                sums.exp += e;
                if (e != 0) sums.surprise += (share.z - m) * e;
            }
            sums.mass += q;
            if (q != 0) sums.dot += q * (share.z - m);
        }
        return sums;
    }

    void write_gradient(double s, double per_p, double entropy) const {
        const double up = Reals(call.upstream, call.logits)[i], a = up * per_p / s, b = -up * entropy / s;
        over_ranges([&](int64_t begin, int64_t end) {
            if (call.entropy)
                row.passes.write_entropy(call.logits.stored, row.data, begin, end, m, row.cap, a, b);
            else
                row.passes.write(call.logits.stored, row.data, begin, end, m, row.cap, dense, a, up);
        });
        for (int64_t j = 0; j < n_shares; j++) {
            const Share& share = shares[j];
            const double q = share.q + dense_q(share.v), e = std::exp(share.z - m);
            const double per_e = call.entropy && e != 0 ? a + b * (share.z - m) : a;
            row.store(share.v, row.slope(share.z) * (per_e * e - up * q));
        }
    }

    // The loss and gradient of a row with infinite or NaN logits are NaN, as in torch.
    void spoil() const {
        Reals(call.loss, call.logits).put(i, NaN);
        for (int64_t v = 0; call.upstream && v < n; v++) row.store(v, NaN);
    }

    const LossRows& call;
    int64_t i;
    Row row;
    int64_t n;
    double m;
    Dense dense;
    Share* shares;  // n_shares of them, at most n_classes
    int64_t n_shares = 0;
};

// ---- statistics --------------------------------------------------------------------------------------------------------

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

int64_t cynosure_layout() {
    int64_t layout = VERSION;
    for (int64_t size : {sizeof(LossRows), sizeof(StatsRows), sizeof(Matmul), sizeof(ColumnSums), sizeof(TakeColumns),
                         sizeof(RowSquares), sizeof(AddRows), sizeof(FinishRows), sizeof(DivergenceRows)})
        layout = (layout * 1009 + size) % 1000000007;
    return layout;
}

int64_t cynosure_instructions() {
    int64_t bits = 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bits |= avx2 ? 2 : 0;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    bits |= avx512 ? 4 : 0;
    bits |= avx512 && __builtin_cpu_supports("avx512bf16") ? 8 : 0;
#endif
    return bits;
}

int64_t cynosure_loss_rows(const LossRows* call) {
    return for_rows(call->logits, LossOfRow::scratch_bytes(*call),
                    [&](int64_t i, void* scratch) { LossOfRow(*call, i, scratch).run(); });
}

int64_t cynosure_stats_rows(const StatsRows* call) {
    return for_rows(call->logits, StatsOfRow::scratch_bytes(*call),
                    [&](int64_t i, void* scratch) { StatsOfRow(*call, i, scratch).run(); });
}

void cynosure_exp(const float* x, float* y, int64_t n, int64_t instructions) {
    passes_of(instructions).exp(x, y, n);
}
}
