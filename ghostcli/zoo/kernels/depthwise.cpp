// Depthwise convolutions (3 x 3, 5 x 5, 1 x 5 or 5 x 1, zeros around) of float32 images in channels_last, and what
// training their folded form needs besides: moments of the input's patches, the two reductions and the input gradient.
//
// Images are N x H x W pixels of C channels. A pixel begins `pitch` floats after the last one, so a channel slice of a
// wider map needs no copy. Taps are numbered row by row. Kernels and means are [C][T], T = KH * KW.
//
// Moments are sums in float64. There the product of two float32 values is exact, so moments need no centring. Work is
// split by image, in order, so a result depends on the number of threads only. Stride 1 is in rows.h.
#include "algebra.h"
#include "rows.h"
#include "vector.h"

using rows::Finish;

namespace {

// An image copied between zero borders, its channels padded to whole vectors.
template <class T> struct Padded {
    long above, left, columns, channels;
    Values<T> data;

    // `spare` columns on the right let a tile run over the end of its row.
    Padded(const Images &im, long above, long left, long spare)
        : above(above), left(left), columns(im.W + 2 * left + spare), channels(padded(im.C)),
          data((im.H + 2 * above) * columns * channels) {}

    T *at(long h, long w) { return data.data() + ((h + above) * columns + w + left) * channels; }

    void fill(const Images &im, const float *x, const float *only_where_positive, long mask_pitch) {
        for (long h = 0; h < im.H; h++)
            for (long w = 0; w < im.W; w++, x += im.pitch, only_where_positive += mask_pitch) {
                T *to = at(h, w);
                for (long c = 0; c < im.C; c += LANES) {
                    vf v = load(x + c, im.C - c);
                    if (mask_pitch) v = select_positive(load(only_where_positive + c, im.C - c), v);
                    store_as(to + c, v);
                }
            }
    }
    void fill(const Images &im, const float *x) { fill(im, x, nullptr, 0); }
};

// [C][n] -> [vectors of channels][n][LANES], so that a tap's place within a vector's coefficients is a constant
Values<float> by_vector(const float *coefficients, long C, long n) {
    Values<float> out(n * padded(C));
    for (long c = 0; c < C; c++)
        for (long k = 0; k < n; k++) out[(c / LANES * n + k) * LANES + c % LANES] = coefficients[c * n + k];
    return out;
}

// ---- moments -------------------------------------------------------------------------------------------------

// Products of tap A with itself and all later ones (A == T: the plain sums), over a row of `Wo` patches, the first at
// `first`, the next `step` further; then tap A + 1.
template <int KH, int KW, int A>
void tap_products(const double *first, long row, long step, long Wo, long Cp, double *out) {
    constexpr int T = KH * KW, FIRST = A < T ? A : 0;
    vd acc[T - FIRST] = {};
    const double *p = first;
    for (long w = 0; w < Wo; w++, p += step) {
        const vd v = A < T ? loadd(p + A / KW * row + A % KW * Cp) : vd{} + 1.0;
        #pragma GCC unroll 25
        for (int b = FIRST; b < T; b++) acc[b - FIRST] += v * loadd(p + b / KW * row + b % KW * Cp);
    }
    for (int b = FIRST; b < T; b++) addd(out + (A * T + b) * Cp, acc[b - FIRST]);
    if constexpr (A < T) tap_products<KH, KW, A + 1>(first, row, step, Wo, Cp, out);
}

// Any stride: every pair of taps, at every output position.
template <int KH, int KW>
void direct_moments(const float *x, Images im, long stride, float *mean, float *cov, long threads) {
    constexpr int T = KH * KW;
    const long Cp = padded(im.C), Ho = (im.H - 1) / stride + 1, Wo = (im.W - 1) / stride + 1, size = (T + 1) * T * Cp;
    Values<double> partial = per_piece<double>(threads, im.N, size);
    each_piece(threads, im.N, [&](long piece, long begin, long end) {
        Padded<double> image(im, KH / 2, KW / 2, 0);
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            for (long h = 0; h < Ho; h++)
                for (long c = 0; c < Cp; c += DOUBLES)
                    tap_products<KH, KW, 0>(image.at(h * stride - KH / 2, -KW / 2) + c, image.columns * Cp, stride * Cp,
                                            Wo, Cp, partial.data() + piece * size + c);
        }
    });
    sum_pieces(partial, size);
    for (long c = 0; c < im.C; c++) {
        double sum[T], product[T * T];
        for (int a = 0; a < T; a++) {
            sum[a] = partial[(T * T + a) * Cp + c];
            for (int b = a; b < T; b++) product[a * T + b] = product[b * T + a] = partial[(a * T + b) * Cp + c];
        }
        finish_moments(sum, product, T, double(im.N * Ho * Wo), mean + c * T, cov + c * T * T);
    }
}

