// The algebra of a folded sum, in one call each way: fold the branches before the convolution, and turn the gradients
// of kernel and bias into those of the branches after it. zoo/folded.py has the formulas and the names.
//
// A branch has rows w [O][T]: `weight` [B][O][T], then, where `scale_weight` is given, rows that are zero but for
// their middle tap, then, where `identity` is set, rows of the identity. Gains, means and so on are [B'][O], B' with
// these two. Each output channel is computed by one thread, so no result depends on the number of threads.
#include <cmath>

#include "algebra.h"
#include "vector.h"

namespace {

constexpr float EPS = 1e-5f;

struct Branches {
    const float *weight, *gamma, *beta, *scale_weight, *scale_gamma, *scale_beta, *identity_gamma, *identity_beta;
    long B, O, T;

    long count() const { return B + (scale_weight != nullptr) + (identity_gamma != nullptr); }
    bool is_scale(long b) const { return b == B && scale_weight; }
    float gain(long b, long o) const {
        return b < B ? gamma[b * O + o] : is_scale(b) ? scale_gamma[o] : identity_gamma[o];
    }
    float shift(long b, long o) const {
        return b < B ? beta[b * O + o] : is_scale(b) ? scale_beta[o] : identity_beta[o];
    }
    // A branch whose row has one tap that is not zero: the tap's value.
    float single(long b, long o) const { return is_scale(b) ? scale_weight[o] : 1.f; }
};

struct Norms {  // [B'][O]
    const float *gain, *rstd, *mean;
};

double dot(const float *a, const float *b, long n) {
    double sum[LANES] = {};
    long i = 0;
    for (; i + LANES <= n; i += LANES)
        for (long l = 0; l < LANES; l++) sum[l] += double(a[i + l]) * b[i + l];
    double total = 0;
    for (long l = 0; l < LANES; l++) total += sum[l];
    for (; i < n; i++) total += double(a[i]) * b[i];
    return total;
}

// out += factor x
inline void axpy(float *__restrict out, float factor, const float *__restrict x, long n) {
    for (long i = 0; i < n; i++) out[i] += factor * x[i];
}

// What the gradients of kernel and bias mean for one branch of one channel.
struct Change {
    float dgain, dmean, dvar;

    Change(double dkernel_row, float dbias, const Norms &n, long at)
        : dgain(float(dkernel_row - double(dbias) * n.mean[at])), dmean(-dbias * n.gain[at]),
          dvar(-0.5f * dgain * n.gain[at] * n.rstd[at] * n.rstd[at]) {}
};

}  // namespace

