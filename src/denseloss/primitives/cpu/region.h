/* Sums over the pixels of each channel of sigmoid losses, and their gradient. */
#pragma once
#include "pointwise.h"

#define REGION_SUMS 6 /* w p t, w p, w t, how many are not void, w v, w */
#define REGION_RUN (16 * BLOCK)

#define REGION_ARGUMENTS \
    const void *logits, int dtype, const void *target, int target_dtype, const float *weight, \
    int ignores, double ignore, int kind, float a, float g, int64_t images, int64_t channels, \
    int64_t pixels, int last, int threads

/* Where the elements of one channel of one image start, and how far apart they are. */
INLINE int64_t channel_start(int64_t channel, int64_t channels, int64_t pixels, int last)
{
    return last ? channel / channels * channels * pixels + channel % channels : channel * pixels;
}

EXPORT int64_t denseloss_region_work(int64_t images, int64_t channels, int64_t pixels)
{
    return images * channels * ((pixels + REGION_RUN - 1) / REGION_RUN) * REGION_SUMS;
}

/* sums: float [images * channels][6] */
EXPORT void denseloss_region(REGION_ARGUMENTS, double *work, float *sums)
{
    const elements e = {logits, target, weight, ignore, dtype, target_dtype, ignores};
    const int64_t runs = (pixels + REGION_RUN - 1) / REGION_RUN, rows = images * channels;
    const int64_t stride = last ? channels : 1;
    const int members = team(threads, rows * pixels, 16384);
#pragma omp parallel for schedule(dynamic) num_threads(members)
    for (int64_t task = 0; task < rows * runs; task++) {
        block_space space;
        float v[BLOCK];
        const int64_t begin = task % runs * REGION_RUN, end = least(begin + REGION_RUN, pixels);
        const int64_t origin = channel_start(task / runs, channels, pixels, last);
        double *row = work + task * REGION_SUMS;
        memset(row, 0, sizeof(double) * REGION_SUMS);
        for (int64_t at = begin; at < end; at += BLOCK) {
            const int64_t n = least(BLOCK, end - at);
            const block x = cleared(&e, origin + at * stride, stride, n, &space);
            float both = 0.0f, predicted = 0.0f, true_ = 0.0f, weights = 0.0f, values = 0.0f;
            float counted = 0.0f;
            if (kind != NO_TERM)
                block_terms(kind, n, x.z, x.t, 0, a, g, v, 0);
            if (x.w) {
                SIMD_SUM(both, predicted, true_, weights, counted)
                for (int64_t i = 0; i < n; i++) {
                    const float wp = x.w[i] * sigmoid(x.z[i]).p;
                    both += wp * x.t[i];
                    predicted += wp;
                    true_ += x.w[i] * x.t[i];
                    weights += x.w[i];
                    counted += x.w[i] != 0.0f ? 1.0f : 0.0f;
                }
            } else {
                SIMD_SUM(both, predicted, true_)
                for (int64_t i = 0; i < n; i++) {
                    const float p = sigmoid(x.z[i]).p;
                    both += p * x.t[i];
                    predicted += p;
                    true_ += x.t[i];
                }
                weights = counted = (float)n;
            }
            if (kind != NO_TERM) {
                SIMD_SUM(values)
                for (int64_t i = 0; i < n; i++)
                    values += x.w ? x.w[i] * v[i] : v[i];
            }
            row[0] += both;
            row[1] += predicted;
            row[2] += true_;
            row[3] += counted;
            row[4] += values;
            row[5] += weights;
        }
    }
    for (int64_t row = 0; row < rows; row++)
        for (int64_t j = 0; j < REGION_SUMS; j++) {
            double total = 0.0;
            for (int64_t run = 0; run < runs; run++)
                total += work[(row * runs + run) * REGION_SUMS + j];
            sums[row * REGION_SUMS + j] = (float)total;
        }
}

/* upstream: float [images * channels][3], the gradients of w p t, w p and w v */
EXPORT void denseloss_region_backward(REGION_ARGUMENTS, const float *upstream, void *grad)
{
    const elements e = {logits, target, weight, ignore, dtype, target_dtype, ignores};
    const int64_t runs = (pixels + REGION_RUN - 1) / REGION_RUN, rows = images * channels;
    const int64_t stride = last ? channels : 1;
    const int members = team(threads, rows * pixels, 16384);
#pragma omp parallel for schedule(dynamic) num_threads(members)
    for (int64_t task = 0; task < rows * runs; task++) {
        block_space space;
        float d[BLOCK];
        const int64_t begin = task % runs * REGION_RUN, end = least(begin + REGION_RUN, pixels);
        const int64_t origin = channel_start(task / runs, channels, pixels, last);
        const float *up = upstream + task / runs * 3;
        const float both = up[0], predicted = up[1], value = up[2];
        for (int64_t at = begin; at < end; at += BLOCK) {
            const int64_t n = least(BLOCK, end - at), start = origin + at * stride;
            const block x = cleared(&e, start, stride, n, &space);
            if (kind != NO_TERM)
                block_terms(kind, n, x.z, x.t, 0, a, g, 0, d);
            else
                memset(d, 0, sizeof(float) * (size_t)n);
            const float share = kind == NO_TERM ? 0.0f : value;
            SIMD
            for (int64_t i = 0; i < n; i++) {
                const sides s = sigmoid(x.z[i]);
                d[i] = FMA(share, d[i], FMA(both, x.t[i], predicted) * s.p * s.q);
            }
            if (x.w)
                SIMD
                for (int64_t i = 0; i < n; i++)
                    d[i] = x.w[i] == 0.0f ? 0.0f : x.w[i] * d[i];
            write_from(d, grad, dtype, start, stride, n);
        }
    }
}
