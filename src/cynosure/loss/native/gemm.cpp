// Matmuls of bfloat16 matrices with float32 sums, in AVX-512's bfloat16 instructions.
//
// One instruction multiplies pairs along K: acc[n] += a[2k] b[2k, n] + a[2k+1] b[2k+1, n]. So both factors are packed as
// pairs (32 bits): A in tiles of up to 12 rows, B in panels of 32 columns, [pair of K][row or column]. 12 x 32 sums fill
// 24 registers. The loss has three shapes of matmuls; each is split into tasks along its longest side.
#include "gemm.h"

#include <algorithm>
#include <atomic>

#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace {

constexpr int64_t TILE = 12, PANEL = 32, MOST_K = 640, M_BLOCK = 192, N_BLOCK = 512;
constexpr int64_t PAIRS = MOST_K / 2, M_BLOCK_BYTES = 512 << 10, GROUP_BYTES = 384 << 10;

struct Matrix {
    const uint16_t* data;
    int64_t outer, k;  // strides: of rows (of A) or columns (of B), and along K
};

// ---- packing -----------------------------------------------------------------------------------------------------------

// Transposes 16 vectors of 16 words.
inline void transpose(__m512i r[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

inline uint32_t mask_of(int64_t n) { return n >= 32 ? ~0u : n <= 0 ? 0u : (1u << n) - 1; }  // the first n lanes

// Packs up to 16 rows or columns, n_k elements from k0 on, into out[pair][width], padded with zeros.
void pack_16(const Matrix& x, int64_t first, int64_t count, int64_t k0, int64_t n_k, uint32_t* out, int64_t width) {
    const __mmask16 lanes = mask_of(count), write = mask_of(std::min<int64_t>(width, 16));
    const uint16_t* data = x.data + first * x.outer + k0 * x.k;
    if (x.k == 1) {
        for (int64_t k = 0; k < n_k; k += 32) {
            __m512i r[16];
            const __mmask32 in_k = mask_of(n_k - k);
            for (int i = 0; i < 16; i++)
                r[i] = i < count ? _mm512_maskz_loadu_epi16(in_k, data + i * x.outer + k) : _mm512_setzero_si512();
            transpose(r);
            const int64_t pairs = std::min<int64_t>(16, (n_k - k + 1) / 2);
            for (int64_t p = 0; p < pairs; p++) _mm512_mask_storeu_epi32(out + (k / 2 + p) * width, write, r[p]);
        }
        return;
    }
    for (int64_t k = 0; k < n_k; k += 2) {
        const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, data + k * x.k));
        const __m512i odd = k + 1 < n_k
                                ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, data + (k + 1) * x.k))
                                : _mm512_setzero_si512();
        _mm512_mask_storeu_epi32(out + k / 2 * width, write, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
}

void pack_panel(const Matrix& b, int64_t first, int64_t count, int64_t k0, int64_t n_k, uint32_t* out) {
    pack_16(b, first, std::min<int64_t>(count, 16), k0, n_k, out, PANEL);
    pack_16(b, first + 16, std::max<int64_t>(count - 16, 0), k0, n_k, out + 16, PANEL);
}

// ---- prefetching -------------------------------------------------------------------------------------------------------

// The region that will be packed next. It is prefetched piece by piece while the sums run.
struct Ahead {
    const char* data = nullptr;
    int64_t rows = 0, lines = 0, stride = 0;  // lines of 64 bytes in each row, bytes between rows

    Ahead() = default;
    Ahead(const Matrix& x, int64_t first, int64_t count, int64_t k0, int64_t n_k) {
        const bool along_k = x.k == 1;
        data = (const char*)(x.data + first * x.outer + k0 * x.k);
        rows = along_k ? count : n_k;
        lines = ((along_k ? n_k : count) * 2 + 63) / 64;
        stride = 2 * (along_k ? x.outer : x.k);
    }
    // Piece i of n.
    void fetch(int64_t i, int64_t n) const {
        const int64_t total = rows * lines;
        for (int64_t line = i * total / n; line < (i + 1) * total / n; line++)
            _mm_prefetch(data + line / lines * stride + line % lines * 64, _MM_HINT_T1);
    }
};

// ---- the sums --------------------------------------------------------------------------------------------------------

// The sources and destinations of a block of sums.
struct Target {
    const float* add;  // or null
    float* sum;        // the result in float32, or null
    uint16_t* narrow;  // else the result in bfloat16, or the upper half of a float32 whose lower half is in `low`
    uint16_t* low;
    int64_t add_stride, stride;
    bool from_split, to_split;

