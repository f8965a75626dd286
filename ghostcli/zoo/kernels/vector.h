// Vectors of LANES floats and the split of work over threads, shared by the kernels.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifndef WIDTH  // library.py builds each library for one width: 8, or 16 where the processor has AVX-512
#define WIDTH 8
#endif
constexpr long LANES = WIDTH;
typedef float vf __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
// Sums in float64 have the processor's own width: gcc keeps wider vectors in memory.
#ifdef __AVX512F__
constexpr long DOUBLES = 8;
#else
constexpr long DOUBLES = 4;
#endif
typedef double vd __attribute__((vector_size(DOUBLES * sizeof(double)), aligned(8), may_alias));
typedef float vh __attribute__((vector_size(DOUBLES * sizeof(float)), aligned(4), may_alias));

// Memory from the start of a cache line on: a vector that lies in two lines takes two reads.
template <class T> struct Lines {
    using value_type = T;
    static constexpr std::align_val_t START{64};
    Lines() = default;
    template <class U> Lines(const Lines<U> &) {}
    T *allocate(std::size_t n) { return static_cast<T *>(::operator new(n * sizeof(T), START)); }
    void deallocate(T *p, std::size_t) { ::operator delete(p, START); }
    template <class U> bool operator==(const Lines<U> &) const { return true; }
    template <class U> bool operator!=(const Lines<U> &) const { return false; }
};
template <class T> using Values = std::vector<T, Lines<T>>;

struct Images {
    long N, H, W, C, pitch;  // `pitch`: floats from one pixel to the next
};

inline long padded(long C) { return (C + LANES - 1) / LANES * LANES; }

inline vf loadf(const float *p) { return *(const vf *)p; }
inline void storef(float *p, vf v) { *(vf *)p = v; }
inline vd loadd(const double *p) { return *(const vd *)p; }
inline void addd(double *p, vd v) { *(vd *)p += v; }
inline void addd(double *p, vf v) {
    float lanes[LANES];
    storef(lanes, v);
    for (long l = 0; l < LANES; l += DOUBLES) addd(p + l, __builtin_convertvector(*(const vh *)(lanes + l), vd));
}
template <class T> inline void store_as(T *p, vf v) {  // T: float or double
    float lanes[LANES];
    storef(lanes, v);
    for (long l = 0; l < LANES; l++) p[l] = lanes[l];
}

#if WIDTH == 8 && defined(__AVX__) && !defined(__AVX512VL__)
alignas(64) constexpr std::int32_t FIRST_LANES[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
#endif

// The first `n` lanes, where a map ends within a vector; the others read as zero.
inline vf load_some(const float *p, long n) {
#if WIDTH == 16
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif defined(__AVX512VL__)
    return (vf)_mm256_maskz_loadu_ps((__mmask8)((1u << n) - 1), p);
#elif defined(__AVX__)
    return (vf)_mm256_maskload_ps(p, _mm256_loadu_si256((const __m256i *)(FIRST_LANES + LANES - n)));
#else
    vf v = {};
    for (long i = 0; i < n; i++) v[i] = p[i];
    return v;
#endif
}
inline void store_some(float *p, long n, vf v) {
#if WIDTH == 16
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#elif defined(__AVX512VL__)
    _mm256_mask_storeu_ps(p, (__mmask8)((1u << n) - 1), (__m256)v);
#elif defined(__AVX__)  // three stores at most: a masked store is slow on some processors
    __m128 part = _mm256_castps256_ps128((__m256)v);
    if (n & 4) {
        _mm_storeu_ps(p, part);
        part = _mm256_extractf128_ps((__m256)v, 1);
        p += 4;
    }
    if (n & 2) {
        _mm_storel_pi((__m64 *)p, part);
        part = _mm_movehl_ps(part, part);
        p += 2;
    }
    if (n & 1) _mm_store_ss(p, part);
#else
    for (long i = 0; i < n; i++) p[i] = v[i];
#endif
}
inline vf load(const float *p, long n) { return n >= LANES ? loadf(p) : load_some(p, n); }
inline void store(float *p, long n, vf v) {
    if (n >= LANES) storef(p, v);
    else store_some(p, n, v);
}

// As torch's ReLU and its backward: a NaN stays, and lets the gradient through.
inline vf positive_part(vf v) { return v < 0.f ? vf{} : v; }
inline vf select_positive(vf z, vf v) { return z <= 0.f ? vf{} : v; }

// Keeps a vector in its register: gcc would read it again from memory for every product.
inline void held([[maybe_unused]] vf &v) {
#ifdef __AVX512VL__
    asm("" : "+v"(v));
#elif defined(__AVX__)
    asm("" : "+x"(v));
#endif
}

// Keeps the compiler from working out later addresses from earlier ones: it would need a register for each of them.
template <class T> inline void opaque(T *&p) { asm("" : "+r"(p)); }

// Work on [0, count) is cut into more pieces than there are threads. A thread that is done with its share takes pieces of
// the others', so a core that is slower, or busy, holds up no other. A piece has eight units at least: it has buffers of
// its own to prepare.
inline long pieces_of_share(long threads, long count) {
    return threads == 1 ? 1 : std::clamp(count / (8 * threads), 1L, 8L);
}

// Calls work(piece, begin, end) for each piece.
template <class Work> void each_piece(long threads, long count, Work work) {
    const long own = pieces_of_share(threads, count), pieces = threads * own;
    struct alignas(64) Share {
        std::atomic<long> taken{0};
    };
    std::vector<Share> shares(threads);
#pragma omp parallel for num_threads(int(threads)) schedule(static, 1)
    for (long t = 0; t < threads; t++)
        for (long k = 0; k < threads; k++) {
            const long share = (t + k) % threads;
            for (long i; (i = shares[share].taken.fetch_add(1, std::memory_order_relaxed)) < own;) {
                const long piece = share * own + i, begin = count * piece / pieces, end = count * (piece + 1) / pieces;
                if (begin < end) work(piece, begin, end);
            }
        }
}

// `size` sums for each piece. They are added in the order of the pieces, so a result depends on the number of threads only.
template <class T> Values<T> per_piece(long threads, long count, long size) {
    return Values<T>(threads * pieces_of_share(threads, count) * size);
}
template <class T> void sum_pieces(Values<T> &partial, long size) {
    for (long at = size; at < long(partial.size()); at += size)
        for (long i = 0; i < size; i++) partial[i] += partial[at + i];
}

// The mean of up to 256 pixels, spread evenly. It is near the mean, so squares of the differences keep their digits.
inline Values<float> pivot_of(const float *x, long pitch, long rows, long C) {
    Values<float> pivot(padded(C));
    const long samples = std::min(rows, 256L);
    for (long c = 0; c < C; c++) {
        double sum = 0;
        for (long s = 0; s < samples; s++) sum += x[rows * s / samples * pitch + c];
        pivot[c] = float(sum / samples);
    }
    return pivot;
}

// One channel's sums over patches -> mean [T] and covariance [T][T].
inline void finish_moments(const double *sum, const double *product, int T, double count, float *mean, float *cov) {
    for (int k = 0; k < T; k++) {
        mean[k] = float(sum[k] / count);
        for (int l = 0; l < T; l++)
            cov[k * T + l] = float(product[k * T + l] / count - sum[k] / count * (sum[l] / count));
    }
}
