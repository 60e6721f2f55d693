/* What the files of the factorized FFN share.  Nobody else includes this. */
#ifndef MOE_MOE_INTERNAL_H
#define MOE_MOE_INTERNAL_H

#include <math.h>

#include "moe/active.h"
#include "moe/adapted.h"
#include "moe/grouping.h"
#include "moe/moe.h"

/* Rows that the experts of a rank take at a time: enough that weights are used many times, few enough to bound what lies between the two halves of an
 * expert.  Products are row-invariant, so the cut changes no bit. */
enum { MOE_BLOCK_ROWS = 512 };

/* What travels (exchange.h), for n rows; a part begins at a multiple of 64 bytes:
 *   kind    request                                      answer
 *   SUM     sets [n][words] u64, rows [n][D];             [n][D]: the rank's sum
 *           number[0] scale, MOE_FLAG_COMPENSATE, _MEANS
 *   STATIC  rows; number[1] neurons of the layer that stay   [n][D]
 *   SCORES  rows, dense outputs [n][D]; number[0] k/N    [n][held] f32
 *   ROWS    rows; MOE_FLAG_COMPENSATE                    [n][held][D] f32: e_i - mu_i, or e_i
 *   NEURON_SCORES  rows                                  [n][neurons of the held experts] f32: |z_j| |w_down_j|
 *   NEURON_SUM     thresholds [n] f32, rows              [n][D]: only neurons with a score above the row's threshold
 *   MEANS   means of held experts [n][D] f32, from        nothing
 *           place number[0] among the held
 *   BACKWARD  sets [n][words], rows, dy [n][D];          [n][D] i64 (not with MOE_FLAG_GATES), [n][held] f32
 *           number[0] scale, MOE_FLAG_GATES, _LEARN
 *   VALUES  rows; number[0] enum moe_value               [n][held] f32
 *   REST    as SUM, rows always f32; number[0] 1: first  nothing
 *   REST_MEANS  nothing                                  [held][D] f32
 *   ADAPT   flags: what to do (moe_adapt.c); number: expert and where; a step, or floats   nothing, [layers][N + 1] f64 or floats
 *   NOTE    places [n] i32, rows                         [n][D]
 *   NOTES   rows: neurons, flags: expert, number[0]: its first, [1]: with sample   [n] f64 sums, [n] f64 of squares, [n][sample] bf16
 * Of SUM, STATIC, NOTE and the two of neurons rows are f32 or bf16 and sums i64 (exact.h), f32 or bf16, as limits.wire says; of the others, and of scores, all is f32.
 */
enum {
    MOE_FLAG_COMPENSATE = 1,
    MOE_FLAG_MEANS = 2 /* those of MEANS, not the model's own */,
    MOE_FLAG_GATES = 4 /* no sums */,
    MOE_FLAG_LEARN = 8
};

struct moe_slot {
    bool busy;
    int layer;
    struct rows h; /* quantized if an expert here or the router wants that */
    void *quantized;
    enum route route;
    int kept; /* neurons of a token, of ROUTE_STATIC and ROUTE_NEURONS */
    float scale;
    bool compensate;
    const struct router *router; /* of ROUTE_ROUTER, or NULL */
    bool low_rank;               /* add its term of low rank, or constant */
    uint64_t *set;               /* [rows][words of the layer] active experts */
    const int32_t *note;         /* [rows] places in the sample, of moe_note(), or NULL */
    float *threshold;            /* [rows] of the neurons' scores; with an oracle */
    uint64_t neurons;            /* above it, over all rows */
    int *sent;                   /* [ranks] rows posted to each rank */
    int **place; /* per rank, NULL for ranks that never get anything: [rows] where each row is in its answer, -1: not there */
};

/* One expert with its rows of a block (moe_work.c). */
struct moe_share {
    const struct expert *x;
    const struct packed *out; /* the matrix of the second loop: down; in_t of a backward pass */
    const int *row;           /* [z.n] */
    struct rows z;            /* [z.n][inputs of out], between the two halves */
    const float *mu, *norm;
    float scale;
    int first_task, row_tasks;
    int place; /* in an answer of scores or rows */
};

/* All held neurons of a layer as one matrix each (moe_joined.c): [neurons, D]; down_t: of W_down'. */
struct moe_joined {
    struct packed gate, up, down_t;
};

/* An expert among them. */
struct moe_part {
    int column, neurons;           /* its first, and how many */
    int place;                     /* as in moe_share; the shared expert: -1 */
    const struct moe_share *share; /* of the block of rows at work, or NULL: none has it */
};

struct moe {
    struct moe_layer *layers;
    int n_layers, width, neurons, experts, words, rank, ranks;
    bool coordinator;
    const struct placement *p;
    struct moe_limits limits;
    struct gemm *gemm;
    struct exchange *exchange;
    struct timing *timing;
    uint64_t *held; /* [layers][ranks][words]: the experts of each rank */
    struct moe_stats stats;

