/* LIF over all time steps in one pass, and its backward pass, which recomputes the potentials.

   Elements are independent of each other, so a block of them is walked through all T steps while
   its state stays in the first-level cache: memory is loaded and stored once, as by an activation.
   Step t of element i lies at t * stride + i; a stride of 0 is a current that never changes.
   Threads come from OpenMP's pool, which is torch's own, since both name the same libgomp.

   Built without contraction of a * b + c into one rounding: ties must fall as they do in `step`. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 256

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

INLINE void store(void *to, int64_t at, const float *x, int n, int bf16) {
    if (bf16)
        for (int i = 0; i < n; i++) ((uint16_t *)to)[at + i] = narrow(x[i]);
    else
        memcpy((float *)to + at, x, (size_t)n * sizeof(float));
}

/* The first v; none given is 0. */
INLINE void start(float *v, const float *v0, int64_t at, int n) {
    if (v0) memcpy(v, v0 + at, (size_t)n * sizeof(float));
    else memset(v, 0, (size_t)n * sizeof(float));
}

/* v -> h = beta v + x, in place. */
INLINE void integrate(float *v, const float *x, int n, float beta) {
    for (int i = 0; i < n; i++) v[i] = beta * v[i] + x[i];
}

/* h -> v after the reset, in place, and the spikes. */
INLINE void fire(float *h, float *s, int n, float threshold, int hard) {
    if (hard)
        for (int i = 0; i < n; i++) {
            s[i] = h[i] - threshold >= 0 ? 1.0f : 0.0f;
            h[i] = s[i] != 0 ? 0.0f : h[i];
        }
    else
        for (int i = 0; i < n; i++) {
            s[i] = h[i] - threshold >= 0 ? 1.0f : 0.0f;
            h[i] = h[i] - s[i] * threshold;
        }
}

/* Surrogate derivatives at u, as in spikezoo/surrogates.py. */
INLINE void derive(float *d, const float *u, int n, float alpha, int surrogate) {
    switch (surrogate) {
    case ATAN: {
        const float k = (float)(M_PI / 2) * alpha;
        for (int i = 0; i < n; i++) d[i] = alpha / 2 / (1 + (k * u[i]) * (k * u[i]));
        break;
    }
    case SIGMOID:
        for (int i = 0; i < n; i++) {
            float p = 1 / (1 + expf(-alpha * u[i]));
            d[i] = alpha * p * (1 - p);
        }
        break;
    case FAST_SIGMOID:
        for (int i = 0; i < n; i++) {
            float q = 1 + alpha * fabsf(u[i]);
            d[i] = 1 / (q * q);
        }
        break;
    case TRIANGLE:
        for (int i = 0; i < n; i++) {
            float q = 1 - alpha * fabsf(u[i]);
            d[i] = q > 0 ? alpha * q : 0;
        }
        break;
    case STRAIGHT_THROUGH:
        for (int i = 0; i < n; i++) d[i] = 1;
        break;
    case ERF: {
        const float k = alpha / sqrtf((float)M_PI);
        for (int i = 0; i < n; i++) d[i] = k * expf(-(alpha * u[i]) * (alpha * u[i]));
        break;
    }
    }
}

/* Both walk one block [at, at + n). The clones cannot hold the OpenMP region themselves. */
KERNEL static void forward_block(const lif_call *c, int64_t at, int n, const void *x,
                                 int64_t x_stride, const float *v0, void *s, int64_t s_stride,
                                 float *v_last) {
    float v[BLOCK], in[BLOCK], out[BLOCK], total[BLOCK];
    memset(total, 0, sizeof total);
    start(v, v0, at, n);
    for (int64_t t = 0; t < c->T; t++) {
        if (t == 0 || x_stride) load(in, x, t * x_stride + at, n, c->bf16);
        integrate(v, in, n, c->beta);
        fire(v, out, n, c->threshold, c->hard);
        if (s_stride) store(s, t * s_stride + at, out, n, c->bf16);
        else
            for (int i = 0; i < n; i++) total[i] += out[i];
    }
    if (!s_stride) { /* a sum in bfloat16 is rounded before it is divided */
        if (c->bf16)
            for (int i = 0; i < n; i++) total[i] = widen(narrow(total[i]));
        for (int i = 0; i < n; i++) total[i] /= (float)c->T;
        store(s, at, total, n, c->bf16);
    }
    if (v_last) memcpy(v_last + at, v, (size_t)n * sizeof(float));
}

