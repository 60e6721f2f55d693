/* The one door to libsentencepiece, as plain C: no exception and no abort comes through.  Private to tokenizer.c, which has
 * checked the bytes with sentencepiece_check() before. */
#ifndef DATA_SENTENCEPIECE_H
#define DATA_SENTENCEPIECE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sentencepiece_model;

/* 0, or -1 with the reason in why[room]. */
int sentencepiece_open(struct sentencepiece_model **out, const void *bytes, size_t length, char *why, size_t room);
void sentencepiece_close(struct sentencepiece_model *s);
int sentencepiece_vocab(const struct sentencepiece_model *s);
/* *ids is malloc'ed, NULL for none.  0, or -1 with the reason. */
int sentencepiece_encode(const struct sentencepiece_model *s, int32_t **ids, size_t *n, const char *text, size_t length,
                         char *why, size_t room);

/* Of id 0 .. vocab-1.  The piece as it stands in the model, valid as long as the model. */
enum sentencepiece_type { PIECE_TEXT, PIECE_BYTE, PIECE_SPECIAL };
enum sentencepiece_type sentencepiece_type(const struct sentencepiece_model *s, int32_t id);
const char *sentencepiece_piece(const struct sentencepiece_model *s, int32_t id, size_t *length);

#ifdef __cplusplus
}
#endif
#endif
