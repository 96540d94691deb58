/* Box means, and the edge weights made of them. */
#pragma once
#include "elements.h"

#define STRIP 128 /* rows of one plane that one task does, after those of half a window */

/* to[x] = sum of from[x - half ... x + half], by sums of 1, 2, 4, ... neighbours: as many additions
 * as the window has binary digits, twice, and no running sum that could drift. `from`
 * has `half` zeros on either side. */
static void sum_windows(float *RESTRICT from, float *RESTRICT to, int64_t window, int64_t size)
{
    int64_t done = 0, length = 1;
    memset(to, 0, sizeof(float) * (size_t)size);
    for (int64_t left = window; left; left >>= 1) {
        if (left & 1) {
            SIMD
            for (int64_t x = 0; x < size; x++)
                to[x] += from[x + done];
            done += length;
        }
        if (left > 1)
            SIMD
            for (int64_t x = 0; x < size + window - 2 * length; x++) /* in place: reads run ahead */
                from[x] += from[x + length];
        length <<= 1;
    }
}

INLINE int counts(const float *weight, int ignores, float ignore, int64_t at, float t)
{
    return !(weight && weight[at] == 0.0f) && !(ignores && t == ignore);
}

/* Adds (or takes away) row y of the plane to the sums of the columns. */
static void add_row(double *RESTRICT columns, const void *target, int dtype, const float *weight,
                    int ignores, float ignore, int64_t start, int64_t wide, double sign,
                    float *line)
{
    const float *t = read(line, target, dtype, start, 1, wide);
    if (weight || ignores) {
        for (int64_t x = 0; x < wide; x++)
            columns[x] += counts(weight, ignores, ignore, start + x, t[x]) ? sign * t[x] : 0.0;
    } else {
        SIMD
        for (int64_t x = 0; x < wide; x++)
            columns[x] += sign * t[x];
    }
}

EXPORT int64_t denseloss_edge_space(int64_t wide, int64_t window)
{
    return (5 * wide + 2 * window + 17) / 2 * 2; /* even: doubles come first */
}

/* target: [planes high wide]; space: floats, for each thread. */
EXPORT void denseloss_edge(const void *target, int dtype, const float *weight, int ignores,
                           double ignore, float gamma, int64_t window, int inside, int64_t planes,
                           int64_t high, int64_t wide, int threads, float *space, float *result)
{
    const int64_t strips = (high + STRIP - 1) / STRIP, half = window / 2;
    const int64_t room = denseloss_edge_space(wide, window);
    const int members = team(threads, planes * high * wide, 32768);
    const float ignored = (float)ignore;
    const double area = (double)window * (double)window;
#pragma omp parallel for schedule(dynamic) num_threads(members)
    for (int64_t task = 0; task < planes * strips; task++) {
        double *columns = (double *)(space + room * thread_number());
        float *sums = (float *)(columns + wide), *line = sums + wide, *padded = line + wide;
        const int64_t plane = task / strips * high * wide, begin = task % strips * STRIP;
        const int64_t end = least(begin + STRIP, high);
        memset(columns, 0, sizeof(double) * (size_t)wide);
        for (int64_t y = begin > half ? begin - half : 0; y < least(begin + half, high); y++)
            add_row(columns, target, dtype, weight, ignores, ignored, plane + y * wide, wide, 1.0,
                    line);
        for (int64_t y = begin; y < end; y++) {
            if (y + half < high)
                add_row(columns, target, dtype, weight, ignores, ignored,
                        plane + (y + half) * wide, wide, 1.0, line);
            if (y > begin && y - half - 1 >= 0)
                add_row(columns, target, dtype, weight, ignores, ignored,
                        plane + (y - half - 1) * wide, wide, -1.0, line);
            memset(padded, 0, sizeof(float) * (size_t)half);
            memset(padded + half + wide, 0, sizeof(float) * (size_t)half);
            SIMD
            for (int64_t x = 0; x < wide; x++)
                padded[half + x] = (float)columns[x];
            sum_windows(padded, sums, window, wide);
            const int64_t start = plane + y * wide;
            const float *t = read(line, target, dtype, start, 1, wide);
            float *RESTRICT to = result + start;
            const int64_t rows = least(y + half, high - 1) - (y > half ? y - half : 0) + 1;
            if (inside)
                for (int64_t x = 0; x < wide; x++) {
                    const int64_t across = least(x + half, wide - 1) - (x > half ? x - half : 0) + 1;
                    sums[x] /= (float)(rows * across);
                }
            else
                SIMD
                for (int64_t x = 0; x < wide; x++)
                    sums[x] = sums[x] / (float)area;
            if (gamma < 0.0f) {
                memcpy(to, sums, sizeof(float) * (size_t)wide);
            } else if (weight || ignores) {
                for (int64_t x = 0; x < wide; x++) {
                    const float w = weight ? weight[start + x] : 1.0f;
                    const float edge = w * FMA(gamma, fabsf(sums[x] - t[x]), 1.0f);
                    const int valid = t[x] > -0.5f && t[x] < 1.5f;
                    to[x] = !counts(weight, ignores, ignored, start + x, t[x]) ? 0.0f
                          : valid ? edge : NAN;
                }
            } else {
                SIMD
                for (int64_t x = 0; x < wide; x++) {
                    const float edge = FMA(gamma, fabsf(sums[x] - t[x]), 1.0f);
                    to[x] = t[x] > -0.5f && t[x] < 1.5f ? edge : NAN;
                }
            }
        }
    }
}