    /* The experts of this rank over a block of rows (moe_work.c). */
    int *need;      /* [layers] neurons of all the experts it holds */
    uint8_t *forms; /* [layers] 1 << format of the gates and ups that it holds */
    int most_held;  /* experts, in any layer; the shared one too */
    size_t z_bytes; /* room for what lies between the halves */
    char *z;
    struct moe_share *share; /* [most_held] */
    struct active active;
    struct moe_joined *joined; /* [layers], with limits.train */
    struct moe_part *part;     /* [most_held] */
    int *all;                  /* [rows] 0, 1, 2, ... */
    int *cut;                  /* [most_held][blocks of rows + 1] */
    double excess;             /* a sum that left the exact range, 0 none; set by any thread */

    /* Means of a router version, from the first MEANS on; malloc'ed. */
    float **means; /* [layers]: [held][D] */
    float *means_memory;
    double *means_total;   /* coordinator: [layers][D], the sum over all experts of grid() */
    const float *means_of; /* coordinator: whose they are */

    /* moe_note(), of the neurons of held experts, layer by layer and in the order of the experts. */
    size_t *noted; /* [layers][experts] where its neurons begin */
    double *note_sum, *note_square;
    uint16_t *note_sample; /* [neurons][limits.sample] */
    int32_t *note_place;   /* [rows] coordinator: as it travels, whole lines */

    /* Coordinator. */
    struct moe_slot slot[EXCHANGE_SLOTS];
    uint64_t *keys;  /* [rows] 0, 1, 2, ... */
    float *scores;   /* [rows][N] */
    uint32_t *count; /* [N] */
    int64_t *sum;    /* [rows][D]: the layer's output */

    /* Follower: rows as they came, widened, and quantized. */
    float *rows_in;
    void *quantized;

    double *squares; /* coordinator, with limits.adapt: [layers][N + 1] */

    /* Coordinator's oracle. */
    size_t piece_bytes; /* room for centred rows [n][N][D], on followers too: of an answer */
    float *piece, *dense;
    double *gram, *gain; /* [N][N], [N] */

    /* With an oracle, every rank: |w_down_j| of the neurons it holds, computed when a layer asks first. */
    float *norm;   /* [layers][norm_room]: the shared expert, then the held ones in order */
    bool *normed;  /* [layers] */
    int norm_room; /* neurons */
    /* Of the rows that do not select an expert, of one layer: sums of z, as norms lie; and how many rows, by place among the held. */
    double *rest;
    int64_t *rest_rows;
};

static inline const uint64_t *moe_held(const struct moe *m, int layer, int rank)
{
    return m->held + ((size_t)layer * (size_t)m->ranks + (size_t)rank) * (size_t)m->words;
}

static inline bool moe_meet(const uint64_t *a, const uint64_t *b, int words)
{
    for (int w = 0; w < words; w++)
        if (a[w] & b[w]) return true;
    return false;
}

static inline size_t moe_line(size_t bytes) /* rounded up to the 64 bytes of a cache line */
{
    return (bytes + 63) & ~(size_t)63;
}

status moe_check_terms(const struct moe_layer *y, int layer, bool means, struct err *e);
bool moe_holds(const struct moe *m, int layer, int rank); /* any expert of the layer */

/* Takes the memory of moe_work.c; the sizes in *m are filled. */
void moe_take_work(struct moe *m, struct arena_taker *t);

/* What a rank computes for rows h of a layer (moe_work.c). */
struct moe_job {
    int layer;
    const struct rows *h; /* moe_prepare() saw them */
    const uint64_t *set;  /* [rows][words]: the experts it holds that are in a row's set; NULL: all it holds */
    bool shared;          /* the shared expert too */
    bool fixed;           /* the static control: of the layer's neurons only the `kept` most important ones */
    int kept;
    const float *threshold; /* [rows]: of neurons only those whose score is above it; NULL: all */
    bool compensate;        /* less the means of those experts */
    bool means;             /* a router's, not the model's own */
    float scale;            /* of all but the shared expert */
    const double *start;    /* [D] what sums begin with, or NULL */
    const int32_t *note;    /* [rows] as of moe_slot */
};
/* out[t] = start + the sum over experts, [rows][D] of i64, f32 or bf16 as `as` says. */
void moe_work_sum(struct moe *m, const struct moe_job *job, enum moe_answers as, void *out);
/* After it: ERR_LIMIT if a sum was not exact, and forgets it. */
status moe_check_sums(struct moe *m, int layer, struct err *e);
void moe_note_excess(struct moe *m, double found);
/* The oracles' part (moe_work_oracle.c, moe_rest.c).
 * out[t * stride + place] = paper_score of the held experts; place = the expert's number, or its place among the held if `packed`. */
