/* Sums over the pixels of each channel for losses of independent channels, and their gradient. */
#pragma once
#include "dense.h"

#define SIGMOID_SUMS 8 /* w min(p, t), w p, w t, w p^2, w t^2, how many are not void, w BCE, w */
#define SIGMOID_RUN (16 * BLOCK)

#define SIGMOID_ARGUMENTS \
    const void *logits, int dtype, const void *target, int target_dtype, const float *weight, \
    const float *pos_weight, int ignores, double ignore, int64_t images, int64_t channels, \
    int64_t pixels, int last, int threads

/* Where the elements of one channel of one image start, and how far apart they are. */
INLINE int64_t channel_start(int64_t channel, int64_t channels, int64_t pixels, int last)
{
    return last ? channel / channels * channels * pixels + channel % channels : channel * pixels;
}

/* `b` is what a positive counts for in the BCE. */
INLINE void add_block(const block x, int64_t n, float b, const int overlap, const int squares,
                      const int entropy, double *row)
{
    float both = 0, predicted = 0, true_ = 0, p2 = 0, t2 = 0, counted = 0, values = 0, total = 0;
    if (x.w) {
        SIMD_SUM(both, predicted, true_, p2, t2, counted, values, total)
        for (int64_t i = 0; i < n; i++) {
            const sides s = sigmoid(x.z[i]);
            const float w = x.w[i], t = x.t[i];
            if (overlap) {
                both += w * smaller_or_nan(s.p, t);
                predicted += w * s.p;
                true_ += w * t;
            }
            if (squares) {
                p2 += w * s.p * s.p;
                t2 += w * t * t;
            }
            counted += w != 0.0f ? 1.0f : 0.0f;
            values -= entropy ? w * FMA(b * t, s.log_p, (1.0f - t) * s.log_q) : 0.0f;
            total += w;
        }
    } else {
        SIMD_SUM(both, predicted, true_, p2, t2, values)
        for (int64_t i = 0; i < n; i++) {
            const sides s = sigmoid(x.z[i]);
            const float t = x.t[i];
            if (overlap) {
                both += smaller_or_nan(s.p, t);
                predicted += s.p;
                true_ += t;
            }
            if (squares) {
                p2 += s.p * s.p;
                t2 += t * t;
            }
            values -= entropy ? FMA(b * t, s.log_p, (1.0f - t) * s.log_q) : 0.0f;
        }
        counted = total = (float)n;
    }
    const float found[SIGMOID_SUMS] = {both, predicted, true_, p2, t2, counted, values, total};
    for (int j = 0; j < SIGMOID_SUMS; j++)
        row[j] += found[j];
}

/* sums: [images channels columns], the others: [images channels]; entropy
 * and weights may be 0 */
EXPORT int denseloss_sigmoid(SIGMOID_ARGUMENTS, int columns, float *sums, float *present,
                             float *entropy, float *weights)
{
    const elements e = {logits, target, weight, ignore, dtype, target_dtype, ignores};
    const int64_t runs = (pixels + SIGMOID_RUN - 1) / SIGMOID_RUN, rows = images * channels;
    const int64_t stride = last ? channels : 1;
    const int members = team(threads, rows * pixels, 16384);
    double *work = allocate(sizeof(double) * rows * runs * SIGMOID_SUMS);
    if (!work)
        return 1;
#pragma omp parallel for schedule(dynamic) num_threads(members) if (members > 1)
    for (int64_t task = 0; task < rows * runs; task++) {
        block_space space;
        const int64_t begin = task % runs * SIGMOID_RUN, end = least(begin + SIGMOID_RUN, pixels);
        const int64_t channel = task / runs;
        const int64_t origin = channel_start(channel, channels, pixels, last);
        const float b = pos_weight ? pos_weight[channel % channels] : 1.0f;
        double *row = work + task * SIGMOID_SUMS;
        memset(row, 0, sizeof(double) * SIGMOID_SUMS);
        for (int64_t at = begin; at < end; at += BLOCK) {
            const int64_t n = least(BLOCK, end - at);
            const block x = cleared(&e, origin + at * stride, stride, n, &space);
            if (columns == 5) add_block(x, n, b, 1, 1, 1, row);
            else if (columns && entropy) add_block(x, n, b, 1, 0, 1, row);
            else if (columns) add_block(x, n, b, 1, 0, 0, row);
            else add_block(x, n, b, 0, 0, 1, row);
        }
    }
    for (int64_t channel = 0; channel < rows; channel++) {
        double total[SIGMOID_SUMS] = {0.0};
        for (int64_t run = 0; run < runs; run++)
            for (int j = 0; j < SIGMOID_SUMS; j++)
                total[j] += work[(channel * runs + run) * SIGMOID_SUMS + j];
        for (int j = 0; j < columns; j++)
            sums[channel * columns + j] = (float)total[j];
        present[channel] = total[5] > 0.0 ? 1.0f : 0.0f;
        if (entropy) {
            entropy[channel] = (float)total[6];
            weights[channel] = (float)total[7];
        }
    }
    free(work);
    return 0;
}

