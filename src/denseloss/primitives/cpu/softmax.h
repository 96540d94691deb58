/* What losses of exclusive classes are made of, in one pass over the logits, and its gradient.
 *
 * Pixels are taken in tiles of `width`, all classes at a time. With 2 to 4 classes a pixel's whole
 * softmax stays in registers. With more, the exponentials of a tile are kept as [classes][width]:
 * the loops over its pixels vectorise whatever the layout of the logits. Where the logits are
 * smaller than the labels, a tile is interpolated from them, and the gradient of a tile is added to
 * that of the small logits: nothing of the labels' size times the classes is ever stored. */
#pragma once
#include "elements.h"

#define WIDEST 512
#define TILE 4096 /* elements of a tile, about */
#define RUN 16384 /* pixels of one image that add to one row of partial sums */

typedef struct {
    const void *logits, *target;
    const float *weight; /* [n pixels] or 0 */
    const float *spread; /* [classes] or 0 */
    int64_t images, classes, pixels, ignore;
    int64_t image_stride, class_stride, pixel_stride; /* of the logits, in elements */
    int dtype, target_dtype;
} scores;

/* The pixels of one tile: labels and weights, and what many classes leave between loops. */
typedef struct {
    int32_t label[WIDEST];
    float weight[WIDEST];
    float top[WIDEST], rest[WIDEST], high[WIDEST], average[WIDEST], turn[WIDEST];
    float own_exp[WIDEST], gap[WIDEST], inverse[WIDEST], all[WIDEST], own[WIDEST];
    int voids, poisoned;
} tile;

/* Where the results of a pass go; each may be 0. `sums` is the number of columns: 0, 3 or 5. */
typedef struct {
    float *entropy, *miss, *weights, *smooth; /* the first three together */
    int sums;
} results;

/* What comes down to the gradient; each may be 0. Those of the sums are of one image: [classes]. */
typedef struct {
    const float *entropy, *miss, *smooth;
    const float *both, *predicted, *square;
} upstreams;

static int64_t tile_width(int64_t classes)
{
    const int64_t width = TILE / (classes < 1 ? 1 : classes) / 16 * 16;
    return width < 16 ? 16 : width > WIDEST ? WIDEST : width;
}

/* Doubles of one row of partial sums: those of each class, and the number that is not void. */
static int64_t row_size(const scores *c, int sums) { return sums * c->classes + 1; }

static void read_labels(const scores *c, int64_t first, int64_t n, tile *x)
{
    x->voids = x->poisoned = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t label = label_at(c->target, c->target_dtype, first + i);
        const float weight = c->weight ? c->weight[first + i] : 1.0f;
        const int empty = label == c->ignore || weight == 0.0f;
        const int outside = !empty && (label < 0 || label >= c->classes);
        x->weight[i] = empty ? 0.0f : outside ? NAN : weight;
        x->label[i] = empty || outside ? 0 : (int32_t)label;
        x->voids += empty;
        x->poisoned |= x->weight[i] != x->weight[i];
    }
}

/* Labels of a common dtype without weights, in a loop that vectorises. */
#define PLAIN_LABELS(type) \
    const type *labels = (const type *)c->target + first; \
    const type ignore = (type)c->ignore; \
    const int possible = (int64_t)ignore == c->ignore; \
    int outside = 0, voids = 0; \
    _Pragma("omp simd reduction(| : outside) reduction(+ : voids)") \
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
    x->poisoned = 0; \
    return

static void read_tile_labels(const scores *c, int64_t first, int64_t n, tile *x)
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
static void clear_voids(const tile *x, float *z, int64_t classes, int64_t width, int64_t n)
{
    if (x->voids)
        for (int64_t k = 0; k < classes; k++)
            for (int64_t i = 0; i < n; i++)
                z[k * width + i] = x->weight[i] == 0.0f ? 0.0f : z[k * width + i];
}

/* Whether a pixel's softmax stays in registers, where its voids are cleared, too. */
INLINE int in_registers(const scores *c, int columns)
{
    return c->classes >= 2 && c->classes <= 4 && !c->spread && columns != 5;
}

