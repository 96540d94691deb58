/* Counts of labels, and a value per class for each of them. */
#pragma once
#include "elements.h"

#define LABEL_RUN 65536

EXPORT int64_t denseloss_label_count_work(int64_t pixels, int64_t classes)
{
    return (pixels + LABEL_RUN - 1) / LABEL_RUN * (classes + 1);
}

/* work: one histogram for each run of pixels, labels that are no class at its end. */
EXPORT void denseloss_label_count(const void *target, int dtype, const float *weight,
                                  int64_t ignore, int64_t classes, int64_t pixels, int threads,
                                  int64_t *work, float *result)
{
    const int64_t runs = (pixels + LABEL_RUN - 1) / LABEL_RUN;
    const int members = team(threads, pixels, LABEL_RUN);
#pragma omp parallel for schedule(static) num_threads(members)
    for (int64_t run = 0; run < runs; run++) {
        int64_t *count = work + run * (classes + 1);
        memset(count, 0, sizeof(int64_t) * (size_t)(classes + 1));
        for (int64_t i = run * LABEL_RUN; i < least((run + 1) * LABEL_RUN, pixels); i++) {
            const int64_t label = label_at(target, dtype, i);
            if (label != ignore && !(weight && weight[i] == 0.0f))
                count[label < 0 || label >= classes ? classes : label]++;
        }
    }
    int64_t outside = 0;
    for (int64_t run = 0; run < runs; run++)
        outside += work[run * (classes + 1) + classes];
    for (int64_t k = 0; k < classes; k++) {
        int64_t total = 0;
        for (int64_t run = 0; run < runs; run++)
            total += work[run * (classes + 1) + k];
        result[k] = outside ? NAN : (float)total;
    }
}

/* values [classes] at each label; 0 where that is no class. */
EXPORT void denseloss_class_values(const void *target, int dtype, const float *values,
                                   int64_t classes, int64_t pixels, int threads, float *result)
{
    const int members = team(threads, pixels, LABEL_RUN);
#pragma omp parallel for schedule(static) num_threads(members) if (members > 1)
    for (int64_t i = 0; i < pixels; i++) {
        const int64_t label = label_at(target, dtype, i);
        result[i] = label < 0 || label >= classes ? 0.0f : values[label];
    }
}
