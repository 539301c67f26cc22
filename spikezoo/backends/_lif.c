/* LIF over all time steps in one pass, and its backward pass, which recomputes the potentials.

   Elements are independent of each other, so a block of them is walked through all T steps while
   its state stays in the first-level cache: memory is loaded and stored once, as by an activation.
   A block's rows are short and far apart, which no processor foresees, so the next is fetched while
   one is computed; and a result larger than the caches is stored past them, which spares loading
   what it overwrites. On 2 cores each of these was worth a fifth to a third.
   Step t of element i lies at t * stride + i; a stride of 0 is a current that never changes.
   Threads come from OpenMP's pool, which is torch's own, since both name the same libgomp.

   Built without contraction of a * b + c into one rounding: ties must fall as they do in `step`. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define BLOCK 256
#define AHEAD 2                   /* rows from the one computed to the one fetched */
#ifndef PAST_CACHES
#define PAST_CACHES (4 << 20)     /* bytes of a result from which on it is stored past them */
#endif

/* One build that uses what the processor has. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL
#endif
#define INLINE static inline __attribute__((always_inline))

enum surrogate { ATAN, SIGMOID, FAST_SIGMOID, TRIANGLE, STRAIGHT_THROUGH, ERF };

typedef struct {
    int64_t T, elements;
    float beta, threshold, alpha;
    int32_t hard, detach_reset, surrogate, bf16, threads;
} lif_call;

INLINE float widen(uint16_t b) {
    uint32_t bits = (uint32_t)b << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* To the nearest bfloat16, ties to even; NaN stays NaN. */
INLINE uint16_t narrow(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint16_t nan = (uint16_t)((bits >> 16) | 64);
    uint16_t near = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return (bits & 0x7fffffff) > 0x7f800000 ? nan : near;
}

INLINE void load(float *out, const void *from, int64_t at, int n, int bf16) {
    if (bf16)
        for (int i = 0; i < n; i++) out[i] = widen(((const uint16_t *)from)[at + i]);
    else
        memcpy(out, (const float *)from + at, (size_t)n * sizeof(float));
}

/* Bytes of a buffer to memory, past the caches if that is wanted and possible. */
INLINE void put(void *to, const void *from, size_t bytes, int past) {
#ifdef __SSE2__
    if (past && ((uintptr_t)to | bytes) % 16 == 0) {
        for (size_t i = 0; i < bytes; i += 16)
            _mm_stream_si128((__m128i *)((char *)to + i),
                             _mm_loadu_si128((const __m128i *)((const char *)from + i)));
        return;
    }
#endif
    memcpy(to, from, bytes);
}

INLINE void store(void *to, int64_t at, const float *x, int n, int bf16, int past) {
    if (bf16) {
        uint16_t narrowed[BLOCK];
        for (int i = 0; i < n; i++) narrowed[i] = narrow(x[i]);
        put((uint16_t *)to + at, narrowed, (size_t)n * 2, past);
    } else
        put((float *)to + at, x, (size_t)n * 4, past);
}

/* Asks for n numbers at `at`, which may lie anywhere: a fetch never faults. */
INLINE void fetch(const void *from, int64_t at, int n, int bf16) {
    int64_t size = bf16 ? 2 : 4;
    for (int64_t i = 0; i < n * size; i += 64)
        __builtin_prefetch((const char *)from + at * size + i);
}

/* n floats at `at`: where they lie, or widened into a buffer. */
INLINE const float *row(const void *from, int64_t at, int n, int bf16, float *buffer) {
    if (!bf16) return (const float *)from + at;
    load(buffer, from, at, n, 1);
    return buffer;
}

/* The first v; none given is 0. */
INLINE void start(float *v, const float *v0, int64_t at, int n) {
    if (v0) memcpy(v, v0 + at, (size_t)n * sizeof(float));
    else memset(v, 0, (size_t)n * sizeof(float));
}

INLINE float fires(float h, float threshold) { return h - threshold >= 0 ? 1.0f : 0.0f; }

INLINE float after_reset(float h, float threshold, int hard) {
    if (hard) return h - threshold >= 0 ? 0.0f : h;
    return h - fires(h, threshold) * threshold;
}

/* exp(x) to 2 units in the last place for |x| < 87, and what it is there beyond: a loop over libm's
   own is no vector code. x = n ln 2 + r; the polynomial is exp on |r| < ln 2 / 2. */
INLINE float exponential(float x) {
    x = x < -87 ? -87 : x > 87 ? 87 : x;
    const float shift = 12582912; /* 1.5 * 2^23: adding it rounds to a whole number */
    float shifted = x * 1.44269504f + shift, n = shifted - shift;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f, y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1;
    uint32_t bits;
    memcpy(&bits, &shifted, 4); /* n in its lowest bits, which become an exponent */
    bits = (bits + 127) << 23;
    memcpy(&n, &bits, 4);
    return y * n;
}

