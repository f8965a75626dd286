// Depthwise convolutions of stride 1, row by row. The channels of a row's pixels lie one after the other, so a vector
// holds pixels and channels mixed, and no lane is empty however few channels there are. A tap to the
// side is the same vector `C` floats further. The channel of a lane repeats every `period` vectors.
//
// Work is split by image, in order, so that a result depends on the number of threads alone.
#pragma once
#include <numeric>

#include "vector.h"

namespace rows {

// An image copied between zero borders, without gaps between its pixels.
template <class T> struct Image {
    static constexpr long ALIGNED = 64 / sizeof(T);
    long above, first, pitch;  // `first`: where pixel 0 of a row lies, `pitch`: from row to row
    Values<T> data;

    Image(const Images &im, long above, long left)
        : above(above), first((left * im.C + ALIGNED - 1) / ALIGNED * ALIGNED),
          pitch((first + (im.W + left) * im.C + 2 * LANES + ALIGNED - 1) / ALIGNED * ALIGNED),
          data((im.H + 2 * above) * pitch) {}

    T *row(long h) { return data.data() + (h + above) * pitch + first; }

    // `x` where `only_where_positive` is, everywhere if `mask_pitch` is 0.
    void fill(const Images &im, const float *x, const float *only_where_positive, long mask_pitch) {
        if (mask_pitch) copy<true>(im, x, only_where_positive, mask_pitch);
        else copy<false>(im, x, nullptr, 0);
    }
    void fill(const Images &im, const float *x) { fill(im, x, nullptr, 0); }

  private:
    // Whole vectors, as long as all their lanes are pixels of this row: what is past a pixel's channels is overwritten
    // by the next pixels.
    template <bool MASK> void copy(const Images &im, const float *x, const float *mask, long mask_pitch) {
        auto pixel = [&](T *to, auto get) {
            for (long c = 0; c < im.C; c += LANES) {
                vf v = get(x, c);
                if (MASK) v = select_positive(get(mask, c), v);
                store_as(to + c, v);
            }
            x += im.pitch;
            mask += mask_pitch;
        };
        const long whole = im.W - (padded(im.C) - 1) / im.C;
        for (long h = 0; h < im.H; h++) {
            T *to = row(h);
            for (long w = 0; w < im.W; w++, to += im.C) {
                if (w < whole) pixel(to, [](const float *p, long c) { return loadf(p + c); });
                else pixel(to, [&](const float *p, long c) { return load(p + c, im.C - c); });
            }
        }
    }
};

inline long period_of(long C) { return C / std::gcd(C, LANES); }
inline long vectors_of(const Images &im) { return (im.W * im.C + LANES - 1) / LANES; }

// coefficients [C][n] -> [period][n][LANES], mirrored: the last of the n first
inline Values<float> by_lane(const float *coefficients, long C, long n, bool mirrored = false) {
    const long period = period_of(C);
    Values<float> out(period * n * LANES);
    for (long r = 0; r < period; r++)
        for (long k = 0; k < n; k++)
            for (long l = 0; l < LANES; l++)
                out[(r * n + k) * LANES + l] = coefficients[(r * LANES + l) % C * n + (mirrored ? n - 1 - k : k)];
    return out;
}

// Writes a row of results, gapless in `from`, to pixels `out_pitch` apart.
struct Finish {
    const float *add;
    long add_pitch;
    bool mask;  // keep what lies under a positive x
    float *out;
    long out_pitch;

