/* What an evaluation scores: windows of text, and the texts of items behind their contexts. */
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "jobs/eval.h"

struct eval_sequence *eval_windows(size_t *n_windows, size_t *n_scores, const struct corpus *c, int window)
{
    size_t count = corpus_windows(c, window), scores = 0;
    struct eval_sequence *windows = calloc(count + 1, sizeof(*windows));

    BUG_ON(!windows);
    for (size_t i = 0; i < count; i++) {
        size_t begin = i * (size_t)window, n = c->n_tokens - begin;

        if (n > (size_t)window) n = (size_t)window;
        windows[i] = (struct eval_sequence){.target = c->tokens + begin, .n = (int)n, .first_score = scores, .block = EVAL_BLOCK};
        scores += (n + EVAL_BLOCK - 1) / EVAL_BLOCK;
    }
    *n_windows = count;
    *n_scores = scores;
    return windows;
}

/* What bootstraps resample: so many tokens that count in each score of the windows. */
static void weigh_blocks(struct eval_run *r)
{
    r->block_tokens = calloc(r->n_blocks + 1, sizeof(*r->block_tokens));
    BUG_ON(!r->block_tokens);
    for (size_t i = 0; i < r->n_windows; i++)
        for (int at = 0; at < r->windows[i].n; at++) r->block_tokens[r->windows[i].first_score + (size_t)(at / EVAL_BLOCK)]++;
}

void eval_make_windows(struct eval_run *r)
{
    r->windows = eval_windows(&r->n_windows, &r->n_blocks, &r->corpus, r->window);
    weigh_blocks(r);
}

struct tokens {
    int32_t *id;
    size_t n, room;
};

static void add_tokens(struct tokens *to, const int32_t *id, size_t n)
{
    if (to->n + n > to->room) {
        to->room = 2 * (to->n + n) + 1024;
        to->id = realloc(to->id, to->room * sizeof(*to->id));
        BUG_ON(!to->id);
    }
    if (n) memcpy(to->id + to->n, id, n * sizeof(*id));
    to->n += n;
}

/* One continuation behind its context: whole = context + blank + text is tokenized at once, the continuation is what stands behind the context's
 * own number of tokens.  What does not fit is dropped from the left of the context; *fits: the continuation alone does. */
static status make_piece(bool *fits, struct eval_sequence *q, size_t *begin, struct tokens *to, const struct eval_run *r,
                         const struct item *i, const char *text, int positions, struct err *e)
{
    struct str whole = {0};
    int32_t *ids = NULL, *context = NULL;
    size_t n = 0, before = 0;
    status s = OK;

    if (i->context) {
        str_addf(&whole, "%s %s", i->context, text);
        s = tokenizer_encode(r->tokenizer, &context, &before, i->context, strlen(i->context), e);
    } else {
        str_addz(&whole, text);
    }
    if (!s) s = tokenizer_encode(r->tokenizer, &ids, &n, whole.text, whole.length, e);
    if (!s && before > n) before = n;
    *fits = s || n - before <= (size_t)positions;
    if (!s && *fits) {
        size_t room = (size_t)positions - (n - before), dropped = before > room ? before - room : 0;

        *begin = to->n;
        add_tokens(to, ids + dropped, n - dropped);
        *q = (struct eval_sequence){.n = (int)(n - dropped), .from = (int)(before - dropped)};
    }
    str_free(&whole);
    free(ids);
    free(context);
    return s;
}

status eval_make_pieces(struct eval_run *r, int positions, struct err *e)
{
    struct tokens all = {0};
    size_t *begin = NULL, n = 0, kept = 0, i = 0;
    char first[256] = "";
    status s = OK;

    for (size_t k = 0; k < r->items.n; k++) r->n_pieces += (size_t)r->items.item[k].n;
    r->pieces = calloc(r->n_pieces + 1, sizeof(*r->pieces));
    begin = calloc(r->n_pieces + 1, sizeof(*begin));
    BUG_ON(!r->pieces || !begin);
    for (; i < r->items.n && !s; i++) {
        struct item *item = &r->items.item[i];
        bool fits = true;

        item->first = n;
        for (int t = 0; t < item->n && !s && fits; t++, n++)
            s = make_piece(&fits, &r->pieces[n], &begin[n], &all, r, item, item->text[t], positions, e);
        if (fits) {
            r->items.item[kept++] = *item;
        } else { /* sums over different numbers of tokens could not be compared: the whole item goes */
            n = item->first;
            if (!r->left_out++) snprintf(first, sizeof(first), "%.200s:%d", item->file, item->line);
            items_leave_out(&r->items, item);
        }
        if (i % 256 == 0) cluster_alive(r->job->cluster);
    }
    memmove(r->items.item + kept, r->items.item + i, (r->items.n - i) * sizeof(*r->items.item)); /* after an error: the rest */
    r->items.n = kept + r->items.n - i;
    r->n_pieces = n;
    if (!s && r->left_out && !kept)
        s = err_set(e, ERR_LIMIT, "%s: has more tokens to score than the model takes positions (%d), and so have all other items",
                    first, positions);
    else if (!s && r->left_out)
        log_warn(
            r->job->log,
            "items left out because they have more tokens to score than the model takes positions (%d): %zu, the first is %s",
            positions, r->left_out, first);
    r->piece_tokens = all.id;
    for (size_t k = 0; k < n && !s; k++) {
        r->pieces[k].target = all.id + begin[k];
        r->pieces[k].first_score = k;
    }
    free(begin);
    return s;
}

status eval_check_ids(const struct eval_run *r, const struct shape *shape, const char *directory, struct err *e)
{
    if (tokenizer_vocab(r->tokenizer) > shape->vocab)
        return err_set(e, ERR_FORMAT, "%s: its tokenizer has %d tokens, the model %d", directory, tokenizer_vocab(r->tokenizer),
                       shape->vocab);
    return OK;
}

/* The other side is scored on this side's tokens: they must mean the same to it. */
status eval_check_same_tokens(const struct eval_run *r, const char *directory, struct err *e)
{
    struct tokenizer *other;
    struct str a = {0}, b = {0};
    status s = tokenizer_open(&other, directory, e);

    if (s) return s;
    if (tokenizer_vocab(other) != tokenizer_vocab(r->tokenizer))
        s = err_set(e, ERR_SPEC, "%s: compare_model: %s has a tokenizer of %d tokens, expected the same as model's, %d",
                    r->job->spec->source, directory, tokenizer_vocab(other), tokenizer_vocab(r->tokenizer));
    for (int32_t id = 0; !s && id < tokenizer_vocab(other); id++) {
        str_clear(&a);
        str_clear(&b);
        tokenizer_piece(r->tokenizer, &a, id);
        tokenizer_piece(other, &b, id);
        if (a.length != b.length || (a.length && memcmp(a.text, b.text, a.length)) ||
            tokenizer_is_special(r->tokenizer, id) != tokenizer_is_special(other, id))
            s = err_set(e, ERR_SPEC,
                        "%s: compare_model: token %d of %s is \"%s\", expected the same tokenizer as model's: \"%s\"",
                        r->job->spec->source, id, directory, b.text ? b.text : "", a.text ? a.text : "");
    }
    str_free(&a);
    str_free(&b);
    tokenizer_close(other);
    return s;
}
