/* Losses of pairs of boxes: value and gradient in one pass. */
#pragma once
#include "rows.h"

#define PAIRS 256

enum box_kind { IOU, GIOU, DIOU, CIOU, CIOU_RELEASED };
enum box_format { XYXY, XYWH, CXCYWH };

/* How much of the gradient of max(a, b) is a's: half of it at a tie. */
INLINE float part_of_larger(float a, float b) { return a > b ? 1.0f : a == b ? 0.5f : 0.0f; }

/* One axis of a pair of boxes; the slopes are by the box's first and last coordinate. */
typedef struct {
    float size, other, shared, hull, centre, folded;
    float size_slope; /* of size by last; by first its negative */
    float folded_length, folded_hull; /* slopes of folded by last - first and by the hull */
    float shared_first, shared_last, hull_first, hull_last;
} span;

INLINE span span_of(float first, float last, float other_first, float other_last)
{
    const float size = last - first, other = other_last - other_first;
    const float right = smaller(last, other_last), left = larger(first, other_first);
    const float shared = right - left;
    const float far = larger(last, other_last), far_first = larger(first, other_first);
    const float near = smaller(last, other_last), near_first = smaller(first, other_first);
    const float meets = shared > 0.0f ? 1.0f : 0.0f;
    const float far_part = part_of_larger(far, far_first), near_part = part_of_larger(near_first, near);
    span s;
    s.size = larger(size, 0.0f);
    s.other = larger(other, 0.0f);
    s.size_slope = size > 0.0f ? 1.0f : 0.0f;
    s.shared = larger(shared, 0.0f);
    s.shared_last = meets * part_of_larger(other_last, last);
    s.shared_first = -meets * part_of_larger(first, other_first);
    s.hull = larger(far, far_first) - smaller(near, near_first);
    s.hull_last = far_part * part_of_larger(last, other_last)
                - near_part * part_of_larger(other_last, last);
    s.hull_first = (1.0f - far_part) * part_of_larger(first, other_first)
                 - (1.0f - near_part) * part_of_larger(other_first, first);
    s.centre = ((first - other_first) + (last - other_last)) * 0.5f;
    /* An inverted side over the hull; one of size 0 has its slope, too. */
    const float inverse = size > 0.0f || fabsf(s.hull) < TINY ? 0.0f : 1.0f / s.hull;
    s.folded = smaller(size, 0.0f) * -inverse; /* not inf * 0 of a side that overflows */
    s.folded_length = -inverse;
    s.folded_hull = -s.folded * inverse;
    return s;
}

/* Gradients by a quantity of one axis, brought to first and last. */
typedef struct { float size, shared, hull, centre, length; } axis_slopes;

INLINE float by_last(const span s, const axis_slopes d)
{
    return d.size * s.size_slope + d.shared * s.shared_last + d.hull * s.hull_last + 0.5f * d.centre
         + d.length;
}

INLINE float by_first(const span s, const axis_slopes d)
{
    return -d.size * s.size_slope + d.shared * s.shared_first + d.hull * s.hull_first
         + 0.5f * d.centre - d.length;
}

/* Value of the loss, and its gradient by x1, y1, x2, y2. */
typedef struct { float value, x1, y1, x2, y2; } box_term;

