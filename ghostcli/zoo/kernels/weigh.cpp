// A map of float32 images in channels_last times a coarser gate and times a scale for each image and channel
// (squeeze-excite), the sums of such a product, and its gradient. Where `gate` or `scale` is null it is left out.
//
// The gate is never enlarged: `at_row` [H] and `at_column` [W] give the row and the column of its pixel. Work is split by
// image, so a result does not depend on the number of threads.
#include "vector.h"

namespace {

struct Gate {
    const float *data;  // [N][h][w][C], or null
    long h, w;
    const int *at_row, *at_column;
};

// Calls work(pixel of the map, pixel of the gate) for the pixels of image n, in rows of W.
template <class Work> inline void each_pixel(const Images &im, const Gate &gate, long n, Work work) {
    for (long i = 0; i < im.H; i++)
        for (long j = 0; j < im.W; j++) {
            const long coarse = gate.data ? (n * gate.h + gate.at_row[i]) * gate.w + gate.at_column[j] : 0;
            work((n * im.H + i) * im.W + j, coarse);
        }
}

// Calls work with a constant: whether there is a gate.
template <class Work> inline void with_gate(const Gate &gate, Work work) {
    if (gate.data) work(std::true_type{});
    else work(std::false_type{});
}

}  // namespace

extern "C" {

// out = x gate scale
void weigh_forward(const float *x, long pitch, long N, long H, long W, long C, const float *gate_, long h, long w,
                   const int *at_row, const int *at_column, const float *scale, float *out, long threads) {
    const Images im{N, H, W, C, pitch};
    const Gate gate{gate_, h, w, at_row, at_column};
    with_gate(gate, [&](auto gated) {
        each_piece(threads, N, [&](long, long begin, long end) {
            const Values<float> ones(scale ? 0 : C, 1.f);
            for (long n = begin; n < end; n++)
                each_pixel(im, gate, n, [&](long pixel, long coarse) {
                    const float *__restrict from = x + pixel * pitch, *__restrict by = gate.data + coarse * C;
                    const float *__restrict s = scale ? scale + n * C : ones.data();
                    float *__restrict to = out + pixel * C;
                    for (long c = 0; c < C; c++) to[c] = (gated.value ? from[c] * by[c] : from[c]) * s[c];
                });
        });
    });
}

// out [N][C] = sums of x gate over the pixels of an image, times `by` where it is given
void weigh_total(const float *x, long pitch, long N, long H, long W, long C, const float *gate_, long h, long w,
                 const int *at_row, const int *at_column, const float *by, long by_pitch, float *out, long threads) {
    const Images im{N, H, W, C, pitch};
    const Gate gate{gate_, h, w, at_row, at_column};
    with_gate(gate, [&](auto gated) {
        each_piece(threads, N, [&](long, long begin, long end) {
            Values<float> line(C);
            for (long n = begin; n < end; n++) {
                float *__restrict sum = out + n * C, *__restrict of_row = line.data();
                std::fill(sum, sum + C, 0.f);
                each_pixel(im, gate, n, [&](long pixel, long coarse) {
                    const float *__restrict from = x + pixel * pitch, *__restrict g = gate.data + coarse * C;
                    const float *__restrict d = by + pixel * by_pitch;
                    for (long c = 0; c < C; c++) {
                        const float v = gated.value ? from[c] * g[c] : from[c];
                        of_row[c] += by ? v * d[c] : v;
                    }
                    if ((pixel + 1) % W) return;  // sums of sums: fewer digits are lost
                    for (long c = 0; c < C; c++) sum[c] += of_row[c];
                    std::fill(of_row, of_row + C, 0.f);
                });
            }
        });
    });
}

// With d = dout scale + dtotal: dx = d gate, and the gradient of the gate's logits, gate (1 - gate) times the sum of d x
// over the pixels that it covers.
void weigh_backward(const float *dout, long dout_pitch, const float *x, long pitch, long N, long H, long W, long C,
                    const float *gate_, long h, long w, const int *at_row, const int *at_column, const float *scale,
                    const float *dtotal, float *dx, float *dgate, long threads) {
    const Images im{N, H, W, C, pitch};
    const Gate gate{gate_, h, w, at_row, at_column};
    const long size = h * w * C;
    with_gate(gate, [&](auto gated) {
        each_piece(threads, N, [&](long, long begin, long end) {
            const Values<float> ones(scale ? 0 : C, 1.f), zeros(dtotal ? 0 : C);
            if (gated.value) std::memset(dgate + begin * size, 0, (end - begin) * size * sizeof(float));
            for (long n = begin; n < end; n++) {
                const float *__restrict s = scale ? scale + n * C : ones.data();
                const float *__restrict t = dtotal ? dtotal + n * C : zeros.data();
                each_pixel(im, gate, n, [&](long pixel, long coarse) {
                    const float *__restrict d_ = dout + pixel * dout_pitch, *__restrict v = x + pixel * pitch;
                    const float *__restrict g = gate.data + coarse * C;
                    float *__restrict to = dx + pixel * C, *__restrict sum = dgate + coarse * C;
                    for (long c = 0; c < C; c++) {
                        const float d = d_[c] * s[c] + t[c];
                        to[c] = gated.value ? d * g[c] : d;
                        if (gated.value) sum[c] += d * v[c];
                    }
                });
                if (!gated.value) continue;
                for (long i = n * size; i < (n + 1) * size; i++) dgate[i] *= gate.data[i] * (1.f - gate.data[i]);
            }
        });
    });
}
}
