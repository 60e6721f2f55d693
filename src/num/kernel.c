#include "num/kernel.h"

#include "num/kernel_levels.h"

const struct kernel *kernel_for(enum isa most)
{
#if defined(__x86_64__)
    static const struct kernel *const levels[] = {&kernel_avx2, &kernel_avx512, &kernel_vnni, &kernel_amx};
    enum isa best = isa_best();

    if (most > best) most = best;
    for (int i = (int)(sizeof(levels) / sizeof(*levels)) - 1; i >= 0; i--)
        if (levels[i]->isa <= most) return levels[i];
#else
    (void)most;
#endif
    return &kernel_plain;
}

size_t kernel_scratch_bytes(void)
{
    return KERNEL_SCRATCH_BYTES + HALF_SCRATCH_BYTES;
}