INLINE box_term box_loss(float x1, float y1, float x2, float y2, float u1, float v1, float u2,
                         float v2, const enum box_kind kind)
{
    const span x = span_of(x1, x2, u1, u2), y = span_of(y1, y2, v1, v2);
    const float inter = x.shared * y.shared, mine = x.size * y.size;
    const float whole = mine + x.other * y.other - inter;
    const int same = (x1 == u1) & (y1 == v1) & (x2 == u2) & (y2 == v2) & (x2 >= x1) & (y2 >= y1);
    const int nothing = fabsf(whole) < TINY;
    const float over = nothing ? 0.0f : 1.0f / whole;
    /* divided, not multiplied by the inverse: exactly 1 for identical boxes */
    const float iou = nothing ? (same ? 1.0f : 0.0f) : inter / whole;
    /* loss = 1 - iou: d = -(d inter - iou d whole) / whole, whole = mine + other - inter */
    const float by_inter = -(1.0f + iou) * over, by_mine = iou * over;
    axis_slopes dx = {by_mine * y.size, by_inter * y.shared, x.folded_hull, 0.0f, x.folded_length};
    axis_slopes dy = {by_mine * x.size, by_inter * x.shared, y.folded_hull, 0.0f, y.folded_length};
    float value = 1.0f - iou;
    if (kind == GIOU) {
        const float hull = x.hull * y.hull;
        const int flat = fabsf(hull) < TINY;
        const float inverse = flat ? 0.0f : 1.0f / hull;
        value += flat ? 0.0f : (hull - whole) * inverse;
        /* (C - U)/C: d = (U dC / C - dU) / C */
        const float by_hull = whole * inverse * inverse;
        dx.hull += by_hull * y.hull;
        dy.hull += by_hull * x.hull;
        dx.size -= inverse * y.size;
        dy.size -= inverse * x.size;
        dx.shared += inverse * y.shared;
        dy.shared += inverse * x.shared;
    }
    if (kind != IOU && kind != GIOU) {
        const float diagonal = x.hull * x.hull + y.hull * y.hull;
        const float distance = x.centre * x.centre + y.centre * y.centre;
        const int flat = fabsf(diagonal) < TINY;
        const float inverse = flat ? 0.0f : 1.0f / diagonal, offset = distance * inverse;
        value += offset;
        dx.centre = 2.0f * x.centre * inverse;
        dy.centre = 2.0f * y.centre * inverse;
        dx.hull -= 2.0f * offset * x.hull * inverse;
        dy.hull -= 2.0f * offset * y.hull * inverse;
    }
    if (kind == CIOU || kind == CIOU_RELEASED) {
        /* Angles of the sides, each box scaled by its longer one; a box without any has angle 0. */
        const float long_a = larger(x.size, y.size), long_b = larger(x.other, y.other);
        const float to_a = long_a == 0.0f ? 1.0f : 1.0f / long_a;
        const float to_b = long_b == 0.0f ? 1.0f : 1.0f / long_b;
        const float w = x.size * to_a, h = long_a == 0.0f ? 1.0f : y.size * to_a;
        const float wb = x.other * to_b, hb = long_b == 0.0f ? 1.0f : y.other * to_b;
        const float tilt = atan_ratio(wb * h - w * hb, hb * h + wb * w);
        const float v = 0.405284735f * tilt * tilt; /* 4 / pi^2 */
        const float miss = 1.0f - iou, below = miss + v;
        const float alpha = fabsf(below) < TINY ? 0.0f : v / below; /* a constant */
        value += alpha * v;
        const float turn = -alpha * 0.810569469f * tilt; /* 8 / pi^2 */
        if (kind == CIOU_RELEASED) { /* times w^2 + h^2 in the caller's unit */
            dx.size += turn * y.size;
            dy.size -= turn * x.size;
        } else {
            const float exact = turn / (w * w + h * h) * to_a;
            dx.size += exact * h;
            dy.size -= long_a == 0.0f ? 0.0f : exact * w;
        }
    }
    value += x.folded + y.folded;
    return (box_term){value, by_first(x, dx), by_first(y, dy), by_last(x, dx), by_last(y, dy)};
}

/* Four numbers of each pair, apart; as corners, void pairs as zeros. */
INLINE void read_boxes(const void *boxes, enum dtype dtype, enum box_format fmt, int64_t first,
                       int64_t n, float *RESTRICT a, float *RESTRICT b, float *RESTRICT c,
                       float *RESTRICT d)
{
    read_into(a, boxes, dtype, 4 * first, 4, n);
    read_into(b, boxes, dtype, 4 * first + 1, 4, n);
    read_into(c, boxes, dtype, 4 * first + 2, 4, n);
    read_into(d, boxes, dtype, 4 * first + 3, 4, n);
    if (fmt == XYXY)
        return;
    const float half = fmt == CXCYWH ? 0.5f : 0.0f;
    SIMD
    for (int64_t i = 0; i < n; i++) {
        a[i] -= half * c[i];
        b[i] -= half * d[i];
        c[i] += a[i];
        d[i] += b[i];
    }
}

