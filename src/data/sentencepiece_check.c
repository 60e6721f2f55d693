/* A look at a SentencePiece model's bytes before the library gets them.
 *
 * The file is a protobuf message (sentencepiece_model.proto).  The library checks much, but not the character map, a double-array trie
 * that it walks without bounds, and it prints on malformed messages.  So the fields that matter are walked here; what they promise is
 * checked, and anything that no trainer writes is refused.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "data/tokenizer_parts.h"
#include "data/utf8.h"

enum { PIECES_MAX = 1 << 21, PIECE_BYTES_MAX = 4096 };

struct reader {
    const unsigned char *at, *end;
    const char *source;
};

struct field {
    uint64_t number, value; /* value: of varint and fixed fields */
    int wire;
    struct reader inside; /* of length-delimited fields */
};

static bool varint(uint64_t *out, struct reader *r)
{
    uint64_t x = 0;

    for (int shift = 0; shift < 64 && r->at < r->end; shift += 7) {
        unsigned char c = *r->at++;

        x |= (uint64_t)(c & 0x7F) << shift;
        if (!(c & 0x80)) {
            *out = x;
            return true;
        }
    }
    return false;
}

static bool fixed(uint64_t *out, struct reader *r, int bytes)
{
    if (r->end - r->at < bytes) return false;
    *out = 0;
    for (int i = 0; i < bytes; i++) *out |= (uint64_t)r->at[i] << (8 * i);
    r->at += bytes;
    return true;
}

/* The next field; false where the message is malformed (groups, which nobody writes, count as such). */
static bool next_field(struct field *f, struct reader *r)
{
    uint64_t key;

    if (!varint(&key, r) || key >> 3 == 0 || key >> 3 > 0x1FFFFFFF) return false;
    *f = (struct field){.number = key >> 3, .wire = (int)(key & 7), .inside = {.source = r->source}};
    if (f->wire == 0) return varint(&f->value, r);
    if (f->wire == 1) return fixed(&f->value, r, 8);
    if (f->wire == 5) return fixed(&f->value, r, 4);
    if (f->wire != 2 || !varint(&f->value, r) || f->value > (uint64_t)(r->end - r->at)) return false;
    f->inside.at = r->at;
    r->at += f->value;
    f->inside.end = r->at;
    return true;
}

static status malformed(const char *source, const char *what, struct err *e)
{
    return err_set(e, ERR_FORMAT, "%s: not a SentencePiece model: %s", source, what);
}

static status check_piece(struct reader r, size_t index, bool *unknown, struct err *e)
{
    struct field f;
    struct reader text = {0};
    uint64_t type = 1;

    while (r.at < r.end) {
        if (!next_field(&f, &r)) return malformed(r.source, "a piece is not a message", e);
        if (f.number == 1 && f.wire == 2) text = f.inside;
        if (f.number == 3 && f.wire == 0) type = f.value;
        if (f.number == 2 && f.wire == 5) {
            uint32_t bits = (uint32_t)f.value;
            float score;

            memcpy(&score, &bits, sizeof(score));
            if (!isfinite(score)) return err_set(e, ERR_FORMAT, "%s: the score of piece %zu is not finite", r.source, index);
        }
    }
    size_t length = (size_t)(text.end - text.at);
    if (length == 0 || length > PIECE_BYTES_MAX || memchr(text.at, 0, length))
        return err_set(e, ERR_FORMAT, "%s: piece %zu has %zu bytes, expected 1 to %d and no zero byte", r.source, index, length,
                       PIECE_BYTES_MAX);
    if (!utf8_valid((const char *)text.at, length)) return err_set(e, ERR_FORMAT, "%s: piece %zu is not UTF-8", r.source, index);
    if (type < 1 || type > 6)
        return err_set(e, ERR_FORMAT, "%s: piece %zu is of type %llu, expected 1 to 6", r.source, index,
                       (unsigned long long)type);
    if (type == 6) {
        int at = 0;
        unsigned byte;
        char name[16] = "";

        if (length == 6) memcpy(name, text.at, 6);
        if (sscanf(name, "<0x%2X>%n", &byte, &at) != 1 || at != 6)
            return err_set(e, ERR_FORMAT, "%s: piece %zu is a byte but not named like <0x0A>", r.source, index);
    }
    if (type == 2) *unknown = true;
    return OK;
}

