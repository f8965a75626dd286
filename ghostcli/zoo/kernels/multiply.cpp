// A map of float32 images in channels_last times a coarser map (a gate, a squeeze-excite), and the gradient of that.
// The coarser map is never enlarged: `at_row` [H] and `at_column` [W] give the row and the column of its pixel.
#include "vector.h"

extern "C" {

// out = x gate
void multiply_forward(const float *__restrict x, long pitch, long N, long H, long W, long C, const float *__restrict gate, long h, long w,
                      const int *at_row, const int *at_column, float *__restrict out, long threads) {
    each_thread(threads, N, [&](int, long begin, long end) {
        for (long n = begin; n < end; n++)
            for (long i = 0; i < H * W; i++) {
                const float *__restrict from = x + (n * H * W + i) * pitch;
                const float *__restrict by = gate + ((n * h + at_row[i / W]) * w + at_column[i % W]) * C;
                float *__restrict to = out + (n * H * W + i) * C;
                for (long c = 0; c < C; c++) to[c] = from[c] * by[c];
            }
    });
}

// dx = dout gate, dgate = sum of dout x over the pixels it covers
void multiply_backward(const float *__restrict dout, long dout_pitch, const float *__restrict x, long pitch, long N, long H, long W, long C,
                       const float *__restrict gate, long h, long w, const int *at_row, const int *at_column, float *__restrict dx,
                       float *__restrict dgate, long threads) {
    each_thread(threads, N, [&](int, long begin, long end) {
        std::memset(dgate + begin * h * w * C, 0, (end - begin) * h * w * C * sizeof(float));
        for (long n = begin; n < end; n++)
            for (long i = 0; i < H * W; i++) {
                const float *__restrict d = dout + (n * H * W + i) * dout_pitch, *__restrict v = x + (n * H * W + i) * pitch;
                const long coarse = ((n * h + at_row[i / W]) * w + at_column[i % W]) * C;
                const float *__restrict by = gate + coarse;
                float *__restrict to = dx + (n * H * W + i) * C, *__restrict sum = dgate + coarse;
                for (long c = 0; c < C; c++) {
                    to[c] = d[c] * by[c];
                    sum[c] += d[c] * v[c];
                }
            }
    });
}
}