/* Row k of the result is at z + k * *step: in the logits themselves where nothing must change. */
static const float *read_logits(const scores *c, int64_t image, int64_t pixel, int64_t n,
                                const tile *x, int cleared, float *scratch, int64_t width,
                                int64_t *step)
{
    const int64_t start = image * c->image_stride + pixel * c->pixel_stride;
    if (c->dtype == FLOAT32 && c->pixel_stride == 1 && !(cleared && x->voids)) {
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
    if (cleared)
        clear_voids(x, scratch, c->classes, width, n);
    return scratch;
}

/* ---- 2 to 4 classes: a pixel's softmax in registers */

typedef struct {
    float e0, e1, e2, e3;    /* e^(z - top) */
    float top, own, own_exp; /* of the class of the label */
    float rest, inverse;     /* all of e but one that is 1, and 1 / their sum */
} pixel_softmax;

INLINE float order(float *high, float e) /* the smaller; the larger stays in high. NaN stays, too */
{
    const float low = e < *high ? e : *high;
    *high = e < *high ? *high : e;
    return low;
}

/* Written out: loops over the classes would keep the one over the pixels from vectorising. */
INLINE pixel_softmax softmax_of(const int classes, float a, float b, float c, float d, int32_t label)
{
    pixel_softmax s = {0};
    s.top = larger(b, a);
    if (classes > 2) s.top = larger(c, s.top);
    if (classes > 3) s.top = larger(d, s.top);
    if (classes == 2) { /* the larger has e = 1 */
        const float gap = a - b, low = exp_(-fabsf(gap)) + (s.top - s.top);
        s.e0 = gap >= 0.0f ? 1.0f : low;
        s.e1 = gap >= 0.0f ? low : 1.0f;
        s.rest = low;
        s.inverse = 1.0f / (1.0f + low);
    } else {
        float high;
        s.e0 = high = exp_(a - s.top);
        s.e1 = exp_(b - s.top);
        s.rest = order(&high, s.e1);
        s.e2 = exp_(c - s.top);
        s.rest += order(&high, s.e2);
        if (classes > 3) {
            s.e3 = exp_(d - s.top);
            s.rest += order(&high, s.e3);
        }
        s.inverse = 1.0f / (s.rest + high);
    }
    s.own = label == 1 ? b : a;
    s.own_exp = label == 1 ? s.e1 : s.e0;
    if (classes > 2) {
        s.own = label == 2 ? c : s.own;
        s.own_exp = label == 2 ? s.e2 : s.own_exp;
    }
    if (classes > 3) {
        s.own = label == 3 ? d : s.own;
        s.own_exp = label == 3 ? s.e3 : s.own_exp;
    }
    return s;
}

#define GIVEN(k) (voids && w == 0.0f ? 0.0f : z##k[i])

/* -log p of the label: both parts are >= 0, so that nothing cancels. */
INLINE float entropy_of(float gap, float rest, float inverse)
{
    const float u = 1.0f + rest;
    return gap + (log_(u) + (rest - (u - 1.0f)) * inverse) + (inverse - inverse);
}

/* 1 - p of the label: where it is on top, without cancellation; else p is at most 1/2. */
INLINE float miss_of(float gap, float rest, float own_exp, float inverse)
{
    return gap == 0.0f ? rest * inverse : 1.0f - own_exp * inverse;
}

INLINE void few_forward(const int classes, const int voids, const int sums, const tile *x,
                        const float *z, int64_t step, int64_t n, float *RESTRICT entropy,
                        float *RESTRICT miss, double *row)
{
    const float *RESTRICT z0 = z, *RESTRICT z1 = z + step;
    const float *RESTRICT z2 = z + (classes > 2 ? 2 : 0) * step;
    const float *RESTRICT z3 = z + (classes > 3 ? 3 : 0) * step;
    float i0 = 0, i1 = 0, i2 = 0, i3 = 0, p0 = 0, p1 = 0, p2 = 0, p3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
    SIMD_SUM(i0, i1, i2, i3, p0, p1, p2, p3, t0, t1, t2, t3)
    for (int64_t i = 0; i < n; i++) {
        const float w = x->weight[i];
        const int32_t label = x->label[i];
        const pixel_softmax s = softmax_of(classes, GIVEN(0), GIVEN(1), GIVEN(2), GIVEN(3), label);
        if (entropy) {
            const float gap = s.top - s.own, v = entropy_of(gap, s.rest, s.inverse);
            const float m = larger(miss_of(gap, s.rest, s.own_exp, s.inverse), TINY);
            entropy[i] = voids && w == 0.0f ? 0.0f : v;
            miss[i] = voids && w == 0.0f ? TINY : m + (s.inverse - s.inverse);
        }
        if (sums) {
            const float share = w * s.inverse, both = share * s.own_exp;
            p0 += share * s.e0;
            p1 += share * s.e1;
            i0 += label == 0 ? both : 0.0f;
            i1 += label == 1 ? both : 0.0f;
            t0 += label == 0 ? w : 0.0f;
            t1 += label == 1 ? w : 0.0f;
            if (classes > 2) {
                p2 += share * s.e2;
                i2 += label == 2 ? both : 0.0f;
                t2 += label == 2 ? w : 0.0f;
            }
            if (classes > 3) {
                p3 += share * s.e3;
                i3 += label == 3 ? both : 0.0f;
                t3 += label == 3 ? w : 0.0f;
            }
        }
    }
    if (sums) {
        const float found[12] = {i0, p0, t0, i1, p1, t1, i2, p2, t2, i3, p3, t3};
        for (int j = 0; j < 3 * classes; j++)
            row[j] += found[j];
    }
}

enum { ENTROPY = 1, MISS = 2 }; /* which maps have a gradient */

/* The gradient of class k in few_backward; s.e##k is a register. */
#define SLOPE(k) (predicted##k + (label == k ? both##k : 0.0f))
#define MAP_PART(k) (map ? (label == k ? own : s.e##k * u) : 0.0f)
#define GRADIENT(k) \
    const float d##k = sums ? FMA(s.e##k * share, SLOPE(k) - mean, MAP_PART(k)) : MAP_PART(k); \
    g##k[i] = voids && w == 0.0f ? 0.0f : d##k

INLINE void few_backward(const int classes, const int voids, const int map, const int sums,
                         const tile *x, const float *z, int64_t step, int64_t n,
                         const upstreams *up, float *grad, int64_t grad_step)
{
    const float *RESTRICT z0 = z, *RESTRICT z1 = z + step;
    const float *RESTRICT z2 = z + (classes > 2 ? 2 : 0) * step;
    const float *RESTRICT z3 = z + (classes > 3 ? 3 : 0) * step;
    float *RESTRICT g0 = grad, *RESTRICT g1 = grad + grad_step;
    float *RESTRICT g2 = grad + (classes > 2 ? 2 : 0) * grad_step;
    float *RESTRICT g3 = grad + (classes > 3 ? 3 : 0) * grad_step;
    const float both0 = sums ? up->both[0] : 0.0f, both1 = sums ? up->both[1] : 0.0f;
    const float both2 = sums && classes > 2 ? up->both[2] : 0.0f;
    const float both3 = sums && classes > 3 ? up->both[3] : 0.0f;
    const float predicted0 = sums ? up->predicted[0] : 0.0f;
    const float predicted1 = sums ? up->predicted[1] : 0.0f;
    const float predicted2 = sums && classes > 2 ? up->predicted[2] : 0.0f;
    const float predicted3 = sums && classes > 3 ? up->predicted[3] : 0.0f;
    const float *RESTRICT entropy = up->entropy, *RESTRICT miss = up->miss;
    const float *RESTRICT weights = x->weight;
    const int32_t *RESTRICT labels = x->label;
    SIMD
    for (int64_t i = 0; i < n; i++) {
        const float w = weights[i];
        const int32_t label = labels[i];
        const pixel_softmax s = softmax_of(classes, GIVEN(0), GIVEN(1), GIVEN(2), GIVEN(3), label);
        /* the slope of 1 - p by -log p is p */
        const float by_miss = map & MISS ? miss[i] * (s.own_exp * s.inverse) : 0.0f;
        const float g = map & ENTROPY ? entropy[i] + by_miss : by_miss;
        const float share = w * s.inverse, u = g * s.inverse;
        /* p - 1 of the label's class is -miss, without cancellation */
        const float own = -g * miss_of(s.top - s.own, s.rest, s.own_exp, s.inverse);
        float mean = 0.0f;
        if (sums) {
            mean = FMA(s.e0, SLOPE(0), s.e1 * SLOPE(1));
            if (classes > 2) mean = FMA(s.e2, SLOPE(2), mean);
            if (classes > 3) mean = FMA(s.e3, SLOPE(3), mean);
            mean *= s.inverse;
        }
        GRADIENT(0);
        GRADIENT(1);
        if (classes > 2) { GRADIENT(2); }
        if (classes > 3) { GRADIENT(3); }
    }
}

/* ---- many classes, or one: the exponentials of a tile in memory */

/* state of pixel i after four more exponentials */
#define FOUR(k) \
    const float a = exp_(z[(k) * step + i] - top[i]), b = exp_(z[((k) + 1) * step + i] - top[i]); \
    const float c = exp_(z[((k) + 2) * step + i] - top[i]), d = exp_(z[((k) + 3) * step + i] - top[i]); \
    float highest = high[i], others = rest[i]; \
    others += order(&highest, a); \
    others += order(&highest, b); \
    others += order(&highest, c); \
    others += order(&highest, d); \
    high[i] = highest; \
    rest[i] = others; \
    if (kept) { \
        e[(k) * width + i] = a; \
        e[((k) + 1) * width + i] = b; \
        e[((k) + 2) * width + i] = c; \
        e[((k) + 3) * width + i] = d; \
    }

/* Into `e` where `kept`; with `mean` [classes] also sum_k p_k mean_k, into x->average. */
INLINE void exponentials(const int kept, const int with_mean, const float *z, int64_t step,
                         int64_t classes, int64_t n, tile *x, float *RESTRICT e, int64_t width,
                         const float *mean)
{
    float *RESTRICT top = x->top, *RESTRICT rest = x->rest, *RESTRICT high = x->high;
    float *RESTRICT average = x->average;
    int64_t k = 1;
    memcpy(top, z, sizeof(float) * (size_t)n);
    for (; k + 3 < classes; k += 4) {
        const float *a = z + k * step, *b = a + step, *c = b + step, *d = c + step;
        SIMD
        for (int64_t i = 0; i < n; i++)
            top[i] = larger(larger(larger(a[i], b[i]), larger(c[i], d[i])), top[i]);
    }
    for (; k < classes; k++) {
        const float *a = z + k * step;
        SIMD
        for (int64_t i = 0; i < n; i++)
            top[i] = larger(a[i], top[i]);
    }
    memset(rest, 0, sizeof(float) * (size_t)n);
    memset(high, 0, sizeof(float) * (size_t)n);
    if (with_mean)
        memset(average, 0, sizeof(float) * (size_t)n);
    for (k = 0; k + 3 < classes; k += 4) {
        SIMD
        for (int64_t i = 0; i < n; i++) {
            FOUR(k)
            if (with_mean)
                average[i] += FMA(a, mean[k], b * mean[k + 1])
                            + FMA(c, mean[k + 2], d * mean[k + 3]);
        }
    }
    for (; k < classes; k++) {
        SIMD
        for (int64_t i = 0; i < n; i++) {
            const float a = exp_(z[k * step + i] - top[i]);
            rest[i] += order(&high[i], a);
            if (kept) e[k * width + i] = a;
            if (with_mean) average[i] = FMA(a, mean[k], average[i]);
        }
    }
    for (int64_t i = 0; i < n; i++)
        x->gap[i] = top[i] - z[x->label[i] * step + i];
    SIMD
    for (int64_t i = 0; i < n; i++) {
        x->inverse[i] = 1.0f / (rest[i] + high[i]);
        x->own_exp[i] = exp_(-x->gap[i]);
        if (with_mean)
            average[i] *= x->inverse[i];
    }
}

/* sum_k spread_k (-log p_k) = sum_k spread_k (log sum + top - z_k) */
static void smooth_map(const float *spread, const tile *x, const float *z, int64_t step,
                       int64_t classes, int64_t n, float *RESTRICT to)
{
    memset(to, 0, sizeof(float) * (size_t)n);
    for (int64_t k = 0; k < classes; k++) {
        const float a = spread[k], *row = z + k * step;
        SIMD
        for (int64_t i = 0; i < n; i++)
            to[i] += a * entropy_of(x->top[i] - row[i], x->rest[i], x->inverse[i]);
    }
    if (x->voids)
        for (int64_t i = 0; i < n; i++)
            to[i] = x->weight[i] == 0.0f ? 0.0f : to[i];
}

#define HISTOGRAMS 4 /* neighbours are mostly of one class: each adds to a histogram of its own */

static void many_sums(const tile *x, const float *e, int64_t width, int64_t classes, int64_t n,
                      int columns, double *row)
{
    float share[WIDEST];
    SIMD
    for (int64_t i = 0; i < n; i++)
        share[i] = x->weight[i] * x->inverse[i];
    for (int64_t k = 0; k < classes; k++) {
        const float *y = e + k * width;
        float predicted = 0.0f, square = 0.0f;
        if (columns == 5) {
            SIMD_SUM(predicted, square)
            for (int64_t i = 0; i < n; i++) {
                const float p = share[i] * y[i];
                predicted += p;
                square = FMA(p, y[i] * x->inverse[i], square);
            }
        } else {
            SIMD_SUM(predicted)
            for (int64_t i = 0; i < n; i++)
                predicted = FMA(share[i], y[i], predicted);
        }
        row[columns * k + 1] += predicted;
        if (columns == 5)
            row[columns * k + 3] += square;
    }
    if (classes <= 64) {
        float both[HISTOGRAMS][64] = {{0}}, count[HISTOGRAMS][64] = {{0}};
        for (int64_t i = 0; i < n; i++) {
            both[i % HISTOGRAMS][x->label[i]] += share[i] * x->own_exp[i];
            count[i % HISTOGRAMS][x->label[i]] += x->weight[i];
        }
        for (int64_t k = 0; k < classes; k++)
            for (int j = 0; j < HISTOGRAMS; j++) {
                row[columns * k] += both[j][k];
                row[columns * k + 2] += count[j][k];
            }
    } else {
        for (int64_t i = 0; i < n; i++) {
            row[columns * x->label[i]] += share[i] * x->own_exp[i];
            row[columns * x->label[i] + 2] += x->weight[i];
        }
    }
}

static void many_forward(const float *z, int64_t step, int64_t classes, tile *x, float *e,
                         int64_t width, int64_t n, const float *spread, const results *out,
                         float *entropy, float *miss, float *smooth, double *row)
{
    if (out->sums)
        exponentials(1, 0, z, step, classes, n, x, e, width, 0);
    else
        exponentials(0, 0, z, step, classes, n, x, e, width, 0);
    if (entropy)
        SIMD
        for (int64_t i = 0; i < n; i++) {
            const float v = entropy_of(x->gap[i], x->rest[i], x->inverse[i]);
            const float m = miss_of(x->gap[i], x->rest[i], x->own_exp[i], x->inverse[i]);
            entropy[i] = x->weight[i] == 0.0f ? 0.0f : v;
            miss[i] = x->weight[i] == 0.0f ? TINY : larger(m, TINY) + (x->inverse[i] - x->inverse[i]);
        }
    if (smooth)
        smooth_map(spread, x, z, step, classes, n, smooth);
    if (out->sums)
        many_sums(x, e, width, classes, n, out->sums, row);
}

/* The gradient of a tile to grad + k * grad_step. */
static void many_backward(const float *z, int64_t step, int64_t classes, tile *x, float *e,
                          int64_t width, int64_t n, const float *spread, const upstreams *up,
                          float *grad, int64_t grad_step)
{
    const float *w = x->weight, *predicted = up->predicted;
    float *RESTRICT all = x->all, *RESTRICT own = x->own;
    float whole = 0.0f; /* of the spread */
    if (predicted)
        exponentials(1, 1, z, step, classes, n, x, e, width, predicted);
    else
        exponentials(1, 0, z, step, classes, n, x, e, width, 0);
    if (up->square) { /* the slope by p_k has 2 square_k p_k in it, too */
        float *RESTRICT turn = x->turn;
        memset(turn, 0, sizeof(float) * (size_t)n);
        for (int64_t k = 0; k < classes; k++) {
            const float s = 2.0f * up->square[k], *y = e + k * width;
            SIMD
            for (int64_t i = 0; i < n; i++)
                turn[i] = FMA(s * y[i], y[i], turn[i]);
        }
        SIMD
        for (int64_t i = 0; i < n; i++)
            x->average[i] = FMA(turn[i] * x->inverse[i], x->inverse[i], x->average[i]);
    }
    for (int64_t k = 0; k < classes && up->smooth; k++)
        whole += spread[k];
    /* dz_k = p_k (all + w predicted_k), and that of the label's class: own. */
    SIMD
    for (int64_t i = 0; i < n; i++) {
        const float p = x->own_exp[i] * x->inverse[i];
        float u = up->entropy ? up->entropy[i] : 0.0f;
        u = up->miss ? FMA(up->miss[i], p, u) : u; /* the slope of 1 - p by -log p is p */
        const float flat = up->smooth ? up->smooth[i] * whole : 0.0f;
        all[i] = u + flat;
        own[i] = FMA(p, flat, -u * miss_of(x->gap[i], x->rest[i], x->own_exp[i], x->inverse[i]));
    }
    if (predicted)
        for (int64_t i = 0; i < n; i++) {
            const float p = x->own_exp[i] * x->inverse[i], mine = up->both[x->label[i]];
            const float mean = FMA(p, mine, x->average[i]);
            const float square = up->square ? 2.0f * up->square[x->label[i]] * p : 0.0f;
            all[i] -= w[i] * mean;
            own[i] += w[i] * p * (mine + predicted[x->label[i]] + square - mean);
        }
    SIMD
    for (int64_t i = 0; i < n; i++)
        all[i] *= x->inverse[i];
    for (int64_t k = 0; k < classes; k++) {
        const float *y = e + k * width;
        float *to = grad + k * grad_step; /* may be y */
        if (up->square) {
            const float s = 2.0f * up->square[k], g = predicted[k];
            SIMD
            for (int64_t i = 0; i < n; i++) {
                const float p = y[i] * x->inverse[i];
                to[i] = FMA(p * w[i], FMA(s, p, g), y[i] * all[i]);
            }
        } else if (predicted) {
            const float g = predicted[k];
            SIMD
            for (int64_t i = 0; i < n; i++)
                to[i] = y[i] * FMA(w[i] * x->inverse[i], g, all[i]);
        } else {
            SIMD
            for (int64_t i = 0; i < n; i++)
                to[i] = y[i] * all[i];
        }
    }
    for (int64_t i = 0; i < n; i++)
        grad[x->label[i] * grad_step + i] = own[i];
    if (up->smooth)
        for (int64_t k = 0; k < classes; k++) {
            const float a = spread[k];
            float *to = grad + k * grad_step;
            SIMD
            for (int64_t i = 0; i < n; i++)
                to[i] -= up->smooth[i] * a;
        }
    clear_voids(x, grad, classes, grad_step, n);
}

/* ---- a tile, forward and backward */

#define FEW(call) \
    if (x->voids) { call(1) } else { call(0) }

static void tile_forward(const scores *c, tile *x, const float *z, int64_t step, float *e,
                         int64_t width, int64_t n, int64_t first, const results *out, double *row)
{
    float *entropy = out->entropy ? out->entropy + first : 0;
    float *miss = out->miss ? out->miss + first : 0;
    if (out->weights)
        memcpy(out->weights + first, x->weight, sizeof(float) * (size_t)n);
    if (in_registers(c, out->sums)) {
        const int64_t classes = c->classes;
#define FORWARD(classes, voids) \
        if (!out->sums) few_forward(classes, voids, 0, x, z, step, n, entropy, miss, row); \
        else if (entropy) few_forward(classes, voids, 1, x, z, step, n, entropy, miss, row); \
        else few_forward(classes, voids, 1, x, z, step, n, 0, 0, row);
#define FORWARD_ALL(voids) \
        if (classes == 2) { FORWARD(2, voids) } \
        else if (classes == 3) { FORWARD(3, voids) } \
        else { FORWARD(4, voids) }
        FEW(FORWARD_ALL)
    } else {
        many_forward(z, step, c->classes, x, e, width, n, c->spread, out, entropy, miss,
                     out->smooth ? out->smooth + first : 0, row);
    }
    if (!out->sums)
        return;
    row[out->sums * c->classes] += (double)(n - x->voids);
    if (x->poisoned) /* a weight of NaN belongs to no class: to all of them */
        for (int64_t k = 0; k < out->sums * c->classes; k++)
            row[k] = NAN;
}

static void tile_backward(const scores *c, tile *x, const float *z, int64_t step, float *e,
                          int64_t width, int64_t n, const upstreams *up, float *grad,
                          int64_t grad_step)
{
    if (in_registers(c, up->square ? 5 : 3)) {
        const int64_t classes = c->classes;
        const int map = (up->entropy ? ENTROPY : 0) | (up->miss ? MISS : 0);
#define BACKWARD(classes, voids, map, sums) \
        few_backward(classes, voids, map, sums, x, z, step, n, up, grad, grad_step);
#define BACKWARD_MAPS(classes, voids, sums) \
        if (map == ENTROPY) { BACKWARD(classes, voids, ENTROPY, sums) } \
        else if (map) { \
            upstreams both = *up; \
            float zero[WIDEST]; \
            if (!both.entropy) both.entropy = memset(zero, 0, sizeof zero); \
            few_backward(classes, voids, ENTROPY | MISS, sums, x, z, step, n, &both, grad, grad_step); \
        } else { BACKWARD(classes, voids, 0, sums) }
#define BACKWARD_SUMS(classes, voids) \
        if (up->predicted) { BACKWARD_MAPS(classes, voids, 1) } \
        else { BACKWARD_MAPS(classes, voids, 0) }
#define BACKWARD_ALL(voids) \
        if (classes == 2) { BACKWARD_SUMS(2, voids) } \
        else if (classes == 3) { BACKWARD_SUMS(3, voids) } \
        else { BACKWARD_SUMS(4, voids) }
        FEW(BACKWARD_ALL)
    } else {
        many_backward(z, step, c->classes, x, e, width, n, c->spread, up, grad, grad_step);
    }
}

static void write_gradient(const scores *c, const float *e, int64_t width, int64_t image,
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

/* Rows of partial sums become the sums of each image: in order, the same at every run. */
static void add_rows(const scores *c, const double *rows, int64_t runs, int columns, float *sums,
                     float *present)
{
    const int64_t size = row_size(c, columns);
    for (int64_t image = 0; image < c->images; image++)
        for (int64_t j = 0; j < size; j++) {
            double total = 0.0;
            for (int64_t run = 0; run < runs; run++)
                total += rows[(image * runs + run) * size + j];
            if (j < size - 1)
                sums[image * (size - 1) + j] = (float)total;
            else
                for (int64_t k = 0; k < c->classes; k++)
                    present[image * c->classes + k] = total > 0.0 ? 1.0f : 0.0f;
        }
    if (columns == 5) /* t is 0 or 1 */
        for (int64_t k = 0; k < c->images * c->classes; k++)
            sums[5 * k + 4] = sums[5 * k + 2];
}

/* Floats of workspace for each thread; out is 0, or the pixels of a row of the labels, and in those
 * of a row of the logits, where these are smaller. */
static int64_t space_of(int64_t classes, int64_t out, int64_t in)
{
    return (classes * (2 * tile_width(classes) + 4 * out) + 2 * in + 31) / 16 * 16;
}

static upstreams of_image(const upstreams *up, int64_t image, int64_t classes)
{
    upstreams own = *up;
    if (up->both) {
        own.both += image * classes;
        own.predicted += image * classes;
        own.square = up->square ? up->square + image * classes : 0;
    }
    return own;
}

/* The gradients by the sums, [n c k], as one array of each kind: I, P and P2. */
static int64_t split_size(const scores *c) { return 3 * c->images * c->classes; }

static void split(const scores *c, const float *grad_sums, int columns, float *to, upstreams *up)
{
    const int64_t rows = c->images * c->classes;
    if (!grad_sums)
        return;
    for (int64_t k = 0; k < rows; k++) {
        to[k] = grad_sums[columns * k];
        to[rows + k] = grad_sums[columns * k + 1];
        to[2 * rows + k] = columns == 5 ? grad_sums[columns * k + 3] : 0.0f;
    }
    up->both = to;
    up->predicted = to + rows;
    up->square = columns == 5 ? to + 2 * rows : 0;
}

#define SCORES_ARGUMENTS \
    const void *logits, int dtype, const void *target, int target_dtype, const float *weight, \
    const float *spread, int64_t ignore, int64_t images, int64_t classes, int64_t pixels, int last
#define SCORES \
    {logits, target, weight, spread, images, classes, pixels, ignore, classes * pixels, \
     last ? 1 : pixels, last ? classes : 1, dtype, target_dtype}

/* Work enough for a thread to be woken. */
#define ENOUGH 32768

EXPORT int denseloss_softmax(SCORES_ARGUMENTS, int columns, int threads, float *entropy,
                             float *miss, float *weights, float *smooth, float *sums,
                             float *present)
{
    const scores c = SCORES;
    const results out = {entropy, miss, weights, smooth, columns};
    const int64_t width = tile_width(classes), runs = (pixels + RUN - 1) / RUN;
    const int64_t size = row_size(&c, columns), room = space_of(classes, 0, 0);
    const int members = team(threads, images * pixels * classes, ENOUGH);
    double *work = allocate(sizeof(double) * images * runs * size + sizeof(float) * room * members);
    if (!work)
        return 1;
    float *space = (float *)(work + images * runs * size);
    const int held = in_registers(&c, columns);
#pragma omp parallel for schedule(dynamic) num_threads(members) if (members > 1)
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
            const float *z = read_logits(&c, image, pixel, n, &x, !held, scratch, width, &step);
            tile_forward(&c, &x, z, step, e, width, n, first, &out, row);
        }
    }
    if (columns)
        add_rows(&c, work, runs, columns, sums, present);
    free(work);
    return 0;
}

