/* A byte-pair tokenizer, as its two halves see it: bpe.c what tokenizer.json says, and ids to text; bpe_encode.c text to ids. */
#ifndef DATA_BPE_INTERNAL_H
#define DATA_BPE_INTERNAL_H

#include "data/tokenizer_parts.h"

enum { BYTE_LETTERS = 324 };

struct token {
    size_t begin; /* of its text in `texts` */
    uint32_t length;
    bool used, special, literal; /* literal: an added token, whose text stands for itself */
};

struct merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: an empty place of the table */
    int32_t rank, result;
};

struct bpe {
    struct pretok *pretok;
    struct str texts; /* all tokens' texts, each ended by a zero byte */
    struct token *tokens;
    int n_tokens;
    int32_t *by_text; /* hash table of ids that a text may give; -1: empty */
    size_t by_text_mask;
    struct merge *merges; /* hash table */
    size_t merges_mask;
    int32_t byte_id[256]; /* byte-level: the byte's letter; with fallback: <0x00> ..; -1: none */
    int32_t letter_byte[BYTE_LETTERS];
    uint32_t byte_letter[256];
    bool byte_fallback, fuse_unknown, ignore_merges, byte_level;
    int32_t unknown; /* -1: none, such characters give nothing */
};

static inline const char *bpe_text(const struct bpe *b, int32_t id)
{
    return b->texts.text + b->tokens[id].begin;
}

/* The place of `text` in the table: its id or -1. */
int32_t *bpe_find_text(const struct bpe *b, const char *text, size_t length);
const struct merge *bpe_find_merge(const struct bpe *b, int32_t left, int32_t right); /* NULL: none */

#endif
