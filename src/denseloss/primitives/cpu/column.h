/* Softmax losses: sums over pixels in one pass over the logits, the gradient in one more.
 *
 * Pixels are taken in tiles of `width`, all classes at a time, as float [classes][width]: the loops
 * over the pixels of a tile vectorise whatever the layout of the logits. Where the logits are
 * smaller than the labels, a tile is interpolated from them, and the gradient of a tile is added to
 * that of the small logits: nothing of the labels' size times the classes is ever stored. */
#pragma once
#include "elements.h"

#define WIDEST 512
#define TILE 8192 /* elements of a tile, about */
#define RUN 16384 /* pixels of one image that add to one row of partial sums */

typedef struct {
    const void *logits, *target;
    const float *weight;       /* [n pixels] or 0 */
    const float *class_weight; /* [terms classes] or 0 */
    const double *gamma, *smoothing;
    int64_t images, classes, pixels, ignore;
    int64_t image_stride, class_stride, pixel_stride; /* of the logits, in elements */
    int dtype, target_dtype, terms;
} columns;

/* The pixels of one tile: labels and weights, and what the softmax of the tile gives. */
typedef struct {
    int32_t label[WIDEST];
    float weight[WIDEST], top[WIDEST], sum[WIDEST], rest[WIDEST], own[WIDEST], own_exp[WIDEST];
    float log_p[WIDEST], miss[WIDEST], inverse[WIDEST], log_sum[WIDEST];
    int voids, counted;
} tile;

static int64_t tile_width(int64_t classes)
{
    const int64_t width = TILE / (classes < 1 ? 1 : classes) / 16 * 16;
    return width < 16 ? 16 : width > WIDEST ? WIDEST : width;
}

/* Doubles of workspace for the forward pass. */
static int64_t row_size(const columns *c, int overlap)
{
    return 2 * c->terms + 2 + (overlap ? 3 * c->classes : 0);
}

static void read_labels(const columns *c, int64_t first, int64_t n, tile *x)
{
    x->voids = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t label = label_at(c->target, c->target_dtype, first + i);
        const float weight = c->weight ? c->weight[first + i] : 1.0f;
        const int empty = label == c->ignore || weight == 0.0f;
        const int outside = !empty && (label < 0 || label >= c->classes);
        x->weight[i] = empty ? 0.0f : outside ? NAN : weight;
        x->label[i] = empty || outside ? 0 : (int32_t)label;
        x->voids += empty;
    }
    x->counted = (int)n - x->voids;
}

/* Labels of a common dtype without weights, in a loop that vectorises. */
#define PLAIN_LABELS(type) \
    const type *labels = (const type *)c->target + first; \
    const type ignore = (type)c->ignore; \
    const int possible = (int64_t)ignore == c->ignore; \
    int outside = 0, voids = 0; \
    for (int64_t i = 0; i < n; i++) { \
        const int empty = possible & (labels[i] == ignore); \
        const int inside = (labels[i] >= 0) & (labels[i] < classes); \
        outside |= !empty & !inside; \
        voids += empty; \
        x->weight[i] = empty ? 0.0f : 1.0f; \
        x->label[i] = empty ? 0 : (int32_t)labels[i]; \
    } \
    if (outside) break; \
    x->voids = voids; \
    x->counted = (int)n - voids; \
    return

static void read_tile_labels(const columns *c, int64_t first, int64_t n, tile *x)
{
    const int64_t classes = c->classes;
    if (!c->weight)
        switch (c->target_dtype) {
        case UINT8: { PLAIN_LABELS(uint8_t); }
        case INT32: { PLAIN_LABELS(int32_t); }
        case INT64: { PLAIN_LABELS(int64_t); }
        }
    read_labels(c, first, n, x);
}

/* Zeros at void pixels, whose logits may be anything. */
INLINE void clear_voids(const tile *x, float *z, int64_t classes, int64_t width, int64_t n)
{
    if (x->voids)
        for (int64_t k = 0; k < classes; k++)
            for (int64_t i = 0; i < n; i++)
                z[k * width + i] = x->weight[i] == 0.0f ? 0.0f : z[k * width + i];
}