void moe_work_scores(struct moe *m, int layer, const struct rows *h, const float *y, float share, float *out, int stride,
                     bool packed);
/* out[(t * stride + place) * D ...] = e_i - mu_i (or e_i). */
void moe_work_rows(struct moe *m, int layer, const struct rows *h, bool compensate, float *out, int stride, bool packed);

/* out[t * stride + place] = a value of the expert (moe.h), place as in moe_work_scores(). */
void moe_work_values(struct moe *m, int layer, const struct rows *h, enum moe_value what, float *out, int stride, bool packed);
/* Adds rows to m->rest; first: which is zero before. */
void moe_work_rest(struct moe *m, int layer, const struct rows *h, const uint64_t *set, bool first);
/* The means of what moe_work_rest() added; mu: [held or all][D]. */
void moe_work_rest_means(struct moe *m, int layer, float *mu, bool packed);
static inline float moe_neuron_score(float z, float norm)
{
    return fabsf(z) * norm;
}
/* out[t * stride + j] = the scores of the neurons that this rank holds, the shared ones (if `shared`) first, then experts in order. */
void moe_work_neuron_scores(struct moe *m, int layer, const struct rows *h, bool shared, float *out, int stride);
/* |w_down_j| of the same neurons. */
const float *moe_norms(struct moe *m, int layer);
/* Neurons that a rank other than the coordinator holds. */
int moe_held_neurons(const struct moe *m, int layer, int rank);

/* What an oracle wants of all held experts over all rows, in place of sums: of each a number at to[t * stride + place], or its output. */
struct moe_oracle {
    const float *dense;  /* [rows][D]: paper_score() against it */
    float part;          /* its k / N */
    bool norm;           /* |e|^2 */
    const uint64_t *set; /* [rows][words]: for moe_rest.c, whose rows are those without the expert */
    float *to;
    int stride;
};

/* A block of rows of a job. */
struct moe_work {
    struct moe *m;
    const struct kernel *kernel;
    const struct moe_job *job;
    bool backward, norms;    /* norms: shares know those of their neurons */
    bool only_sums;          /* nobody reads z but the second loop, for which its quantized form will do */
    bool packed;             /* place: as in moe_work_scores() */
    int first, rows;         /* of the job's rows */
    struct moe_share *share; /* [shares] */
    int shares, in_tasks;
    double multiplications; /* of both loops */
    /* The second loop. */
    bool fine;
    int out_rows, out_blocks, out_panels, out_columns; /* rows and panels of a task, and how many there are of each */
    enum moe_answers as;
    void *out;
    struct moe_oracle oracle;
};

/* How many rows of a layer there is room for at a time. */
int moe_work_rows_at_once(const struct moe *m, int layer, bool backward);
/* Lists the shares of rows first .. first + rows - 1 and gives their z a place; what the caller set in *w stays. */
void moe_work_begin(struct moe_work *w, struct moe *m, const struct moe_job *job, int first, int rows);
/* The first loop: z of all shares. */
void moe_work_in(struct moe_work *w);
/* The second loop: sums into w->out. */
void moe_work_out(struct moe_work *w);
/* A loop of the caller's own, on this thread alone if the work is little. */
void moe_work_loop(struct moe_work *w, int tasks, void (*task)(void *ctx, int item, int worker), void *ctx);
/* Rows of other micro-batches move only while MPI is called, which the rank's own thread does: at the end of a task. */
static inline void moe_work_progress(const struct moe_work *w, int worker)
{
    if (worker == 0) moe_progress(w->m);
}
/* Bytes and operations of the block, for the timing. */
void moe_work_count(const struct moe_work *w);
/* All held experts over all rows, and what like.oracle says becomes of their outputs. */
void moe_work_outputs(struct moe *m, const struct moe_job *job, struct moe_work like);
/* In place of both loops, if few rows go through many small experts (moe_few.c); false: nothing was done. */
bool moe_few(struct moe_work *w);
/* Joined neurons (moe_joined.c).  In place of the first loop, if that is less work; false: nothing was done. */
bool moe_joined_in(struct moe_work *w);
/* The experts of the layer at work, into m->part; returns how many. */
int moe_parts(const struct moe_work *w);
int moe_share_row(const struct moe_share *s, int row); /* the first of its rows that is not before `row` */
void moe_take_joined(struct moe *m, struct arena_taker *t, int neurons);
void moe_join(struct moe *m, int layer);
/* z of rows row .. row + rows - 1 and neurons first .. first + columns - 1 of a share, as the products gave it, into its place; `tile` may change.
 * Of z that is quantized or rounded: whole blocks. */
