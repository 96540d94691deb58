/* Weighted means, and ratios of linear forms of sums. */
#pragma once
#include "elements.h"

/* What one float sums up: few enough to be exact to a few ulps where nothing is vectorised, too. */
#define MEAN_BLOCK 256
#define MEAN_RUN (128 * MEAN_BLOCK)

/* result: the mean (or the sum, where not `divide`) and the count; count may be 0: the weight. */
EXPORT int denseloss_weighted_mean(const float *values, const float *weight, const float *count,
                                   int64_t size, int divide, int threads, float *result,
                                   float *total)
{
    const int64_t runs = (size + MEAN_RUN - 1) / MEAN_RUN;
    const int members = team(threads, size, 65536);
    double few_parts[32], *parts = runs > 16 ? allocate(sizeof(double) * 2 * runs) : few_parts;
    if (!parts)
        return 1;
    const float *counted = count ? count : weight;
#pragma omp parallel for schedule(static) num_threads(members) if (members > 1)
    for (int64_t run = 0; run < runs; run++) {
        double sum = 0.0, whole = 0.0;
        const int64_t end = least((run + 1) * MEAN_RUN, size);
        for (int64_t at = run * MEAN_RUN; at < end; at += MEAN_BLOCK) {
            const int64_t n = least(MEAN_BLOCK, end - at);
            float part = 0.0f, part_count = 0.0f;
            SIMD_SUM(part, part_count)
            for (int64_t i = at; i < at + n; i++) {
                const float w = weight[i];
                part += w == 0.0f ? 0.0f : w * values[i];
                part_count += counted[i];
            }
            sum += part;
            whole += part_count;
        }
        parts[2 * run] = sum;
        parts[2 * run + 1] = whole;
    }
    double sum = 0.0, whole = 0.0;
    for (int64_t run = 0; run < runs; run++) {
        sum += parts[2 * run];
        whole += parts[2 * run + 1];
    }
    if (parts != few_parts)
        free(parts);
    *total = (float)whole;
    *result = (float)(divide ? sum / (whole == 0.0 ? 1.0 : whole) : sum);
    return 0;
}

EXPORT void denseloss_weighted_mean_backward(const float *upstream, const float *total, const float *weight,
                                             int64_t size, int divide, int threads, float *grad)
{
    const float factor = divide ? *upstream / (*total == 0.0f ? 1.0f : *total) : *upstream;
    const int members = team(threads, size, 65536);
#pragma omp parallel for simd schedule(static) num_threads(members) if (parallel : members > 1)
    for (int64_t i = 0; i < size; i++)
        grad[i] = weight[i] == 0.0f ? 0.0f : factor * weight[i];
}

INLINE float form_of(const double *form, const float *sums, int64_t columns)
{
    double value = form[columns];
    for (int64_t j = 0; j < columns; j++)
        value += form[j] == 0.0 ? 0.0 : form[j] * sums[j];
    return (float)value;
}

/* (above . x) / (below . x) of each row, x = (sums, 1) */
EXPORT void denseloss_ratio(const float *sums, int64_t rows, int64_t columns, const double *above,
                            const double *below, float empty, float *result)
{
    for (int64_t i = 0; i < rows; i++) {
        const float whole = form_of(below, sums + i * columns, columns);
        const float part = form_of(above, sums + i * columns, columns);
        result[i] = fabsf(whole) < TINY ? empty : part / whole;
    }
}

EXPORT void denseloss_ratio_backward(const float *upstream, const float *sums, int64_t rows,
                                     int64_t columns, const double *above, const double *below,
                                     float *grad)
{
    for (int64_t i = 0; i < rows; i++) {
        const float *x = sums + i * columns;
        const float whole = form_of(below, x, columns), part = form_of(above, x, columns);
        const int nothing = fabsf(whole) < TINY;
        const float u = nothing ? 0.0f : upstream[i] / whole, value = nothing ? 0.0f : part / whole;
        for (int64_t j = 0; j < columns; j++)
            grad[i * columns + j] = u * ((float)above[j] - value * (float)below[j]);
    }
}
