/* Losses of the student's logits against the teacher's and the text, and what goes back through the head. */
#include "num/backward.h"
#include "train/stage2_internal.h"

struct losses {
    struct stage2 *s;
    const int32_t *target;
    int rows;
};

static void losses_task(void *ctx, int item, int worker)
{
    const struct losses *x = ctx;
    struct stage2 *s = x->s;
    int vocab = s->shape->vocab, end = (item + 1) * STAGE2_TASK_ROWS < x->rows ? (item + 1) * STAGE2_TASK_ROWS : x->rows;

    (void)worker;
    for (int t = item * STAGE2_TASK_ROWS; t < end; t++) {
        size_t at = (size_t)t * (size_t)vocab;

        s->kl[t] = s->nll[t] = 0;
        distill_backward(s->logits + at, s->taught_logits + at, vocab, x->target[t], s->o.lm, &s->kl[t], &s->nll[t]);
    }
}

/* Losses of all rows, some rows of logits at a time; with `learn` what goes back to the states behind the last layer, in dx. */
void stage2_losses(struct stage2 *s, int rows, bool learn)
{
    size_t width = (size_t)s->shape->width;
    const float *last = stage2_entrance(s, s->shape->layers);

    forward_norm(s->model, last, rows, s->hidden);
    for (int first = 0; first < rows; first += STAGE2_HEAD_ROWS) {
        int n = rows - first < STAGE2_HEAD_ROWS ? rows - first : STAGE2_HEAD_ROWS;
        float *hidden = s->hidden + (size_t)first * width;

        forward_logits(s->model, hidden, n, s->logits);
        forward_logits(s->model, s->taught_h + (size_t)first * width, n, s->taught_logits);
        gemm_parallel(s->gemm, (n + STAGE2_TASK_ROWS - 1) / STAGE2_TASK_ROWS, losses_task,
                      &(struct losses){s, s->target + first, n});
        for (int t = 0; t < n; t++) s->tally.kl += s->kl[t], s->tally.nll += s->nll[t];
        if (learn) backward_logits(s->backward, s->logits, n, hidden); /* its own rows are not needed any more */
    }
    if (learn && s->o.adapt) adapt_norm(s->o.adapt, ADAPT_LAST, 0, s->hidden, last, rows);
    if (learn) backward_norm(s->backward, s->hidden, last, rows, s->dx);
}
