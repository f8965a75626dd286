// What algebra.cpp gives to the sums of branches in pointwise.cpp and depthwise.cpp.
#pragma once

extern "C" {
void dense_fold(const float *weight, const float *gamma, const float *beta, const float *identity_gamma,
                const float *identity_beta, long B, long O, long T, const float *mean, const float *cov, float *kernel,
                float *bias, float *rows_cov, float *gain, float *rstd, float *means, float *vars, long threads);
void dense_unfold(const float *weight, long B, long O, long T, const float *mean, const float *rows_cov,
                  const float *gain, const float *rstd, const float *means, const float *dkernel, const float *dbias,
                  double patches, float *dweight, float *dgamma, float *didentity, float *S, float *t, long threads);
void depthwise_fold(const float *weight, const float *gamma, const float *beta, const float *scale_weight,
                    const float *scale_gamma, const float *scale_beta, const float *identity_gamma,
                    const float *identity_beta, long B, long O, long T, const float *mean, const float *cov,
                    float *kernel, float *bias, float *rows_cov, float *gain, float *rstd, float *means, float *vars,
                    long threads);
void depthwise_unfold(const float *weight, const float *scale_weight, long B, long O, long T, const float *mean,
                      const float *rows_cov, const float *gain, const float *rstd, const float *means,
                      const float *dkernel, const float *dbias, double patches, float *dweight, float *dgamma,
                      float *dscale_weight, float *dscale, float *didentity, float *S, float *t, long threads);
void track(const float *means, const float *vars, double momentum, double unbias, long n0, float *mean0, float *var0,
           long n1, float *mean1, float *var1, long n2, float *mean2, float *var2, long threads);
}

// What the backward pass of a sum needs, one after the other in `state`. `every`: branches with scale and identity,
// `rows`: those with a row of their own in rows_cov.
struct Fold {
    float *kernel, *bias, *rows_cov, *gain, *rstd, *mean, *var, *patch_mean;

    Fold(float *state, long every, long rows, long O, long T)
        : kernel(state), bias(kernel + O * T), rows_cov(bias + O), gain(rows_cov + rows * O * T),
          rstd(gain + every * O), mean(rstd + every * O), var(mean + every * O), patch_mean(var + every * O) {}
};
