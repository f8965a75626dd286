// Dense 1x1 convolutions of float32 pixels, and what training their folded form needs besides: moments of the
// pixels, the two reductions and the input gradient.
//
// Pixels are `rows` rows of channels, `pitch` floats apart. BLOCK of them at a time are copied into whole vectors that
// stay in a core's cache. Sums over a block are in float32, sums over blocks in float64. Work is split by block, in
// order, so a result depends on the number of threads only.
#include <type_traits>

#include "algebra.h"
#include "vector.h"

namespace {

constexpr long BLOCK = 256;     // rows of a sum: many, because each block adds to a whole matrix
constexpr long FEW = 64;        // rows of a product: few, so that they stay in the first cache
// Sums of a tile: tall(V) x V vectors, V up to WIDE, in 32 (16) registers. Heights divide LANES.
constexpr int WIDE = 3;
#ifdef __AVX512VL__
constexpr int tall(int) { return 8; }
#else
constexpr int tall(int wide) { return wide == 1 ? 8 : 4; }
#endif

struct Pixels {
    const float *data;
    long pitch, channels;
    const float *row(long r) const { return data + r * pitch; }
};

inline long blocks_of(long rows, long size) { return (rows + size - 1) / size; }

// Calls work(V, column) for groups of V vectors, V a constant, that cover `columns`.
template <class Work> inline void in_columns(long columns, Work work) {
    long c = 0;
    for (; c + WIDE * LANES <= columns; c += WIDE * LANES) work(std::integral_constant<int, WIDE>{}, c);
    if (columns - c == 2 * LANES) work(std::integral_constant<int, 2>{}, c);
    else if (columns > c) work(std::integral_constant<int, 1>{}, c);
}

// A factor A [rows][inner] with its B [inner][columns], columns whole vectors.
struct Factors {
    const float *a;
    long pitch, inner;
    const float *b;
};

// Calls finish(row, column, vector) with the sum of `terms` A B, + bias.
// Not inlined, so that the loop has the registers to itself.
template <int R, int V, int TERMS, class Finish>
__attribute__((noinline)) void product_tile(const Factors (&terms)[TERMS], long columns, const float *bias, long r,
                                            long c, Finish finish) {
    vf acc[R][V];
    #pragma GCC unroll 8
    for (int i = 0; i < R; i++)
        #pragma GCC unroll 3
        for (int j = 0; j < V; j++) acc[i][j] = loadf(bias + c + j * LANES);
    for (const Factors &term : terms) {
        const float *a = term.a + r * term.pitch, *b = term.b + c;
        for (long k = 0; k < term.inner; k++, b += columns) {
            vf row[V];
            #pragma GCC unroll 3
            for (int j = 0; j < V; j++) held(row[j] = loadf(b + j * LANES));
            #pragma GCC unroll 8
            for (int i = 0; i < R; i++)
                #pragma GCC unroll 3
                for (int j = 0; j < V; j++) acc[i][j] += a[i * term.pitch + k] * row[j];
        }
    }
    #pragma GCC unroll 8
    for (int i = 0; i < R; i++)
        #pragma GCC unroll 3
        for (int j = 0; j < V; j++) finish(r + i, c + j * LANES, acc[i][j]);
}

template <int TERMS, class Finish>
void product(const Factors (&terms)[TERMS], long rows, long columns, const float *bias, Finish finish) {
    in_columns(columns, [&](auto wide, long c) {
        constexpr int V = wide.value, R = tall(V);
        long r = 0;
        for (; r + R <= rows; r += R) product_tile<R, V>(terms, columns, bias, r, c, finish);
        for (; r < rows; r++) product_tile<1, V>(terms, columns, bias, r, c, finish);
    });
}

// out[i][j] += sum over rows of a[r][i] b[r][j], i < R
template <int R, int V>
__attribute__((noinline)) void gram_tile(const float *a, long a_pitch, const float *b, long b_pitch, long rows, double *out,
                      long out_pitch) {
    vf acc[R][V] = {};
    for (long r = 0; r < rows; r++) {
        vf row[V];
        #pragma GCC unroll 3
        for (int j = 0; j < V; j++) held(row[j] = loadf(b + r * b_pitch + j * LANES));
        #pragma GCC unroll 8
        for (int i = 0; i < R; i++)
            #pragma GCC unroll 3
            for (int j = 0; j < V; j++) acc[i][j] += a[r * a_pitch + i] * row[j];
    }
    for (int i = 0; i < R; i++)
        for (int j = 0; j < V; j++)
            addd(out + i * out_pitch + j * LANES, acc[i][j]);
}

// out [Ap][Bp] += A' B of padded columns; `upper`: only where column >= row is needed.
void gram(const float *a, long a_pitch, long Ap, const float *b, long b_pitch, long Bp, long rows, bool upper,
          double *out) {
    in_columns(Bp, [&](auto wide, long j) {
        constexpr int V = wide.value, R = tall(V);
        for (long i = 0; i < (upper ? j + V * LANES : Ap); i += R)
            gram_tile<R, V>(a + i, a_pitch, b + j, b_pitch, rows, out + i * Bp + j, Bp);
    });
}

// A block of pixels into [rows][to_pitch], less `pivot`, where `z` is positive, adding up each channel into `sum`.
void copy_block(const Pixels &x, long first, long rows, const float *pivot, const Pixels &z, float *to, long to_pitch,
                double *sum) {
    for (long c = 0; c < x.channels; c += LANES) {
        const long left = x.channels - c;
        const vf shift = pivot ? loadf(pivot + c) : vf{};
        vf total[4] = {};  // sums that do not wait for each other
        auto copy = [&](long r, vf &into) {
            vf v = load(x.row(first + r) + c, left) - shift;
            if (z.data) v = select_positive(load(z.row(first + r) + c, left), v);
            into += v;
            storef(to + r * to_pitch + c, v);
        };
        long r = 0;
        for (; r + 4 <= rows; r += 4)
            #pragma GCC unroll 4
            for (long i = 0; i < 4; i++) copy(r + i, total[i]);
        for (; r < rows; r++) copy(r, total[0]);
        if (sum) addd(sum + c, (total[0] + total[1]) + (total[2] + total[3]));
    }
}

const Pixels NONE{nullptr, 0, 0};

}  // namespace

