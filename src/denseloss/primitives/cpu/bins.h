/* The distribution focal loss: value and gradient in one pass. */
#pragma once
#include "rows.h"

/* Rows of `bins` logits. A block of them is turned around, to [bins][ROWS], so that every loop runs
 * over the rows: maxima and sums along rows of 17 would leave most of a vector idle.
 * space: bins * ROWS floats for each thread, twice. */
#define ROWS 64

/* A block of rows: where their targets lie, the exponentials of their logits, their losses. */
typedef struct {
    float low_z[ROWS], high_z[ROWS], share[ROWS], sum[ROWS], v[ROWS], factor[ROWS];
    int32_t low[ROWS], high[ROWS];
} bin_rows;

INLINE void bin_losses(bin_rows *b, const float *z, const float *target, const float *w,
                       const int64_t bins, int64_t n, float *RESTRICT e)
{
    const float last = (float)(bins - 1);
    const int32_t most = bins > 1 ? (int32_t)bins - 2 : 0;
    float *top = b->sum, *total = b->v;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < bins; j++)
            e[j * ROWS + i] = z[i * bins + j];
    if (w)
        for (int64_t i = 0; i < n; i++)
            if (w[i] == 0.0f)
                for (int64_t j = 0; j < bins; j++)
                    e[j * ROWS + i] = 0.0f;
    memcpy(top, e, sizeof(float) * (size_t)n);
    for (int64_t j = 1; j < bins; j++)
        SIMD
        for (int64_t i = 0; i < n; i++)
            top[i] = e[j * ROWS + i] > top[i] ? e[j * ROWS + i] : top[i];
    for (int64_t i = 0; i < n; i++) {
        const int empty = w && w[i] == 0.0f;
        const float given = empty ? 0.0f : target[i];
        const float y = given < 0.0f ? 0.0f : given > last ? last : given; /* NaN stays */
        const int32_t before = y == y ? (int32_t)y : 0;
        b->low[i] = before > most ? most : before;
        b->high[i] = b->low[i] + (bins > 1);
        b->share[i] = y - (float)b->low[i];
        b->low_z[i] = e[b->low[i] * ROWS + i] - top[i];
        b->high_z[i] = e[b->high[i] * ROWS + i] - top[i];
    }
    memset(total, 0, sizeof(float) * (size_t)n);
    for (int64_t j = 0; j < bins; j++)
        SIMD
        for (int64_t i = 0; i < n; i++) {
            const float x = exp_(e[j * ROWS + i] - top[i]);
            e[j * ROWS + i] = x;
            total[i] += x;
        }
    SIMD
    for (int64_t i = 0; i < n; i++) {
        b->sum[i] = total[i];
        b->v[i] = log_(total[i]) - (1.0f - b->share[i]) * b->low_z[i] - b->share[i] * b->high_z[i];
    }
}

INLINE void bin_slopes(bin_rows *b, const int64_t bins, int64_t n, const float *RESTRICT e,
                       float *RESTRICT out)
{
    SIMD
    for (int64_t i = 0; i < n; i++)
        b->sum[i] = b->factor[i] / b->sum[i];
    for (int64_t i = 0; i < n; i++) {
        float *RESTRICT row = out + i * bins;
        const float f = b->factor[i], p = b->sum[i];
        for (int64_t j = 0; j < bins; j++)
            row[j] = e[j * ROWS + i] * p;
        row[b->low[i]] -= f * (1.0f - b->share[i]);
        row[b->high[i]] -= f * b->share[i];
        if (f == 0.0f) /* void, whatever the target and the upstream hold */
            memset(row, 0, sizeof(float) * (size_t)bins);
    }
}

EXPORT void denseloss_bins(const void *logits, int dtype, const float *target, const float *weight,
                           int64_t bins, int64_t count, const float *upstream, int mapped,
                           float scale, int threads, float *space, float *sums, float *values,
                           void *grad)
{
    const int members = team(threads, count * bins, 16384);
    double parts[MOST_THREADS][2];
#pragma omp parallel for schedule(static) num_threads(members)
    for (int part = 0; part < members; part++) {
        float *scratch = space + 2 * part * bins * ROWS, *RESTRICT e = scratch + bins * ROWS;
        bin_rows b;
        const int64_t blocks = (count + ROWS - 1) / ROWS, end = blocks * (part + 1) / members;
        parts[part][0] = parts[part][1] = 0.0;
        for (int64_t k = blocks * part / members; k < end; k++) {
            const int64_t first = k * ROWS, n = least(ROWS, count - first), size = n * bins;
            const float *w = weight ? weight + first : 0;
            const float *z = read(scratch, logits, dtype, first * bins, 1, size);
            /* The usual numbers of bins are compiled in: loops this short are mostly their ends. */
            if (bins == 16) bin_losses(&b, z, target + first, w, 16, n, e);
            else if (bins == 17) bin_losses(&b, z, target + first, w, 17, n, e);
            else bin_losses(&b, z, target + first, w, bins, n, e);
            finish_rows(b.v, w, n, values ? values + first : 0, parts[part]);
            if (!grad)
                continue;
            float *out = dtype == FLOAT32 ? (float *)grad + first * bins : scratch;
            row_factors(b.factor, w, upstream, mapped, scale, first, n);
            if (bins == 16) bin_slopes(&b, 16, n, e, out);
            else if (bins == 17) bin_slopes(&b, 17, n, e, out);
            else bin_slopes(&b, bins, n, e, out);
            if (dtype != FLOAT32)
                write_from(out, grad, dtype, first * bins, 1, size);
        }
    }
    add_parts(parts, members, scale, sums);
}
