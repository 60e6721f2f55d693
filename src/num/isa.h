/* What this processor can run.  Levels are a ladder: each has all of the one before. */
#ifndef NUM_ISA_H
#define NUM_ISA_H

#include <stdbool.h>

enum isa {
    ISA_PLAIN,  /* C, any processor */
    ISA_AVX2,   /* AVX2 and FMA */
    ISA_AVX512, /* F, BW, DQ, VL */
    ISA_VNNI,   /* AVX-512 VNNI: products of bytes */
    ISA_BF16,   /* AVX-512 BF16: products of bfloat16 */
    ISA_AMX,    /* AMX tiles of bfloat16 and bytes, and the kernel lets us use them */
    ISA_COUNT
};

/* The highest level that the processor and the operating system have.  Asks for AMX where there is any, which must be done before threads start. */
enum isa isa_best(void);
const char *isa_name(enum isa i); /* "plain", "avx2", "avx512", "vnni", "bf16", "amx" */
bool isa_parse(const char *name, enum isa *out);

#endif
