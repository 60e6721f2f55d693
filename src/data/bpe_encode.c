/* Byte-pair encoding: text to ids.
 *
 * A piece of text begins as its characters (or, byte-level, its bytes, each spelled as one printable character); then the adjacent pair whose
 * merge stands first in the list is joined, the leftmost of equals first, until no pair has a merge.  With a heap of candidates that is
 * O(n log n), so a whole book without a pre-tokenizer is no problem.
 */
#include <stdlib.h>
#include <string.h>

#include "data/bpe_internal.h"
#include "data/utf8.h"

struct symbol {
    int32_t id; /* -1: joined into an earlier one */
    int32_t prev, next;
};

struct work { /* scratch of one call of bpe_encode */
    struct symbol *symbols;
    size_t n, room;
    uint64_t *heap; /* rank << 32 | index of the left symbol; the smallest on top */
    size_t n_heap, heap_room;
    struct str letters;
};

static void heap_push(struct work *w, uint64_t x)
{
    size_t i = w->n_heap++;

    if (w->n_heap > w->heap_room) {
        w->heap_room = w->heap_room ? 2 * w->heap_room : 256;
        w->heap = realloc(w->heap, w->heap_room * sizeof(*w->heap));
        BUG_ON(!w->heap);
    }
    for (; i && w->heap[(i - 1) / 2] > x; i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = x;
}

static uint64_t heap_pop(struct work *w)
{
    uint64_t top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0;

    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= w->n_heap) break;
        if (child + 1 < w->n_heap && w->heap[child + 1] < w->heap[child]) child++;
        if (w->heap[child] >= last) break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

static void add_symbol(struct work *w, int32_t id)
{
    if (w->n == w->room) {
        w->room = w->room ? 2 * w->room : 256;
        w->symbols = realloc(w->symbols, w->room * sizeof(*w->symbols));
        BUG_ON(!w->symbols);
    }
    w->symbols[w->n] = (struct symbol){.id = id, .prev = (int32_t)w->n - 1, .next = (int32_t)w->n + 1};
    w->n++;
}

static void first_symbols(const struct bpe *b, struct work *w, const char *text, size_t length)
{
    bool after_unknown = false;

    w->n = 0;
    for (size_t at = 0, step; at < length; at += step) {
        bool valid, bytes = true;

        step = b->byte_level ? 1 : utf8_next(&valid, text + at, length - at);
        int32_t id = b->byte_level ? b->byte_id[(unsigned char)text[at]] : *bpe_find_text(b, text + at, step);
        if (id >= 0 && !b->tokens[id].special) {
            add_symbol(w, id);
            after_unknown = false;
            continue;
        }
        for (size_t i = 0; i < step; i++) bytes &= b->byte_id[(unsigned char)text[at + i]] >= 0;
        if (b->byte_fallback && bytes && !b->byte_level) {
            for (size_t i = 0; i < step; i++) add_symbol(w, b->byte_id[(unsigned char)text[at + i]]);
            after_unknown = false;
            continue;
        }
        if (b->unknown >= 0 && !(b->fuse_unknown && after_unknown)) add_symbol(w, b->unknown);
        after_unknown = true;
    }
    if (w->n) w->symbols[w->n - 1].next = -1;
}

static void offer(const struct bpe *b, struct work *w, int32_t left)
{
    int32_t right = left < 0 ? -1 : w->symbols[left].next;

    if (right < 0) return;
    const struct merge *m = bpe_find_merge(b, w->symbols[left].id, w->symbols[right].id);
    if (m) heap_push(w, (uint64_t)m->rank << 32 | (uint32_t)left);
}

static void encode_piece(const struct bpe *b, struct work *w, struct ids *out, const char *text, size_t length)
{
    if (b->ignore_merges) { /* a piece that is a token as a whole is that token */
        const char *whole = text;
        size_t n = length;

        if (b->byte_level) {
            str_clear(&w->letters);
            for (size_t i = 0; i < length; i++) {
                char letter[4];

                str_add(&w->letters, letter, utf8_put(letter, b->byte_letter[(unsigned char)text[i]]));
            }
            whole = w->letters.text;
            n = w->letters.length;
        }
        int32_t id = *bpe_find_text(b, whole, n);
        if (id >= 0 && !b->tokens[id].special) {
            ids_add(out, id);
            return;
        }
    }
    first_symbols(b, w, text, length);
    w->n_heap = 0;
    for (size_t i = 0; i < w->n; i++) offer(b, w, (int32_t)i);
    while (w->n_heap) {
        uint64_t top = heap_pop(w);
        int32_t left = (int32_t)(uint32_t)top, right = w->symbols[left].next;

        /* An offer is stale if its pair changed since; a rank belongs to one pair, so it tells. */
        if (w->symbols[left].id < 0 || right < 0) continue;
        const struct merge *m = bpe_find_merge(b, w->symbols[left].id, w->symbols[right].id);
        if (!m || (uint64_t)m->rank != top >> 32) continue;
        w->symbols[left].id = m->result;
        w->symbols[left].next = w->symbols[right].next;
        w->symbols[right].id = -1;
        if (w->symbols[left].next >= 0) w->symbols[w->symbols[left].next].prev = left;
        offer(b, w, w->symbols[left].prev);
        offer(b, w, left);
    }
    for (int32_t i = w->n ? 0 : -1; i >= 0; i = w->symbols[i].next) ids_add(out, w->symbols[i].id);
}

status bpe_encode(const struct bpe *b, struct ids *out, const char *text, size_t length, struct err *e)
{
    struct work w = {0};
    struct pieces p;

    if (pretok_run(b->pretok, &p, text, length, e)) return e->code;
    for (size_t i = 0; i < p.n; i++) {
        size_t begin = i ? p.end[i - 1] : 0;

        encode_piece(b, &w, out, p.text.text + begin, p.end[i] - begin);
    }
    pieces_free(&p);
    free(w.symbols);
    free(w.heap);
    str_free(&w.letters);
    return OK;
}
