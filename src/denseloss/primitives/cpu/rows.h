/* What losses of rows of a few numbers share: pairs of boxes, and distributions over bins. */
#pragma once
#include "elements.h"

static double block_sum(const float *x, int64_t n)
{
    float sum = 0.0f;
    SIMD_SUM(sum)
    for (int64_t i = 0; i < n; i++)
        sum += x[i];
    return sum;
}

/* What all row-wise losses do with a block of values: weigh, store, add up. */
static void finish_rows(float *v, const float *weight, int64_t n, float *values, double *part)
{
    if (weight)
        for (int64_t i = 0; i < n; i++)
            v[i] = weight[i] == 0.0f ? 0.0f : weight[i] * v[i];
    if (values)
        memcpy(values, v, sizeof(float) * (size_t)n);
    part[0] += block_sum(v, n);
    part[1] += weight ? block_sum(weight, n) : (double)n;
}

/* The factor of the gradient of each row. */
static void row_factors(float *factor, const float *weight, const float *upstream, int mapped,
                        float scale, int64_t first, int64_t n)
{
    const float common = upstream && !mapped ? *upstream * scale : scale;
    for (int64_t i = 0; i < n; i++) {
        const float w = weight ? weight[i] : 1.0f;
        factor[i] = w == 0.0f ? 0.0f : common * w * (mapped ? upstream[first + i] : 1.0f);
    }
}

static void add_parts(double parts[][2], int members, float scale, float *sums)
{
    double value = 0.0, weight = 0.0;
    for (int part = 0; part < members; part++) {
        value += parts[part][0];
        weight += parts[part][1];
    }
    if (sums) {
        sums[0] = (float)(scale * value);
        sums[1] = (float)weight;
    }
}
