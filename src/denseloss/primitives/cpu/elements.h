/* Reading and writing elements of any dtype as float, in blocks. */
#ifndef DENSELOSS_ELEMENTS_H
#define DENSELOSS_ELEMENTS_H

#ifdef __linux__
#define _DEFAULT_SOURCE /* madvise */
#endif
#include "numbers.h"
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#ifdef _OPENMP
#include <omp.h>
static inline int thread_number(void) { return omp_get_thread_num(); }
#else
static inline int thread_number(void) { return 0; }
#endif

/* As in library.py */
enum dtype { FLOAT32, FLOAT16, BFLOAT16, UINT8, INT32, INT64 };

#define PRAGMA(text) _Pragma(#text)
#define SIMD PRAGMA(omp simd)
#define SIMD_SUM(...) PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#define SIMD_ANY(flag) PRAGMA(omp simd reduction(| : flag))
#define RESTRICT restrict
#define EXPORT __attribute__((visibility("default")))

INLINE float from_bfloat16(uint16_t x) { return as_float((int32_t)((uint32_t)x << 16)); }

INLINE uint16_t to_bfloat16(float x)
{
    const uint32_t bits = (uint32_t)as_bits(x), odd = (bits >> 16) & 1; /* ties to even */
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + odd) >> 16);
}

INLINE float from_float16(uint16_t x)
{
    /* Shifted into the place of a float's, exponent and mantissa are off by the factor 2^-112. */
    const uint32_t magnitude = (uint32_t)(x & 0x7fff) << 13, sign = (uint32_t)(x & 0x8000) << 16;
    const float scaled = as_float((int32_t)magnitude) * 5.192296858534828e33f;
    const uint32_t bits = (x & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : (uint32_t)as_bits(scaled);
    return as_float((int32_t)(bits | sign));
}

INLINE uint16_t to_float16(float x)
{
    const uint32_t bits = (uint32_t)as_bits(x), sign = (bits >> 16) & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff, odd = (magnitude >> 13) & 1;
    /* Normal: re-bias and round to even. Subnormal: adding 1/2 leaves the rounded bits. */
    const uint32_t normal = (magnitude - 0x38000000 + 0xfff + odd) >> 13;
    const uint32_t subnormal = (uint32_t)as_bits(as_float((int32_t)magnitude) + 0.5f) - 0x3f000000;
    uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
    half = magnitude >= 0x477ff000 ? 0x7c00 : half; /* rounds to inf */
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    return (uint16_t)(half | sign);
}

#define READ(type, convert) do { \
    const type *RESTRICT from = (const type *)source + start; \
    if (stride == 1) { SIMD for (int64_t i = 0; i < n; i++) to[i] = convert(from[i]); } \
    else { for (int64_t i = 0; i < n; i++) to[i] = convert(from[i * stride]); } } while (0)

/* n elements from `start` on, as float. */
INLINE void read_into(float *RESTRICT to, const void *source, enum dtype dtype, int64_t start,
                      int64_t stride, int64_t n)
{
    switch (dtype) {
    case FLOAT32: READ(float, ); break;
    case FLOAT16: READ(uint16_t, from_float16); break;
    case BFLOAT16: READ(uint16_t, from_bfloat16); break;
    case UINT8: READ(uint8_t, (float)); break;
    case INT32: READ(int32_t, (float)); break;
    case INT64: READ(int64_t, (float)); break;
    }
}

/* The same without a copy where there is nothing to convert. */
INLINE const float *read(float *RESTRICT scratch, const void *source, enum dtype dtype,
                         int64_t start, int64_t stride, int64_t n)
{
    if (dtype == FLOAT32 && stride == 1)
        return (const float *)source + start;
    read_into(scratch, source, dtype, start, stride, n);
    return scratch;
}

#define WRITE(type, convert) do { \
    type *RESTRICT into = (type *)target + start; \
    if (stride == 1) { SIMD for (int64_t i = 0; i < n; i++) into[i] = convert(from[i]); } \
    else { for (int64_t i = 0; i < n; i++) into[i * stride] = convert(from[i]); } } while (0)

INLINE void write_from(const float *RESTRICT from, void *target, enum dtype dtype, int64_t start,
                       int64_t stride, int64_t n)
{
    if (dtype == FLOAT16) WRITE(uint16_t, to_float16);
    else if (dtype == BFLOAT16) WRITE(uint16_t, to_bfloat16);
    else WRITE(float, );
}

INLINE int64_t label_at(const void *labels, enum dtype dtype, int64_t i)
{
    if (dtype == UINT8) return ((const uint8_t *)labels)[i];
    if (dtype == INT32) return ((const int32_t *)labels)[i];
    return ((const int64_t *)labels)[i];
}

/* Workspace of a call, aligned to a line of cache. 0 where there is no memory. */
static void *allocate(int64_t bytes)
{
    return aligned_alloc(64, (size_t)((bytes + 64) / 64 * 64));
}

/* A result of `elements` that nobody has touched yet. Where it is large, most of its time goes into
 * its first touch, page by page: larger pages make that faster. A hint; nothing depends on it. */
#define LARGE (32 << 20) /* bytes, from which on malloc maps fresh pages for each tensor */
static void fresh(void *result, enum dtype dtype, int64_t elements)
{
#ifdef MADV_HUGEPAGE
    const int64_t bytes = elements * (dtype == FLOAT32 ? 4 : 2);
    const uintptr_t page = 1 << 21, first = ((uintptr_t)result + page - 1) / page * page;
    const uintptr_t last = ((uintptr_t)result + (uintptr_t)bytes) / page * page;
    if (result && bytes >= LARGE && last > first)
        (void)madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)result, (void)dtype, (void)elements;
#endif
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* How many threads are worth waking: each should have `enough` elements to work on. */
#define MOST_THREADS 256
INLINE int team(int threads, int64_t elements, int64_t enough)
{
    const int64_t useful = least(least(threads, MOST_THREADS), elements / enough);
    return useful < 1 ? 1 : (int)useful;
}

#endif
