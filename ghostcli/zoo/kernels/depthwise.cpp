// Depthwise k x k convolutions (k 3 or 5, zero padding k/2) of float32 images in channels_last, and what training
// their folded form needs besides: moments of the input's patches, the two reductions and the input gradient.
//
// Images are N x H x W pixels of C channels, `pitch` floats from pixel to pixel, so that a channel slice of a wider
// map is as good as a map of its own. Taps are numbered row by row; kernels and means are [C][T], T = k * k.
//
// Moments are accumulated in float64, where products of float32 are exact: they need no centring to keep their
// digits. Work is split by image, in order, so that a result depends on the number of threads alone.
#include "vector.h"

namespace {

// An image copied between zero borders, its channels padded to whole vectors.
template <class T> struct Padded {
    typedef T V __attribute__((vector_size(LANES * sizeof(T)), aligned(sizeof(T)), may_alias));
    long border, columns, channels;
    std::vector<T> data;

    // `spare` columns on the right let a tile run over the end of its row.
    Padded(const Images &im, long border, long spare)
        : border(border), columns(im.W + 2 * border + spare), channels(padded(im.C)),
          data((im.H + 2 * border) * columns * channels) {}

    T *at(long h, long w) { return data.data() + ((h + border) * columns + w + border) * channels; }

    void fill(const Images &im, const float *x, const float *only_where_positive, long mask_pitch) {
        for (long h = 0; h < im.H; h++)
            for (long w = 0; w < im.W; w++, x += im.pitch, only_where_positive += mask_pitch) {
                T *to = at(h, w);
                for (long c = 0; c < im.C; c += LANES) {
                    v8f v = load(x + c, im.C - c);
                    if (mask_pitch) v = select_positive(load(only_where_positive + c, im.C - c), v);
                    *(V *)(to + c) = __builtin_convertvector(v, V);
                }
            }
    }
    void fill(const Images &im, const float *x) { fill(im, x, nullptr, 0); }
};

typedef Padded<double>::V v8;

// [C][n] -> [n][padded C]
std::vector<float> by_tap(const float *coefficients, long C, long n) {
    std::vector<float> out(n * padded(C));
    for (long c = 0; c < C; c++)
        for (long k = 0; k < n; k++) out[k * padded(C) + c] = coefficients[c * n + k];
    return out;
}

// ---- moments -------------------------------------------------------------------------------------------------

// One channel's sums over patches -> mean [T] and covariance [T][T].
void finish_moments(const double *sum, const double *product, int T, double count, float *mean, float *cov) {
    for (int k = 0; k < T; k++) {
        mean[k] = float(sum[k] / count);
        for (int l = 0; l < T; l++)
            cov[k * T + l] = float(product[k * T + l] / count - sum[k] / count * (sum[l] / count));
    }
}

// Any stride: every pair of taps, at every output position.
template <int K>
void direct_moments(const float *x, Images im, long stride, float *mean, float *cov, int threads) {
    constexpr int T = K * K;
    const long Cp = padded(im.C), Ho = (im.H - 1) / stride + 1, Wo = (im.W - 1) / stride + 1, size = (T + 1) * T * Cp;
    std::vector<double> partial = per_thread<double>(threads, size);
    each_thread(threads, im.N, [&](int thread, long begin, long end) {
        double *out = partial.data() + thread * size;
        Padded<double> image(im, K / 2, 0);
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            for (long c = 0; c < Cp; c += LANES)
                for (int a = 0; a <= T; a++) {  // row T of the products is the plain sum
                    v8d acc[T] = {};
                    const v8d one = v8d{} + 1.0;
                    const long to_a = a < T ? ((a / K) * image.columns + a % K) * Cp : 0;
                    for (long h = 0; h < Ho; h++)
                        for (long w = 0; w < Wo; w++) {
                            const double *p = image.at(h * stride - K / 2, w * stride - K / 2) + c;
                            const v8d v = a < T ? loadd(p + to_a) : one;
                            #pragma GCC unroll 25
                            for (int b = 0; b < T; b++)
                                acc[b] += v * loadd(p + ((b / K) * image.columns + b % K) * Cp);
                        }
                    for (int b = 0; b < T; b++) addd(out + (a * T + b) * Cp + c, acc[b]);
                }
        }
    });
    sum_threads(partial, threads, size);
    for (long c = 0; c < im.C; c++) {
        double sum[T], product[T * T];
        for (int a = 0; a < T; a++) {
            sum[a] = partial[(T * T + a) * Cp + c];
            for (int b = 0; b < T; b++) product[a * T + b] = partial[(a * T + b) * Cp + c];
        }
        finish_moments(sum, product, T, double(im.N * Ho * Wo), mean + c * T, cov + c * T * T);
    }
}