// ---- convolution ---------------------------------------------------------------------------------------------

// TILE neighbouring outputs, `step` floats apart in the input, of coefficients [T][LANES] (mirrored: of their mirror
// image); `p` is the first tap of the first output.
template <int KH, int KW, int TILE, bool MIRRORED = false>
inline void taps(const float *p, long row, long step, long Cp, const float *coefficients, vf (&acc)[TILE]) {
    #pragma GCC unroll 5
    for (int dy = 0; dy < KH; dy++)
        #pragma GCC unroll 5
        for (int dx = 0; dx < KW; dx++) {
            const vf k = loadf(coefficients + (MIRRORED ? KH * KW - 1 - dy * KW - dx : dy * KW + dx) * LANES);
            #pragma GCC unroll 4
            for (int i = 0; i < TILE; i++) acc[i] += k * loadf(p + dy * row + i * step + dx * Cp);
        }
}

template <int KH, int KW>
void forward(const float *x, Images im, long stride, const float *kernel, const float *bias, bool relu, float *out,
             long out_pitch, long threads) {
    constexpr int TILE = 4;
    const long Cp = padded(im.C), Ho = (im.H - 1) / stride + 1, Wo = (im.W - 1) / stride + 1;
    const Values<float> k = by_vector(kernel, im.C, KH * KW), b = by_vector(bias, im.C, 1);
    each_piece(threads, im.N, [&](long, long begin, long end) {
        Padded<float> image(im, KH / 2, KW / 2, TILE * stride);
        const long row = image.columns * Cp, step = stride * Cp;
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            for (long h = 0; h < Ho; h++)
                for (long c = 0; c < Cp; c += LANES) {
                    const float *p = image.at(h * stride - KH / 2, -KW / 2) + c;
                    float *to = out + (n * Ho + h) * Wo * out_pitch + c;
                    for (long w = 0; w < Wo; w += TILE) {
                        vf acc[TILE];
                        for (auto &a : acc) a = loadf(b.data() + c);
                        taps<KH, KW, TILE>(p + w * step, row, step, Cp, k.data() + c * KH * KW, acc);
                        for (long i = 0; i < TILE && w + i < Wo; i++)
                            store(to + (w + i) * out_pitch, im.C - c, relu ? positive_part(acc[i]) : acc[i]);
                    }
                }
        }
    });
}

// dK[c][k] = sum of dz(p) x(p + k), db[c] = sum of dz, dz where z > 0 only (everywhere where z is null).
template <int KH, int KW>
void reduce(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, Images im, long stride,
            float *dK, float *db, long threads) {
    constexpr int T = KH * KW;
    const long Cp = padded(im.C), Ho = (im.H - 1) / stride + 1, Wo = (im.W - 1) / stride + 1, size = (T + 1) * Cp;
    Values<double> partial = per_piece<double>(threads, im.N, size);
    each_piece(threads, im.N, [&](long piece, long begin, long end) {
        Padded<float> image(im, KH / 2, KW / 2, 0);
        double *out = partial.data() + piece * size;
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            for (long c = 0; c < Cp; c += LANES) {
                vf acc[T + 1] = {};
                for (long h = 0; h < Ho; h++)
                    for (long w = 0; w < Wo; w++) {
                        const long pixel = (n * Ho + h) * Wo + w;
                        vf d = load(dz + pixel * dz_pitch + c, im.C - c);
                        if (z) d = select_positive(load(z + pixel * z_pitch + c, im.C - c), d);
                        const float *p = image.at(h * stride - KH / 2, w * stride - KW / 2) + c;
                        acc[T] += d;
                        #pragma GCC unroll 5
                        for (int dy = 0; dy < KH; dy++)
                            #pragma GCC unroll 5
                            for (int dx = 0; dx < KW; dx++)
                                acc[dy * KW + dx] += d * loadf(p + (dy * image.columns + dx) * Cp);
                    }
                for (int k = 0; k <= T; k++) addd(out + k * Cp + c, acc[k]);
            }
        }
    });
    sum_pieces(partial, size);
    for (long c = 0; c < im.C; c++) {
        for (int k = 0; k < T; k++) dK[c * T + k] = float(partial[k * Cp + c]);
        db[c] = float(partial[T * Cp + c]);
    }
}