/* Surrogate derivatives at u, as in spikezoo/surrogates.py. */
INLINE float derivative(float u, float alpha, int surrogate) {
    switch (surrogate) {
    case ATAN: {
        float k = (float)(M_PI / 2) * alpha * u;
        return alpha / 2 / (1 + k * k);
    }
    case SIGMOID: {
        float p = 1 / (1 + exponential(-alpha * u));
        return alpha * p * (1 - p);
    }
    case FAST_SIGMOID: {
        float q = 1 + alpha * fabsf(u);
        return 1 / (q * q);
    }
    case TRIANGLE: {
        float q = 1 - alpha * fabsf(u);
        return q < 0 ? 0 : alpha * q; /* NaN stays NaN */
    }
    case ERF: return alpha / sqrtf((float)M_PI) * exponential(-(alpha * u) * (alpha * u));
    default: return 1; /* STRAIGHT_THROUGH */
    }
}

/* One step of a block, for constants `hard` and `surrogate`: one loop without a branch each. */
INLINE void step_forward(float *restrict v, const float *restrict x, float *restrict s, int n,
                         float beta, float threshold, int hard) {
    for (int i = 0; i < n; i++) {
        float h = beta * v[i] + x[i];
        s[i] = fires(h, threshold);
        v[i] = after_reset(h, threshold, hard);
    }
}

/* The same, counting the spikes instead of handing them on. */
INLINE void step_count(float *restrict v, const float *restrict x, float *restrict count, int n,
                       float beta, float threshold, int hard) {
    for (int i = 0; i < n; i++) {
        float h = beta * v[i] + x[i];
        count[i] += fires(h, threshold);
        v[i] = after_reset(h, threshold, hard);
    }
}

/* h from v before the step, and v after it. */
INLINE void step_again(float *restrict v, const float *restrict x, float *restrict h, int n,
                       float beta, float threshold, int hard) {
    for (int i = 0; i < n; i++) {
        h[i] = beta * v[i] + x[i];
        v[i] = after_reset(h[i], threshold, hard);
    }
}

/* G, the gradient of h in the step after -> that of h in this one; the v between them is `scale`
   times h of the step after. */
INLINE void step_back(float *restrict G, const float *restrict h, const float *restrict g, int n,
                      float scale, float threshold, float alpha, int detach_reset, int hard,
                      int surrogate) {
    for (int i = 0; i < n; i++) {
        float u = h[i] - threshold, back = scale * G[i];
        float reset = (hard ? h[i] : threshold) * back;
        float kept = hard && u >= 0 ? 0 : back;
        G[i] = kept + (g[i] - (detach_reset ? 0 : reset)) * derivative(u, alpha, surrogate);
    }
}

/* Whether a result of T steps at a stride is larger than the caches. */
INLINE int past_caches(const lif_call *c, int64_t stride) {
    return c->T * stride * (c->bf16 ? 2 : 4) >= PAST_CACHES;
}

/* Both walk one block [at, at + n). The clones cannot hold the OpenMP region themselves. */
KERNEL static void forward_block(const lif_call *c, int64_t at, int n, const void *x,
                                 int64_t x_stride, const float *v0, void *s, int64_t s_stride,
                                 float *v_last) {
    float v[BLOCK], wide[BLOCK], fired[BLOCK], total[BLOCK];
    const float *in = NULL;
    int past = past_caches(c, s_stride);
    memset(total, 0, sizeof total);
    start(v, v0, at, n);
    for (int64_t t = 0; t < c->T; t++) {
        if (x_stride && t + AHEAD < c->T) fetch(x, (t + AHEAD) * x_stride + at, n, c->bf16);
        if (t == 0 || x_stride) in = row(x, t * x_stride + at, n, c->bf16, wide);
        if (!s_stride) {
            if (c->hard) step_count(v, in, total, n, c->beta, c->threshold, 1);
            else step_count(v, in, total, n, c->beta, c->threshold, 0);
            continue;
        }
        if (c->hard) step_forward(v, in, fired, n, c->beta, c->threshold, 1);
        else step_forward(v, in, fired, n, c->beta, c->threshold, 0);
        store(s, t * s_stride + at, fired, n, c->bf16, past);
    }
    if (!s_stride) { /* a sum in bfloat16 is rounded before it is divided */
        if (c->bf16)
            for (int i = 0; i < n; i++) total[i] = widen(narrow(total[i]));
        for (int i = 0; i < n; i++) total[i] /= (float)c->T;
        store(s, at, total, n, c->bf16, 0);
    }
    if (v_last) memcpy(v_last + at, v, (size_t)n * sizeof(float));
}