// Stride 1, 3 x 3: two taps k, l of a patch meet wherever two pixels lie l - k apart, except that the outermost
// rows and columns are missing from some taps. So 13 lagged products of the map (the others follow by symmetry) and
// of its four edges give all 45 pairs.
enum { LAGS = 13, SUM = 13, ROW = 14, COLUMN = 22, CORNER = 30, LAG_ROWS = 38 };
// ROW: top (lag 0, 1, 2, sum), bottom; COLUMN: left, right; CORNER: 4 squares, 4 values

inline int lag_index(int dy, int dx) {  // (0,0) (0,1) (0,2) (1,-2) .. (2,2); the opposite lag is the same
    if (dy < 0 || (dy == 0 && dx < 0)) dy = -dy, dx = -dx;
    return dy == 0 ? dx : 3 + (dy - 1) * 5 + dx + 2;
}

template <int TILE>
inline void lag_tile(const double *p, long row, long Cp, v8d (&acc)[LAGS + 1]) {
    v8d q[TILE], r[TILE + 4];
    #pragma GCC unroll 8
    for (int i = 0; i < TILE + 2; i++) r[i] = loadd(p + i * Cp);
    #pragma GCC unroll 4
    for (int i = 0; i < TILE; i++) {
        q[i] = r[i];
        acc[SUM] += q[i];
        acc[0] += q[i] * r[i];
        acc[1] += q[i] * r[i + 1];
        acc[2] += q[i] * r[i + 2];
    }
    #pragma GCC unroll 2
    for (int dy = 1; dy < 3; dy++) {
        #pragma GCC unroll 8
        for (int i = 0; i < TILE + 4; i++) r[i] = loadd(p + dy * row + (i - 2) * Cp);
        #pragma GCC unroll 4
        for (int i = 0; i < TILE; i++)
            #pragma GCC unroll 5
            for (int dx = 0; dx < 5; dx++) acc[3 + (dy - 1) * 5 + dx] += q[i] * r[i + dx];
    }
}

void edge_lags(const double *p, long step, long count, long row, double *out) {
    v8d acc[4] = {};
    for (long i = 0; i < count; i++, p += step) {
        const v8d q = loadd(p);
        acc[0] += q * q;
        acc[1] += q * loadd(p + step);
        acc[2] += q * loadd(p + 2 * step);
        acc[3] += q;
    }
    for (int i = 0; i < 4; i++) addd(out + i * row, acc[i]);
}

// Adds one image's sums to `out`, [LAG_ROWS][padded C].
void image_lags(Padded<double> &image, long H, long W, double *out) {
    const long Cp = image.channels, row = image.columns * Cp;
    for (long c = 0; c < Cp; c += LANES) {
        v8d acc[LAGS + 1] = {};
        for (long h = 0; h < H; h++) {
            const double *p = image.at(h, 0) + c;
            long w = 0;
            for (; w + 4 <= W; w += 4) lag_tile<4>(p + w * Cp, row, Cp, acc);
            for (; w < W; w++) lag_tile<1>(p + w * Cp, row, Cp, acc);
        }
        for (int i = 0; i <= SUM; i++) addd(out + i * Cp + c, acc[i]);
        for (int side = 0; side < 2; side++) {
            edge_lags(image.at(side * (H - 1), 0) + c, Cp, W, Cp, out + (ROW + 4 * side) * Cp + c);
            edge_lags(image.at(0, side * (W - 1)) + c, row, H, Cp, out + (COLUMN + 4 * side) * Cp + c);
        }
        for (int i = 0; i < 4; i++) {
            const v8d v = loadd(image.at(i / 2 * (H - 1), i % 2 * (W - 1)) + c);
            addd(out + (CORNER + i) * Cp + c, v * v);
            addd(out + (CORNER + 4 + i) * Cp + c, v);
        }
    }
}