// ---- input gradient ------------------------------------------------------------------------------------------
// A patch's gradient is K dz + S patch + t, S symmetric (or K dz alone where S is null); dx gathers the patches' gradients, adds `add` where it is
// given, and keeps what lies under positive x where `mask`.

// The convolution alone, at stride 2: a pixel was seen through every second tap, of rows and of columns.
template <int KH, int KW, int TOP, int LEFT>
inline vf seen_through(const float *d, long row, long Cp, const float *kernel) {
    vf sum = {};
    #pragma GCC unroll 3
    for (int ky = TOP; ky < KH; ky += 2)
        #pragma GCC unroll 3
        for (int kx = LEFT; kx < KW; kx += 2)
            sum += loadf(kernel + (ky * KW + kx) * LANES) * loadf(d - (ky / 2) * row - (kx / 2) * Cp);
    return sum;
}

template <int KH, int KW>
void strided_adjoint(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, Images im,
                     const float *kernel, Finish finish, long threads) {
    const long Cp = padded(im.C), Ho = (im.H - 1) / 2 + 1, Wo = (im.W - 1) / 2 + 1;
    const Values<float> k_ = by_vector(kernel, im.C, KH * KW);
    const Images outputs{im.N, Ho, Wo, im.C, dz_pitch};
    each_piece(threads, im.N, [&](long, long begin, long end) {
        Padded<float> delta(outputs, KH / 2, KW / 2, 0);
        const long row = delta.columns * Cp;
        for (long n = begin; n < end; n++) {
            const long first = n * Ho * Wo;
            delta.fill(outputs, dz + first * dz_pitch, z + first * z_pitch, z ? z_pitch : 0);
            for (long h = 0; h < im.H; h++)
                for (long w = 0; w < im.W; w++) {
                    const long y = h + KH / 2, v = w + KW / 2, pixel = (n * im.H + h) * im.W + w;
                    const float *d = delta.at(y / 2, v / 2);
                    for (long c = 0; c < Cp; c += LANES) {
                        const float *k = k_.data() + c * KH * KW;
                        const vf sum = y % 2 ? (v % 2 ? seen_through<KH, KW, 1, 1>(d + c, row, Cp, k)
                                                       : seen_through<KH, KW, 1, 0>(d + c, row, Cp, k))
                                              : (v % 2 ? seen_through<KH, KW, 0, 1>(d + c, row, Cp, k)
                                                       : seen_through<KH, KW, 0, 0>(d + c, row, Cp, k));
                        finish(pixel, c, im.C, sum, finish.mask ? load(x + pixel * im.pitch + c, im.C - c) : vf{});
                    }
                }
        }
    });
}