/* The slope of min(p, t) by p. Where both are equal it is that of w p t for t of 0 and 1. */
INLINE float slope_of_smaller(float p, float t)
{
    const float tie = t >= 1.0f ? 1.0f : t <= 0.0f ? 0.0f : 0.5f;
    return p < t ? 1.0f : p > t ? 0.0f : tie;
}

INLINE void block_gradient(const block x, int64_t n, float b, const int overlap, const int squares,
                           const int entropy, const float *up, float by_entropy, float *d)
{
    const float both = overlap ? up[0] : 0.0f, predicted = overlap ? up[1] : 0.0f;
    const float square = squares ? 2.0f * up[3] : 0.0f;
    SIMD
    for (int64_t i = 0; i < n; i++) {
        const sides s = sigmoid(x.z[i]);
        const float t = x.t[i];
        float slope = entropy ? by_entropy * FMA(1.0f - t, s.p, -b * t * s.q) : 0.0f;
        if (overlap) {
            float by_p = FMA(both, slope_of_smaller(s.p, t), predicted);
            if (squares)
                by_p = FMA(square, s.p, by_p);
            /* comparisons drop NaN: it comes back with the difference */
            slope = FMA(by_p, s.p * s.q, slope) + (t - t);
        }
        d[i] = slope;
    }
    if (x.w)
        SIMD
        for (int64_t i = 0; i < n; i++)
            d[i] = x.w[i] == 0.0f ? 0.0f : x.w[i] * d[i];
}

/* grad_sums: [images channels columns] or 0, grad_entropy: [images channels] or 0 */
EXPORT void denseloss_sigmoid_backward(SIGMOID_ARGUMENTS, int columns, const float *grad_sums,
                                       const float *grad_entropy, void *grad)
{
    const elements e = {logits, target, weight, ignore, dtype, target_dtype, ignores};
    const int64_t runs = (pixels + SIGMOID_RUN - 1) / SIGMOID_RUN, rows = images * channels;
    const int64_t stride = last ? channels : 1;
    const int members = team(threads, rows * pixels, 16384);
    const int direct = dtype == FLOAT32 && stride == 1;
    fresh(grad, dtype, rows * pixels);
#pragma omp parallel for schedule(dynamic) num_threads(members) if (members > 1)
    for (int64_t task = 0; task < rows * runs; task++) {
        block_space space;
        float scratch[BLOCK];
        const int64_t begin = task % runs * SIGMOID_RUN, end = least(begin + SIGMOID_RUN, pixels);
        const int64_t channel = task / runs;
        const int64_t origin = channel_start(channel, channels, pixels, last);
        const float b = pos_weight ? pos_weight[channel % channels] : 1.0f;
        const float *up = grad_sums ? grad_sums + channel * columns : 0;
        const float by_entropy = grad_entropy ? grad_entropy[channel] : 0.0f;
        for (int64_t at = begin; at < end; at += BLOCK) {
            const int64_t n = least(BLOCK, end - at), start = origin + at * stride;
            const block x = cleared(&e, start, stride, n, &space);
            float *d = direct ? (float *)grad + start : scratch;
            if (up && columns == 5) block_gradient(x, n, b, 1, 1, 1, up, by_entropy, d);
            else if (up && grad_entropy) block_gradient(x, n, b, 1, 0, 1, up, by_entropy, d);
            else if (up) block_gradient(x, n, b, 1, 0, 0, up, by_entropy, d);
            else block_gradient(x, n, b, 0, 0, 1, up, by_entropy, d);
            if (!direct)
                write_from(d, grad, dtype, start, stride, n);
        }
    }
}