    inline void operator()(long pixel, long c, long C, vf value, vf x) const {
        if (add) value += load(add + pixel * add_pitch + c, C - c);
        store(out + pixel * out_pitch + c, C - c, mask ? select_positive(x, value) : value);
    }
};

// One row of outputs: bias and KH x KW taps of the rows around, for vectors r, r + period ... of `to`.
template <int KH, int KW>
inline void convolve_row(const float *x, long pitch, long C, long period, long vectors, const float *k,
                         const float *bias, float *to) {
    constexpr int T = KH * KW;
    for (long r = 0; r < period && r < vectors; r++) {
        vf w[T];
        #pragma GCC unroll 25
        for (int i = 0; i < T; i++) w[i] = loadf(k + (r * T + i) * LANES);
        const vf b = bias ? loadf(bias + r * LANES) : vf{};
        for (long v = r; v < vectors; v += period) {
            const float *p = x + v * LANES - (KW / 2) * C - (KH / 2) * pitch;
            vf even = b, odd = {};
            #pragma GCC unroll 5
            for (int dy = 0; dy < KH; dy++, p += pitch) {
                opaque(p);
                #pragma GCC unroll 5
                for (int dx = 0; dx < KW; dx++)
                    ((dy * KW + dx) % 2 ? odd : even) += w[dy * KW + dx] * loadf(p + dx * C);
            }
            storef(to + v * LANES, even + odd);
        }
    }
}

// Every row of outputs, gapless: calls write(pixel, row), `pixel` the first of the row.
template <int KH, int KW, class Write>
void each_row(const float *x, Images im, const float *kernel, const float *bias, long threads, Write write) {
    const long period = period_of(im.C), vectors = vectors_of(im);
    const Values<float> k = by_lane(kernel, im.C, KH * KW), b = by_lane(bias, im.C, 1);
    each_piece(threads, im.N, [&](long, long begin, long end) {
        Image<float> image(im, KH / 2, KW / 2);
        Values<float> line((vectors + 1) * LANES);
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            for (long h = 0; h < im.H; h++) {
                convolve_row<KH, KW>(image.row(h), image.pitch, im.C, period, vectors, k.data(), b.data(), line.data());
                write((n * im.H + h) * im.W, line.data());
            }
        }
    });
}

template <int KH, int KW>
void forward(const float *x, Images im, const float *kernel, const float *bias, bool relu, float *out, long out_pitch,
             long threads) {
    each_row<KH, KW>(x, im, kernel, bias, threads, [=](long pixel, const float *from) {
        float *to = out + pixel * out_pitch;
        for (long w = 0; w < im.W; w++, to += out_pitch, from += im.C)
            for (long c = 0; c < im.C; c += LANES) {
                const vf v = loadf(from + c);
                store(to + c, im.C - c, relu ? positive_part(v) : v);
            }
    });
}

// out [pixels][2 C] = [x, its 3 x 3 convolution] + add
inline void beside(const float *x, Images im, const float *kernel, const float *bias, const float *add, long add_pitch,
                   float *out, long threads) {
    each_row<3, 3>(x, im, kernel, bias, threads, [=](long pixel, const float *from) {
        for (long w = 0; w < im.W; w++, pixel++, from += im.C) {
            const float *given = x + pixel * im.pitch, *more = add + pixel * add_pitch;
            float *to = out + pixel * 2 * im.C;
            for (long c = 0; c < im.C; c += LANES) {
                const long left = im.C - c;
                store(to + c, left, load(given + c, left) + load(more + c, left));
                store(to + im.C + c, left, loadf(from + c) + load(more + im.C + c, left));
            }
        }
    });
}

// dK[c][k] = sum of dz(p) x(p + k), db[c] = sum of dz, dz where z > 0 only (everywhere where z is null).
template <int KH, int KW>
void reduce(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, Images im, float *dK,
            float *db, long threads) {
    constexpr int T = KH * KW;
    const long C = im.C, period = period_of(C), vectors = vectors_of(im), size = period * (T + 1) * LANES;
    Values<double> partial = per_piece<double>(threads, im.N, size);
    Images of_dz = im;
    of_dz.pitch = dz_pitch;
    each_piece(threads, im.N, [&](long piece, long begin, long end) {
        Image<float> image(im, KH / 2, KW / 2), delta(im, 0, 0);
        const long pitch = image.pitch;
        for (long n = begin; n < end; n++) {
            const long first = n * im.H * im.W;
            image.fill(im, x + first * im.pitch);
            delta.fill(of_dz, dz + first * dz_pitch, z + first * z_pitch, z ? z_pitch : 0);
            for (long r = 0; r < period && r < vectors; r++) {
                vf acc[T + 1] = {};
                for (long h = 0; h < im.H; h++) {
                    const float *d = delta.row(h), *p = image.row(h) - (KH / 2) * image.pitch - (KW / 2) * im.C;
                    for (long v = r; v < vectors; v += period) {
                        const vf at = loadf(d + v * LANES);
                        const float *q = p + v * LANES;
                        acc[T] += at;
                        #pragma GCC unroll 5
                        for (int dy = 0; dy < KH; dy++, q += pitch) {
                            opaque(q);
                            #pragma GCC unroll 5
                            for (int dx = 0; dx < KW; dx++) acc[dy * KW + dx] += at * loadf(q + dx * C);
                        }
                    }
                }
                double *out = partial.data() + piece * size + r * (T + 1) * LANES;
                for (int k = 0; k <= T; k++) addd(out + k * LANES, acc[k]);
            }
        }
    });
    sum_pieces(partial, size);
    Values<double> sum(im.C * (T + 1));
    for (long r = 0; r < period; r++)
        for (long k = 0; k <= T; k++)
            for (long l = 0; l < LANES; l++)
                sum[(r * LANES + l) % im.C * (T + 1) + k] += partial[(r * (T + 1) + k) * LANES + l];
    for (long c = 0; c < im.C; c++) {
        for (int k = 0; k < T; k++) dK[c * T + k] = float(sum[c * (T + 1) + k]);
        db[c] = float(sum[c * (T + 1) + T]);
    }
}