/* Row k of the result is at z + k * *step: in the logits themselves where nothing must change. */
static const float *read_logits(const columns *c, int64_t image, int64_t pixel, int64_t n,
                                const tile *x, float *scratch, int64_t width, int64_t *step)
{
    const int64_t start = image * c->image_stride + pixel * c->pixel_stride;
    if (c->dtype == FLOAT32 && c->pixel_stride == 1 && !x->voids) {
        *step = c->class_stride;
        return (const float *)c->logits + start;
    }
    *step = width;
    if (c->pixel_stride == 1) {
        for (int64_t k = 0; k < c->classes; k++)
            read_into(scratch + k * width, c->logits, c->dtype, start + k * c->class_stride, 1, n);
    } else { /* channels_last: a pixel's classes lie together */
        float line[1024];
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < c->classes; k += 1024) {
                const int64_t some = least(1024, c->classes - k);
                const float *from = read(line, c->logits, c->dtype,
                                         start + i * c->pixel_stride + k, 1, some);
                for (int64_t j = 0; j < some; j++)
                    scratch[(k + j) * width + i] = from[j];
            }
    }
    clear_voids(x, scratch, c->classes, width, n);
    return scratch;
}

/* Exponentials into `e`, and per pixel what all terms are made of. `mean` (0 or [classes]) gives
 * sum_k p_k mean_k, into `average`. */
static void softmax(const float *z, int64_t step, int64_t classes, int64_t n, tile *x,
                    float *RESTRICT e, int64_t width, const float *mean, float *RESTRICT average)
{
    float *RESTRICT top = x->top, *RESTRICT sum = x->sum, *RESTRICT rest = x->rest;
    float *RESTRICT own = x->own, *RESTRICT own_exp = x->own_exp;
    const int32_t *label = x->label;
    memcpy(top, z, sizeof(float) * (size_t)n);
    for (int64_t k = 1; k < classes; k++) {
        const float *row = z + k * step;
        SIMD
        for (int64_t i = 0; i < n; i++)
            top[i] = row[i] > top[i] ? row[i] : top[i];
    }
    memset(rest, 0, sizeof(float) * (size_t)n);
    memset(own, 0, sizeof(float) * (size_t)n);
    memset(own_exp, 0, sizeof(float) * (size_t)n);
    if (mean)
        memset(average, 0, sizeof(float) * (size_t)n);
    for (int64_t k = 0; k < classes; k++) {
        const float *row = z + k * step;
        float *RESTRICT to = e + k * width;
        const float m = mean ? mean[k] : 0.0f;
        if (mean) {
            SIMD
            for (int64_t i = 0; i < n; i++) {
                const float score = row[i], y = exp_(score - top[i]);
                const int mine = label[i] == (int32_t)k;
                to[i] = y;
                average[i] = FMA(y, m, average[i]);
                rest[i] += mine ? 0.0f : y;
                own[i] = mine ? score : own[i];
                own_exp[i] = mine ? y : own_exp[i];
            }
        } else {
            SIMD
            for (int64_t i = 0; i < n; i++) {
                const float score = row[i], y = exp_(score - top[i]);
                const int mine = label[i] == (int32_t)k;
                to[i] = y;
                rest[i] += mine ? 0.0f : y;
                own[i] = mine ? score : own[i];
                own_exp[i] = mine ? y : own_exp[i];
            }
        }
    }
    SIMD
    for (int64_t i = 0; i < n; i++) {
        sum[i] = rest[i] + own_exp[i];
        x->inverse[i] = 1.0f / sum[i];
        /* Where the true class is on top, log(sum) = log(1 + rest) has no cancellation. */
        x->log_sum[i] = log_(sum[i]);
        const float likely = -log1p_(rest[i]), other = own[i] - top[i] - x->log_sum[i];
        x->log_p[i] = own_exp[i] == 1.0f ? likely : other;
        x->miss[i] = rest[i] * x->inverse[i];
    }
    if (mean)
        SIMD
        for (int64_t i = 0; i < n; i++)
            average[i] *= x->inverse[i];
}

INLINE float factor_of(float miss, float gamma)
{
    if (gamma == 0.0f) return 1.0f;
    if (gamma == 1.0f) return miss;
    if (gamma == 2.0f) return miss * miss;
    return pow_(miss, gamma);
}

/* The slope -v' of m^g (-log p) by z_t, over p_t - 1 = -m: g u m^(g-1) (-log p) + m^g. */
INLINE float slope_of(float miss, float log_p, float p, float gamma)
{
    if (gamma == 0.0f) return 1.0f;
    const float m = miss < TINY ? TINY : miss, f = factor_of(m, gamma);
    const float turn = miss < TINY ? 0.0f : gamma * p * -log_p / m;
    return FMA(f, turn, f);
}