    Target at(int64_t row, int64_t column) const {
        const auto move = [&](auto* p, int64_t stride) { return p ? p + row * stride + column : nullptr; };
        return {move(add, add_stride), move(sum, stride), move(narrow, stride), move(low, stride), add_stride, stride,
                from_split, to_split};
    }
};

inline __m512i widened(const uint16_t* x, __mmask16 mask) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x));
}

// Stores up to 16 sums, after adding the previous values.
inline void finish(__m512 v, const Target& to, __mmask16 mask) {
    if (to.add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, to.add));
    if (to.from_split) {
        const __m512i high = _mm512_slli_epi32(widened(to.narrow, mask), 16);
        v = _mm512_add_ps(v, _mm512_castsi512_ps(_mm512_or_si512(high, widened(to.low, mask))));
    }
    if (to.sum) {
        _mm512_mask_storeu_ps(to.sum, mask, v);
    } else if (to.to_split) {
        const __m512i bits = _mm512_castps_si512(v);
        _mm256_mask_storeu_epi16(to.narrow, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
        _mm256_mask_storeu_epi16(to.low, mask, _mm512_cvtepi32_epi16(bits));
    } else {
        _mm256_mask_storeu_epi16(to.narrow, mask, (__m256i)_mm512_cvtneps_pbh(v));
    }
}

inline void prefetch_rows(const void* data, int64_t rows, int64_t stride_bytes, int64_t lines) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < lines; j++) _mm_prefetch((const char*)data + i * stride_bytes + j * 64, _MM_HINT_T0);
}

template <int ROWS>
__attribute__((noinline)) void tile(const uint32_t* a, const uint32_t* b, int64_t pairs, const Target& to,
                                    int64_t columns) {
    __m512 acc[ROWS][2];
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
    if (to.add) prefetch_rows(to.add + PANEL, ROWS, to.add_stride * 4, 2);  // for the next panel: these are here already
    if (to.from_split) prefetch_rows(to.narrow + PANEL, ROWS, to.stride * 2, 1);
    if (to.from_split) prefetch_rows(to.low + PANEL, ROWS, to.stride * 2, 1);
    for (int64_t p = 0; p < pairs; p++) {
        const __m512bh left = (__m512bh)_mm512_load_si512(b + p * PANEL);
        const __m512bh right = (__m512bh)_mm512_load_si512(b + p * PANEL + 16);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; i++) {
            const __m512bh x = (__m512bh)_mm512_set1_epi32(a[p * TILE + i]);
            acc[i][0] = _mm512_dpbf16_ps(acc[i][0], x, left);
            acc[i][1] = _mm512_dpbf16_ps(acc[i][1], x, right);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; i++) {
        finish(acc[i][0], to.at(i, 0), mask_of(columns));
        finish(acc[i][1], to.at(i, 16), mask_of(columns - 16));
    }
}

typedef void (*Tile)(const uint32_t*, const uint32_t*, int64_t, const Target&, int64_t);
constexpr Tile TILES[] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>,
                          tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>};

// Splits rows into tiles of nearly equal size: 205 rows become 18 tiles of 11 or 12, not 17 of 12 and one of 1.
struct Tiles {
    int64_t rows, n;
    explicit Tiles(int64_t rows) : rows(rows), n((rows + TILE - 1) / TILE) {}
    int64_t begin(int64_t i) const { return i * rows / n; }
    int64_t size(int64_t i) const { return begin(i + 1) - begin(i); }
};

void pack_tiles(const Matrix& a, int64_t first, int64_t rows, int64_t k0, int64_t n_k, uint32_t* out) {
    const Tiles tiles(rows);
    const int64_t size = (n_k + 1) / 2 * TILE;
    for (int64_t i = 0; i < tiles.n; i++)
        pack_16(a, first + tiles.begin(i), tiles.size(i), k0, n_k, out + i * size, TILE);
}

// Multiplies panel j of n_panels; each panel prefetches its part of the region ahead.
void panel_product(const uint32_t* a, int64_t rows, const uint32_t* b, int64_t n_k, const Target& to, int64_t columns,
                   const Ahead& ahead, int64_t j, int64_t n_panels) {
    const Tiles tiles(rows);
    const int64_t pairs = (n_k + 1) / 2;
    for (int64_t i = 0; i < tiles.n; i++) {
        ahead.fetch(j * tiles.n + i, n_panels * tiles.n);
        TILES[tiles.size(i) - 1](a + i * pairs * TILE, b, pairs, to.at(tiles.begin(i), 0), columns);
    }
}

// The words (4 bytes) of packed tiles.
int64_t tiles_size(int64_t rows, int64_t n_k) { return Tiles(rows).n * TILE * ((n_k + 1) / 2); }
int64_t whole_lines(int64_t n_words) { return (n_words + 15) / 16 * 16; }

