#include "num/kernel.h"

#include "num/kernel_levels.h"

const struct kernel *kernel_for(enum isa most)
{
    (void)most;
    return &kernel_plain;
}

size_t kernel_scratch_bytes(void)
{
    return KERNEL_SCRATCH_BYTES;
}