void moments_from_lags(const double *lags, long C, double count, float *mean, float *cov) {
    const long Cp = padded(C);
    for (long c = 0; c < C; c++) {
        auto L = [&](int i) { return lags[i * Cp + c]; };
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

void lag_moments(const float *x, Images im, float *mean, float *cov, int threads) {
    const long Cp = padded(im.C), size = LAG_ROWS * Cp;
    std::vector<double> partial = per_thread<double>(threads, size);
    each_thread(threads, im.N, [&](int thread, long begin, long end) {
        Padded<double> image(im, 2, 0);
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            image_lags(image, im.H, im.W, partial.data() + thread * size);
        }
    });
    sum_threads(partial, threads, size);
    moments_from_lags(partial.data(), im.C, double(im.N * im.H * im.W), mean, cov);
}

// ---- convolution ---------------------------------------------------------------------------------------------

// TILE neighbouring outputs, `step` floats apart in the input, of coefficients [K * K][Cp] (mirrored: of their
// mirror image); `p` is the first tap of the first output.
template <int K, int TILE, bool MIRRORED = false>
inline void taps(const float *p, long row, long step, long Cp, const float *coefficients, v8f (&acc)[TILE]) {
    #pragma GCC unroll 5
    for (int dy = 0; dy < K; dy++)
        #pragma GCC unroll 5
        for (int dx = 0; dx < K; dx++) {
            const v8f k = loadf(coefficients + (MIRRORED ? K * K - 1 - dy * K - dx : dy * K + dx) * Cp);
            #pragma GCC unroll 4
            for (int i = 0; i < TILE; i++) acc[i] += k * loadf(p + dy * row + i * step + dx * Cp);
        }
}

template <int K>
void forward(const float *x, Images im, long stride, const float *kernel, const float *bias, bool relu, float *out,
             long out_pitch, int threads) {
    constexpr int TILE = 4;
    const long Cp = padded(im.C), Ho = (im.H - 1) / stride + 1, Wo = (im.W - 1) / stride + 1;
    const std::vector<float> k = by_tap(kernel, im.C, K * K), b = by_tap(bias, im.C, 1);
    each_thread(threads, im.N, [&](int, long begin, long end) {
        Padded<float> image(im, K / 2, TILE * stride);
        const long row = image.columns * Cp, step = stride * Cp;
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            for (long h = 0; h < Ho; h++)
                for (long c = 0; c < Cp; c += LANES) {
                    const float *p = image.at(h * stride - K / 2, -K / 2) + c;
                    float *to = out + (n * Ho + h) * Wo * out_pitch + c;
                    for (long w = 0; w < Wo; w += TILE) {
                        v8f acc[TILE];
                        for (auto &a : acc) a = loadf(b.data() + c);
                        taps<K, TILE>(p + w * step, row, step, Cp, k.data() + c, acc);
                        for (long i = 0; i < TILE && w + i < Wo; i++)
                            store(to + (w + i) * out_pitch, im.C - c, relu ? positive_part(acc[i]) : acc[i]);
                    }
                }
        }
    });
}

// dK[c][k] = sum of dz(p) x(p + k), db[c] = sum of dz, dz where z > 0 only (everywhere where z is null).
template <int K>
void reduce(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, Images im, long stride,
            float *dK, float *db, int threads) {
    constexpr int T = K * K;
    const long Cp = padded(im.C), Ho = (im.H - 1) / stride + 1, Wo = (im.W - 1) / stride + 1, size = (T + 1) * Cp;
    std::vector<double> partial = per_thread<double>(threads, size);
    each_thread(threads, im.N, [&](int thread, long begin, long end) {
        Padded<float> image(im, K / 2, 0);
        double *out = partial.data() + thread * size;
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            for (long c = 0; c < Cp; c += LANES) {
                v8f acc[T + 1] = {};
                for (long h = 0; h < Ho; h++)
                    for (long w = 0; w < Wo; w++) {
                        const long pixel = (n * Ho + h) * Wo + w;
                        v8f d = load(dz + pixel * dz_pitch + c, im.C - c);
                        if (z) d = select_positive(load(z + pixel * z_pitch + c, im.C - c), d);
                        const float *p = image.at(h * stride - K / 2, w * stride - K / 2) + c;
                        acc[T] += d;
                        #pragma GCC unroll 5
                        for (int dy = 0; dy < K; dy++)
                            #pragma GCC unroll 5
                            for (int dx = 0; dx < K; dx++)
                                acc[dy * K + dx] += d * loadf(p + (dy * image.columns + dx) * Cp);
                    }
                for (int k = 0; k <= T; k++) addd(out + k * Cp + c, __builtin_convertvector(acc[k], v8d));
            }
        }
    });
    sum_threads(partial, threads, size);
    for (long c = 0; c < im.C; c++) {
        for (int k = 0; k < T; k++) dK[c * T + k] = float(partial[k * Cp + c]);
        db[c] = float(partial[T * Cp + c]);
    }
}

