/* Losses of single elements: value and gradient in one pass. See fused/ops.py for the formulas. */
#pragma once
#include "dense.h"

/* As in fused/ops.py */
enum kind { BCE, FOCAL, QUALITY, VARIFOCAL, VARIFOCAL_FIXED };
enum { VALUES = 1, SLOPES = 2 };
enum power { POWER_0, POWER_1, POWER_2, POWER_ANY };

typedef struct { float value, slope; } term;

INLINE float power(float x, float g, const enum power power)
{
    switch (power) {
    case POWER_0: return 1.0f;
    case POWER_1: return x;
    case POWER_2: return x * x;
    default: return pow_(x, g);
    }
}

/* x^g at least TINY^g, and g x^(g-1) * y where y / x stays bounded. */
INLINE term element(const sides s, float t, float b, float a, float g, const enum kind kind,
                    const enum power gamma)
{
    const float u = 1.0f - t;
    const float ce = -FMA(t, s.log_p, u * s.log_q), dce = FMA(u, s.p, -t * s.q);
    switch (kind) {
    case BCE:
        return (term){-FMA(b * t, s.log_p, u * s.log_q), FMA(u, s.p, -b * t * s.q)};
    case FOCAL: {
        const float miss = FMA(t, s.q, u * s.p), m = miss < TINY ? TINY : miss;
        const float at = a < 0.0f ? 1.0f : FMA(a, t, (1.0f - a) * u), f = at * power(m, g, gamma);
        if (gamma == POWER_0)
            return (term){f * ce, f * dce};
        const float rest = miss < TINY ? 0.0f : s.p * s.q / m;
        return (term){f * ce, f * FMA(g * (u - t) * ce, rest, dce)};
    }
    case QUALITY: {
        const float gap = t - s.p, size = fabsf(gap), d = size < TINY ? TINY : size;
        const float at = a < 0.0f ? 1.0f : FMA(a, t, (1.0f - a) * u), f = at * power(d, g, gamma);
        if (gamma == POWER_0)
            return (term){f * ce, f * dce};
        const float turn = size < TINY ? 0.0f : -g * s.p * s.q / gap;
        return (term){f * ce, f * FMA(turn, ce, dce)};
    }
    case VARIFOCAL:
    case VARIFOCAL_FIXED: {
        const float p = s.p < TINY ? TINY : s.p, f = a * power(p, g, gamma);
        const float turn = kind == VARIFOCAL && s.p >= TINY ? g * s.q * ce : 0.0f;
        const int object = t != 0.0f; /* NaN is one, too */
        return (term){object ? t * ce : f * ce, object ? t * dce : f * (dce + turn)};
    }
    }
    return (term){0.0f, 0.0f};
}

/* Focal loss where t is 0 or 1: of the sides, only those of the right and the wrong answer. */
INLINE term hard_focal(float z, float t, float a, float g, const enum power gamma)
{
    const float sign = FMA(2.0f, t, -1.0f);
    const sides s = sigmoid(sign * z);
    const float at = a < 0.0f ? 1.0f : FMA(a, t, (1.0f - a) * (1.0f - t));
    /* Sure and right is NaN in the definition where z is infinite, by 0 * inf. */
    const float sure = larger(sign * z, 0.0f), poison = sure - sure;
    const float f = FMA(at, power(s.q < TINY ? TINY : s.q, g, gamma), poison), ce = -s.log_p;
    const float turn = gamma == POWER_0 || s.q < TINY ? 0.0f : g * s.p * ce;
    return (term){f * ce, -sign * f * (s.q + turn)};
}

/* What a loop over a block leaves: the values, the slopes times `factor`, the sum of the values. */
typedef struct {
    float *value, *slope;
    float factor, sum;
} output;

INLINE void terms_of(const enum kind kind, const enum power gamma, const int hard, const int kept,
                     int64_t n, const float *RESTRICT z, const float *RESTRICT t,
                     const float *RESTRICT b, float a, float g, output *out)
{
    float *RESTRICT value = out->value, *RESTRICT slope = out->slope;
    const float factor = out->factor;
    float sum = 0.0f;
    SIMD_SUM(sum)
    for (int64_t i = 0; i < n; i++) {
        const term x = hard ? hard_focal(z[i], t[i], a, g, gamma)
                            : element(sigmoid(z[i]), t[i], b ? b[i] : a, a, g, kind, gamma);
        if (kept & VALUES) value[i] = x.value;
        if (kept & SLOPES) slope[i] = factor * x.slope;
        sum += x.value;
    }
    out->sum = sum;
}

/* Each combination becomes a loop of its own, without a branch inside. */
#define KEPT(kind, gamma, hard) \
    if (out->value) terms_of(kind, gamma, hard, VALUES | SLOPES, n, z, t, b, a, g, out); \
    else if (out->slope) terms_of(kind, gamma, hard, SLOPES, n, z, t, b, a, g, out); \
    else terms_of(kind, gamma, hard, 0, n, z, t, b, a, g, out); \
    return
#define POWERS(kind, hard) \
    if (g == 0.0f) { KEPT(kind, POWER_0, hard); } \
    if (g == 1.0f) { KEPT(kind, POWER_1, hard); } \
    if (g == 2.0f) { KEPT(kind, POWER_2, hard); } \
    KEPT(kind, POWER_ANY, hard)