KERNEL static void backward_block(const lif_call *c, int64_t at, int n, const void *x,
                                  int64_t x_stride, const float *v0, const void *gs,
                                  int64_t gs_stride, const float *gv, void *gx, int64_t gx_stride,
                                  float *gv0, float *g_beta, float *potentials) {
    float v[BLOCK], in[BLOCK], s[BLOCK], u[BLOCK], d[BLOCK], g[BLOCK], back[BLOCK], total[BLOCK];
    start(v, v0, at, n);
    for (int64_t t = 0; t < c->T; t++) {
        if (t == 0 || x_stride) load(in, x, t * x_stride + at, n, c->bf16);
        integrate(v, in, n, c->beta);
        memcpy(potentials + t * BLOCK, v, (size_t)n * sizeof(float));
        fire(v, s, n, c->threshold, c->hard);
    }
    if (gv) memcpy(back, gv + at, (size_t)n * sizeof(float));
    else memset(back, 0, sizeof back);
    double sum = 0;
    memset(g, 0, sizeof g);
    memset(total, 0, sizeof total);
    for (int64_t t = c->T - 1; t >= 0; t--) {
        const float *h = potentials + t * BLOCK;
        for (int i = 0; i < n; i++) u[i] = h[i] - c->threshold;
        derive(d, u, n, c->alpha, c->surrogate);
        if (gs && (t == c->T - 1 || gs_stride)) load(g, gs, t * gs_stride + at, n, c->bf16);
        if (c->detach_reset) memcpy(s, g, sizeof g);
        else if (c->hard)
            for (int i = 0; i < n; i++) s[i] = g[i] - h[i] * back[i];
        else
            for (int i = 0; i < n; i++) s[i] = g[i] - c->threshold * back[i];
        if (c->hard)
            for (int i = 0; i < n; i++) back[i] = u[i] >= 0 ? 0 : back[i];
        for (int i = 0; i < n; i++) back[i] += s[i] * d[i];
        if (gx_stride) store(gx, t * gx_stride + at, back, n, c->bf16);
        else
            for (int i = 0; i < n; i++) total[i] += back[i];
        if (g_beta) { /* h = beta v + x: the gradient of h times the v before it */
            if (t) {
                memcpy(v, h - BLOCK, (size_t)n * sizeof(float));
                fire(v, s, n, c->threshold, c->hard);
            } else
                start(v, v0, at, n);
            for (int i = 0; i < n; i++) sum += (double)back[i] * v[i];
        }
        for (int i = 0; i < n; i++) back[i] *= c->beta;
    }
    if (!gx_stride) store(gx, at, total, n, c->bf16);
    if (g_beta) g_beta[at / BLOCK] = (float)sum;
    if (gv0) memcpy(gv0 + at, back, (size_t)n * sizeof(float));
}

INLINE int block_size(const lif_call *c, int64_t at) {
    return (int)(c->elements - at < BLOCK ? c->elements - at : BLOCK);
}

/* Current x and state v0, null for rest -> spikes s, their mean over t if s_stride is 0, and last
   state if v_last is not null; x and s are float, or bfloat16 if c->bf16. */
void lif_forward(const lif_call *c, const void *x, int64_t x_stride, const float *v0, void *s,
                 int64_t s_stride, float *v_last) {
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t at = 0; at < c->elements; at += BLOCK)
        forward_block(c, at, block_size(c, at), x, x_stride, v0, s, s_stride, v_last);
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
#pragma omp for schedule(static)
        for (int64_t at = 0; at < c->elements; at += BLOCK)
            if (potentials)
                backward_block(c, at, block_size(c, at), x, x_stride, v0, gs, gs_stride, gv, gx,
                               gx_stride, gv0, g_beta, potentials);
        free(potentials);
    }
    return failed;
}