/* grad_entropy, grad_miss, grad_smooth [n pixels], grad_sums [n classes columns]; each may be 0. */
EXPORT int denseloss_softmax_backward(SCORES_ARGUMENTS, const float *grad_entropy,
                                      const float *grad_miss, const float *grad_smooth, const float *grad_sums,
                                      int columns, int threads, void *grad)
{
    const scores c = SCORES;
    const int64_t width = tile_width(classes), runs = (pixels + RUN - 1) / RUN;
    const int64_t room = space_of(classes, 0, 0);
    const int members = team(threads, images * pixels * classes, ENOUGH);
    float *space = allocate(sizeof(float) * (room * members + split_size(&c)));
    if (!space)
        return 1;
    upstreams up = {grad_entropy, grad_miss, grad_smooth, 0, 0, 0};
    split(&c, grad_sums, columns, space + room * members, &up);
    const int direct = dtype == FLOAT32 && !last, held = in_registers(&c, columns);
    fresh(grad, dtype, images * pixels * classes);
#pragma omp parallel for schedule(dynamic) num_threads(members) if (members > 1)
    for (int64_t task = 0; task < images * runs; task++) {
        tile x;
        float *scratch = space + room * thread_number(), *e = scratch + classes * width;
        const int64_t image = task / runs, begin = task % runs * RUN;
        const int64_t end = least(begin + RUN, pixels);
        upstreams own = of_image(&up, image, classes);
        for (int64_t pixel = begin; pixel < end; pixel += width) {
            const int64_t n = least(width, end - pixel), first = image * pixels + pixel;
            int64_t step;
            read_tile_labels(&c, first, n, &x);
            const float *z = read_logits(&c, image, pixel, n, &x, !held, scratch, width, &step);
            own.entropy = grad_entropy ? grad_entropy + first : 0;
            own.miss = grad_miss ? grad_miss + first : 0;
            own.smooth = grad_smooth ? grad_smooth + first : 0;
            if (direct) {
                float *to = (float *)grad + image * c.image_stride + pixel;
                tile_backward(&c, &x, z, step, e, width, n, &own, to, c.class_stride);
            } else {
                tile_backward(&c, &x, z, step, e, width, n, &own, e, width);
                write_gradient(&c, e, width, image, pixel, n, grad);
            }
        }
    }
    free(space);
    return 0;
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

static void spread_row(const scores *c, const resizing *r, int64_t image, int64_t row,
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
static void between_rows(const scores *c, const resizing *r, const spread_rows *rows, int64_t y,
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
INLINE scores of_size(scores c, int64_t tall, int64_t wide)
{
    c.image_stride = c.classes * tall * wide;
    c.class_stride = c.pixel_stride == 1 ? tall * wide : 1;
    return c;
}

EXPORT int denseloss_softmax_resized(SCORES_ARGUMENTS, RESIZING_ARGUMENTS, int columns, int threads,
                                     float *entropy, float *miss, float *weights, float *smooth,
                                     float *sums, float *present)
{
    const scores c = of_size((scores)SCORES, tall, wide);
    const resizing r = RESIZING;
    const results out = {entropy, miss, weights, smooth, columns};
    const int64_t width = tile_width(classes), some = rows_of_run(broad);
    const int64_t runs = (high + some - 1) / some, size = row_size(&c, columns);
    const int64_t room = space_of(classes, broad, wide);
    const int members = team(threads, images * pixels * classes, ENOUGH);
    double *work = allocate(sizeof(double) * images * runs * size + sizeof(float) * room * members);
    if (!work)
        return 1;
    float *space = (float *)(work + images * runs * size);
#pragma omp parallel for schedule(dynamic) num_threads(members) if (members > 1)
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
                tile_forward(&c, &x, z, width, e, width, n, first, &out, row);
            }
        }
    }
    if (columns)
        add_rows(&c, work, runs, columns, sums, present);
    free(work);
    return 0;
}