static void tile_sums(const columns *c, const tile *x, const float *z, int64_t step,
                      const float *e, int64_t width, int64_t n, int overlap, double *row,
                      float *values)
{
    float spread[WIDEST];
    double *term = row, *weights = row + 2 * c->terms, *sums = weights + 2;
    float total = 0.0f;
    SIMD_SUM(total)
    for (int64_t i = 0; i < n; i++)
        total += x->weight[i];
    weights[0] += total;
    weights[1] += x->counted;
    for (int k = 0; k < c->terms; k++) {
        const float gamma = (float)c->gamma[k], even = (float)c->smoothing[k];
        const float *cw = c->class_weight ? c->class_weight + k * c->classes : 0;
        const float share = even / (float)c->classes;
        if (even != 0.0f) { /* sum_j cw_j (-log p_j) */
            memset(spread, 0, sizeof(float) * (size_t)n);
            for (int64_t j = 0; j < c->classes; j++) {
                const float w = cw ? cw[j] : 1.0f, *scores = z + j * step;
                SIMD
                for (int64_t i = 0; i < n; i++)
                    spread[i] -= w * (scores[i] - x->top[i] - x->log_sum[i]);
            }
        }
        /* In double: with class weights this loop gathers, and adds one pixel after the other. */
        double value_sum = 0.0, count = 0.0;
        SIMD_SUM(value_sum, count)
        for (int64_t i = 0; i < n; i++) {
            const float m = x->miss[i] < TINY ? TINY : x->miss[i];
            const float own = cw ? cw[x->label[i]] : 1.0f;
            float v = own * (1.0f - even) * factor_of(m, gamma) * -x->log_p[i];
            if (even != 0.0f)
                v += share * spread[i];
            v *= x->weight[i];
            value_sum += v;
            count += x->weight[i] * own;
            if (values)
                values[i] = v;
        }
        term[2 * k] += value_sum;
        term[2 * k + 1] += count;
    }
    if (!overlap)
        return;
    float share[WIDEST];
    SIMD
    for (int64_t i = 0; i < n; i++)
        share[i] = x->weight[i] * x->inverse[i];
    for (int64_t k = 0; k < c->classes; k++) {
        const float *y = e + k * width;
        float predicted = 0.0f;
        SIMD_SUM(predicted)
        for (int64_t i = 0; i < n; i++)
            predicted += share[i] * y[i];
        sums[3 * k + 1] += predicted;
    }
    for (int64_t i = 0; i < n; i++) {
        sums[3 * x->label[i]] += share[i] * x->own_exp[i];
        sums[3 * x->label[i] + 2] += x->weight[i];
    }
    int poisoned = 0; /* a weight of NaN belongs to no class: to all of them */
    SIMD_ANY(poisoned)
    for (int64_t i = 0; i < n; i++)
        poisoned |= x->weight[i] != x->weight[i];
    if (poisoned)
        for (int64_t k = 0; k < 3 * c->classes; k++)
            sums[k] = NAN;
}

/* The gradient of a tile, over its exponentials. entropy [terms], both and predicted [classes]
 * (or 0) are the gradients of the image's sums; map [n] or 0 that of the values. */
