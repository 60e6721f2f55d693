/* The file of finished rows: what is in it is done and is never done again.
 *
 * Rows go to the end of the file, those of one step with one write() and one fdatasync(), so after a crash the file holds whole rows and at
 * most one torn one at its end, which the next open cuts off.
 * Beside it RESULT.meta.json (without .jsonl) says what the rows belong to (input, model, defaults); a file of rows that belongs to something
 * else, or of which this is not known, is refused and left alone.
 */
#ifndef JOBS_INFER_JOURNAL_H
#define JOBS_INFER_JOURNAL_H

#include "base/err.h"
#include "base/str.h"
#include "data/json.h"

struct journal;

/* Called for every row that is there: key as in infer_read_row().  An error ends journal_open() with it. */
typedef status journal_row(void *context, const char *key, bool ok, const char *source, struct err *e);

/* meta: an object with text and number members, compared member by member, and numbers exactly.  The file is locked against a second writer.
 * replace: rows that belong to something else are moved to PATH.old, and *replaced says so; else they are ERR_SPEC, with what changed.  ERR_FORMAT: a row in its middle is damaged.  ERR_IO. */
status journal_open(struct journal **out, const char *path, const struct json_t *meta, journal_row *row, void *context,
                    bool replace, bool *replaced, struct err *e);
/* RESULT.meta.json of RESULT.jsonl; the caller frees it. */
char *journal_meta_path(const char *path);
void journal_close(struct journal *j); /* what was not synced is dropped */

/* Rows to come; whole lines.  They are on disk after the next journal_sync(). */
struct str *journal_buffer(struct journal *j);
status journal_sync(struct journal *j, struct err *e);

#endif