// The input gradient of the convolution alone: the mirrored kernel over dz.
template <int KH, int KW>
void adjoint(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, Images im,
             const float *kernel, Finish finish, long threads) {
    const long period = period_of(im.C), vectors = vectors_of(im);
    const Values<float> k = by_lane(kernel, im.C, KH * KW, true);
    Images of_dz = im;
    of_dz.pitch = dz_pitch;
    each_piece(threads, im.N, [&](long, long begin, long end) {
        Image<float> delta(im, KH / 2, KW / 2);
        Values<float> line((vectors + 1) * LANES);
        for (long n = begin; n < end; n++) {
            const long first = n * im.H * im.W;
            delta.fill(of_dz, dz + first * dz_pitch, z + first * z_pitch, z ? z_pitch : 0);
            for (long h = 0; h < im.H; h++) {
                convolve_row<KH, KW>(delta.row(h), delta.pitch, im.C, period, vectors, k.data(), nullptr, line.data());
                for (long w = 0; w < im.W; w++)
                    for (long c = 0; c < im.C; c += LANES) {
                        const long pixel = first + h * im.W + w;
                        const vf under = finish.mask ? load(x + pixel * im.pitch + c, im.C - c) : vf{};
                        finish(pixel, c, im.C, loadf(line.data() + w * im.C + c), under);
                    }
            }
        }
    });
}

// ---- 3 x 3 with statistics -----------------------------------------------------------------------------------
// Two taps k, l of a patch meet wherever two pixels lie l - k apart, except that the outermost rows and columns are
// missing from some taps. So 13 lagged products of the map (the others follow by symmetry) and of its four edges give
// all 45 pairs.
enum { LAGS = 13, SUM = 13, ROW = 14, COLUMN = 22, CORNER = 30, LAG_ROWS = 38 };
// ROW: top (lag 0, 1, 2, sum), bottom; COLUMN: left, right; CORNER: 4 squares, 4 values

inline int lag_index(int dy, int dx) {  // (0,0) (0,1) (0,2) (1,-2) .. (2,2); the opposite lag is the same
    if (dy < 0 || (dy == 0 && dx < 0)) dy = -dy, dx = -dx;
    return dy == 0 ? dx : 3 + (dy - 1) * 5 + dx + 2;
}

// Adds one image's lagged products and its sum to `out`, [period][LAGS + 1][LANES].
inline void inner_lags(Image<double> &image, const Images &im, long period, long vectors, double *out) {
    const long C = im.C, pitch = image.pitch;
    for (long i = 0; i < period * LANES && i < vectors * LANES; i += DOUBLES) {
        vd acc[LAGS + 1] = {};
        for (long h = 0; h < im.H; h++) {
            const double *p = image.row(h);
            for (long j = i; j < vectors * LANES; j += period * LANES) {
                const double *at = p + j;
                const vd q = loadd(at);
                acc[SUM] += q;
                #pragma GCC unroll 3
                for (int dx = 0; dx < 3; dx++) acc[dx] += q * loadd(at + dx * C);
                at -= 2 * C;
                #pragma GCC unroll 2
                for (int dy = 1; dy < 3; dy++) {
                    at += pitch;
                    opaque(at);
                    #pragma GCC unroll 5
                    for (int dx = 0; dx < 5; dx++) acc[3 + (dy - 1) * 5 + dx] += q * loadd(at + dx * C);
                }
            }
        }
        double *to = out + i / LANES * (LAGS + 1) * LANES + i % LANES;
        for (int k = 0; k <= SUM; k++) addd(to + k * LANES, acc[k]);
    }
}