// Any stride: each output position scatters its patch's gradient.
template <int KH, int KW>
void direct_adjoint(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, Images im,
                    long stride, const float *kernel, const float *S, const float *t, Finish finish, long threads) {
    constexpr int T = KH * KW;
    const long Cp = padded(im.C), Ho = (im.H - 1) / stride + 1, Wo = (im.W - 1) / stride + 1;
    const Values<float> k_ = by_vector(kernel, im.C, T), S_ = by_vector(S, im.C, T * T), t_ = by_vector(t, im.C, T);
    each_piece(threads, im.N, [&](long, long begin, long end) {
        Padded<float> image(im, KH / 2, KW / 2, 0), gradient(im, KH / 2, KW / 2, 0);
        const long row = image.columns * Cp;
        for (long n = begin; n < end; n++) {
            image.fill(im, x + n * im.H * im.W * im.pitch);
            std::fill(gradient.data.begin(), gradient.data.end(), 0.f);
            for (long h = 0; h < Ho; h++)
                for (long c = 0; c < Cp; c += LANES) {
                    const float *k = k_.data() + c * T, *S_c = S_.data() + c * T * T, *t_c = t_.data() + c * T;
                    const float *p = image.at(h * stride - KH / 2, -KW / 2) + c;
                    float *g = gradient.at(h * stride - KH / 2, -KW / 2) + c;
                    long pixel = (n * Ho + h) * Wo;
                    for (long w = 0; w < Wo; w++, pixel++, p += stride * Cp, g += stride * Cp) {
                        opaque(k);
                        opaque(S_c);
                        opaque(t_c);
                        vf d = load(dz + pixel * dz_pitch + c, im.C - c);
                        if (z) d = select_positive(load(z + pixel * z_pitch + c, im.C - c), d);
                        vf patch[T];
                        #pragma GCC unroll 25
                        for (int l = 0; l < T; l++) patch[l] = loadf(p + (l / KW) * row + l % KW * Cp);
                        #pragma GCC unroll 9
                        for (int i = 0; i < T; i++) {
                            vf v = loadf(t_c + i * LANES) + loadf(k + i * LANES) * d;
                            #pragma GCC unroll 25
                            for (int l = 0; l < T; l++) v += loadf(S_c + (i * T + l) * LANES) * patch[l];
                            float *to = g + (i / KW) * row + i % KW * Cp;
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

// Calls work(KH, KW), constants, for a window of `kh` x `kw` taps.
template <int N> struct Number { static constexpr int value = N; };
template <class Work> void with_window(long kh, long kw, Work work) {
    if (kh == 1) work(Number<1>{}, Number<5>{});
    else if (kw == 1) work(Number<5>{}, Number<1>{});
    else if (kh == 3) work(Number<3>{}, Number<3>{});
    else work(Number<5>{}, Number<5>{});
}

}  // namespace

extern "C" {

void depthwise_moments(const float *x, long pitch, long N, long H, long W, long C, long kh, long kw, long stride,
                       float *mean, float *cov, long threads) {
    const Images im{N, H, W, C, pitch};
    if (kh == 3 && stride == 1) return rows::moments(x, im, mean, cov, threads);
    with_window(kh, kw, [&](auto KH, auto KW) {
        direct_moments<KH.value, KW.value>(x, im, stride, mean, cov, threads);
    });
}

void depthwise_forward(const float *x, long pitch, long N, long H, long W, long C, long kh, long kw, long stride,
                       const float *kernel, const float *bias, long relu, float *out, long out_pitch, long threads) {
    const Images im{N, H, W, C, pitch};
    with_window(kh, kw, [&](auto KH, auto KW) {
        if (stride == 1) rows::forward<KH.value, KW.value>(x, im, kernel, bias, relu, out, out_pitch, threads);
        else forward<KH.value, KW.value>(x, im, stride, kernel, bias, relu, out, out_pitch, threads);
    });
}

// out [N][H][W][2 C] = [x, the 3 x 3 convolution of x] + add
void depthwise_beside(const float *x, long pitch, long N, long H, long W, long C, const float *kernel,
                      const float *bias, const float *add, long add_pitch, float *out, long threads) {
    rows::beside(x, Images{N, H, W, C, pitch}, kernel, bias, add, add_pitch, out, threads);
}

void depthwise_reduce(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, long pitch, long N,
                      long H, long W, long C, long kh, long kw, long stride, float *dK, float *db, long threads) {
    const Images im{N, H, W, C, pitch};
    with_window(kh, kw, [&](auto KH, auto KW) {
        if (stride == 1) rows::reduce<KH.value, KW.value>(dz, dz_pitch, z, z_pitch, x, im, dK, db, threads);
        else reduce<KH.value, KW.value>(dz, dz_pitch, z, z_pitch, x, im, stride, dK, db, threads);
    });
}

void depthwise_adjoint(const float *dz, long dz_pitch, const float *z, long z_pitch, const float *x, long pitch,
                       long N, long H, long W, long C, long kh, long kw, long stride, const float *kernel,
                       const float *S, const float *t, const float *add, long add_pitch, long mask, float *out,
                       long out_pitch, long threads) {
    const Images im{N, H, W, C, pitch};
    const Finish finish{add, add_pitch, mask != 0, out, out_pitch};
    if (!S)
        return with_window(kh, kw, [&](auto KH, auto KW) {
            (stride == 1 ? rows::adjoint<KH.value, KW.value> : strided_adjoint<KH.value, KW.value>)(
                dz, dz_pitch, z, z_pitch, x, im, kernel, finish, threads);
        });
    if (kh == 3 && stride == 1)
        return rows::adjoint_with_statistics(dz, dz_pitch, z, z_pitch, x, im, kernel, S, t, finish, threads);
    with_window(kh, kw, [&](auto KH, auto KW) {
        direct_adjoint<KH.value, KW.value>(dz, dz_pitch, z, z_pitch, x, im, stride, kernel, S, t, finish, threads);
    });
}

// ---- a sum of branches, each way in one call: see pointwise.cpp ------------------------------------------------

// The convolution, or `beside` where `add` is given.
void depthwise_sum(decltype(depthwise_forward) *convolve, decltype(depthwise_beside) *beside, const float *x,
                   long pitch, long N, long H, long W, long C, long kh, long kw, long stride, const float *weight,
                   const float *gamma, const float *beta, const float *scale_weight, const float *scale_gamma,
                   const float *scale_beta, const float *identity_gamma, const float *identity_beta, long B,
                   double momentum, long n0, float *mean0, float *var0, long n1, float *mean1, float *var1, long n2,
                   float *mean2, float *var2, long relu, const float *add, long add_pitch, float *out, long out_pitch,
                   float *state, long threads) {
    const long T = kh * kw, every = B + (scale_gamma != nullptr) + (identity_gamma != nullptr);
    const double count = double(N * ((H - 1) / stride + 1) * ((W - 1) / stride + 1));
    const Fold f(state, every, every, C, T);
    Values<float> cov(C * T * T);
    depthwise_moments(x, pitch, N, H, W, C, kh, kw, stride, f.patch_mean, cov.data(), threads);
    depthwise_fold(weight, gamma, beta, scale_weight, scale_gamma, scale_beta, identity_gamma, identity_beta, B, C, T,
                   f.patch_mean, cov.data(), f.kernel, f.bias, f.rows_cov, f.gain, f.rstd, f.mean, f.var, threads);
    track(f.mean, f.var, momentum, count / (count - 1), n0, mean0, var0, n1, mean1, var1, n2, mean2, var2, threads);
    if (add) beside(x, pitch, N, H, W, C, f.kernel, f.bias, add, add_pitch, out, threads);
    else convolve(x, pitch, N, H, W, C, kh, kw, stride, f.kernel, f.bias, relu, out, out_pitch, threads);
}

void depthwise_sum_backward(decltype(depthwise_reduce) *reduce, decltype(depthwise_adjoint) *adjoint, const float *dz,
                            long dz_pitch, const float *z, long z_pitch, const float *x, long pitch, long N, long H,
                            long W, long C, long kh, long kw, long stride, const float *weight,
                            const float *scale_weight, long B, float *state, float *dweight, float *dgamma,
                            float *dscale_weight, float *dscale, float *didentity, float *dbias, const float *add,
                            long add_pitch, long mask, float *dx, long dx_pitch, long threads) {
    const long T = kh * kw, every = B + (dscale != nullptr) + (didentity != nullptr);
    const double count = double(N * ((H - 1) / stride + 1) * ((W - 1) / stride + 1));
    const Fold f(state, every, every, C, T);
    Values<float> dkernel(C * T), S(C * T * T), t(C * T);
    reduce(dz, dz_pitch, z, z_pitch, x, pitch, N, H, W, C, kh, kw, stride, dkernel.data(), dbias, threads);
    depthwise_unfold(weight, scale_weight, B, C, T, f.patch_mean, f.rows_cov, f.gain, f.rstd, f.mean, dkernel.data(),
                     dbias, count, dweight, dgamma, dscale_weight, dscale, didentity, S.data(), t.data(), threads);
    if (dx)
        adjoint(dz, dz_pitch, z, z_pitch, x, pitch, N, H, W, C, kh, kw, stride, f.kernel, S.data(), t.data(), add,
                add_pitch, mask, dx, dx_pitch, threads);
}
}