/* out->value may be 0, and out->slope, too, where that is. */
static void block_terms(enum kind kind, int hard, int64_t n, const float *z, const float *t,
                        const float *b, float a, float g, output *out)
{
    switch (kind) {
    case BCE:
        if (b) { KEPT(BCE, POWER_0, 0); }
        b = 0;
        KEPT(BCE, POWER_0, 0);
    case FOCAL:
        b = 0;
        if (hard) { POWERS(FOCAL, 1); }
        POWERS(FOCAL, 0);
    case QUALITY: b = 0; POWERS(QUALITY, 0);
    case VARIFOCAL: b = 0; POWERS(VARIFOCAL, 0);
    case VARIFOCAL_FIXED: b = 0; POWERS(VARIFOCAL_FIXED, 0);
    }
}

/* A block for labels: rows of `classes` elements whose target is 0 but at the class of the label. */
static block cleared_labels(const elements *e, const float *score, int64_t classes, int64_t start,
                            int64_t n, block_space *s)
{
    const float *z = read(s->z, e->logits, e->dtype, start, 1, n);
    const int64_t first = start / classes, last = (start + n - 1) / classes;
    const int64_t ignore = e->ignores ? (int64_t)e->ignore : -1;
    int counted = e->weight == 0;
    memset(s->t, 0, sizeof(float) * (size_t)n);
    for (int64_t row = first; row <= last; row++) {
        const int64_t label = label_at(e->target, e->target_dtype, row);
        const int empty = e->ignores && label == ignore, background = label == -1 && !empty;
        if (empty || label < -1 || label >= classes)
            counted = 0;
        if (empty || background || label < 0 || label >= classes)
            continue;
        const int64_t at = row * classes + label - start;
        const float t = score ? score[row] : 1.0f;
        if (at >= 0 && at < n)
            s->t[at] = inside(t, e->quality);
    }
    if (counted)
        return (block){z, s->t, 0, score == 0};
    for (int64_t row = first; row <= last; row++) {
        const int64_t label = label_at(e->target, e->target_dtype, row);
        const float weight = e->weight ? e->weight[row] : 1.0f;
        const int empty = (e->ignores && label == ignore) || weight == 0.0f;
        const float w = empty ? 0.0f : label < -1 || label >= classes ? NAN : weight;
        const int64_t from = row * classes > start ? row * classes - start : 0;
        const int64_t to = least((row + 1) * classes - start, n);
        for (int64_t i = from; i < to; i++) {
            s->w[i] = w;
            s->z[i] = empty ? 0.0f : z[i];
            s->t[i] = empty ? 0.0f : s->t[i];
        }
    }
    return (block){s->z, s->t, s->w, score == 0};
}

/* sums: float[2], values: float[count], grad: like the logits; each may be 0.
 * upstream: 0 for 1, a number, or one per element where `mapped`. */
EXPORT void denseloss_elementwise(
    const void *logits, int dtype, const void *target, int target_dtype, int64_t classes,
    const float *score, const float *weight, const float *pos_weight, int64_t channels,
    int64_t inner, int kind, float a, float g, int ignores, double ignore, int64_t count,
    const float *upstream, int mapped, float scale, int threads, float *sums, float *values,
    void *grad)
{
    const elements e = {logits, target, weight, ignore, dtype, target_dtype, ignores,
                        kind >= QUALITY};
    const int64_t blocks = (count + BLOCK - 1) / BLOCK;
    const int members = team(threads, count, 16384);
    fresh(grad, dtype, count);
    const float factor = upstream && !mapped ? *upstream * scale : scale;
    double value_sum = 0.0, weight_sum = 0.0;
    double parts[MOST_THREADS][2];
#pragma omp parallel for schedule(static) num_threads(members)
    for (int part = 0; part < members; part++) {
        block_space space;
        float v[BLOCK], d[BLOCK], b[BLOCK];
        double value_part = 0.0, weight_part = 0.0;
        const int64_t end = blocks * (part + 1) / members;
        for (int64_t k = blocks * part / members; k < end; k++) {
            const int64_t start = k * BLOCK, n = least(BLOCK, count - start);
            const block x = classes ? cleared_labels(&e, score, classes, start, n, &space)
                                    : cleared(&e, start, 1, n, &space);
            if (pos_weight)
                for (int64_t i = 0; i < n; i++)
                    b[i] = pos_weight[(start + i) / inner % channels];
            const float *up = mapped ? upstream + start : 0;
            float *own = grad && dtype == FLOAT32 ? (float *)grad + start : d;
            /* Where all elements count alike, the loop over them does everything. */
            const int plain = !x.w && !up && !values;
            output out = {plain ? 0 : v, plain ? (grad ? own : 0) : d, plain ? factor : 1.0f, 0.0f};
            block_terms(kind, x.hard, n, x.z, x.t, pos_weight ? b : 0, a, g, &out);
            float weight_block = (float)n;
            if (x.w) {
                float sum = 0.0f;
                weight_block = 0.0f;
                SIMD_SUM(sum, weight_block)
                for (int64_t i = 0; i < n; i++) {
                    v[i] *= x.w[i];
                    sum += v[i];
                    weight_block += x.w[i];
                }
                out.sum = sum;
            }
            value_part += out.sum;
            weight_part += weight_block;
            if (values)
                memcpy(values + start, v, sizeof(float) * (size_t)n);
            if (!grad)
                continue;
            if (!plain)
                scale_block(own, d, x.w, up, factor, n);
            if (dtype != FLOAT32)
                write_from(d, grad, dtype, start, 1, n);
        }
        parts[part][0] = value_part;
        parts[part][1] = weight_part;
    }
    if (!sums)
        return;
    for (int part = 0; part < members; part++) { /* in order: the same sum at every run */
        value_sum += parts[part][0];
        weight_sum += parts[part][1];
    }
    sums[0] = (float)(scale * value_sum);
    sums[1] = (float)weight_sum;
}
