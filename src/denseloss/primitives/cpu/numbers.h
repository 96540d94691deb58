/* Elementary functions on float, written so that compilers vectorise the loops around them.
 *
 * libm's are calls, one element at a time. These agree with it to about one unit in the last place
 * on the ranges they are used on, and pass NaN on. The build sets -ffp-contract=off: a product and
 * a sum are fused only where FMA says so, so that what is equal on paper (the areas of two
 * identical boxes) is equal to the last bit. */
#ifndef DENSELOSS_NUMBERS_H
#define DENSELOSS_NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define FMA(a, b, c) __builtin_fmaf(a, b, c)

/* Powers of a probability are taken of at least this, as in the definitions. */
#define TINY 1.17549435e-38f

INLINE float as_float(int32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE int32_t as_bits(float x) { int32_t bits; memcpy(&bits, &x, 4); return bits; }
INLINE float larger(float a, float b) { return a > b ? a : b; }   /* b where a is NaN */
INLINE float smaller(float a, float b) { return a < b ? a : b; }

/* As torch.minimum: NaN where either is. */
INLINE float smaller_or_nan(float a, float b) { return a < b || a != a ? a : b; }

/* e^x for x <= 88; 0 below -87.7, where the result is no normal number. */
INLINE float exp_(float x)
{
    x = x < -88.0f ? -88.0f : x;
    /* Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. */
    const float shifted = FMA(x, 1.44269504f, 12582912.0f), n = shifted - 12582912.0f;
    const float r = FMA(n, 2.12194440e-4f, FMA(n, -0.693359375f, x));
    float y = FMA(r, 1.9875691500e-4f, 1.3981999507e-3f);
    y = FMA(y, r, 8.3334519073e-3f);
    y = FMA(y, r, 4.1665795894e-2f);
    y = FMA(y, r, 1.6666665459e-1f);
    y = FMA(y, r, 5.0000001201e-1f);
    y = FMA(y, r * r, r) + 1.0f;
    return y * as_float((int32_t)((uint32_t)as_bits(shifted) << 23) + 0x3f800000);
}

/* log x for normal x > 0. */
INLINE float log_(float x)
{
    const int32_t bits = as_bits(x), e = (bits - 0x3f3504f3) >> 23; /* mantissa in [0.707, 1.414) */
    const float f = as_float(bits - (int32_t)((uint32_t)e << 23)) - 1.0f, z = f * f, n = (float)e;
    float y = FMA(f, 7.0376836292e-2f, -1.1514610310e-1f);
    y = FMA(y, f, 1.1676998740e-1f);
    y = FMA(y, f, -1.2420140846e-1f);
    y = FMA(y, f, 1.4249322787e-1f);
    y = FMA(y, f, -1.6668057665e-1f);
    y = FMA(y, f, 2.0000714765e-1f);
    y = FMA(y, f, -2.4999993993e-1f);
    y = FMA(y, f, 3.3333331174e-1f);
    y = FMA(n, -2.12194440e-4f, y * f * z);
    y = FMA(-0.5f, z, y);
    return FMA(n, 0.693359375f, f + y) + (x - x); /* x - x is NaN where x is */
}

/* log(1 + x) for x >= 0. */
INLINE float log1p_(float x)
{
    const float u = 1.0f + x;
    return log_(u) + (x - (u - 1.0f)) / u;
}

INLINE float pow_(float x, float g) { return exp_(g * log_(x)); }

/* atan(a / b) for b >= 0, not both 0. */
INLINE float atan_ratio(float a, float b)
{
    const float x = fabsf(a), steep = x > b ? 1.0f : 0.0f;
    const float r = smaller(x, b) / larger(x, b), z = r * r;
    float y = FMA(z, 2.78569828e-3f, -1.58660226e-2f);
    y = FMA(y, z, 4.24722321e-2f);
    y = FMA(y, z, -7.49753043e-2f);
    y = FMA(y, z, 1.06448799e-1f);
    y = FMA(y, z, -1.42070308e-1f);
    y = FMA(y, z, 1.99934542e-1f);
    y = FMA(y, z, -3.33331466e-1f);
    y = FMA(y * z, r, r);
    y = steep != 0.0f ? 1.57079637f - y : y;
    return a < 0.0f ? -y : y;
}

/* The two sides of a sigmoid, each to full relative precision, and their logarithms. */
typedef struct { float p, q, log_p, log_q; } sides;

INLINE sides sigmoid(float z)
{
    const float e = exp_(-fabsf(z));
    const float near = 1.0f + e, far = 2.0f + e, both = 1.0f / (near * far);
    const float large = far * both, small = e * large;
    /* log(1 + e) = 2 atanh(e / (2 + e)), and e / (2 + e) <= 1/3 */
    const float s = e * near * both, x = s * s;
    float l = FMA(x, 1.4080727e-1f, 1.3982172e-1f); /* fitted on [0, 1/9]: relative error 4e-9 */
    l = FMA(l, x, 2.0012325e-1f);
    l = FMA(l, x, 3.3333161e-1f);
    l = FMA(l * x, 2.0f * s, 2.0f * s);
    const int up = z >= 0.0f;
    return (sides){up ? large : small, up ? small : large, (up ? 0.0f : z) - l, (up ? -z : 0.0f) - l};
}

#endif