// Adds the lagged products of an edge, `count` pixels `step` apart, and its sum to `out`, [4][C].
inline void edge_lags(const double *p, long step, long count, long C, double *out) {
    auto add = [&](const double *__restrict a, const double *__restrict b, double *__restrict to) {
        for (long c = 0; c < C; c++) to[c] += a[c] * b[c];
    };
    for (long i = 0; i < count; i++, p += step) {
        for (long lag = 0; lag < std::min(3L, count - i); lag++) add(p, p + lag * step, out + lag * C);
        for (long c = 0; c < C; c++) out[3 * C + c] += p[c];
    }
}

// Adds one image's edges and corners to `out`, [LAG_ROWS][C].
inline void outer_lags(Image<double> &image, const Images &im, double *out) {
    const long C = im.C;
    for (long side = 0; side < 2; side++) {
        edge_lags(image.row(side * (im.H - 1)), C, im.W, C, out + (ROW + 4 * side) * C);
        edge_lags(image.row(0) + side * (im.W - 1) * C, image.pitch, im.H, C, out + (COLUMN + 4 * side) * C);
    }
    for (long i = 0; i < 4; i++) {
        const double *p = image.row(i / 2 * (im.H - 1)) + i % 2 * (im.W - 1) * C;
        for (long c = 0; c < C; c++) {
            out[(CORNER + i) * C + c] += p[c] * p[c];
            out[(CORNER + 4 + i) * C + c] += p[c];
        }
    }
}

// lags [LAG_ROWS][C] -> mean [C][9] and covariance [C][9][9]
inline void moments_from_lags(const double *lags, long C, double count, float *mean, float *cov) {
    for (long c = 0; c < C; c++) {
        auto L = [&](int i) { return lags[i * C + c]; };
        double sum[9], product[81];
        for (int k = 0; k < 9; k++)
            for (int l = 0; l < 9; l++) {
                const int ky = k / 3 - 1, kx = k % 3 - 1, ly = l / 3 - 1, lx = l % 3 - 1;
                const int dy = std::abs(ly - ky), dx = std::abs(lx - kx);
                double s = L(lag_index(ly - ky, lx - kx));
                // tap +1 never sees the first row or column, tap -1 never the last
                if (ky == ly && ky) s -= L(ROW + (ky < 0) * 4 + dx);
                if (kx == lx && kx) s -= L(COLUMN + (kx < 0) * 4 + dy);
                if (k == l && kx && ky) s += L(CORNER + (ky < 0) * 2 + (kx < 0));
                product[k * 9 + l] = s;
                if (k != l) continue;
                sum[k] = L(SUM);
                if (ky) sum[k] -= L(ROW + (ky < 0) * 4 + 3);
                if (kx) sum[k] -= L(COLUMN + (kx < 0) * 4 + 3);
                if (kx && ky) sum[k] += L(CORNER + 4 + (ky < 0) * 2 + (kx < 0));
            }
        finish_moments(sum, product, 9, count, mean + c * 9, cov + c * 81);
    }
}

inline void moments(const float *x, Images im, float *mean, float *cov, long threads) {
    const long period = period_of(im.C), vectors = vectors_of(im);
    const long inner = period * (LAGS + 1) * LANES, size = inner + LAG_ROWS * im.C;
    Values<double> partial = per_piece<double>(threads, im.N, size);
    each_piece(threads, im.N, [&](long piece, long begin, long end) {
        Image<double> image(im, 2, 2);
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            inner_lags(image, im, period, vectors, partial.data() + piece * size);
            outer_lags(image, im, partial.data() + piece * size + inner);
        }
    });
    sum_pieces(partial, size);
    double *lags = partial.data() + inner;
    for (long r = 0; r < period; r++)
        for (long i = 0; i <= SUM; i++)
            for (long l = 0; l < LANES; l++)
                lags[i * im.C + (r * LANES + l) % im.C] += partial[(r * (LAGS + 1) + i) * LANES + l];
    moments_from_lags(lags, im.C, double(im.N * im.H * im.W), mean, cov);
}