// ---- the three shapes ------------------------------------------------------------------------------------------------

// Splits K into parts of nearly equal length; all except the last are of even length.
struct Parts {
    int64_t k, n, size;
    explicit Parts(int64_t k) : k(k), n((k + MOST_K - 1) / MOST_K), size(((k + n - 1) / n + 1) / 2 * 2) {}
    int64_t begin(int64_t i) const { return i * size; }
    int64_t length(int64_t i) const { return std::min(size, k - i * size); }
};

// Each returns 0, or the bytes that could not be allocated. No memory is allocated for threads without work.

// N is long (logits): A stays packed, and B is packed a few panels at a time, so that results of a row are adjacent.
int64_t along_n(const Matmul& p, const Matrix& a, const Matrix& b, const Target& to) {
    const Parts parts(p.k);
    const int64_t n_blocks = (p.n + N_BLOCK - 1) / N_BLOCK, panel = PAIRS * PANEL, panels_size = N_BLOCK / PANEL * panel;
    const int64_t n_threads = std::min(p.n_threads, n_blocks), packed_size = whole_lines(tiles_size(p.m, parts.size));
    const Scratch scratch(4 * parts.n * packed_size, 4 * (panels_size + (parts.n > 1 ? p.m * N_BLOCK : 0)), n_threads);
    if (scratch.missing()) return scratch.missing();
    uint32_t* const packed = scratch.shared<uint32_t>();
    for (int64_t j = 0; j < parts.n; j++)
        pack_tiles(a, 0, p.m, parts.begin(j), parts.length(j), packed + j * packed_size);
    const Tiles tiles(p.m);
    std::atomic<int64_t> next{0};
    in_threads(n_threads, [&](int64_t thread) {
        uint32_t* const panels = scratch.of<uint32_t>(thread);
        float* const part = (float*)(panels + panels_size);
        for (int64_t i = next++, after; i < n_blocks; i = after) {
            after = next++;
            const int64_t first = i * N_BLOCK, columns = std::min(N_BLOCK, p.n - first), later = after * N_BLOCK;
            const Ahead ahead = after < n_blocks ? Ahead(b, later, std::min(N_BLOCK, p.n - later), 0, p.k) : Ahead();
            for (int64_t j = 0; j < parts.n; j++) {
                const int64_t pairs = (parts.length(j) + 1) / 2;
                for (int64_t c = 0; c < columns; c += PANEL)
                    pack_panel(b, first + c, std::min(PANEL, columns - c), parts.begin(j), parts.length(j),
                               panels + c / PANEL * panel);
                Target step = to.at(0, first);
                if (j > 0) step.add = part, step.add_stride = N_BLOCK;
                if (j + 1 < parts.n) step = {step.add, part, nullptr, nullptr, step.add_stride, N_BLOCK, false, false};
                for (int64_t t = 0; t < tiles.n; t++) {
                    ahead.fetch(j * tiles.n + t, parts.n * tiles.n);
                    for (int64_t c = 0; c < columns; c += PANEL)
                        TILES[tiles.size(t) - 1](packed + j * packed_size + t * pairs * TILE, panels + c / PANEL * panel,
                                                 pairs, step.at(tiles.begin(t), c), std::min(PANEL, columns - c));
                }
            }
        }
    });
    return 0;
}

