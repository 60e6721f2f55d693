/* The file of requests, looked through once before anything starts: its lines, their ids, how long they may become. */
#ifndef JOBS_INFER_INPUT_H
#define JOBS_INFER_INPUT_H

#include "data/spec.h"
#include "jobs/infer_rows.h"
#include "model/shape.h"

struct infer_line {
    size_t at, length;
    int64_t number; /* from 1, as an editor counts */
    char *key;
    bool done;
    struct infer_request *request; /* while it is in flight */
};

struct infer_input {
    const char *path; /* borrowed */
    char *text;
    size_t length;
    struct infer_line *line;
    struct infer_line **by_key; /* sorted */
    size_t n, room;
    bool batch; /* the form, for lines that have none */
    struct sampling defaults;
    void (*alive)(void *); /* called now and then; may be NULL */
    void *alive_ctx;
};

/* The path, the defaults and nothing else yet; alive may be set before infer_input_read(). */
void infer_input_init(struct infer_input *in, const struct spec *s);
/* ERR_FORMAT: no request, or two with the same id; ERR_LIMIT, ERR_IO. */
status infer_input_read(struct infer_input *in, struct err *e);
/* Most tokens of a prompt and its answer together.  Lines that are no request do not count: they get a row that says so. */
int64_t infer_input_longest(const struct infer_input *in, const struct tokenizer *t);
void infer_input_free(struct infer_input *in);

/* "FILE line N" */
void infer_input_source(struct str *out, const struct infer_input *in, int64_t number);
struct infer_line *infer_input_find(const struct infer_input *in, const char *key); /* NULL */

#endif