INLINE void box_losses(const enum box_kind kind, int64_t n, float a[4][PAIRS], float b[4][PAIRS],
                       float *RESTRICT v)
{
    SIMD
    for (int64_t i = 0; i < n; i++) {
        /* Comparisons drop what is not finite: it comes back as NaN, which x - x then is. */
        float poison = 0.0f;
        for (int j = 0; j < 4; j++)
            poison += (a[j][i] - a[j][i]) + (b[j][i] - b[j][i]);
        const box_term x = box_loss(a[0][i], a[1][i], a[2][i], a[3][i], b[0][i], b[1][i], b[2][i],
                                    b[3][i], kind);
        v[i] = x.value + poison;
        a[0][i] = x.x1 + poison;
        a[1][i] = x.y1 + poison;
        a[2][i] = x.x2 + poison;
        a[3][i] = x.y2 + poison;
    }
}

EXPORT void denseloss_boxes(const void *boxes, int dtype, const void *target, int target_dtype,
                            const float *weight, int kind, int fmt, int64_t count,
                            const float *upstream, int mapped, float scale, int threads,
                            float *sums, float *values, void *grad)
{
    const int members = team(threads, count, 4096);
    double parts[MOST_THREADS][2];
#pragma omp parallel for schedule(static) num_threads(members)
    for (int part = 0; part < members; part++) {
        float a[4][PAIRS], b[4][PAIRS], v[PAIRS], factor[PAIRS];
        const int64_t blocks = (count + PAIRS - 1) / PAIRS, end = blocks * (part + 1) / members;
        parts[part][0] = parts[part][1] = 0.0;
        for (int64_t k = blocks * part / members; k < end; k++) {
            const int64_t first = k * PAIRS, n = least(PAIRS, count - first);
            const float *w = weight ? weight + first : 0;
            read_boxes(boxes, dtype, fmt, first, n, a[0], a[1], a[2], a[3]);
            read_boxes(target, target_dtype, fmt, first, n, b[0], b[1], b[2], b[3]);
            if (w)
                for (int j = 0; j < 4; j++)
                    for (int64_t i = 0; i < n; i++) {
                        a[j][i] = w[i] == 0.0f ? 0.0f : a[j][i];
                        b[j][i] = w[i] == 0.0f ? 0.0f : b[j][i];
                    }
            switch (kind) {
            case IOU: box_losses(IOU, n, a, b, v); break;
            case GIOU: box_losses(GIOU, n, a, b, v); break;
            case DIOU: box_losses(DIOU, n, a, b, v); break;
            case CIOU: box_losses(CIOU, n, a, b, v); break;
            default: box_losses(CIOU_RELEASED, n, a, b, v);
            }
            finish_rows(v, w, n, values ? values + first : 0, parts[part]);
            if (!grad)
                continue;
            row_factors(factor, w, upstream, mapped, scale, first, n);
            for (int j = 0; j < 2; j++) { /* x1, x2 and y1, y2, from the slopes by corners */
                float *RESTRICT low = a[j], *RESTRICT high = a[j + 2];
                for (int64_t i = 0; i < n; i++) {
                    const float by_low = factor[i] == 0.0f ? 0.0f : factor[i] * low[i];
                    const float by_high = factor[i] == 0.0f ? 0.0f : factor[i] * high[i];
                    low[i] = fmt == XYXY ? by_low : by_low + by_high;
                    high[i] = fmt == CXCYWH ? 0.5f * (by_high - by_low) : by_high;
                }
            }
            for (int j = 0; j < 4; j++)
                write_from(a[j], grad, dtype, 4 * first + j, 4, n);
        }
    }
    add_parts(parts, members, scale, sums);
}