// ---- input gradient ------------------------------------------------------------------------------------------
// A patch's gradient is K dz + S patch + t, S symmetric; dx gathers the patches' gradients, adds `add` where it is
// given, and keeps what lies under positive x where `mask`.

struct Finish {
    const float *add;
    long add_pitch;
    bool mask;
    float *out;
    long out_pitch;

    inline void operator()(long pixel, long c, long C, v8f value, v8f x) const {
        if (add) value += load(add + pixel * add_pitch + c, C - c);
        store(out + pixel * out_pitch + c, C - c, mask ? select_positive(x, value) : value);
    }
};

// Any stride: each output position scatters its patch's gradient.
template <int K>
void direct_adjoint(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, Images im,
                    long stride, const float *kernel, const float *S, const float *t, Finish finish, int threads) {
    constexpr int T = K * K;
    const long Cp = padded(im.C), Ho = (im.H - 1) / stride + 1, Wo = (im.W - 1) / stride + 1;
    const std::vector<float> k_ = by_tap(kernel, im.C, T), S_ = by_tap(S, im.C, T * T), t_ = by_tap(t, im.C, T);
    each_thread(threads, im.N, [&](int, long begin, long end) {
        Padded<float> image(im, K / 2, 0), gradient(im, K / 2, 0);
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            std::fill(gradient.data.begin(), gradient.data.end(), 0.f);
            for (long h = 0; h < Ho; h++)
                for (long w = 0; w < Wo; w++) {
                    const long pixel = (n * Ho + h) * Wo + w;
                    for (long c = 0; c < Cp; c += LANES) {
                        v8f d = load(dz + pixel * dz_pitch + c, im.C - c);
                        if (z) d = select_positive(load(z + pixel * z_pitch + c, im.C - c), d);
                        const float *p = image.at(h * stride - K / 2, w * stride - K / 2) + c;
                        float *g = gradient.at(h * stride - K / 2, w * stride - K / 2) + c;
                        v8f patch[T];
                        #pragma GCC unroll 25
                        for (int l = 0; l < T; l++) patch[l] = loadf(p + ((l / K) * image.columns + l % K) * Cp);
                        for (int k = 0; k < T; k++) {
                            v8f v = loadf(t_.data() + k * Cp + c) + loadf(k_.data() + k * Cp + c) * d;
                            #pragma GCC unroll 25
                            for (int l = 0; l < T; l++) v += loadf(S_.data() + (k * T + l) * Cp + c) * patch[l];
                            float *to = g + ((k / K) * image.columns + k % K) * Cp;
                            storef(to, loadf(to) + v);
                        }
                    }
                }
            for (long h = 0; h < im.H; h++)
                for (long w = 0; w < im.W; w++)
                    for (long c = 0; c < Cp; c += LANES)
                        finish((n * im.H + h) * im.W + w, c, im.C, loadf(gradient.at(h, w) + c),
                               loadf(image.at(h, w) + c));
        }
    });
}

// Stride 1, 3 x 3: the patches' S collapses to a 5 x 5 kernel of lags, one for each of the ways in which a pixel can
// lie on the border (top, bottom, both, neither; the same for left and right), since taps are missing there.
constexpr int KINDS = 16;

inline int border_kind(long h, long H, long w, long W) {
    return (h == 0) + 2 * (h == H - 1) + 4 * (w == 0) + 8 * (w == W - 1);
}

inline bool sees(int tap, int kind) {  // whether some patch holds a pixel of this kind as its tap
    const int ky = tap / 3 - 1, kx = tap % 3 - 1;
    return !((ky > 0 && kind & 1) || (ky < 0 && kind & 2) || (kx > 0 && kind & 4) || (kx < 0 && kind & 8));
}

template <int TILE>
inline void lag_gradient(const float *d, long d_row, const float *p, long p_row, long Cp, const float *kernel,
                         const float *lags, v8f (&acc)[TILE]) {
    for (auto &a : acc) a = loadf(lags + 25 * Cp);
    taps<3, TILE, true>(d, d_row, Cp, Cp, kernel, acc);
    taps<5, TILE>(p, p_row, Cp, Cp, lags, acc);
}