/* A row of gradients of the labels' width goes to the logits' width, and out. */
static void gather_row(const scores *c, const resizing *r, const users *used, const float *from,
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

EXPORT int denseloss_softmax_resized_backward(
    SCORES_ARGUMENTS, RESIZING_ARGUMENTS, const int32_t *used_at, const float *used_share,
    int64_t most, const float *grad_entropy, const float *grad_miss, const float *grad_smooth,
    const float *grad_sums,
    int columns, int threads, void *grad)
{
    const scores c = of_size((scores)SCORES, tall, wide);
    const resizing r = RESIZING;
    const users used = {used_at, used_share, most};
    const int64_t width = tile_width(classes), bands = (tall + OWNED - 1) / OWNED;
    const int64_t room = space_of(classes, broad, wide), plane = classes * broad;
    const int members = team(threads, images * pixels * classes, ENOUGH);
    float *space = allocate(sizeof(float) * (room * members + split_size(&c)));
    if (!space)
        return 1;
    upstreams up = {grad_entropy, grad_miss, grad_smooth, 0, 0, 0};
    split(&c, grad_sums, columns, space + room * members, &up);
#pragma omp parallel for schedule(dynamic) num_threads(members) if (members > 1)
    for (int64_t task = 0; task < images * bands; task++) {
        tile x;
        float *z = space + room * thread_number(), *e = z + classes * width;
        float *first_row = e + classes * width, *now = first_row + 2 * plane, *after = now + plane;
        float *line = after + plane;
        spread_rows rows = {{first_row, first_row + plane}, {-1, -1}};
        const int64_t image = task / bands, begin = task % bands * OWNED;
        const int64_t end = least(begin + OWNED, tall);
        upstreams own = of_image(&up, image, classes);
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
                own.entropy = grad_entropy ? grad_entropy + first : 0;
                own.miss = grad_miss ? grad_miss + first : 0;
            own.smooth = grad_smooth ? grad_smooth + first : 0;
                tile_backward(&c, &x, z, width, e, width, n, &own, e, width);
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
    free(space);
    return 0;
}
