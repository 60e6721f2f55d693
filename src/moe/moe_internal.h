/* What moe.c, moe_work.c and moe_teach.c share.  Nobody else includes this. */
#ifndef MOE_MOE_INTERNAL_H
#define MOE_MOE_INTERNAL_H

#include "moe/moe.h"

/* Rows that one expert takes at a time: enough that widened weights are used many times, few enough to bound scratch.  Products are
 * row-invariant, so the cut changes no bit. */
enum { MOE_BLOCK_ROWS = 512 };

/* What travels (exchange.h), for n rows:
 *   kind    request                                     answer
 *   SUM     sets [n][words] u64, rows [n][D] f32;        [n][D] double: the rank's sum
 *           number[0] scale, MOE_FLAG_COMPENSATE
 *   STATIC  rows                                        [n][D] double
 *   SCORES  rows, dense outputs [n][D]; number[0] k/N   [n][held] f32
 *   ROWS    rows; MOE_FLAG_COMPENSATE                   [n][held][D] f32: e_i - mu_i, or e_i
 */
enum { MOE_FLAG_COMPENSATE = 1 };

struct moe_slot {
    bool busy;
    int layer, rows;
    const float *h;
    enum route route;
    float scale;
    bool compensate;
    uint64_t *set; /* [rows][words of the layer] active experts */
    /* Per rank, NULL for ranks that never get anything: its rows and their sets, gathered. */
    float **row_out;
    uint64_t **set_out;
    int *sent; /* [ranks] rows posted to each rank */
};

struct moe {
    struct moe_layer *layers;
    int n_layers, width, neurons, experts, words, rank, ranks;
    const struct placement *p;
    struct moe_limits limits;
    struct gemm *gemm;
    struct exchange *exchange;
    uint64_t *held; /* [layers][ranks][words]: the experts of each rank */
    struct moe_stats stats;

    /* One expert at a time over a block of rows (moe_work.c). */
    int block;
    size_t scratch_floats;
    float *scratch, *block_in, *block_out;
    int *index; /* [rows] rows that an expert is active for */
    uint64_t *wanted;
    double excess; /* a sum that left the exact range, 0 none; set by any thread of moe_work_*() */
    double *sum;   /* [rows][D]: coordinator: the layer's output; follower: its answer */

    /* Coordinator. */
    struct moe_slot slot[EXCHANGE_SLOTS];
    uint64_t *keys; /* [rows] 0, 1, 2, ... */
    float *scores;  /* [rows][N] */

    /* Oracle. */
    size_t piece_bytes; /* room for centred rows: the coordinator's [n][N][D], or a follower's answer */
    float *piece, *dense;
    double *gram; /* [N][N] */
};

static inline const uint64_t *moe_held(const struct moe *m, int layer, int rank)
{
    return m->held + ((size_t)layer * (size_t)m->ranks + (size_t)rank) * (size_t)m->words;
}

bool moe_holds(const struct moe *m, int layer, int rank); /* any expert of the layer */

/* A row of sums of which one is out of the range. */
void moe_note_excess(struct moe *m, const double *sum);
/* After moe_work_*(): ERR_LIMIT if a sum was not exact, and forgets it. */
status moe_check_sums(struct moe *m, int layer, struct err *e);

/* What a rank computes for its experts; all of it calls exchange_progress() between experts where there is an exchange.
 * h: [rows, D].  sum: [rows][D] += over the held experts that are in the row's set of grid(scale * e_i) - grid(mu_i). */
void moe_work_sum(struct moe *m, int layer, const float *h, const uint64_t *set, int rows, float scale, bool compensate,
                  double *sum);
/* sum += grid(e_i) over all held experts with the static control's neurons. */
void moe_work_static(struct moe *m, int layer, const float *h, int rows, double *sum);
/* sum += grid(e) of one expert over all rows. */
void moe_work_expert(struct moe *m, const struct expert *x, const float *h, int rows, bool fixed, double *sum);
/* out[t * stride + place] = paper_score of the held experts; place = the expert's number, or its place among the held if `packed`. */
void moe_work_scores(struct moe *m, int layer, const float *h, const float *y, int rows, float share, float *out, int stride,
                     bool packed);
/* out[(t * stride + place) * D ...] = e_i - mu_i (or e_i). */
void moe_work_rows(struct moe *m, int layer, const float *h, int rows, bool compensate, float *out, int stride, bool packed);

/* Dispatch and combine of a filled slot (route, set, h, rows, layer, scale, compensate); x[t] += the layer's output. */
void moe_dispatch(struct moe *m, int slot);
status moe_combine(struct moe *m, int slot, float *x, struct err *e);

/* The oracles, on a slot that is not in flight; they use its fields and its exchange slot. */
status moe_teach_dense(struct moe *m, int slot, int layer, const float *h, int rows, float *y, struct err *e);
status moe_teach_scores(struct moe *m, int slot, int layer, const float *h, const float *y, int rows, int k, float *score,
                        struct err *e);
status moe_teach_gram(struct moe *m, int slot, int layer, const float *h, int rows, int k, bool compensate, uint64_t *set,
                      struct err *e);

#endif