void moe_work_keep(const struct moe_work *w, const struct moe_share *s, float *tile, size_t ld, int row, int rows, int first,
                   int columns);
/* Rows first .. first + n - 1 of r. */
struct rows moe_work_part(const struct rows *r, int first, int n);
/* Sums of e->rows rows from `row` on and `columns` columns into w->out; narrow: room for so many floats. */
void moe_work_put(const struct moe_work *w, const struct exact *e, int row, size_t column, int columns, float *narrow);

/* The backward pass over the experts of this rank (moe_backward.c).  sum: [rows][D], or NULL; gate[t * stride + place], place as in moe_work_scores(). */
void moe_work_backward(struct moe *m, const struct moe_job *job, const float *dy, int64_t *sum, float *gate, int stride,
                       bool packed);
void moe_answer_backward(struct moe *m, struct exchange *x, const struct request *r, const char *payload);

/* Adds to the gradients of the experts' weights (moe_adapt.c). */
void moe_work_learn(struct moe *m, const struct moe_job *job, const float *dy);
void moe_answer_adapt(struct moe *m, struct exchange *x, const struct request *r, const void *payload);
const struct adapted *moe_adapted(const struct moe *m, int layer, int expert); /* NULL: not held here */
/* Of arrays that travel. */
static inline size_t moe_adapted_bytes(const struct moe *m)
{
    size_t rows = (size_t)m->limits.rows * sizeof(float);

    return (rows > 64 ? rows : 64) * (size_t)m->width;
}

/* Neurons of a block of rows, into the notes (moe_note.c). */
void moe_take_notes(struct moe *m, struct arena_taker *t);
void moe_keep_notes(struct moe *m, int layer, const struct moe_share *share, int shares, const int32_t *place);
void moe_answer_notes(struct moe *m, struct exchange *x, const struct request *r);
size_t moe_notes_bytes(struct moe_limits limits); /* of one neuron */

/* Rows and sums in the widths in which they travel; n elements. */
size_t moe_row_bytes(const struct moe *m);
size_t moe_sum_bytes(const struct moe *m);
void moe_widen(float *out, const uint16_t *x, size_t n);
/* One row as it travels: to[0] = h. */
void moe_put_row(const struct moe *m, char *to, const float *h);

/* Dispatch and combine of a filled slot (layer, h, route, set, scale, compensate); x[t] += the layer's output. */
void moe_dispatch(struct moe *m, int slot);
status moe_combine(struct moe *m, int slot, float *x, struct err *e);

/* Quantizes and rounds rows as the weights that this rank holds of the layer want them; memory: rows_bytes(). */
void moe_prepare(struct moe *m, int layer, struct rows *h, void *memory);
/* h becomes the rows of a slot, prepared. */
void moe_slot_rows(struct moe *m, struct moe_slot *s, int layer, const float *h, int rows);

/* Means of a router version (moe_means.c). */
static inline bool moe_own_means(const struct moe_slot *s) /* of the slot's router */
{
    return s->compensate && s->router && s->router->mu;
}
status moe_take_means(struct moe *m, struct err *e); /* room for them, once */
void moe_answer_means(struct moe *m, struct exchange *x, const struct request *r, const float *payload);
struct rows moe_rows_of(struct moe *m, int layer, const void *rows, int n,
                        enum moe_rows as); /* of a request, as the experts want them */
void moe_answer_rest(struct moe *m, struct exchange *x, const struct request *r, const void *payload);
/* The oracles' ways: posts rows to every rank that holds experts of the layer, true if there was one; waits; spreads [rows][held][item] over [rows][N][item]. */
bool moe_ask(struct moe *m, int slot, struct request *r, const void *part0, size_t bytes0, const void *part1, size_t bytes1);
status moe_collect(struct moe *m, int slot, int layer, int rows, size_t item, float *out, struct err *e);
/* x[t] += the term of low rank, or the constant, of the slot's router, if it has one. */
void moe_add_low_rank(struct moe *m, const struct moe_slot *s, float *x);

/* The oracles, on a slot that is not in flight; they use its fields and its exchange slot. */
status moe_teach_dense(struct moe *m, int slot, int layer, const float *h, int rows, float *y, struct err *e);
status moe_teach_scores(struct moe *m, int slot, int layer, const float *h, const float *y, int rows, int k, float *score,
                        struct err *e);
status moe_teach_gram(struct moe *m, int slot, int layer, const float *h, int rows, int k, bool compensate, uint64_t *set,
                      struct err *e);
/* The same with as many experts as have a gain above `gain`. */
status moe_teach_gram_variable(struct moe *m, int slot, int layer, const float *h, int rows, double gain, bool compensate,
                               uint64_t *set, struct err *e);
/* Fills threshold and neurons of a slot whose rows are set. */
status moe_teach_neurons(struct moe *m, int slot, struct err *e);

#endif