// M is long (dW): B stays packed, and A is packed block by block. All of K is summed in registers, so long K takes smaller
// blocks: a block of A and a group of panels of B fit into the L2 cache of a core (1 MiB) together.
int64_t along_m(const Matmul& p, const Matrix& a, const Matrix& b, const Target& to) {
    const int64_t pairs = (p.k + 1) / 2, panel = pairs * PANEL, n_panels = (p.n + PANEL - 1) / PANEL;
    const int64_t n_groups = 1 + (4 * panel * n_panels - 1) / GROUP_BYTES, group = (n_panels + n_groups - 1) / n_groups;
    const int64_t m_block = std::max(TILE, std::min(M_BLOCK, M_BLOCK_BYTES / (4 * pairs) / TILE * TILE));
    const int64_t n_blocks = (p.m + m_block - 1) / m_block, n_threads = std::min(p.n_threads, n_blocks);
    const Scratch scratch(4 * n_panels * panel, 4 * tiles_size(m_block, p.k), n_threads);
    if (scratch.missing()) return scratch.missing();
    uint32_t* const packed = scratch.shared<uint32_t>();
    for (int64_t i = 0; i < n_panels; i++)
        pack_panel(b, i * PANEL, std::min(PANEL, p.n - i * PANEL), 0, p.k, packed + i * panel);
    std::atomic<int64_t> next{0};
    in_threads(n_threads, [&](int64_t thread) {
        uint32_t* const tiles = scratch.of<uint32_t>(thread);
        for (int64_t i = next++, after; i < n_blocks; i = after) {
            after = next++;
            const int64_t first = i * m_block, rows = std::min(m_block, p.m - first), later = after * m_block;
            const Ahead ahead = after < n_blocks ? Ahead(a, later, std::min(m_block, p.m - later), 0, p.k) : Ahead();
            pack_tiles(a, first, rows, 0, p.k, tiles);
            const Tiles in_block(rows);
            int64_t done = 0;
            for (int64_t g = 0; g < n_panels; g += group) {
                const int64_t stop = std::min(g + group, n_panels);
                for (int64_t t = 0; t < in_block.n; t++) {  // a tile with every panel: adjacent results one after another
                    for (int64_t j = g; j < stop; j++) {
                        ahead.fetch(done++, in_block.n * n_panels);
                        TILES[in_block.size(t) - 1](tiles + t * pairs * TILE, packed + j * panel, pairs,
                                                    to.at(first + in_block.begin(t), j * PANEL),
                                                    std::min(PANEL, p.n - j * PANEL));
                    }
                }
            }
        }
    });
    return 0;
}

// K is long (dhidden): each thread sums its parts of K in a separate buffer.
int64_t along_k(const Matmul& p, const Matrix& a, const Matrix& b, const Target& to) {
    const Parts parts(p.k);
    const int64_t n_panels = (p.n + PANEL - 1) / PANEL, n_threads = std::min(p.n_threads, parts.n);
    const int64_t tiles_words = whole_lines(tiles_size(p.m, parts.size)), panel_words = PAIRS * PANEL;
    const Scratch scratch(0, 4 * (tiles_words + panel_words + p.m * p.n), n_threads);
    if (scratch.missing()) return scratch.missing();
    const auto sum_of = [&](int64_t thread) { return scratch.of<float>(thread) + tiles_words + panel_words; };
    in_threads(n_threads, [&](int64_t thread) {
        uint32_t* const tiles = scratch.of<uint32_t>(thread);
        uint32_t* const panel = tiles + tiles_words;
        float* const sum = sum_of(thread);
        std::fill_n(sum, p.m * p.n, 0.f);
        const int64_t stop = (thread + 1) * parts.n / n_threads;  // the same parts in every call, for equal sums
        for (int64_t i = thread * parts.n / n_threads, after; i < stop; i = after) {
            after = i + 1;
            const int64_t k = parts.begin(i), n_k = parts.length(i);
            const bool more = after < stop;
            const Ahead rows = more ? Ahead(a, 0, p.m, parts.begin(after), parts.length(after)) : Ahead();
            const Ahead columns = more ? Ahead(b, 0, p.n, parts.begin(after), parts.length(after)) : Ahead();
            pack_tiles(a, 0, p.m, k, n_k, tiles);
            for (int64_t j = 0; j < n_panels; j++) {
                const int64_t first = j * PANEL;
                pack_panel(b, first, std::min(PANEL, p.n - first), k, n_k, panel);
                const Target here{sum + first, sum + first, nullptr, nullptr, p.n, p.n, false, false};
                const bool second_half = 2 * j >= n_panels;
                panel_product(tiles, p.m, panel, n_k, here, std::min(PANEL, p.n - first), second_half ? columns : rows,
                              second_half ? j - (n_panels + 1) / 2 : j, (n_panels + 1) / 2);
            }
        }
    });
    for (int64_t i = 0; i < p.m; i++)
        for (int64_t j = 0; j < p.n; j += 16) {
            const __mmask16 mask = mask_of(p.n - j);
            __m512 v = _mm512_setzero_ps();
            for (int64_t thread = 0; thread < n_threads; thread++)
                v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, sum_of(thread) + i * p.n + j));
            finish(v, to.at(i, j), mask);
        }
    return 0;
}

}  // namespace

extern "C" int64_t cynosure_product(const Matmul* p) {
    const Matrix a{p->a, p->a_row, p->a_column}, b{p->b, p->b_column, p->b_row};
    const Target target{p->add ? p->sum : nullptr, p->sum, p->narrow, p->low, p->stride, p->stride,
                        p->add && p->low, p->keep_low != 0};
    if (p->k > MOST_K && p->k >= std::max(p->m, p->n)) return along_k(*p, a, b, target);
    if (p->m > p->n) return along_m(*p, a, b, target);
    return along_n(*p, a, b, target);
}
#endif