void lag_adjoint(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, Images im,
                 const float *kernel, const float *S, const float *t, Finish finish, int threads) {
    constexpr int TILE = 4;
    const long Cp = padded(im.C), table = 26 * Cp;
    const std::vector<float> k_ = by_tap(kernel, im.C, 9);
    std::vector<float> lags(KINDS * table);  // [kind][25 lags, constant][Cp]
    for (int kind = 0; kind < KINDS; kind++)
        for (int k = 0; k < 9; k++) {
            if (!sees(k, kind)) continue;
            float *to = lags.data() + kind * table;
            for (long c = 0; c < im.C; c++) {
                for (int l = 0; l < 9; l++)
                    to[((l / 3 - k / 3 + 2) * 5 + l % 3 - k % 3 + 2) * Cp + c] += S[(c * 9 + k) * 9 + l];
                to[25 * Cp + c] += t[c * 9 + k];
            }
        }
    each_thread(threads, im.N, [&](int, long begin, long end) {
        Padded<float> image(im, 2, TILE), delta(im, 1, TILE);
        Images of_dz = im;
        of_dz.pitch = dz_pitch;
        const long p_row = image.columns * Cp, d_row = delta.columns * Cp;
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            const long first = n * im.H * im.W;
            delta.fill(of_dz, dz + first * dz_pitch, z + first * z_pitch, z ? z_pitch : 0);
            for (long h = 0; h < im.H; h++)
                for (long c = 0; c < Cp; c += LANES) {
                    const float *d = delta.at(h - 1, -1) + c, *p = image.at(h - 2, -2) + c;
                    const float *centre = image.at(h, 0) + c;
                    auto table_of = [&](long w) { return lags.data() + border_kind(h, im.H, w, im.W) * table + c; };
                    auto pixel = [&](long w) {
                        v8f acc[1];
                        lag_gradient<1>(d + w * Cp, d_row, p + w * Cp, p_row, Cp, k_.data() + c, table_of(w), acc);
                        finish(first + h * im.W + w, c, im.C, acc[0], loadf(centre + w * Cp));
                    };
                    pixel(0);
                    for (long w = 1; w < im.W - 1; w += TILE) {
                        v8f acc[TILE];
                        lag_gradient<TILE>(d + w * Cp, d_row, p + w * Cp, p_row, Cp, k_.data() + c, table_of(1), acc);
                        for (long i = 0; i < TILE && w + i < im.W - 1; i++)
                            finish(first + h * im.W + w + i, c, im.C, acc[i], loadf(centre + (w + i) * Cp));
                    }
                    if (im.W > 1) pixel(im.W - 1);
                }
        }
    });
}

}  // namespace

extern "C" {

void depthwise_moments(const float *x, long pitch, long N, long H, long W, long C, int k, long stride, float *mean,
                       float *cov, int threads) {
    const Images im{N, H, W, C, pitch};
    if (k == 3 && stride == 1) lag_moments(x, im, mean, cov, threads);
    else if (k == 3) direct_moments<3>(x, im, stride, mean, cov, threads);
    else direct_moments<5>(x, im, stride, mean, cov, threads);
}

void depthwise_forward(const float *x, long pitch, long N, long H, long W, long C, int k, long stride,
                       const float *kernel, const float *bias, int relu, float *out, long out_pitch, int threads) {
    const Images im{N, H, W, C, pitch};
    (k == 3 ? forward<3> : forward<5>)(x, im, stride, kernel, bias, relu, out, out_pitch, threads);
}

void depthwise_reduce(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, long pitch, long N,
                      long H, long W, long C, int k, long stride, float *dK, float *db, int threads) {
    const Images im{N, H, W, C, pitch};
    (k == 3 ? reduce<3> : reduce<5>)(dz, dz_pitch, z, z_pitch, x, im, stride, dK, db, threads);
}

void depthwise_adjoint(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, long pitch,
                       long N, long H, long W, long C, int k, long stride, const float *kernel, const float *S,
                       const float *t, const float *add, long add_pitch, int mask, float *out, long out_pitch,
                       int threads) {
    const Images im{N, H, W, C, pitch};
    const Finish finish{add, add_pitch, mask != 0, out, out_pitch};
    if (k == 3 && stride == 1)
        lag_adjoint(dz, dz_pitch, z, z_pitch, x, im, kernel, S, t, finish, threads);
    else
        (k == 3 ? direct_adjoint<3> : direct_adjoint<5>)(dz, dz_pitch, z, z_pitch, x, im, stride, kernel, S, t, finish,
                                                         threads);
}
}