static void tile_gradient(const columns *c, const tile *x, float *RESTRICT e, int64_t width,
                          int64_t n, const float *entropy, const float *both,
                          const float *predicted, const float *average, const float *map)
{
    float all[WIDEST], own[WIDEST], w[WIDEST];
    int even = 0;
    for (int64_t i = 0; i < n; i++) {
        all[i] = own[i] = 0.0f;
        w[i] = x->weight[i];
    }
    for (int k = 0; k < c->terms; k++) {
        const float gamma = (float)c->gamma[k], spread = (float)c->smoothing[k];
        const float *cw = c->class_weight ? c->class_weight + k * c->classes : 0;
        float share = 0.0f; /* of all classes in the smoothed target */
        for (int64_t j = 0; j < c->classes && spread != 0.0f; j++)
            share += (cw ? cw[j] : 1.0f) * spread / (float)c->classes;
        even |= spread != 0.0f;
        SIMD
        for (int64_t i = 0; i < n; i++) {
            const float up = (map ? map[i] : entropy ? entropy[k] : 0.0f) * w[i];
            const float p = x->own_exp[i] * x->inverse[i];
            const float a = up * (cw ? cw[x->label[i]] : 1.0f) * (1.0f - spread)
                          * slope_of(x->miss[i], x->log_p[i], p, gamma);
            all[i] += a + up * share;
            /* p a - a without cancellation */
            own[i] += FMA(p, up * share, -x->miss[i] * a);
        }
    }
    if (predicted)
        SIMD
        for (int64_t i = 0; i < n; i++) {
            const float p = x->own_exp[i] * x->inverse[i], mine = both[x->label[i]];
            const float mean = FMA(p, mine, average[i]);
            all[i] -= w[i] * mean;
            own[i] += w[i] * p * (mine + predicted[x->label[i]] - mean);
        }
    SIMD
    for (int64_t i = 0; i < n; i++) {
        all[i] *= x->inverse[i];
        w[i] *= x->inverse[i];
    }
    for (int64_t k = 0; k < c->classes; k++) {
        float *RESTRICT y = e + k * width;
        const float up = predicted ? predicted[k] : 0.0f;
        float flat = 0.0f;
        SIMD
        for (int64_t i = 0; i < n; i++)
            y[i] = x->label[i] == (int32_t)k ? own[i] : y[i] * FMA(w[i], up, all[i]);
        for (int j = 0; j < c->terms && even; j++) {
            const float *cw = c->class_weight ? c->class_weight + j * c->classes : 0;
            flat = (cw ? cw[k] : 1.0f) * (float)c->smoothing[j] / (float)c->classes;
            for (int64_t i = 0; i < n && flat != 0.0f; i++)
                y[i] -= (map ? map[i] : entropy ? entropy[j] : 0.0f) * x->weight[i] * flat;
        }
    }
    clear_voids(x, e, c->classes, width, n);
}

static void write_gradient(const columns *c, const float *e, int64_t width, int64_t image,
                           int64_t pixel, int64_t n, void *grad)
{
    const int64_t start = image * c->image_stride + pixel * c->pixel_stride;
    if (c->pixel_stride == 1) {
        for (int64_t k = 0; k < c->classes; k++)
            write_from(e + k * width, grad, c->dtype, start + k * c->class_stride, 1, n);
        return;
    }
    float line[1024];
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < c->classes; k += 1024) {
            const int64_t some = least(1024, c->classes - k);
            for (int64_t j = 0; j < some; j++)
                line[j] = e[(k + j) * width + i];
            write_from(line, grad, c->dtype, start + i * c->pixel_stride + k, 1, some);
        }
}

/* Rows of partial sums become the sums of each image. */
static void add_rows(const columns *c, const double *rows, int64_t runs, int64_t size, int overlap,
                     float *entropy, float *sums, float *weights)
{
    for (int64_t image = 0; image < c->images; image++)
        for (int64_t j = 0; j < size; j++) {
            double total = 0.0;
            for (int64_t run = 0; run < runs; run++)
                total += rows[(image * runs + run) * size + j];
            const int64_t at = j - 2 * c->terms - 2;
            if (j < 2 * c->terms)
                entropy[image * 2 * c->terms + j] = (float)total;
            else if (at < 0)
                weights[image * 2 + at + 2] = (float)total;
            else if (overlap)
                sums[image * 3 * c->classes + at] = (float)total;
        }
}

/* Doubles of `work` that the forward pass needs. */
EXPORT int64_t denseloss_column_work(int64_t images, int64_t classes, int64_t pixels, int64_t terms,
                                     int64_t overlap)
{
    return images * ((pixels + RUN - 1) / RUN) * (2 * terms + 2 + (overlap ? 3 * classes : 0));
}

/* Floats of `space` that each thread needs; out is 0, or the pixels of a row of the labels, and in
 * those of a row of the logits, where these are smaller. */
EXPORT int64_t denseloss_column_space(int64_t classes, int64_t out, int64_t in)
{
    return classes * (2 * tile_width(classes) + 4 * out) + 2 * in + 16;
}

#define COLUMN_ARGUMENTS \
    const void *logits, int dtype, const void *target, int target_dtype, const float *weight, \
    const float *class_weight, const double *gamma, const double *smoothing, int terms, \
    int64_t ignore, int64_t images, int64_t classes, int64_t pixels, int last
#define COLUMNS \
    {logits, target, weight, class_weight, gamma, smoothing, images, classes, pixels, ignore, \
     classes * pixels, last ? 1 : pixels, last ? classes : 1, dtype, target_dtype, terms}

