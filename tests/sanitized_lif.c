/* Runs the kernel over buffers of exactly the sizes it may touch: built with sanitizers, a step
   outside stops the program. Prints a sum, so that nothing is optimised away. */

#include "../spikezoo/backends/_lif.c"

#include <stdio.h>

static void *buffer(int64_t count, int bf16) {
    void *made = malloc((size_t)count * (bf16 ? 2 : 4));
    float value = 0;
    for (int64_t i = 0; i < count; i++) {
        value = 0.75f * (float)((i * 7919) % 7 - 2);
        store(made, i, &value, 1, bf16, 0);
    }
    return made;
}

static double run(lif_call c, int constant, int with_state, int with_gs, int with_gv, int learns,
                  int rate) {
    int64_t n = c.elements, blocks = (n + lif_block() - 1) / lif_block();
    int64_t stride = constant ? 0 : n, steps = constant ? 1 : c.T;
    void *x = buffer(steps * n, c.bf16), *s = buffer(c.T * n, c.bf16);
    void *gs = with_gs ? buffer(c.T * n, c.bf16) : NULL, *gx = buffer(steps * n, c.bf16);
    float *v0 = with_state ? buffer(n, 0) : NULL, *gv0 = with_state ? buffer(n, 0) : NULL;
    float *last = buffer(n, 0), *gv = with_gv ? buffer(n, 0) : NULL;
    float *g_beta = learns ? buffer(blocks, 0) : NULL;
    lif_forward(&c, x, stride, v0, s, n, last);
    void *mean = buffer(n, c.bf16);
    if (rate) lif_forward(&c, x, stride, v0, mean, 0, NULL);
    if (lif_backward(&c, x, stride, v0, gs, n, gv, gx, stride, gv0, g_beta)) exit(1);
    float first = 0;
    load(&first, gx, 0, 1, c.bf16);
    double sum = first + last[n - 1] + (learns ? g_beta[blocks - 1] : 0);
    void *all[] = {x, s, mean, gs, gx, v0, gv0, last, gv, g_beta};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    return sum;
}

int main(void) {
    const int64_t sizes[] = {1, 256, 517}, times[] = {1, 3};
    double sum = 0;
    for (int size = 0; size < 3; size++)
        for (int time = 0; time < 2; time++)
            for (int surrogate = ATAN; surrogate <= ERF; surrogate++)
                for (int flags = 0; flags < 1024; flags++) {
                    lif_call c = {.T = times[time], .elements = sizes[size], .beta = 0.9f,
                                  .threshold = 1, .alpha = 2, .hard = flags & 1,
                                  .detach_reset = flags >> 1 & 1, .surrogate = surrogate,
                                  .bf16 = flags >> 2 & 1, .threads = 1 + (flags >> 3 & 1)};
                    sum += run(c, flags >> 4 & 1, flags >> 5 & 1, flags >> 6 & 1, flags >> 7 & 1,
                               flags >> 8 & 1, flags >> 9 & 1);
                }
    printf("%g\n", sum);
    return 0;
}
