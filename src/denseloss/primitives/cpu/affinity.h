/* Ties of each pixel to its neighbours, gathered class by class. */
#pragma once
#include "elements.h"

/* Doubles of `work`: one row of sums for each row of each image. */
EXPORT int64_t denseloss_association_work(int64_t images, int64_t classes, int64_t high)
{
    return images * high * 2 * classes;
}

/* probability [images classes high wide], image [images colours high wide]; space: 2 * wide floats
 * for each thread. */
EXPORT void denseloss_association(const float *probability, const float *image, int64_t images,
                                  int64_t classes, int64_t colours, int64_t high, int64_t wide,
                                  float radius, float sigma_intensity, float sigma_space,
                                  int threads, double *work, float *space, float *within,
                                  float *total, float *filtered, float *degree)
{
    /* No offset leads farther than the image is large. */
    const int64_t plane = high * wide, reach = (int64_t)fminf(ceilf(radius), (float)(high + wide)) - 1;
    const float colour_scale = -1.0f / (sigma_intensity * sigma_intensity);
    const float space_scale = -1.0f / (sigma_space * sigma_space);
    const int members = team(threads, images * plane * classes, 4096);
#pragma omp parallel for schedule(dynamic, 4) num_threads(members)
    for (int64_t task = 0; task < images * high; task++) {
        const int64_t n = task / high, y = task % high;
        float *tie = space + 2 * wide * thread_number(), *apart = tie + wide;
        float *RESTRICT ties = degree + n * plane + y * wide;
        for (int64_t x = 0; x < wide; x++)
            ties[x] = 1.0f; /* a pixel is tied to itself */
        for (int64_t k = 0; k < classes; k++) {
            const int64_t at = (n * classes + k) * plane + y * wide;
            memcpy(filtered + at, probability + at, sizeof(float) * (size_t)wide);
        }
        for (int64_t dy = -reach; dy <= reach; dy++) {
            if (y + dy < 0 || y + dy >= high)
                continue;
            for (int64_t dx = -reach; dx <= reach; dx++) {
                const float squared = (float)(dy * dy + dx * dx);
                if ((dx == 0 && dy == 0) || !(squared < radius * radius) || dx >= wide || -dx >= wide)
                    continue;
                const int64_t begin = dx < 0 ? -dx : 0, end = dx > 0 ? wide - dx : wide;
                memset(apart, 0, sizeof(float) * (size_t)wide);
                for (int64_t i = 0; i < colours; i++) {
                    const float *own = image + (n * colours + i) * plane + y * wide;
                    const float *other = own + dy * wide + dx;
                    SIMD
                    for (int64_t x = begin; x < end; x++) {
                        const float d = own[x] - other[x];
                        apart[x] = FMA(d, d, apart[x]);
                    }
                }
                const float near = squared * space_scale;
                SIMD
                for (int64_t x = begin; x < end; x++) {
                    tie[x] = exp_(FMA(apart[x], colour_scale, near));
                    ties[x] += tie[x];
                }
                for (int64_t k = 0; k < classes; k++) {
                    const int64_t at = (n * classes + k) * plane + y * wide;
                    const float *other = probability + at + dy * wide + dx;
                    float *RESTRICT to = filtered + at;
                    SIMD
                    for (int64_t x = begin; x < end; x++)
                        to[x] = FMA(tie[x], other[x], to[x]);
                }
            }
        }
        for (int64_t k = 0; k < classes; k++) {
            const int64_t at = (n * classes + k) * plane + y * wide;
            const float *p = probability + at, *f = filtered + at;
            float inner = 0.0f, outer = 0.0f;
            SIMD_SUM(inner, outer)
            for (int64_t x = 0; x < wide; x++) {
                inner += p[x] * f[x];
                outer += p[x] * ties[x];
            }
            work[(task * classes + k) * 2] = inner;
            work[(task * classes + k) * 2 + 1] = outer;
        }
    }
    for (int64_t n = 0; n < images; n++)
        for (int64_t k = 0; k < classes; k++) {
            double inner = 0.0, outer = 0.0;
            for (int64_t y = 0; y < high; y++) {
                inner += work[((n * high + y) * classes + k) * 2];
                outer += work[((n * high + y) * classes + k) * 2 + 1];
            }
            within[n * classes + k] = (float)inner;
            total[n * classes + k] = (float)outer;
        }
}

EXPORT void denseloss_association_backward(const float *filtered, const float *degree,
                                           const float *grad_within, const float *grad_total,
                                           int64_t images, int64_t classes, int64_t pixels,
                                           int threads, float *grad)
{
    const int members = team(threads, images * classes * pixels, 32768);
#pragma omp parallel for schedule(static) num_threads(members)
    for (int64_t task = 0; task < images * classes; task++) {
        const float *from = filtered + task * pixels, *ties = degree + task / classes * pixels;
        const float inner = 2.0f * grad_within[task], outer = grad_total[task];
        float *RESTRICT to = grad + task * pixels;
        SIMD
        for (int64_t i = 0; i < pixels; i++)
            to[i] = FMA(inner, from[i], outer * ties[i]);
    }
}