EXPORT void denseloss_column(COLUMN_ARGUMENTS, int overlap, int threads, double *work, float *space,
                             float *entropy, float *sums, float *weights, float *values)
{
    const columns c = COLUMNS;
    const int64_t width = tile_width(classes), runs = (pixels + RUN - 1) / RUN;
    const int64_t size = row_size(&c, overlap), room = denseloss_column_space(classes, 0, 0);
    const int members = team(threads, images * pixels * classes, 32768);
#pragma omp parallel for schedule(dynamic) num_threads(members)
    for (int64_t task = 0; task < images * runs; task++) {
        tile x;
        float *scratch = space + room * thread_number(), *e = scratch + classes * width;
        double *row = work + task * size;
        const int64_t image = task / runs, begin = task % runs * RUN;
        const int64_t end = least(begin + RUN, pixels);
        memset(row, 0, sizeof(double) * (size_t)size);
        for (int64_t pixel = begin; pixel < end; pixel += width) {
            const int64_t n = least(width, end - pixel), first = image * pixels + pixel;
            int64_t step;
            read_tile_labels(&c, first, n, &x);
            const float *z = read_logits(&c, image, pixel, n, &x, scratch, width, &step);
            softmax(z, step, classes, n, &x, e, width, 0, 0);
            tile_sums(&c, &x, z, step, e, width, n, overlap, row, values ? values + first : 0);
        }
    }
    add_rows(&c, work, runs, size, overlap, entropy, sums, weights);
}

/* grad_entropy [images terms], grad_sums: float [images][2][classes], each may be 0. */
EXPORT void denseloss_column_backward(COLUMN_ARGUMENTS, const float *grad_entropy,
                                      const float *grad_sums, const float *upstream, int threads,
                                      float *space, void *grad)
{
    const columns c = COLUMNS;
    const int64_t width = tile_width(classes), runs = (pixels + RUN - 1) / RUN;
    const int64_t room = denseloss_column_space(classes, 0, 0);
    const int members = team(threads, images * pixels * classes, 32768);
#pragma omp parallel for schedule(dynamic) num_threads(members)
    for (int64_t task = 0; task < images * runs; task++) {
        tile x;
        float average[WIDEST];
        float *scratch = space + room * thread_number(), *e = scratch + classes * width;
        const int64_t image = task / runs, begin = task % runs * RUN;
        const int64_t end = least(begin + RUN, pixels);
        const float *both = grad_sums ? grad_sums + 2 * classes * image : 0;
        const float *predicted = both ? both + classes : 0;
        for (int64_t pixel = begin; pixel < end; pixel += width) {
            const int64_t n = least(width, end - pixel), first = image * pixels + pixel;
            int64_t step;
            read_tile_labels(&c, first, n, &x);
            const float *z = read_logits(&c, image, pixel, n, &x, scratch, width, &step);
            softmax(z, step, classes, n, &x, e, width, predicted, average);
            tile_gradient(&c, &x, e, width, n, grad_entropy ? grad_entropy + image * terms : 0,
                          both, predicted, average, upstream ? upstream + first : 0);
            write_gradient(&c, e, width, image, pixel, n, grad);
        }
    }
}

/* ---- logits that are smaller than the labels: [images classes tall wide] to [high broad] */

/* Where each of the `broad` (or `high`) places lies among the logits: between `low` and `next`,
 * `part` of the way. */
typedef struct { const int32_t *low, *next; const float *part; } places;

/* For the gradient: place j of the logits takes part in `most` places of the labels or fewer;
 * slot s of it is place at[s * wide + j] with share[s * wide + j], 0 where it has fewer. */
typedef struct { const int32_t *at; const float *share; int64_t most; } users;

typedef struct {
    int64_t tall, wide, high, broad;
    places rows, columns;
} resizing;

/* Two neighbouring rows of the logits, spread to the labels' width: float [classes][broad] each.
 * Row r is in slot r % 2, so that one of the two is spread anew where the next row begins. */
typedef struct {
    float *slot[2];
    int64_t held[2];
} spread_rows;

