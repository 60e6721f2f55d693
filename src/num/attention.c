#include "num/attention.h"

#include <math.h>
#include <string.h>

#include "base/err.h"
#include "base/mat.h"
#include "num/lanes.h"

enum { BF16_LINES = 2, Q8_LINES = 4 }; /* of a panel, in one word of 32 bits */

/* ---- the cache ---- */

static const char *const names[KV_COUNT] = {"f32", "bf16", "q8"};
static const size_t element_bytes[KV_COUNT] = {4, 2, 1};

const char *kv_name(enum kv_format f)
{
    return names[f];
}

bool kv_parse(const char *name, enum kv_format *out)
{
    for (int i = 0; i < KV_COUNT; i++)
        if (!strcmp(name, names[i])) {
            *out = (enum kv_format)i;
            return true;
        }
    return false;
}

struct block { /* where the parts of a block are */
    char *keys, *values;
    float *key_scale, *value_scale; /* [KV_BLOCK] */
};

static int up_to(int n, int multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

static int lines_of_word(enum kv_format f)
{
    return f == KV_Q8 ? Q8_LINES : f == KV_BF16 ? BF16_LINES : 1;
}

static size_t keys_bytes(enum kv_format f, int head_dim)
{
    return KV_BLOCK * (size_t)up_to(head_dim, lines_of_word(f)) * element_bytes[f];
}

static size_t values_bytes(enum kv_format f, int head_dim)
{
    return KV_BLOCK * (size_t)up_to(head_dim, PANEL_LANES) * element_bytes[f];
}

static size_t block_bytes(enum kv_format f, int head_dim)
{
    return keys_bytes(f, head_dim) + values_bytes(f, head_dim) + (f == KV_Q8 ? 2 * KV_BLOCK * sizeof(float) : 0);
}

size_t kv_head_bytes(enum kv_format f, int positions, int head_dim)
{
    return (size_t)((positions + KV_BLOCK - 1) / KV_BLOCK) * block_bytes(f, head_dim);
}

static struct block block_of(const struct kv_head *h, int position)
{
    char *at = h->blocks + (size_t)(position / KV_BLOCK) * block_bytes(h->format, h->head_dim);
    struct block b = {.keys = at, .values = at + keys_bytes(h->format, h->head_dim)};

    b.key_scale = (float *)(void *)(b.values + values_bytes(h->format, h->head_dim));
    b.value_scale = b.key_scale + KV_BLOCK;
    return b;
}

/* Line and lane of a panel of `lines` lines to element. */
static size_t element_at(enum kv_format f, int panel, int lines, int line, int lane)
{
    int each = lines_of_word(f);
    size_t word = ((size_t)panel * (size_t)up_to(lines, each) + (size_t)line) / (size_t)each;

    return (word * PANEL_LANES + (size_t)lane) * (size_t)each + (size_t)(line % each);
}

static size_t key_at(const struct kv_head *h, int j, int i)
{
    return element_at(h->format, j / PANEL_LANES, h->head_dim, i, j % PANEL_LANES);
}

static size_t value_at(const struct kv_head *h, int j, int i)
{
    return element_at(h->format, i / PANEL_LANES, KV_BLOCK, j, i % PANEL_LANES);
}

/* A row that is no number has a scale that is none. */
static float scale_of(const float *x, int n)
{
    float most = 0.0f;

    for (int i = 0; i < n; i++) most = fabsf(x[i]) > most || isnan(x[i]) ? fabsf(x[i]) : most;
    return most / 127.0f;
}

static int8_t quantized(float x, float scale)
{
    float v = rintf(x / scale);

    if (!(fabsf(v) <= 127.0f)) return v > 0.0f ? 127 : v < 0.0f ? -127 : 0;
    return (int8_t)v;
}

void kv_write(const struct kv_head *h, int position, const float *k, const float *v)
{
    struct block b = block_of(h, position);
    int j = position % KV_BLOCK, n = h->head_dim;
    float *k32 = (float *)(void *)b.keys, *v32 = (float *)(void *)b.values;
    uint16_t *k16 = (uint16_t *)(void *)b.keys, *v16 = (uint16_t *)(void *)b.values;
    int8_t *k8 = (int8_t *)b.keys, *v8 = (int8_t *)b.values;

    switch (h->format) {
    case KV_F32:
        for (int i = 0; i < n; i++) k32[key_at(h, j, i)] = k[i], v32[value_at(h, j, i)] = v[i];
        break;
    case KV_BF16:
        for (int i = 0; i < n; i++) k16[key_at(h, j, i)] = narrow_bf16(k[i]), v16[value_at(h, j, i)] = narrow_bf16(v[i]);
        break;
    default:
        b.key_scale[j] = scale_of(k, n), b.value_scale[j] = scale_of(v, n);
        for (int i = 0; i < n; i++) {
            k8[key_at(h, j, i)] = quantized(k[i], b.key_scale[j]);
            v8[value_at(h, j, i)] = quantized(v[i], b.value_scale[j]);
        }
    }
}

static float element(const struct kv_head *h, const char *from, size_t at, float scale)
{
    if (h->format == KV_F32) return ((const float *)(const void *)from)[at];
    if (h->format == KV_BF16) return widen_bf16(((const uint16_t *)(const void *)from)[at]);
    return scale * (float)((const int8_t *)from)[at];
}

void kv_read(const struct kv_head *h, int position, float *k, float *v)
{
    struct block b = block_of(h, position);
    int j = position % KV_BLOCK;
    float ks = h->format == KV_Q8 ? b.key_scale[j] : 1.0f, vs = h->format == KV_Q8 ? b.value_scale[j] : 1.0f;

    for (int i = 0; i < h->head_dim; i++) {
        k[i] = element(h, b.keys, key_at(h, j, i), ks);
        v[i] = element(h, b.values, value_at(h, j, i), vs);
    }
}

/* ---- a block as f32 ---- */

/* Words of 16 lanes, which have the numbers of 2 lines. */
BODY void widen16_body(float *out, const uint16_t *in, int lines)
{
    for (int i = 0; i < lines; i++, out += PANEL_LANES)
        for (int l = 0; l < PANEL_LANES; l += LANES) {
            bits8 word = *(const bits8 *)(const void *)(in + (i / BF16_LINES * PANEL_LANES + l) * BF16_LINES);

            word = word >> (16 * (i % BF16_LINES)) << 16;
            *(lanes8 *)(out + l) = (lanes8)word;
        }
}
TWICE(static, widen16, (float *out, const uint16_t *in, int lines), (out, in, lines))

/* Line j of words of 16 lanes, which have the bytes of 4 lines.  Keys: every lane has its scale; values: every line has. */
BODY void widen8_line(float *out, const int8_t *words, int j, const float *scale, bool keys)
{
    for (int l = 0; l < PANEL_LANES; l += LANES) {
        bits8 q = *(const bits8 *)(const void *)(words + l * Q8_LINES) << (24 - 8 * j) >> 24;
        lanes8 x = __builtin_convertvector(q, lanes8);

        *(lanes8 *)(out + l) = keys ? x * *(const lanes8 *)(scale + l) : x * *scale;
    }
}

BODY void widen8_body(float *out, const int8_t *in, int lines, const float *scale, bool keys)
{
    for (int i = 0; i < lines; i += Q8_LINES, in += Q8_LINES * PANEL_LANES)
        if (lines - i >= Q8_LINES) {
#pragma GCC unroll 4
            for (int j = 0; j < Q8_LINES; j++)
                widen8_line(out + (i + j) * PANEL_LANES, in, j, keys ? scale : scale + i + j, keys);
        } else {
            for (int j = 0; j < lines - i; j++)
                widen8_line(out + (i + j) * PANEL_LANES, in, j, keys ? scale : scale + i + j, keys);
        }
}
BODY void widen8_keys_body(float *out, const int8_t *in, int lines, const float *scale)
{
    widen8_body(out, in, lines, scale, true);
}
BODY void widen8_values_body(float *out, const int8_t *in, int lines, const float *scale)
{
    widen8_body(out, in, lines, scale, false);
}
TWICE(static, widen8_keys, (float *out, const int8_t *in, int lines, const float *scale), (out, in, lines, scale))
TWICE(static, widen8_values, (float *out, const int8_t *in, int lines, const float *scale), (out, in, lines, scale))

/* The first n keys of a block, in whole panels: as they are, or widened into `into`. */
static struct packed keys_of(const struct kv_head *h, const struct block *b, int n, float *into)
{
    size_t panel = (size_t)h->head_dim * PANEL_LANES;
    struct packed w = {.lines = b->keys, .rows = up_to(n, PANEL_LANES), .cols = h->head_dim};

    w.format = h->format == KV_BF16 ? FORMAT_BF16 : FORMAT_F32;
    if (h->format != KV_Q8) return w;
    for (int p = 0; p < packed_panels(n); p++)
        widen8_keys(into + (size_t)p * panel, (const int8_t *)b->keys + key_at(h, p * PANEL_LANES, 0), h->head_dim,
                    b->key_scale + p * PANEL_LANES);
    w.lines = into;
    return w;
}

/* The first n values of a block, for rows of which the first sees `least`; a panel is KV_BLOCK lines long whatever n is. */
static struct packed values_of(const struct kv_head *h, const struct block *b, int n, int least, float *into)
{
    const size_t panel = KV_BLOCK * PANEL_LANES;
    struct packed w = {.lines = b->values, .rows = up_to(h->head_dim, PANEL_LANES), .cols = KV_BLOCK};

    w.format = h->format == KV_BF16 && least == KV_BLOCK ? FORMAT_BF16 : FORMAT_F32;
    if (h->format == KV_F32 || w.format == FORMAT_BF16) return w;
    for (int p = 0; p < packed_panels(h->head_dim); p++)
        if (h->format == KV_BF16)
            widen16(into + (size_t)p * panel, (const uint16_t *)(const void *)b->values + (size_t)p * panel, n);
        else widen8_values(into + (size_t)p * panel, (const int8_t *)b->values + (size_t)p * panel, n, b->value_scale);
    w.lines = into;
    return w;
}

/* ---- rows ---- */

struct room { /* of one attend(); rows of q and o as long as they are, not as they may be */
    float q[ATTEND_ROWS * ATTEND_HEAD_DIM], o[ATTEND_ROWS * ATTEND_HEAD_DIM], mixed[ATTEND_ROWS * ATTEND_HEAD_DIM];
    float block[KV_BLOCK * ATTEND_HEAD_DIM]; /* keys, then values, widened */
    float score[ATTEND_ROWS][KV_BLOCK];      /* then the weights p */
    float sum[ATTEND_ROWS][LANES], most[ATTEND_ROWS + LANES], shrink[ATTEND_ROWS];
} __attribute__((aligned(64)));

_Static_assert(sizeof(struct room) <= ATTEND_ROOM_BYTES, "all of it fits");

struct scores { /* rows of scores of one block, n of each count; the same rows of the room's other parts */
    float (*s)[KV_BLOCK], (*sum)[LANES], *most, *shrink;
    int rows, n;
};

/* Scores become weights.  In passes over the rows, so that one row's chain of operations fills another's gaps. */
BODY void weigh_body(const struct scores *x)
{
    int whole = up_to(x->n, LANES);
    float m[ATTEND_ROWS + LANES] = {0};

    for (int r = 0; r < x->rows; r++) {
        float *s = x->s[r];
        lanes8 high;

        for (int j = x->n; j < whole; j++) s[j] = -INFINITY;
        high = *(const lanes8 *)s;
        for (int j = LANES; j < whole; j += LANES) raise_lanes(&high, (const lanes8 *)(s + j));
        m[r] = x->most[r];
        for (int l = 0; l < LANES; l++) m[r] = high[l] > m[r] ? high[l] : m[r];
    }
    for (int r = 0; r < x->rows; r += LANES) {
        lanes8 shrink = *(const lanes8 *)(x->most + r) - *(const lanes8 *)(m + r);

        exp_lanes(&shrink);
        for (int l = 0; l < LANES && r + l < x->rows; l++) x->shrink[r + l] = shrink[l], x->most[r + l] = m[r + l];
    }
    for (int r = 0; r < x->rows; r++) {
        lanes8 *s = (lanes8 *)x->s[r], sum = *(const lanes8 *)x->sum[r] * x->shrink[r];

        for (int j = 0; j < whole; j += LANES, s++) {
            *s -= m[r];
            exp_lanes(s);
            if (j + LANES > x->n) /* behind n zeros, which change no bit of the sums: those are not negative */
                for (int l = x->n - j; l < LANES; l++) (*s)[l] = 0.0f;
            sum += *s;
        }
        *(lanes8 *)x->sum[r] = sum;
    }
}
TWICE(static, weigh, (const struct scores *x), (x))

/* o = o * shrink + mixed, rows of `lanes` elements. */
BODY void fold_body(float *o, const float *mixed, const float *shrink, int rows, int lanes)
{
    for (int r = 0; r < rows; r++, o += lanes, mixed += lanes)
        for (int i = 0; i < lanes; i += LANES) *(lanes8 *)(o + i) = *(lanes8 *)(o + i) * shrink[r] + *(const lanes8 *)(mixed + i);
}
TWICE(static, fold, (float *o, const float *mixed, const float *shrink, int rows, int lanes), (o, mixed, shrink, rows, lanes))

BODY void scaled_body(float *out, const float *x, int n, float by)
{
    for (int i = 0; i < n; i++) out[i] = x[i] * by;
}
TWICE(static, scaled, (float *out, const float *x, int n, float by), (out, x, n, by))

static float added_up(const float *l)
{
    return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}

/* o of rows r .. r + rows - 1, whose weights are n each. */
static void mix(const struct attend *a, struct room *m, const struct packed *values, int r, int rows, int n, void *scratch)
{
    int panels = packed_panels(values->rows), at_once = n == KV_BLOCK ? panels : 1;
    struct rows p = {.x = m->score[r], .ld = KV_BLOCK, .n = rows, .cols = n};
    struct packed w = *values;

    w.cols = n, w.rows = at_once * PANEL_LANES;
    for (int i = 0; i < panels; i += at_once) { /* panels follow each other as packed.h says only in a whole block */
        w.lines = (const char *)values->lines + (size_t)i * KV_BLOCK * LINE_BYTES;
        a->kernel->product(m->mixed + i * PANEL_LANES, (size_t)values->rows, &p, NULL, rows, &w, 0, at_once, scratch);
    }
    fold(m->o + (size_t)r * (size_t)values->rows, m->mixed, m->shrink + r, rows, values->rows);
}

/* How many positions of the block that begins at `begin` a row at `position` sees. */
static int seen(int32_t position, int begin)
{
    return position < begin ? 0 : position - begin < KV_BLOCK ? position - begin + 1 : KV_BLOCK;
}

/* The rows that see something of the block that begins at `begin`: a row joins at 0 and stays until its own position. */
static void attend_block(const struct attend *a, struct room *m, int begin, void *scratch)
{
    struct block b = block_of(a->kv, begin);
    int first = 0, n = seen(a->position[a->rows - 1], begin), d = a->kv->head_dim;
    struct packed keys = keys_of(a->kv, &b, n, m->block), values;

    while (!seen(a->position[first], begin)) first++;
    struct rows q = {
        .x = m->q + (size_t)first * (size_t)a->heads * (size_t)d, .ld = (size_t)d, .n = (a->rows - first) * a->heads, .cols = d};
    a->kernel->product(m->score[first * a->heads], KV_BLOCK, &q, NULL, q.n, &keys, 0, packed_panels(n), scratch);
    values = values_of(a->kv, &b, n, seen(a->position[first], begin), m->block); /* the keys have done their part */
    for (int t = first, end; t < a->rows; t = end) {                             /* rows that see equally much */
        for (end = t + 1; end < a->rows && seen(a->position[end], begin) == seen(a->position[t], begin);) end++;
        int r = t * a->heads, rows = (end - t) * a->heads, count = seen(a->position[t], begin);

        weigh(&(struct scores){m->score + r, m->sum + r, m->most + r, m->shrink + r, rows, count});
        mix(a, m, &values, r, rows, count, scratch);
    }
}

void attend(const struct attend *a, void *scratch, void *room)
{
    struct room *m = room;
    int d = a->kv->head_dim, lanes = packed_panels(d) * PANEL_LANES, rows = a->rows * a->heads;
    float by = (float)(1.0 / sqrt((double)d));

    BUG_ON(a->rows < 1 || rows > ATTEND_ROWS || d > ATTEND_HEAD_DIM);
    for (int t = 0; t < a->rows; t++)
        scaled(m->q + (size_t)t * (size_t)a->heads * (size_t)d, a->q + (size_t)t * a->ldq, a->heads * d, by);
    memset(m->o, 0, (size_t)rows * (size_t)lanes * sizeof(*m->o));
    memset(m->sum, 0, (size_t)rows * sizeof(*m->sum));
    for (int r = 0; r < rows + LANES; r++) m->most[r] = -INFINITY;
    for (int begin = 0; begin <= a->position[a->rows - 1]; begin += KV_BLOCK) attend_block(a, m, begin, scratch);
    for (int r = 0; r < rows; r++)
        scaled(a->out + (size_t)(r / a->heads) * a->ldo + (size_t)(r % a->heads) * (size_t)d, m->o + (size_t)r * (size_t)lanes, d,
               1.0f / added_up(m->sum[r]));
}
