/* Attention of query rows over one head of a KV cache, block by block with an online softmax (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).
 *
 * The cache is cut into blocks of KV_BLOCK = 64 positions, which begin at 0, 64, 128, ...  A block has, one behind the other:
 *   keys    panels of 16 positions:        element (position j, element i) at [j / 16][i][j % 16], head_dim elements i
 *   values  panels of 16 elements:         element (position j, element i) at [i / 16][j][i % 16], zeros behind head_dim
 *   scales  KV_Q8: one float for each position's key, then one for each position's value
 * Narrow numbers stand in words of 32 bits as in packed.h: [..][line / n][lane][line % n] for [..][line][lane], n = 2 or 4.
 * These are lines of packed.h, keys with positions and values with elements as outputs: scores and sums are products of kernel.h, and no sum runs across
 * lanes.  Formats: f32; bf16, rounded to nearest even when written; q8, bytes with scale = max |x| / 127 over the head, which are read as scale * byte.
 *
 * The definition, for a query row q at position P (it sees positions 0 .. P) and d = head_dim:
 *   q' = q * (float)(1 / sqrt(d));  m = -infinity;  l[0..7] = 0;  o = 0
 *   for every block with a position <= P, over its positions j <= P:
 *     s_j = q' . k_j                                  a product of kernel.h
 *     M = max(m, all s_j);  c = exp(m - M);  p_j = exp(s_j - M);  m = M
 *     l[r] = l[r] * c, then + p_j for all j = r (mod 8), in order
 *     o = o * c + sum of p_j v_j                      the sum a product of kernel.h
 *   L = ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7));  out = o * (1 / L)
 * exp is exp_lane() of lanes.h.  So a row's result depends on its own q, position and cache alone: not on other rows, tiles, threads or the processor.
 */
#ifndef NUM_ATTENTION_H
#define NUM_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "num/kernel.h"

enum kv_format { KV_F32, KV_BF16, KV_Q8, KV_COUNT };
enum { KV_BLOCK = 64, ATTEND_ROWS = 32, ATTEND_HEAD_DIM = 256 }; /* most rows of one attend(), largest head_dim */

const char *kv_name(enum kv_format f); /* "f32", "bf16", "q8" */
bool kv_parse(const char *name, enum kv_format *out);

struct kv_head {  /* the keys and values of one KV head of one session in one layer: a view */
    char *blocks; /* kv_head_bytes(), aligned to 64, zeroed before the first use */
    enum kv_format format;
    int head_dim;
};
size_t kv_head_bytes(enum kv_format f, int positions, int head_dim);
/* k, v: [head_dim].  Different positions may be written by different threads. */
void kv_write(const struct kv_head *h, int position, const float *k, const float *v);
/* What attend() takes for a position's key and value, [head_dim]: the slow way, for tests. */
void kv_read(const struct kv_head *h, int position, float *k, float *v);

struct attend {
    const struct kernel *kernel;
    const struct kv_head *kv;
    /* `rows` rows of one session in rising order of position, `heads` query heads of each, rows * heads <= ATTEND_ROWS: head h of row t at
     * q + t * ldq + h * head_dim, its result [head_dim] at out + t * ldo + h * head_dim (out does not overlap q). */
    const float *q;
    float *out;
    size_t ldq, ldo;
    const int32_t *position;
    int rows, heads;
};
/* On one thread.  scratch: the kernel's; room: ATTEND_ROOM_BYTES, aligned to 64 (gemm_room()). */
enum { ATTEND_ROOM_BYTES = 192 * 1024 };
void attend(const struct attend *a, void *scratch, void *room);

#endif