static uint32_t unit_at(const unsigned char *p, size_t i)
{
    return (uint32_t)p[4 * i] | (uint32_t)p[4 * i + 1] << 8 | (uint32_t)p[4 * i + 2] << 16 | (uint32_t)p[4 * i + 3] << 24;
}

/* u32 size of the trie; the trie, an array of 32-bit units; texts, each ended by a zero byte.
 * A walk stands at unit i, goes on to i ^ offset ^ byte and, where the unit has a leaf, reads the value at i ^ offset: an index into the texts.
 * If every unit keeps that inside the array, no walk leaves it. */
static status check_map(struct reader r, struct err *e)
{
    uint64_t bytes;

    if (r.at == r.end) return OK;
    if (!fixed(&bytes, &r, 4) || bytes == 0 || bytes % 4 || bytes >= (uint64_t)(r.end - r.at))
        return malformed(r.source, "the size of the character map is wrong", e);
    const unsigned char *trie = r.at;
    size_t units = (size_t)bytes / 4, texts = (size_t)(r.end - r.at) - (size_t)bytes;
    if (r.end[-1] != 0) return malformed(r.source, "the texts of the character map do not end", e);
    if (!utf8_valid((const char *)trie + bytes, texts)) return malformed(r.source, "the character map is not UTF-8", e);
    for (size_t i = 0; i < units; i++) {
        uint32_t unit = unit_at(trie, i);

        if (unit >> 31) {
            if ((unit & 0x7FFFFFFF) >= texts) return malformed(r.source, "the character map points outside", e);
            continue;
        }
        size_t offset = (size_t)(unit >> 10) << ((unit & 0x200) >> 6);
        if (((i ^ offset) | 255) >= units) return malformed(r.source, "the character map leads outside", e);
        if ((unit & 0x100) && !(unit_at(trie, i ^ offset) >> 31))
            return malformed(r.source, "a leaf of the character map is none", e);
    }
    return OK;
}

static status check_normalizer(struct sentencepiece_facts *facts, struct reader r, struct err *e)
{
    struct field f;

    while (r.at < r.end) {
        if (!next_field(&f, &r)) return malformed(r.source, "the normalizer is not a message", e);
        if (f.number == 2 && f.wire == 2 && check_map(f.inside, e)) return e->code;
        if (f.number == 3 && f.wire == 0 && facts) facts->dummy_prefix = f.value != 0;
        if (f.number == 4 && f.wire == 0 && facts) facts->squeeze = f.value != 0;
    }
    return OK;
}

static status check_trainer(struct sentencepiece_facts *facts, struct reader r, struct err *e)
{
    struct field f;

    while (r.at < r.end) {
        if (!next_field(&f, &r)) return malformed(r.source, "the trainer's specification is not a message", e);
        if (f.number == 3 && f.wire == 0) facts->model_type = f.value > 4 ? -1 : (int)f.value;
    }
    return OK;
}

status sentencepiece_check(struct sentencepiece_facts *facts, const void *bytes, size_t length, const char *source, struct err *e)
{
    struct reader r = {.at = bytes, .end = (const unsigned char *)bytes + length, .source = source};
    struct field f;
    bool unknown = false;

    *facts = (struct sentencepiece_facts){.model_type = 1, .dummy_prefix = true, .squeeze = true}; /* the message's defaults */
    while (r.at < r.end) {
        if (!next_field(&f, &r)) return malformed(source, "the message is cut off or is none", e);
        if (f.number > 5) continue; /* extensions */
        if (f.number >= 1 && f.wire != 2) return malformed(source, "a part of the message is of the wrong kind", e);
        if (f.number == 1 && check_piece(f.inside, facts->pieces++, &unknown, e)) return e->code;
        if (f.number == 2 && check_trainer(facts, f.inside, e)) return e->code;
        if (f.number == 3 && check_normalizer(facts, f.inside, e)) return e->code;
        if (f.number == 5 && check_normalizer(NULL, f.inside, e)) return e->code;
    }
    if (!facts->pieces) return malformed(source, "it has no pieces", e);
    if (facts->pieces > PIECES_MAX)
        return err_set(e, ERR_LIMIT, "%s: %zu pieces, at most %d are read", source, facts->pieces, PIECES_MAX);
    if (!unknown) return malformed(source, "it has no unknown piece", e);
    if (facts->model_type < 1) return malformed(source, "its model type is not one of 1 (unigram) to 4 (char)", e);
    return OK;
}