// The patches' S collapses to a 5 x 5 kernel of lags, one for each of the ways in which a pixel can lie on the border
// (top, bottom, both, neither; the same for left and right), since taps are missing there.
inline int border_kind(long h, long H, long w, long W) {
    return (h == 0) + 2 * (h == H - 1) + 4 * (w == 0) + 8 * (w == W - 1);
}

inline bool sees(int tap, int kind) {  // whether some patch holds a pixel of this kind as its tap
    const int ky = tap / 3 - 1, kx = tap % 3 - 1;
    return !((ky > 0 && kind & 1) || (ky < 0 && kind & 2) || (kx > 0 && kind & 4) || (kx < 0 && kind & 8));
}

constexpr long KINDS = 16, TABLE = 26;  // 25 lags and a constant

// The coefficients of every vector of a row, for each kind of row: vectors without a pixel on the left or right border
// share those of their place in the period.
struct Lags {
    Values<float> values;  // [entries][TABLE][LANES]
    std::vector<long> entry;    // [kind of row, 4][vectors]

    Lags(const Images &im, const float *S, const float *t, long period, long vectors) : entry(4 * vectors) {
        const long C = im.C;
        Values<float> lags(KINDS * TABLE * C);  // [kind][TABLE][C]
        for (int kind = 0; kind < KINDS; kind++)
            for (int k = 0; k < 9; k++) {
                if (!sees(k, kind)) continue;
                float *to = lags.data() + kind * TABLE * C;
                for (long c = 0; c < C; c++) {
                    for (int l = 0; l < 9; l++)
                        to[((l / 3 - k / 3 + 2) * 5 + l % 3 - k % 3 + 2) * C + c] += S[(c * 9 + k) * 9 + l];
                    to[25 * C + c] += t[c * 9 + k];
                }
            }
        for (long row = 0; row < 4; row++) {
            std::vector<long> shared(period, -1);
            for (long v = 0; v < vectors; v++) {
                long &own = entry[row * vectors + v];
                const bool inside = inner(v, im);
                if (inside && shared[v % period] >= 0) {
                    own = shared[v % period];
                    continue;
                }
                own = long(values.size());
                if (inside) shared[v % period] = own;
                values.resize(own + TABLE * LANES);
                for (long l = 0; l < LANES; l++) {
                    const long j = v * LANES + l, w = std::min(j / C, im.W - 1);
                    const long kind = row + 4 * (w == 0) + 8 * (w == im.W - 1);
                    for (long i = 0; i < TABLE; i++)
                        values[own + i * LANES + l] = lags[(kind * TABLE + i) * C + j % C];
                }
            }
        }
    }

    // whether vector v has no pixel of the first or last column
    static bool inner(long v, const Images &im) {
        return v * LANES >= im.C && (v + 1) * LANES <= (im.W - 1) * im.C;
    }
};

// acc[i] += weight at[i step], i < N. Every third address is worked out, the two after it are offsets of it.
template <int N> inline void add_taps(vf (&acc)[N], vf weight, const float *at, long step) {
    #pragma GCC unroll 3
    for (int i = 0; i < N; i += 3, at += 3 * step) {
        opaque(at);
        acc[i] += weight * loadf(at);
        if (i + 1 < N) acc[i + 1] += weight * loadf(at + step);
        if (i + 2 < N) acc[i + 2] += weight * loadf(at + 2 * step);
    }
}