KERNEL static void backward_block(const lif_call *c, int64_t at, int n, const void *x,
                                  int64_t x_stride, const float *v0, const void *gs,
                                  int64_t gs_stride, const float *gv, void *gx, int64_t gx_stride,
                                  float *gv0, float *g_beta, float *potentials) {
    float v[BLOCK], wide[BLOCK], none[BLOCK], G[BLOCK], total[BLOCK];
    double products[BLOCK];
    const float *in = NULL, *g = none;
    int past = past_caches(c, gx_stride);
    start(v, v0, at, n);
    for (int64_t t = 0; t < c->T; t++) {
        float *h = potentials + t * BLOCK;
        int64_t next = t + AHEAD;
        if (next >= c->T) { /* the walk turns back here */
            if (gs && gs_stride) fetch(gs, (2 * c->T - 1 - next) * gs_stride + at, n, c->bf16);
        } else if (x_stride) fetch(x, next * x_stride + at, n, c->bf16);
        if (t == 0 || x_stride) in = row(x, t * x_stride + at, n, c->bf16, wide);
        if (c->hard) step_again(v, in, h, n, c->beta, c->threshold, 1);
        else step_again(v, in, h, n, c->beta, c->threshold, 0);
    }
    start(G, gv, at, n);
    memset(none, 0, sizeof none);
    memset(total, 0, sizeof total);
    memset(products, 0, sizeof products);
    for (int64_t t = c->T - 1; t >= 0; t--) {
        const float *h = potentials + t * BLOCK;
        if (gs && gs_stride && t >= AHEAD) fetch(gs, (t - AHEAD) * gs_stride + at, n, c->bf16);
        if (gs && (t == c->T - 1 || gs_stride))
            g = row(gs, t * gs_stride + at, n, c->bf16, wide);
        float scale = t == c->T - 1 ? 1 : c->beta;
#define BACK(hard, surrogate)                                                                      \
    step_back(G, h, g, n, scale, c->threshold, c->alpha, c->detach_reset, hard, surrogate)
#define CASE(surrogate)                                                                            \
    case surrogate:                                                                                \
        if (c->hard) BACK(1, surrogate);                                                           \
        else BACK(0, surrogate);                                                                   \
        break;
        switch (c->surrogate) {
            CASE(ATAN)
            CASE(SIGMOID)
            CASE(FAST_SIGMOID)
            CASE(TRIANGLE)
            CASE(STRAIGHT_THROUGH)
            CASE(ERF)
        }
        if (gx_stride) store(gx, t * gx_stride + at, G, n, c->bf16, past);
        else
            for (int i = 0; i < n; i++) total[i] += G[i];
        if (!g_beta) continue;
        /* h = beta v + x: the gradient of h times the v before it */
        if (t)
            for (int i = 0; i < n; i++) v[i] = after_reset(h[i - BLOCK], c->threshold, c->hard);
        else start(v, v0, at, n);
        for (int i = 0; i < n; i++) products[i] += (double)G[i] * v[i];
    }
    if (!gx_stride) store(gx, at, total, n, c->bf16, 0);
    if (gv0)
        for (int i = 0; i < n; i++) gv0[at + i] = c->beta * G[i];
    if (g_beta) {
        for (int half = BLOCK / 2; half; half /= 2)
            for (int i = 0; i < half; i++) products[i] += products[half + i];
        g_beta[at / BLOCK] = (float)products[0];
    }
}

/* What was stored past the caches is there for all threads. */
INLINE void fence(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

INLINE int block_size(const lif_call *c, int64_t at) {
    return (int)(c->elements - at < BLOCK ? c->elements - at : BLOCK);
}

/* Current x and state v0, null for rest -> spikes s, their mean over t if s_stride is 0, and last
   state if v_last is not null; x and s are float, or bfloat16 if c->bf16. */
void lif_forward(const lif_call *c, const void *x, int64_t x_stride, const float *v0, void *s,
                 int64_t s_stride, float *v_last) {
#pragma omp parallel num_threads(c->threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t at = 0; at < c->elements; at += BLOCK)
            forward_block(c, at, block_size(c, at), x, x_stride, v0, s, s_stride, v_last);
        fence();
    }
}

int64_t lif_block(void) { return BLOCK; }

/* Gradients of the spikes gs and of the last state gv, either of which may be null -> gradients of
   x, summed over t if gx_stride is 0, of v0 if gv0 is not null, and of beta, one sum per block, if
   g_beta is not null. Returns 0, or 1 if there is no memory for T * BLOCK floats per thread. */
int lif_backward(const lif_call *c, const void *x, int64_t x_stride, const float *v0,
                 const void *gs, int64_t gs_stride, const float *gv, void *gx, int64_t gx_stride,
                 float *gv0, float *g_beta) {
    int failed = 0;
#pragma omp parallel num_threads(c->threads) reduction(| : failed)
    {
        float *potentials = malloc((size_t)c->T * BLOCK * sizeof(float));
        failed = potentials == NULL;
#pragma omp for schedule(static) nowait
        for (int64_t at = 0; at < c->elements; at += BLOCK)
            if (potentials)
                backward_block(c, at, block_size(c, at), x, x_stride, v0, gs, gs_stride, gv, gx,
                               gx_stride, gv0, g_beta, potentials);
        free(potentials);
        fence();
    }
    return failed;
}