extern "C" {

void pointwise_moments(const float *x_, long pitch, long rows, long C, float *mean, float *cov, long threads) {
    const Pixels x{x_, pitch, C};
    const long Cp = padded(C), size = (Cp + 1) * Cp;
    const Values<float> pivot = pivot_of(x.data, x.pitch, rows, C);
    Values<double> partial = per_piece<double>(threads, blocks_of(rows, BLOCK), size);
    each_piece(threads, blocks_of(rows, BLOCK), [&](long piece, long begin, long end) {
        Values<float> block(BLOCK * Cp);
        double *out = partial.data() + piece * size;
        for (long first = begin * BLOCK; first < std::min(end * BLOCK, rows); first += BLOCK) {
            const long n = std::min(BLOCK, rows - first);
            copy_block(x, first, n, pivot.data(), NONE, block.data(), Cp, out + Cp * Cp);
            gram(block.data(), Cp, Cp, block.data(), Cp, Cp, n, true, out);
        }
    });
    sum_pieces(partial, size);
    const double *sum = partial.data() + Cp * Cp, count = double(rows);
    for (long i = 0; i < C; i++) {
        mean[i] = float(pivot[i] + sum[i] / count);
        for (long j = i; j < C; j++)
            cov[i * C + j] = cov[j * C + i] =
                float(partial[i * Cp + j] / count - sum[i] / count * (sum[j] / count));
    }
}

// out = relu(x K' + b), K [O][I]
void pointwise_forward(const float *x_, long pitch, long rows, long I, const float *kernel, const float *bias, long O,
                       long relu, float *out, long out_pitch, long threads) {
    const long Op = padded(O);
    Values<float> k(I * Op), b(Op);
    for (long o = 0; o < O; o++) {
        b[o] = bias[o];
        for (long i = 0; i < I; i++) k[i * Op + o] = kernel[o * I + i];
    }
    each_piece(threads, blocks_of(rows, FEW), [&](long, long begin, long end) {
        for (long first = begin * FEW; first < std::min(end * FEW, rows); first += FEW)
            product({Factors{x_ + first * pitch, pitch, I, k.data()}}, std::min(FEW, rows - first), Op, b.data(),
                    [=](long r, long c, vf v) {
                        store(out + (first + r) * out_pitch + c, O - c, relu ? positive_part(v) : v);
                    });
    });
}

// dK [O][I] = sum of dz x', db = sum of dz, dz where z > 0 only (everywhere where z is null).
void pointwise_reduce(const float *dz_, long dz_pitch, const float *z_, long z_pitch, const float *x_, long pitch,
                      long rows, long I, long O, float *dK, float *db, long threads) {
    const Pixels dz{dz_, dz_pitch, O}, z{z_, z_pitch, O}, x{x_, pitch, I};
    const long Ip = padded(I), Op = padded(O), size = (Ip + 1) * Op;
    Values<double> partial = per_piece<double>(threads, blocks_of(rows, BLOCK), size);
    each_piece(threads, blocks_of(rows, BLOCK), [&](long piece, long begin, long end) {
        Values<float> delta(BLOCK * Op), block(BLOCK * Ip);
        double *out = partial.data() + piece * size;
        for (long first = begin * BLOCK; first < std::min(end * BLOCK, rows); first += BLOCK) {
            const long n = std::min(BLOCK, rows - first);
            copy_block(dz, first, n, nullptr, z, delta.data(), Op, out + Op * Ip);
            if (I == Ip) {
                gram(delta.data(), Op, Op, x.row(first), pitch, Ip, n, false, out);
                continue;
            }
            copy_block(x, first, n, nullptr, NONE, block.data(), Ip, nullptr);
            gram(delta.data(), Op, Op, block.data(), Ip, Ip, n, false, out);
        }
    });
    sum_pieces(partial, size);
    for (long o = 0; o < O; o++) {
        db[o] = float(partial[Op * Ip + o]);
        for (long i = 0; i < I; i++) dK[o * I + i] = float(partial[o * Ip + i]);
    }
}

// dx = dz K + x S + t, S [I][I], of images of H x W pixels; + `add`, and + the gradient of an average pool over windows
// of `tall` x `wide` pixels where `pooled`, the gradient of its output, is given
void pointwise_adjoint(const float *dz_, long dz_pitch, const float *z_, long z_pitch, const float *x_, long pitch,
                       long H, long W, long rows, long I, long O, const float *pooled, long tall, long wide,
                       const float *kernel, const float *S, const float *t, const float *add, long add_pitch, long mask,
                       float *out, long out_pitch, long threads) {
    const Pixels dz{dz_, dz_pitch, O}, z{z_, z_pitch, O};
    const long Ip = padded(I), Op = padded(O);
    Values<float> k(O * Ip), s(I * Ip), constant(Ip);
    for (long i = 0; i < I; i++) {
        constant[i] = t[i];
        for (long o = 0; o < O; o++) k[o * Ip + i] = kernel[o * I + i];
        for (long j = 0; j < I; j++) s[j * Ip + i] = S[j * I + i];
    }
    const long h = H / tall, w = W / wide;
    const float share = 1.f / float(tall * wide);
    each_piece(threads, blocks_of(rows, FEW), [&](long, long begin, long end) {
        Values<float> block(z_ ? FEW * Op : 0);
        const float *coarse[FEW];  // the pooled pixel of each pixel, or null
        for (long first = begin * FEW; first < std::min(end * FEW, rows); first += FEW) {
            const long n = std::min(FEW, rows - first);
            const float *x = x_ + first * pitch;
            if (z_) copy_block(dz, first, n, nullptr, z, block.data(), Op, nullptr);
            for (long r = 0; pooled && r < n; r++) {
                const long pixel = first + r, i = pixel / W % H / tall, j = pixel % W / wide;
                coarse[r] = i < h && j < w ? pooled + ((pixel / (H * W) * h + i) * w + j) * I : nullptr;
            }
            const Factors of_dz{z_ ? block.data() : dz.row(first), z_ ? Op : dz_pitch, O, k.data()};
            product({of_dz, Factors{x, pitch, I, s.data()}}, n, Ip, constant.data(), [=, &coarse](long r, long c, vf v) {
                if (pooled && coarse[r]) v += share * load(coarse[r] + c, I - c);
                if (add) v += load(add + (first + r) * add_pitch + c, I - c);
                if (mask) v = select_positive(load(x + r * pitch + c, I - c), v);
                store(out + (first + r) * out_pitch + c, I - c, v);
            });
        }
    });
}

// ---- a sum of branches, each way in one call -------------------------------------------------------------------
// The functions that come as arguments are those above, of this library or of the one with other vectors.

// Moments, fold, running statistics and convolution. `state` keeps what the backward pass needs.
void pointwise_sum(decltype(pointwise_moments) *moments, decltype(pointwise_forward) *convolve, const float *x,
                   long pitch, long rows, long I, const float *weight, const float *gamma, const float *beta,
                   const float *identity_gamma, const float *identity_beta, long B, long O, double momentum, long n0,
                   float *mean0, float *var0, long n1, float *mean1, float *var1, long relu, float *out, long out_pitch,
                   float *state, long threads) {
    const Fold f(state, B + (identity_gamma != nullptr), B, O, I);
    Values<float> cov(I * I);
    moments(x, pitch, rows, I, f.patch_mean, cov.data(), threads);
    dense_fold(weight, gamma, beta, identity_gamma, identity_beta, B, O, I, f.patch_mean, cov.data(), f.kernel, f.bias,
               f.rows_cov, f.gain, f.rstd, f.mean, f.var, threads);
    track(f.mean, f.var, momentum, double(rows) / double(rows - 1), n0, mean0, var0, n1, mean1, var1, 0, nullptr,
          nullptr, threads);
    convolve(x, pitch, rows, I, f.kernel, f.bias, O, relu, out, out_pitch, threads);
}

// Gradients of the branches, and of the input where `dx` is given. Arguments are those of pointwise_adjoint.
void pointwise_sum_backward(decltype(pointwise_reduce) *reduce, decltype(pointwise_adjoint) *adjoint, const float *dz,
                            long dz_pitch, const float *z, long z_pitch, const float *x, long pitch, long H, long W,
                            long rows, long I, const float *weight, long B, long O, float *state, float *dweight,
                            float *dgamma, float *didentity, float *dbias, const float *pooled, long tall, long wide,
                            const float *add, long add_pitch, long mask, float *dx, long dx_pitch, long threads) {
    const Fold f(state, B + (didentity != nullptr), B, O, I);
    Values<float> dkernel(O * I), S(I * I), t(I);
    reduce(dz, dz_pitch, z, z_pitch, x, pitch, rows, I, O, dkernel.data(), dbias, threads);
    dense_unfold(weight, B, O, I, f.patch_mean, f.rows_cov, f.gain, f.rstd, f.mean, dkernel.data(), dbias, double(rows),
                 dweight, dgamma, didentity, S.data(), t.data(), threads);
    if (dx)
        adjoint(dz, dz_pitch, z, z_pitch, x, pitch, H, W, rows, I, O, pooled, tall, wide, f.kernel, S.data(), t.data(),
                add, add_pitch, mask, dx, dx_pitch, threads);
}
}