// One vector: as below, in four sums that do not wait for each other.
inline void gradients(const float *d, long d_pitch, const float *p, long p_pitch, long C, const float *k,
                      const float *lags, float *to) {
    vf acc[4] = {loadf(lags + 25 * LANES)};
    d -= d_pitch + C;
    for (int dy = 0; dy < 3; dy++, d += d_pitch, k += 3 * LANES)
        #pragma GCC unroll 3
        for (int dx = 0; dx < 3; dx++) acc[dx] += loadf(k + dx * LANES) * loadf(d + dx * C);
    p -= 2 * (p_pitch + C);
    for (int dy = 0; dy < 5; dy++, p += p_pitch, lags += 5 * LANES)
        #pragma GCC unroll 5
        for (int dx = 0; dx < 5; dx++) acc[(dx + 3) % 4] += loadf(lags + dx * LANES) * loadf(p + dx * C);
    storef(to, (acc[0] + acc[1]) + (acc[2] + acc[3]));
}

// N vectors, `step` floats apart: the mirrored kernel over dz, and the lags over x.
template <int N>
__attribute__((noinline)) void gradients(const float *d, long d_pitch, const float *p, long p_pitch, long C, long step,
                                         const float *k, const float *lags, float *to) {
    vf acc[N];
    #pragma GCC unroll 8
    for (int i = 0; i < N; i++) acc[i] = loadf(lags + 25 * LANES);
    d -= d_pitch + C;
    for (int dy = 0; dy < 3; dy++, d += d_pitch, k += 3 * LANES)
        #pragma GCC unroll 3
        for (int dx = 0; dx < 3; dx++) add_taps<N>(acc, loadf(k + dx * LANES), d + dx * C, step);
    p -= 2 * (p_pitch + C);
    for (int dy = 0; dy < 5; dy++, p += p_pitch, lags += 5 * LANES)
        #pragma GCC unroll 5
        for (int dx = 0; dx < 5; dx++) add_taps<N>(acc, loadf(lags + dx * LANES), p + dx * C, step);
    #pragma GCC unroll 8
    for (int i = 0; i < N; i++) storef(to + i * step, acc[i]);
}

inline void adjoint_with_statistics(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x,
                                    Images im, const float *kernel, const float *S, const float *t, Finish finish,
                                    long threads) {
    const long period = period_of(im.C), vectors = vectors_of(im), step = period * LANES;
    const Values<float> k = by_lane(kernel, im.C, 9, true);
    const Lags lags(im, S, t, period, vectors);
    Images of_dz = im;
    of_dz.pitch = dz_pitch;
    each_piece(threads, im.N, [&](long, long begin, long end) {
        Image<float> image(im, 2, 2), delta(im, 1, 1);
        Values<float> line((vectors + 1) * LANES);
        for (long n = begin; n < end; n++) {
            const long first = n * im.H * im.W;
            image.fill(im, x + first * im.pitch);
            delta.fill(of_dz, dz + first * dz_pitch, z + first * z_pitch, z ? z_pitch : 0);
            for (long h = 0; h < im.H; h++) {
                const float *d = delta.row(h), *p = image.row(h);
                const long *entry = lags.entry.data() + border_kind(h, im.H, 1, 3) * vectors;
                for (long r = 0; r < period && r < vectors; r++) {
                    const float *of_r = k.data() + r * 9 * LANES;
                    long v = r;
                    auto several = [&](auto count) {  // while that many vectors have one table
                        constexpr int N = count.value;
                        for (; v + (N - 1) * period < vectors && entry[v] == entry[v + (N - 1) * period]; v += N * period)
                            gradients<N>(d + v * LANES, delta.pitch, p + v * LANES, image.pitch, im.C, step, of_r,
                                         lags.values.data() + entry[v], line.data() + v * LANES);
                    };
                    while (v < vectors) {
                        several(std::integral_constant<int, 8>{});
                        several(std::integral_constant<int, 6>{});
                        several(std::integral_constant<int, 4>{});
                        if (v >= vectors) break;
                        gradients(d + v * LANES, delta.pitch, p + v * LANES, image.pitch, im.C, of_r,
                                  lags.values.data() + entry[v], line.data() + v * LANES);
                        v += period;
                    }
                }
                for (long w = 0; w < im.W; w++)
                    for (long c = 0; c < im.C; c += LANES)
                        finish(first + h * im.W + w, c, im.C, loadf(line.data() + w * im.C + c), loadf(p + w * im.C + c));
            }
        }
    });
}

}  // namespace rows
