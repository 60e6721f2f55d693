#include "moe/assign.h"

#include <stdlib.h>
#include <string.h>

enum { STEP_FALLS = 5, BIDS_BETWEEN_SIGNS = 4096 };

struct bid {
    double price;
    int item;
};

struct auction {
    const float *score;
    int items, groups;
    const int *size;
    double *price;    /* [groups] of the cheapest place */
    double *base;     /* [groups] of places that are free in this round */
    struct bid *held; /* [items] the places of each group as a heap, the cheapest first */
    int *begin, *n;   /* [groups] where they begin in `held`, and how many are taken */
    int *waiting;     /* [items] a ring of those without a group */
    int first, left;
};

static bool cheaper(const struct bid *a, const struct bid *b)
{
    return a->price != b->price ? a->price < b->price : a->item > b->item;
}

static void swap(struct bid *a, struct bid *b)
{
    struct bid t = *a;

    *a = *b;
    *b = t;
}

static void sift_up(struct bid *heap, int at)
{
    for (int parent; at > 0 && cheaper(&heap[at], &heap[parent = (at - 1) / 2]); at = parent) swap(&heap[at], &heap[parent]);
}

static void sift_down(struct bid *heap, int n, int at)
{
    for (int child = 2 * at + 1; child < n; at = child, child = 2 * at + 1) {
        if (child + 1 < n && cheaper(&heap[child + 1], &heap[child])) child++;
        if (!cheaper(&heap[child], &heap[at])) return;
        swap(&heap[child], &heap[at]);
    }
}

static void wait_again(struct auction *a, int item)
{
    a->waiting[(a->first + a->left++) % a->items] = item;
}

static void take_place(struct auction *a, int group, struct bid b)
{
    struct bid *heap = a->held + a->begin[group];

    if (a->n[group] < a->size[group]) {
        heap[a->n[group]] = b;
        sift_up(heap, a->n[group]++);
    } else {
        wait_again(a, heap[0].item);
        heap[0] = b;
        sift_down(heap, a->n[group], 0);
    }
    a->price[group] = a->n[group] < a->size[group] ? a->base[group] : heap[0].price;
}

static void bid(struct auction *a, int item, double step)
{
    const float *score = a->score + (size_t)item * (size_t)a->groups;
    double best = 0, second = 0;
    int group = -1, seen = 0;

    for (int g = 0; g < a->groups; g++) {
        double worth = (double)score[g] - a->price[g];

        if (a->size[g] == 0) continue;
        if (group < 0 || worth > best) {
            second = best;
            best = worth;
            group = g;
        } else if (seen == 1 || worth > second) {
            second = worth;
        }
        seen++;
    }
    if (seen == 1) second = best;
    take_place(a, group, (struct bid){a->price[group] + (best - second) + step, item});
}

/* Everybody bids anew at the prices of the round before. */
static void round_of(struct auction *a, double step, const struct alive *alive)
{
    memset(a->n, 0, (size_t)a->groups * sizeof(*a->n));
    memcpy(a->base, a->price, (size_t)a->groups * sizeof(*a->base));
    a->first = 0, a->left = a->items;
    for (int j = 0; j < a->items; j++) a->waiting[j] = j;
    for (unsigned long bids = 0; a->left > 0; bids++) {
        int item = a->waiting[a->first];

        if (bids % BIDS_BETWEEN_SIGNS == 0) alive_tick(alive);
        a->first = (a->first + 1) % a->items;
        a->left--;
        bid(a, item, step);
    }
}

/* Mean over items of best - mean score: what a good choice is worth. */
static double spread_of(const struct auction *a)
{
    double sum = 0;

    for (int j = 0; j < a->items; j++) {
        const float *score = a->score + (size_t)j * (size_t)a->groups;
        double most = (double)score[0], all = 0;

        for (int g = 0; g < a->groups; g++) {
            most = (double)score[g] > most ? (double)score[g] : most;
            all += (double)score[g];
        }
        sum += most - all / a->groups;
    }
    return sum / a->items;
}

static void run(struct auction *a, int *of, const struct alive *alive)
{
    double spread = spread_of(a), last = ASSIGN_STEP * spread;

    if (!(last > 0)) last = 1; /* all scores are equal */
    for (double step = spread > last ? spread : last;; step = step / STEP_FALLS > last ? step / STEP_FALLS : last) {
        round_of(a, step, alive);
        if (step <= last) break;
    }
    for (int g = 0; g < a->groups; g++)
        for (int i = 0; i < a->n[g]; i++) of[a->held[a->begin[g] + i].item] = g;
}

status assign_balanced(int *of, const float *score, int items, int groups, const int *size, const struct alive *alive,
                       struct err *e)
{
    size_t n = (size_t)items, g = (size_t)groups;
    struct auction a = {.score = score, .items = items, .groups = groups, .size = size};
    int places = 0;
    status s = OK;

    BUG_ON(items < 1 || groups < 1);
    a.price = calloc(g, sizeof(*a.price));
    a.base = calloc(g, sizeof(*a.base));
    a.held = malloc(n * sizeof(*a.held));
    a.begin = malloc(g * sizeof(*a.begin));
    a.n = calloc(g, sizeof(*a.n));
    a.waiting = malloc(n * sizeof(*a.waiting));
    if (!a.price || !a.base || !a.held || !a.begin || !a.n || !a.waiting) {
        s = err_set(e, ERR_LIMIT, "no memory to assign %d neurons to %d experts", items, groups);
    } else {
        for (int i = 0; i < groups; i++) {
            a.begin[i] = places;
            places += size[i];
        }
        BUG_ON(places != items);
        run(&a, of, alive);
    }
    free(a.price);
    free(a.base);
    free(a.held);
    free(a.begin);
    free(a.n);
    free(a.waiting);
    return s;
}