static void spread_row(const columns *c, const resizing *r, int64_t image, int64_t row,
                       spread_rows *rows, float *line)
{
    if (rows->held[row & 1] == row)
        return;
    rows->held[row & 1] = row;
    for (int64_t k = 0; k < c->classes; k++) {
        const int64_t start = image * c->image_stride + k * c->class_stride
                            + row * r->wide * c->pixel_stride;
        const float *from = read(line, c->logits, c->dtype, start, c->pixel_stride, r->wide);
        const int32_t *low = r->columns.low, *next = r->columns.next;
        const float *part = r->columns.part;
        float *RESTRICT to = rows->slot[row & 1] + k * r->broad;
        SIMD
        for (int64_t i = 0; i < r->broad; i++)
            to[i] = FMA(part[i], from[next[i]], (1.0f - part[i]) * from[low[i]]);
    }
}

/* Pixels x ... x + n of row y of the labels. */
static void between_rows(const columns *c, const resizing *r, const spread_rows *rows, int64_t y,
                         int64_t x, int64_t n, float *z, int64_t width)
{
    const float part = r->rows.part[y];
    for (int64_t k = 0; k < c->classes; k++) {
        const float *above = rows->slot[r->rows.low[y] & 1] + k * r->broad + x;
        const float *below = rows->slot[r->rows.next[y] & 1] + k * r->broad + x;
        float *RESTRICT to = z + k * width;
        SIMD
        for (int64_t i = 0; i < n; i++)
            to[i] = FMA(part, below[i], (1.0f - part) * above[i]);
    }
}

#define RESIZING_ARGUMENTS \
    int64_t tall, int64_t wide, int64_t high, int64_t broad, const int32_t *row_low, \
    const int32_t *row_next, const float *row_part, const int32_t *column_low, \
    const int32_t *column_next, const float *column_part
#define RESIZING \
    {tall, wide, high, broad, {row_low, row_next, row_part}, {column_low, column_next, column_part}}

static int64_t rows_of_run(int64_t broad) { return broad >= RUN ? 1 : RUN / broad; }

/* The strides of the columns are those of the logits; `pixels` is high * broad. */
INLINE columns of_size(columns c, int64_t tall, int64_t wide)
{
    c.image_stride = c.classes * tall * wide;
    c.class_stride = c.pixel_stride == 1 ? tall * wide : 1;
    return c;
}

EXPORT int64_t denseloss_column_resized_work(int64_t images, int64_t classes, int64_t high,
                                             int64_t broad, int64_t terms, int64_t overlap)
{
    const int64_t some = rows_of_run(broad);
    return images * ((high + some - 1) / some) * (2 * terms + 2 + (overlap ? 3 * classes : 0));
}

EXPORT void denseloss_column_resized(COLUMN_ARGUMENTS, RESIZING_ARGUMENTS, int overlap, int threads,
                                     double *work, float *space, float *entropy, float *sums,
                                     float *weights, float *values)
{
    const columns c = of_size((columns)COLUMNS, tall, wide);
    const resizing r = RESIZING;
    const int64_t width = tile_width(classes), some = rows_of_run(broad);
    const int64_t runs = (high + some - 1) / some, size = row_size(&c, overlap);
    const int64_t room = denseloss_column_space(classes, broad, wide);
    const int members = team(threads, images * pixels * classes, 32768);
#pragma omp parallel for schedule(dynamic) num_threads(members)
    for (int64_t task = 0; task < images * runs; task++) {
        tile x;
        float *z = space + room * thread_number(), *e = z + classes * width;
        float *first_row = e + classes * width, *line = first_row + 2 * classes * broad;
        spread_rows rows = {{first_row, first_row + classes * broad}, {-1, -1}};
        double *row = work + task * size;
        const int64_t image = task / runs, top = task % runs * some;
        memset(row, 0, sizeof(double) * (size_t)size);
        for (int64_t y = top; y < least(top + some, high); y++) {
            spread_row(&c, &r, image, r.rows.low[y], &rows, line);
            spread_row(&c, &r, image, r.rows.next[y], &rows, line);
            for (int64_t at = 0; at < broad; at += width) {
                const int64_t n = least(width, broad - at);
                const int64_t first = image * pixels + y * broad + at;
                read_tile_labels(&c, first, n, &x);
                between_rows(&c, &r, &rows, y, at, n, z, width);
                clear_voids(&x, z, classes, width, n);
                softmax(z, width, classes, n, &x, e, width, 0, 0);
                tile_sums(&c, &x, z, width, e, width, n, overlap, row, values ? values + first : 0);
            }
        }
    }
    add_rows(&c, work, runs, size, overlap, entropy, sums, weights);
}

