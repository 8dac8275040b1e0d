// Computes losses and gradients of rows of logits: handles targets. Says what the library and the processor are.
#include "rows.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "columns.h"
#include "divergence.h"
#include "gemm.h"
#include "row.h"

namespace {

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

void cynosure_exp(const float* x, float* y, int64_t n, int64_t instructions) {
    passes_of(instructions).exp(x, y, n);
}
}