extern "C" {

// mean [T], cov [T][T] -> kernel [O][T], bias [O], rows_cov [B][O][T], and the norms
void dense_fold(const float *weight, const float *gamma, const float *beta, const float *identity_gamma,
                const float *identity_beta, long B, long O, long T, const float *mean, const float *cov, float *kernel,
                float *bias, float *rows_cov, float *gain, float *rstd, float *means, float *vars, long threads) {
    const Branches p{weight, gamma, beta, nullptr, nullptr, nullptr, identity_gamma, identity_beta, B, O, T};
    auto normalise = [&](long at, float gamma_, double branch_mean, double branch_var) {
        means[at] = float(branch_mean);
        vars[at] = float(std::max(branch_var, 0.0));
        rstd[at] = 1.f / std::sqrt(vars[at] + EPS);
        gain[at] = gamma_ * rstd[at];
    };
    each_piece(threads, O, [&](long, long begin, long end) {
        for (long o = begin; o < end; o++) {
            float *row = kernel + o * T;
            std::fill(row, row + T, 0.f);
            double sum = 0;
            for (long b = 0; b < p.count(); b++) {
                const long at = b * O + o;
                if (b < B) {
                    const float *w = weight + at * T;
                    float *wR = rows_cov + at * T;
                    std::fill(wR, wR + T, 0.f);
                    for (long i = 0; i < T; i++) axpy(wR, w[i], cov + i * T, T);
                    normalise(at, p.gain(b, o), dot(w, mean, T), dot(wR, w, T));
                    axpy(row, gain[at], w, T);
                } else {
                    normalise(at, p.gain(b, o), mean[o], cov[o * T + o]);
                    row[o] += gain[at];
                }
                sum += p.shift(b, o) - double(gain[at]) * means[at];
            }
            bias[o] = float(sum);
        }
    });
}

// dkernel [O][T], dbias [O], of `patches` patches -> gradients of the branches, S [T][T], t [T]
void dense_unfold(const float *weight, long B, long O, long T, const float *mean, const float *rows_cov,
                  const float *gain, const float *rstd, const float *means, const float *dkernel, const float *dbias,
                  double patches, float *dweight, float *dgamma, float *didentity, float *S, float *t, long threads) {
    const Norms norms{gain, rstd, means};
    const long all = B + (didentity != nullptr);
    Values<float> dmean(all * O), curve(all * O);  // curve: dvar 2 / patches
    each_piece(threads, O, [&](long, long begin, long end) {
        for (long o = begin; o < end; o++)
            for (long b = 0; b < all; b++) {
                const long at = b * O + o;
                const float *dk = dkernel + o * T;
                const Change change(b < B ? dot(dk, weight + at * T, T) : dk[o], dbias[o], norms, at);
                dmean[at] = change.dmean;
                curve[at] = float(change.dvar * (2 / patches));
                (b < B ? dgamma[at] : didentity[o]) = change.dgain * rstd[at];
                if (b == B) continue;
                float *__restrict dw = dweight + at * T;
                const float *wR = rows_cov + at * T;
                for (long i = 0; i < T; i++)
                    dw[i] = gain[at] * dk[i] + change.dmean * mean[i] + 2 * change.dvar * wR[i];
            }
    });
    each_piece(threads, T, [&](long, long begin, long end) {
        for (long i = begin; i < end; i++) {
            float *row = S + i * T;
            std::fill(row, row + T, 0.f);
            double constant = 0;
            for (long at = 0; at < B * O; at++) {
                const float *w = weight + at * T;
                axpy(row, curve[at] * w[i], w, T);
                constant += double(dmean[at]) * w[i];
            }
            if (all > B) {
                row[i] += curve[B * O + i];
                constant += dmean[B * O + i];
            }
            t[i] = float(constant / patches - dot(row, mean, T));
        }
    });
}

// mean [O][T], cov [O][T][T] -> the same, rows_cov [B'][O][T]
void depthwise_fold(const float *weight, const float *gamma, const float *beta, const float *scale_weight,
                    const float *scale_gamma, const float *scale_beta, const float *identity_gamma,
                    const float *identity_beta, long B, long O, long T, const float *mean, const float *cov,
                    float *kernel, float *bias, float *rows_cov, float *gain, float *rstd, float *means, float *vars,
                    long threads) {
    const Branches p{weight, gamma, beta, scale_weight, scale_gamma, scale_beta, identity_gamma, identity_beta,
                     B, O, T};
    auto normalise = [&](long at, float gamma_, double branch_mean, double branch_var) {
        means[at] = float(branch_mean);
        vars[at] = float(std::max(branch_var, 0.0));
        rstd[at] = 1.f / std::sqrt(vars[at] + EPS);
        gain[at] = gamma_ * rstd[at];
    };
    const long middle = T / 2;
    each_piece(threads, O, [&](long, long begin, long end) {
        for (long o = begin; o < end; o++) {
            const float *m = mean + o * T, *R = cov + o * T * T;
            float *row = kernel + o * T;
            std::fill(row, row + T, 0.f);
            double sum = 0;
            for (long b = 0; b < p.count(); b++) {
                const long at = b * O + o;
                float *wR = rows_cov + at * T;
                if (b < B) {
                    const float *w = weight + at * T;
                    std::fill(wR, wR + T, 0.f);
                    for (long i = 0; i < T; i++) axpy(wR, w[i], R + i * T, T);
                    normalise(at, p.gain(b, o), dot(w, m, T), dot(wR, w, T));
                    axpy(row, gain[at], w, T);
                } else {
                    const float w = p.single(b, o);
                    for (long i = 0; i < T; i++) wR[i] = w * R[middle * T + i];
                    normalise(at, p.gain(b, o), double(w) * m[middle], double(w) * wR[middle]);
                    row[middle] += gain[at] * w;
                }
                sum += p.shift(b, o) - double(gain[at]) * means[at];
            }
            bias[o] = float(sum);
        }
    });
}

// S [O][T][T], t [O][T]
void depthwise_unfold(const float *weight, const float *scale_weight, long B, long O, long T, const float *mean,
                      const float *rows_cov, const float *gain, const float *rstd, const float *means,
                      const float *dkernel, const float *dbias, double patches, float *dweight, float *dgamma,
                      float *dscale_weight, float *dscale, float *didentity, float *S, float *t, long threads) {
    const Norms norms{gain, rstd, means};
    const long all = B + (dscale != nullptr) + (didentity != nullptr);
    const long middle = T / 2;
    each_piece(threads, O, [&](long, long begin, long end) {
        for (long o = begin; o < end; o++) {
            const float *m = mean + o * T, *dk = dkernel + o * T;
            float *S_ = S + o * T * T, *t_ = t + o * T;
            std::fill(S_, S_ + T * T, 0.f);
            std::fill(t_, t_ + T, 0.f);
            for (long b = 0; b < all; b++) {
                const long at = b * O + o;
                const float *wR = rows_cov + at * T;
                if (b < B) {
                    const float *w = weight + at * T;
                    const Change change(dot(dk, w, T), dbias[o], norms, at);
                    const float curve = float(change.dvar * (2 / patches));
                    dgamma[at] = change.dgain * rstd[at];
                    for (long i = 0; i < T; i++) {
                        dweight[at * T + i] = gain[at] * dk[i] + change.dmean * m[i] + 2 * change.dvar * wR[i];
                        axpy(S_ + i * T, curve * w[i], w, T);
                        t_[i] += change.dmean * w[i];
                    }
                    continue;
                }
                const bool is_scale = b == B && dscale;
                const float w = is_scale ? scale_weight[o] : 1.f;
                const Change change(double(w) * dk[middle], dbias[o], norms, at);
                (is_scale ? dscale : didentity)[o] = change.dgain * rstd[at];
                if (is_scale)
                    dscale_weight[o] =
                        gain[at] * dk[middle] + change.dmean * m[middle] + 2 * change.dvar * wR[middle];
                S_[middle * T + middle] += float(change.dvar * (2 / patches)) * w * w;
                t_[middle] += change.dmean * w;
            }
            for (long i = 0; i < T; i++) t_[i] = float(t_[i] / patches - dot(S_ + i * T, m, T));
        }
    });
}

// Running statistics follow the batch's: by `momentum`, and to the unbiased variance. Up to three norms (of no channels
// where there are fewer) take their means and variances one after the other.
void track(const float *means, const float *vars, double momentum_, double unbias_, long n0, float *mean0, float *var0,
           long n1, float *mean1, float *var1, long n2, float *mean2, float *var2, long) {
    const float momentum = float(momentum_), unbias = float(unbias_);
    auto follow = [&](long count, float *running_mean, float *running_var) {
        for (long i = 0; i < count; i++) {
            running_mean[i] += momentum * (*means++ - running_mean[i]);
            running_var[i] += momentum * (unbias * *vars++ - running_var[i]);
        }
    };
    follow(n0, mean0, var0);
    follow(n1, mean1, var1);
    follow(n2, mean2, var2);
}
}
