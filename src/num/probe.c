#include "num/probe.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/clock.h"

enum {
    WAYS = 2,
    WORKERS_MAX = 1024,
    CHAINS = 12,
    BYTE_CHAINS = 8,
    BYTES_AT_ONCE = 32,
    TURNS = 1 << 14,
    PIECES = 64 /* of the memory, to be shared by the threads */
};

struct probe_memory {
    char *memory;
    size_t bytes;
};

struct looking {
    const struct probe_memory *memory;
    int way;
    long turns;
    double sink[WORKERS_MAX];
    enum isa isa;
};

/* ---- reading ---- */

typedef uint64_t v4 __attribute__((vector_size(32)));
typedef uint64_t v8 __attribute__((vector_size(64)));

/* Way 0 leaves it to the processor to fetch ahead; way 1 asks for it. */
#define READ(name, target, vector)                                                                                               \
    target static uint64_t name(const char *from, size_t bytes, int way)                                                         \
    {                                                                                                                            \
        vector sum[4] = {{0}};                                                                                                   \
        uint64_t all = 0;                                                                                                        \
                                                                                                                                 \
        for (size_t at = 0; at + 4 * sizeof(vector) <= bytes; at += 4 * sizeof(vector)) {                                        \
            const vector *v = (const vector *)(const void *)(from + at);                                                         \
                                                                                                                                 \
            if (way)                                                                                                             \
                for (size_t ahead = 0; ahead < 4 * sizeof(vector); ahead += 64) __builtin_prefetch(from + at + 2048 + ahead);    \
            for (int i = 0; i < 4; i++) sum[i] += v[i];                                                                          \
        }                                                                                                                        \
        for (int i = 0; i < 4; i++)                                                                                              \
            for (size_t l = 0; l < sizeof(vector) / 8; l++) all += sum[i][l];                                                    \
        return all;                                                                                                              \
    }

/* CHAINS sums that do not wait for each other, in registers. */
#define MULTIPLY(name, target, vector, lanes, multiply_add)                                                                      \
    target static double name(long turns)                                                                                        \
    {                                                                                                                            \
        vector sum[CHAINS], a, b;                                                                                                \
        double all = 0;                                                                                                          \
                                                                                                                                 \
        for (int l = 0; l < lanes; l++) a[l] = 0.999f, b[l] = 0.001f * (float)(l + 1);                                           \
        for (int i = 0; i < CHAINS; i++)                                                                                         \
            for (int l = 0; l < lanes; l++) sum[i][l] = (float)i;                                                                \
        for (long t = 0; t < turns; t++)                                                                                         \
            for (int i = 0; i < CHAINS; i++) sum[i] = multiply_add(sum[i], a, b);                                                \
        for (int i = 0; i < CHAINS; i++)                                                                                         \
            for (int l = 0; l < lanes; l++) all += (double)sum[i][l];                                                            \
        return all;                                                                                                              \
    }

#define PLAIN(x, y, z) ((x) * (y) + (z))

typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef float f16 __attribute__((vector_size(64)));

READ(read_plain, , v4)
MULTIPLY(multiply_plain, , f4, 4, PLAIN)
#if defined(__x86_64__)
READ(read_avx2, __attribute__((target("avx2,fma"))), v4)
READ(read_avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), v8)
MULTIPLY(multiply_avx2, __attribute__((target("avx2,fma"))), f8, 8, _mm256_fmadd_ps)

/* As MULTIPLY, of pairs of 16 bits: the instructions stand here because compilers would take out of the loop what does not change in it. */
__attribute__((target("avx2,fma"))) static double multiply_bytes(long turns)
{
    __m256i sum[BYTE_CHAINS], x = _mm256_set1_epi32(0x00010002), w = _mm256_set1_epi32(0x00030004);
    int32_t lane[8];
    double all = 0;

#pragma GCC unroll 8
    for (int i = 0; i < BYTE_CHAINS; i++) sum[i] = _mm256_set1_epi32(i);
    for (long t = 0; t < turns; t++)
#pragma GCC unroll 8
        for (int i = 0; i < BYTE_CHAINS; i++) {
            __m256i a, b;

            __asm__("vpaddw %4, %3, %1\n\tvpaddw %3, %4, %2\n\tvpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0"
                    : "+x"(sum[i]), "=&x"(a), "=&x"(b)
                    : "x"(x), "x"(w));
        }
#pragma GCC unroll 8
    for (int i = 0; i < BYTE_CHAINS; i++) {
        _mm256_storeu_si256((__m256i *)(void *)lane, sum[i]);
        all += (double)lane[i];
    }
    return all;
}
MULTIPLY(multiply_avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), f16, 16, _mm512_fmadd_ps)
#endif

