/* Requests and answers as lines of JSONL.  Pure: no files, no model.
 *
 * A request is one line, an object of one of two forms; parameters that are not given (or null) come from the job spec.
 *   batch (OpenAI): {"custom_id": ..., "method": "POST", "url": "/v1/completions", "body": {"prompt": ..., parameters}}
 *                   or "/v1/chat/completions" with "messages"
 *   plain:          {"prompt": ..., "id": text or integer (default "line-N"), parameters}
 * Parameters: max_tokens (max_completion_tokens), temperature, top_p, top_k, min_p, seed, stop (one text or up to 16), ignore_eos.
 * What OpenAI knows and we do not (n, logprobs, penalties, ...) is accepted where it has no effect and refused otherwise, as are
 * unknown keys: an answer that ignores half of its request is worse than none.
 * Chat: models come here without a chat template that we could apply, so "messages" must be exactly one user message with a text; it is
 * taken as the prompt, as it is.
 * A request without a seed gets one from the job's seed and its id, so its answer does not depend on its place in the file.
 */
#ifndef JOBS_INFER_ROWS_H
#define JOBS_INFER_ROWS_H

#include "base/err.h"
#include "base/str.h"
#include "data/json.h"
#include "engine/engine.h"

enum { INFER_STOPS_MAX = 16, INFER_STOP_BYTES_MAX = 1024, INFER_ID_BYTES_MAX = 512 };

struct infer_request {
    struct json_t *id; /* text or integer, as it came; never NULL after infer_parse */
    char *key;         /* the id as text: unique in a file */
    bool batch, chat;
    char *prompt;
    size_t prompt_length;
    struct sampling how; /* how.stop points into this struct or into the defaults */
    char *stop[INFER_STOPS_MAX];
};

/* `source` names the line in errors ("FILE line 7"), `number` is N.  defaults->seed is the job's seed.  broken_batch: the form in which
 * lines are answered that are not even an object.
 * ERR_FORMAT, ERR_LIMIT: id, key and the form are filled nevertheless, as far as the line says them; so the caller calls
 * infer_request_clear() in any case. */
status infer_parse(struct infer_request *out, const char *line, size_t length, const char *source, int64_t number,
                   const struct sampling *defaults, bool broken_batch, struct err *e);
void infer_request_clear(struct infer_request *r);

/* Each appends one line with its newline.  `model` is the name that batch rows carry. */
void infer_add_answer(struct str *out, const struct infer_request *r, const struct sequence *s, const char *model);
void infer_add_error(struct str *out, const struct infer_request *r, const char *message);

/* Of a line that one of these wrote: its key (the caller frees it) and whether it is an answer.  ERR_FORMAT. */
status infer_read_row(char **key, bool *ok, const char *line, size_t length, const char *source, struct err *e);

/* "prompt -> continuation" for a terminal: one line of at most `columns` characters, control characters as blanks, the end of the prompt
 * and the beginning of the continuation kept. */
void infer_show(struct str *out, const char *prompt, size_t prompt_length, const char *text, size_t text_length, int columns);

#endif
