/* Sums over the pixels of each channel of sigmoid losses, and their gradient. */
#pragma once
#include "pointwise.h"

#define REGION_SUMS 6 /* w p t, w p, w t, how many are not void, w BCE, w */
#define REGION_RUN (16 * BLOCK)

#define REGION_ARGUMENTS \
    const void *logits, int dtype, const void *target, int target_dtype, const float *weight, \
    int ignores, double ignore, int entropy, int64_t images, int64_t channels, \
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

INLINE void add_block(const block x, int64_t n, const int entropy, float *sums)
{
    float both = 0.0f, predicted = 0.0f, true_ = 0.0f, counted = 0.0f, values = 0.0f, total = 0.0f;
    if (x.w) {
        SIMD_SUM(both, predicted, true_, counted, values, total)
        for (int64_t i = 0; i < n; i++) {
            const sides s = sigmoid(x.z[i]);
            const float w = x.w[i];
            both += w * s.p * x.t[i];
            predicted += w * s.p;
            true_ += w * x.t[i];
            counted += w != 0.0f ? 1.0f : 0.0f;
            values += entropy ? w * element(s, x.t[i], 1.0f, 0.0f, 0.0f, BCE, POWER_0).value : 0.0f;
            total += w;
        }
    } else {
        SIMD_SUM(both, predicted, true_, values)
        for (int64_t i = 0; i < n; i++) {
            const sides s = sigmoid(x.z[i]);
            both += s.p * x.t[i];
            predicted += s.p;
            true_ += x.t[i];
            values += entropy ? element(s, x.t[i], 1.0f, 0.0f, 0.0f, BCE, POWER_0).value : 0.0f;
        }
        counted = total = (float)n;
    }
    const float found[REGION_SUMS] = {both, predicted, true_, counted, values, total};
    memcpy(sums, found, sizeof found);
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
        const int64_t begin = task % runs * REGION_RUN, end = least(begin + REGION_RUN, pixels);
        const int64_t origin = channel_start(task / runs, channels, pixels, last);
        double *row = work + task * REGION_SUMS;
        memset(row, 0, sizeof(double) * REGION_SUMS);
        for (int64_t at = begin; at < end; at += BLOCK) {
            const int64_t n = least(BLOCK, end - at);
            const block x = cleared(&e, origin + at * stride, stride, n, &space);
            float part[REGION_SUMS] = {0.0f};
            if (entropy)
                add_block(x, n, 1, part);
            else
                add_block(x, n, 0, part);
            for (int j = 0; j < REGION_SUMS; j++)
                row[j] += part[j];
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

/* upstream: float [images * channels][3], the gradients of w p t, w p and w BCE */
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
            const float share = entropy ? value : 0.0f;
            SIMD
            for (int64_t i = 0; i < n; i++) {
                const sides s = sigmoid(x.z[i]);
                const float t = x.t[i], slope = FMA(1.0f - t, s.p, -t * s.q);
                d[i] = FMA(share, slope, FMA(both, t, predicted) * s.p * s.q);
            }
            if (x.w)
                SIMD
                for (int64_t i = 0; i < n; i++)
                    d[i] = x.w[i] == 0.0f ? 0.0f : x.w[i] * d[i];
            write_from(d, grad, dtype, start, stride, n);
        }
    }
}