static void touch_task(void *ctx, int i, int worker)
{
    const struct probe_memory *m = ctx;
    size_t piece = m->bytes / PIECES;

    (void)worker;
    memset(m->memory + (size_t)i * piece, i + 1, piece);
}

static void read_task(void *ctx, int i, int worker)
{
    struct looking *l = ctx;
    size_t piece = l->memory->bytes / PIECES;
    const char *from = l->memory->memory + (size_t)i * piece;
    uint64_t sum;

#if defined(__x86_64__)
    if (l->isa >= ISA_AVX512) sum = read_avx512(from, piece, l->way);
    else if (l->isa >= ISA_AVX2) sum = read_avx2(from, piece, l->way);
    else
#endif
        sum = read_plain(from, piece, l->way);
    l->sink[worker] += (double)sum;
}

static void multiply_task(void *ctx, int i, int worker)
{
    struct looking *l = ctx;
    double sum;

    (void)i;
#if defined(__x86_64__)
    if (l->isa >= ISA_AVX512) sum = multiply_avx512(l->turns);
    else if (l->isa >= ISA_AVX2) sum = multiply_avx2(l->turns);
    else
#endif
        sum = multiply_plain(l->turns);
    l->sink[worker] += sum;
}

static void bytes_task(void *ctx, int i, int worker)
{
    struct looking *l = ctx;

    (void)i;
#if defined(__x86_64__)
    l->sink[worker] += multiply_bytes(l->turns);
#else
    (void)l, (void)worker;
#endif
}

static int lanes_of(enum isa isa)
{
    return isa >= ISA_AVX512 ? 16 : isa >= ISA_AVX2 ? 8 : 4;
}

status probe_open(struct probe_memory **out, struct gemm *g, size_t bytes, struct err *e)
{
    struct probe_memory *m = calloc(1, sizeof(*m));

    BUG_ON(!m);
    *out = NULL;
    m->bytes = bytes / (PIECES * 4096) * (PIECES * 4096);
    void *p = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        free(m);
        return err_set(e, ERR_LIMIT, "no memory for %zu bytes to measure the machine with", bytes);
    }
    m->memory = p;
    madvise(p, m->bytes, MADV_HUGEPAGE);
    gemm_parallel(g, PIECES, touch_task, m);
    *out = m;
    return OK;
}

void probe_close(struct probe_memory *m)
{
    if (!m) return;
    munmap(m->memory, m->bytes);
    free(m);
}

/* Of all threads together. */
static double turns_per_second(struct looking *l, struct gemm *g, void (*task)(void *ctx, int i, int worker), double seconds)
{
    enum { SHARES = 4 }; /* of a thread's work: it evens out what else runs */
    int threads = threads_count(gemm_threads(g));
    double start = clock_now(), passed, sum = 0;

    l->turns = TURNS;
    gemm_parallel(g, threads, task, l); /* how long is a turn? */
    passed = clock_now() - start;
    l->turns = passed > 0 ? (long)(seconds / passed * TURNS / SHARES) + 1 : TURNS;
    start = clock_now();
    gemm_parallel(g, SHARES * threads, task, l);
    passed = clock_now() - start;
    for (int w = 0; w < threads; w++) sum += l->sink[w];
    /* uses the sums, so that nothing of it is left out */
    return passed > 0 && sum != 0.5 ? (double)l->turns * SHARES * threads / passed : 0;
}

void probe_round(struct probe *out, struct gemm *g, struct probe_memory *m, double seconds)
{
    struct looking *l = calloc(1, sizeof(*l));
    int threads = threads_count(gemm_threads(g));
    double start, passed;

    BUG_ON(!l || threads > WORKERS_MAX);
    l->memory = m;
    l->isa = gemm_kernel(g)->isa;
    *out = (struct probe){0};
    for (l->way = 0; l->way < WAYS; l->way++) {
        start = clock_now();
        gemm_parallel(g, PIECES, read_task, l);
        passed = clock_now() - start;
        if (passed > 0 && (double)m->bytes / passed > out->read) out->read = (double)m->bytes / passed;
    }
    out->fma = 2.0 * CHAINS * lanes_of(l->isa) * turns_per_second(l, g, multiply_task, seconds);
    if (l->isa == ISA_AVX2) out->bytes = 2.0 * BYTE_CHAINS * BYTES_AT_ONCE * turns_per_second(l, g, bytes_task, seconds);
    free(l);
}