/* A row of gradients of the labels' width goes to the logits' width, and out. */
static void gather_row(const columns *c, const resizing *r, const users *used, const float *from,
                       int64_t image, int64_t row, float *line, void *grad)
{
    for (int64_t k = 0; k < c->classes; k++, from += r->broad) {
        memset(line, 0, sizeof(float) * (size_t)r->wide);
        for (int64_t s = 0; s < used->most; s++) {
            const int32_t *at = used->at + s * r->wide;
            const float *share = used->share + s * r->wide;
            SIMD
            for (int64_t j = 0; j < r->wide; j++)
                line[j] = FMA(share[j], from[at[j]], line[j]);
        }
        write_from(line, grad, c->dtype,
                   image * c->image_stride + k * c->class_stride + row * r->wide * c->pixel_stride,
                   c->pixel_stride, r->wide);
    }
}

/* Small rows that one task owns: the rows of the labels at its two ends are computed twice. */
#define OWNED 32

EXPORT void denseloss_column_resized_backward(
    COLUMN_ARGUMENTS, RESIZING_ARGUMENTS, const int32_t *used_at, const float *used_share,
    int64_t most, const float *grad_entropy, const float *grad_sums, const float *upstream,
    int threads, float *space, void *grad)
{
    const columns c = of_size((columns)COLUMNS, tall, wide);
    const resizing r = RESIZING;
    const users used = {used_at, used_share, most};
    const int64_t width = tile_width(classes), bands = (tall + OWNED - 1) / OWNED;
    const int64_t room = denseloss_column_space(classes, broad, wide), plane = classes * broad;
    const int members = team(threads, images * pixels * classes, 32768);
#pragma omp parallel for schedule(dynamic) num_threads(members)
    for (int64_t task = 0; task < images * bands; task++) {
        tile x;
        float average[WIDEST];
        float *z = space + room * thread_number(), *e = z + classes * width;
        float *first_row = e + classes * width, *now = first_row + 2 * plane, *after = now + plane;
        float *line = after + plane;
        spread_rows rows = {{first_row, first_row + plane}, {-1, -1}};
        const int64_t image = task / bands, begin = task % bands * OWNED;
        const int64_t end = least(begin + OWNED, tall);
        const float *both = grad_sums ? grad_sums + 2 * classes * image : 0;
        const float *predicted = both ? both + classes : 0;
        int64_t y = 0;
        while (y < high && r.rows.next[y] < begin)
            y++;
        /* `now` gathers the gradient of row `current`, `after` that of the row below it. */
        int64_t current = y < high ? least(r.rows.low[y], begin) : begin;
        memset(now, 0, sizeof(float) * (size_t)(2 * plane));
        for (;; y++) {
            const int64_t low = y < high ? r.rows.low[y] : tall;
            for (; current < low && current < end; current++) { /* nothing more comes to it */
                if (current >= begin)
                    gather_row(&c, &r, &used, now, image, current, line, grad);
                float *done = now;
                now = after;
                after = done;
                memset(after, 0, sizeof(float) * (size_t)plane);
            }
            if (current >= end)
                break;
            const int64_t next = r.rows.next[y];
            const float part = next == low ? 0.0f : r.rows.part[y];
            spread_row(&c, &r, image, low, &rows, line);
            spread_row(&c, &r, image, next, &rows, line);
            for (int64_t at = 0; at < broad; at += width) {
                const int64_t n = least(width, broad - at);
                const int64_t first = image * pixels + y * broad + at;
                read_tile_labels(&c, first, n, &x);
                between_rows(&c, &r, &rows, y, at, n, z, width);
                clear_voids(&x, z, classes, width, n);
                softmax(z, width, classes, n, &x, e, width, predicted, average);
                tile_gradient(&c, &x, e, width, n, grad_entropy ? grad_entropy + image * terms : 0,
                              both, predicted, average, upstream ? upstream + first : 0);
                for (int64_t k = 0; k < classes; k++) {
                    const float *from = e + k * width;
                    float *RESTRICT above = now + k * broad + at;
                    float *RESTRICT below = after + k * broad + at;
                    SIMD
                    for (int64_t i = 0; i < n; i++) {
                        above[i] = FMA(1.0f - part, from[i], above[i]);
                        below[i] = FMA(part, from[i], below[i]);
                    }
                }
            }
        }
    }
}
