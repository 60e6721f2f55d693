#include "num/isa.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

struct leaf {
    unsigned a, b, c, d;
};

static struct leaf leaf(unsigned number, unsigned sub)
{
    struct leaf l = {0};

    if (!__get_cpuid_count(number, sub, &l.a, &l.b, &l.c, &l.d)) return (struct leaf){0};
    return l;
}

/* Which registers the operating system saves: without that an instruction traps although the processor has it. */
static uint64_t saved_state(void)
{
    unsigned low, high;

    if (!(leaf(1, 0).c >> 27 & 1)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low | (uint64_t)high << 32;
}

static bool has(unsigned word, int bit)
{
    return word >> bit & 1;
}

/* Tiles are 8 KiB of state that a process has to ask for; see the kernel's Documentation/x86/xstate. */
static bool tiles_granted(void)
{
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

enum isa isa_best(void)
{
    const uint64_t avx = 0x6, avx512 = 0xe6, tiles = 0x60000;
    uint64_t saved = saved_state();
    struct leaf one = leaf(1, 0), seven = leaf(7, 0), seven1 = leaf(7, 1);

    if ((saved & avx) != avx || !has(one.c, 12) || !has(one.c, 29) || !has(seven.b, 5)) return ISA_PLAIN; /* FMA, F16C, AVX2 */
    if ((saved & avx512) != avx512 || !has(seven.b, 16) || !has(seven.b, 17) || !has(seven.b, 30) || !has(seven.b, 31))
        return ISA_AVX2; /* F, DQ, BW, VL */
    if (!has(seven.c, 11)) return ISA_AVX512;
    if (!has(seven1.a, 5)) return ISA_VNNI;
    if ((saved & tiles) != tiles || !has(seven.d, 22) || !has(seven.d, 24) || !has(seven.d, 25) || !tiles_granted())
        return ISA_BF16;
    return ISA_AMX;
}
#else
enum isa isa_best(void)
{
    return ISA_PLAIN;
}
#endif

static const char *const names[ISA_COUNT] = {"plain", "avx2", "avx512", "vnni", "bf16", "amx"};

const char *isa_name(enum isa i)
{
    return names[i];
}

bool isa_parse(const char *name, enum isa *out)
{
    for (int i = 0; i < ISA_COUNT; i++)
        if (!strcmp(name, names[i])) {
            *out = (enum isa)i;
            return true;
        }
    return false;
}
