/* Any bytes as config.json: refused, or a shape whose numbers stand in sane relations. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/directory.h"
#include "model/shape.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char directory[64];

static void clean_up(void)
{
    struct err e;

    directory_remove(directory, &e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct shape s;
    static char path[96];
    struct err e;

    if (!directory[0]) {
        snprintf(directory, sizeof(directory), "/tmp/factorllm-fuzz-%ld", (long)getpid());
        snprintf(path, sizeof(path), "mkdir -p %s", directory);
        if (system(path) || atexit(clean_up)) abort();
        snprintf(path, sizeof(path), "%s/config.json", directory);
    }
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) abort();
    if (shape_read(&s, directory, &e)) return 0;
    if (s.heads % s.kv_heads || s.head_dim % 2 || s.head_dim < 2 || s.positions < 1 || (s.bos < 0 && !s.n_eos)) abort();
    if (s.bos >= s.vocab || shape_parameters(&s) <= 0 || !(shape_active_share(&s) > 0)) abort();
    for (int l = 0; l < s.layers && s.experts; l++) {
        int sum = s.shared[l];

        for (int i = 0; i < s.experts; i++) {
            if (shape_expert_neurons(&s, l, i) < 1) abort();
            sum += shape_expert_neurons(&s, l, i);
        }
        if (sum != s.neurons) abort();
    }
    return 0;
}
