// Batch norm in training of float32 pixels without gaps, [count][C]: a vector holds pixels and channels
// mixed, as in rows.h. Sums over a block are in float32 around a value near the mean, sums over blocks in float64. Work is
// split by block, in order, so a result depends on the number of threads only.
#include <cmath>

#include "rows.h"

namespace {

constexpr long BLOCK = 4096;  // floats, which stay in the first cache

struct Pixels {
    long count, C;
    long total() const { return count * C; }
    long period() const { return rows::period_of(C) * LANES; }  // floats after which a lane has the same channel
    long block() const { return std::max(1L, BLOCK / period()) * period(); }
    long blocks() const { return (total() + block() - 1) / block(); }

    // Calls work(begin, end) for the floats of each block from `first` to before `last`.
    template <class Work> void each_block(long first, long last, Work work) const {
        const long size = block();
        for (long b = first; b < last; b++) work(b * size, std::min((b + 1) * size, total()));
    }

    // Calls work(float, lanes, place in the period) for every vector.
    template <class Work> void each_vector(long threads, Work work) const {
        const long length = period();
        each_piece(threads, blocks(), [&](long, long first, long last) {
            each_block(first, last, [&](long begin, long end) {
                for (long i = begin, r = 0; i < end; i += LANES, r = r + LANES < length ? r + LANES : 0)
                    work(i, end - i, r);
            });
        });
    }

    // [C] -> [period]
    Values<float> by_lane(const float *of_channel) const { return rows::by_lane(of_channel, C, 1); }
};

// [2][C]: the sums of both vectors that terms(float, lanes, place in the period) gives; lanes past `lanes` do not count.
template <class Terms> Values<double> two_sums(const Pixels &x, long threads, Terms terms) {
    const long period = x.period();
    Values<double> partial = per_piece<double>(threads, x.blocks(), 2 * period);
    each_piece(threads, x.blocks(), [&](long piece, long from, long to) {
        double *out = partial.data() + piece * 2 * period;
        x.each_block(from, to, [&](long begin, long end) {
            for (long r = 0; r < period && begin + r < end; r += LANES) {
                vf first = {}, second = {};
                for (long i = begin + r; i < end; i += period) {
                    auto [a, b] = terms(i, end - i, r);
                    for (long l = end - i; l < LANES; l++) a[l] = b[l] = 0;
                    first += a;
                    second += b;
                }
                addd(out + r, first);
                addd(out + period + r, second);
            }
        });
    });
    sum_pieces(partial, 2 * period);
    Values<double> sums(2 * x.C);
    for (long k = 0; k < 2; k++)
        for (long i = 0; i < period; i++) sums[k * x.C + i % x.C] += partial[k * period + i];
    return sums;
}

struct Two {
    vf first, second;
};

}  // namespace

extern "C" {

// y = gamma (x - mean) / sqrt(var + eps) + beta, with the biased variance, and its positive part if `relu`; mean and var
// [C] are given back.
void norm_forward(const float *x_, long count, long C, const float *gamma, const float *beta, double eps, long relu,
                  float *mean, float *var, float *y, long threads) {
    const Pixels x{count, C};
    Values<float> gain(C), shift(C);
    const Values<float> pivot = pivot_of(x_, C, count, C), near = x.by_lane(pivot.data());
    const Values<double> sums = two_sums(x, threads, [&](long i, long lanes, long r) {
        const vf d = load(x_ + i, lanes) - loadf(near.data() + r);
        return Two{d, d * d};
    });
    for (long c = 0; c < C; c++) {
        const double m = sums[c] / count, v = std::max(sums[C + c] / count - m * m, 0.0);
        const double g = gamma[c] / std::sqrt(v + eps);
        mean[c] = float(pivot[c] + m);
        var[c] = float(v);
        gain[c] = float(g);
        shift[c] = float(beta[c] - g * (pivot[c] + m));
    }
    const Values<float> a = x.by_lane(gain.data()), b = x.by_lane(shift.data());
    x.each_vector(threads, [&](long i, long lanes, long r) {
        const vf v = load(x_ + i, lanes) * loadf(a.data() + r) + loadf(b.data() + r);
        store(y + i, lanes, relu ? positive_part(v) : v);
    });
}

// dx [count][C], dgamma and dbeta [C] of the gradient dy of y, where y > 0 only (everywhere where y is null)
void norm_backward(const float *dy, const float *y, const float *x_, long count, long C, const float *gamma, double eps,
                   const float *mean, const float *var, float *dx, float *dgamma, float *dbeta, long threads) {
    const Pixels x{count, C};
    auto given = [=](long i, long lanes) {
        const vf d = load(dy + i, lanes);
        return y ? select_positive(load(y + i, lanes), d) : d;
    };
    const Values<float> middle = x.by_lane(mean);
    const Values<double> sums = two_sums(x, threads, [&](long i, long lanes, long r) {
        const vf d = given(i, lanes);
        return Two{d, d * (load(x_ + i, lanes) - loadf(middle.data() + r))};
    });
    Values<float> gain(C), slope(C), constant(C);  // dx = gain dy + slope (x - mean) + constant
    for (long c = 0; c < C; c++) {
        const double rstd = 1 / std::sqrt(var[c] + eps), g = gamma[c] * rstd;
        dbeta[c] = float(sums[c]);
        dgamma[c] = float(sums[C + c] * rstd);
        gain[c] = float(g);
        slope[c] = float(-g * rstd * rstd * sums[C + c] / count);
        constant[c] = float(-g * sums[c] / count);
    }
    const Values<float> a = x.by_lane(gain.data()), s = x.by_lane(slope.data()), b = x.by_lane(constant.data());
    x.each_vector(threads, [&](long i, long lanes, long r) {
        const vf away = load(x_ + i, lanes) - loadf(middle.data() + r);
        store(dx + i, lanes, given(i, lanes) * loadf(a.data() + r) + away * loadf(s.data() + r) + loadf(b.data() + r));
    });
}
}
