/* Blocks of elements that each have a logit, a target and a weight, without anything void in them. */
#pragma once
#include "elements.h"

#define BLOCK 1024

/* Where elements come from, and what they count for. */
typedef struct {
    const void *logits, *target;
    const float *weight;
    double ignore; /* where `ignores` */
    enum dtype dtype, target_dtype;
    int ignores;
    int quality; /* the target is a quality, no mask */
} elements;

typedef struct {
    const float *z, *t, *w; /* w is 0 where everything counts 1 */
    int hard;               /* every target is 0 or 1 */
} block;

typedef struct { float z[BLOCK], t[BLOCK], w[BLOCK]; } block_space;

/* Targets a little outside [0, 1] are brought into it, others count as NaN. */
INLINE float inside(float t, const int quality)
{
    const float unit = smaller(larger(t, 0.0f), 1.0f);
    const int fits = quality ? t <= 1.01f : (t > -0.5f) & (t < 1.5f);
    return fits ? unit : NAN;
}

/* A block without anything void in it. Exact targets are the rule: only others take the slow way. */
INLINE block cleared(const elements *e, int64_t start, int64_t stride, int64_t n, block_space *s)
{
    const float *z = read(s->z, e->logits, e->dtype, start, stride, n);
    const float *t = read(s->t, e->target, e->target_dtype, start, stride, n);
    const float *w = e->weight ? read(s->w, e->weight, FLOAT32, start, stride, n) : 0;
    const float ignored = (float)e->ignore;
    const int ignores = e->ignores;
    int outside = 0, soft = 0, voids = 0;
    _Pragma("omp simd reduction(| : outside, soft)")
    for (int64_t i = 0; i < n; i++) {
        outside |= !(t[i] >= 0.0f && t[i] <= 1.0f);
        soft |= t[i] != 0.0f && t[i] != 1.0f;
    }
    if (ignores) {
        SIMD_ANY(voids)
        for (int64_t i = 0; i < n; i++)
            voids |= t[i] == ignored;
    }
    if (w) {
        SIMD_ANY(voids)
        for (int64_t i = 0; i < n; i++)
            voids |= w[i] == 0.0f;
    }
    if (!outside && !voids)
        return (block){z, t, w, !soft};
    soft = 0;
    for (int64_t i = 0; i < n; i++) {
        const int empty = (w && w[i] == 0.0f) || (ignores && t[i] == ignored);
        const float target = empty ? 0.0f : inside(t[i], e->quality);
        s->w[i] = empty ? 0.0f : w ? w[i] : 1.0f;
        s->z[i] = empty ? 0.0f : z[i];
        s->t[i] = target;
        soft |= target != 0.0f && target != 1.0f;
    }
    return (block){s->z, s->t, s->w, !soft};
}

/* to = factor w up d, exactly 0 where w is, even under an upstream gradient of NaN. `to` may be d. */
static void scale_block(float *to, const float *d, const float *w, const float *up, float factor,
                        int64_t n)
{
    SIMD
    for (int64_t i = 0; i < n; i++) {
        const float f = factor * (w ? w[i] : 1.0f) * (up ? up[i] : 1.0f);
        to[i] = w && w[i] == 0.0f ? 0.0f : f * d[i];
    }
}
