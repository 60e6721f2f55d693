/* Private to the report job: what it reads, and the page it writes.
 *
 * OUTPUT/report.html is one file without scripts that asks for nothing from a network (its Content-Security-Policy says so).  Equal inputs give equal bytes: nothing
 * of the day or the machine is in it but what the inputs say.  A member of result.json that is not there is said on the page; one that is of another kind than
 * configs/README.md says is ERR_FORMAT "FILE: MEMBER.KEY: expected ..., found ...".  All text that comes from files is escaped.
 */
#ifndef JOBS_REPORT_H
#define JOBS_REPORT_H

#include "jobs/job.h"
#include "jobs/report_svg.h"
#include "jobs/report_text.h"

/* --- report_read.c: the inputs --- */

enum { REPORT_RUNS_MAX = 4096, REPORT_VARIANTS_MAX = 64, REPORT_BYTES_MAX = 256 << 20 };

struct report_run { /* one job's result; a pipeline's directory has several */
    enum job_kind kind;
    char *name;                /* of the step */
    char *directory;           /* where its log.jsonl would stand */
    char *source;              /* "DIRECTORY/result.json: NAME", for errors */
    char *label;               /* of the input it came from: its row's or its directory's name */
    int input;                 /* number of the input directory, from 0 */
    int row;                   /* of the ladder; -1: an input that is shown in full */
    char *variant;             /* of the eval, which the row is about; NULL: the router */
    struct json_t *file;       /* result.json as a whole, of the first run that has it; else NULL */
    const struct json_t *json; /* the same for all */
    const struct json_t *o;    /* the job's own object in it */
};

struct report {
    struct job *job;
    struct report_run *run;
    int n, inputs, rows;
    char *row_label[256];
    struct str lead, nav, body;
    struct str missing; /* <li> lines: what could not be shown, and why */
};

/* "LABEL=DIRECTORY" or "LABEL=DIRECTORY#VARIANT": malloc'ed, the variant may be NULL. */
void report_row_parse(char **label, char **directory, char **variant, const char *row);
status report_read(struct report *r, struct err *e);
void report_free(struct report *r);
/* Lines of DIRECTORY/NAME as an array; NULL if there is no such file. */
status report_lines(struct json_t **out, const char *directory, const char *name, struct err *e);

/* Optional members: NaN or NULL where there is none, ERR_FORMAT where it is something else. */
status report_number(double *out, const struct json_t *o, const char *key, const char *source, struct err *e);
status report_object(const struct json_t **out, const struct json_t *o, const char *key, const char *source, struct err *e);
status report_array(const struct json_t **out, const struct json_t *o, const char *key, const char *source, struct err *e);
status report_word(const char **out, const struct json_t *o, const char *key, const char *source, struct err *e);

/* --- report_eval.c: what an eval says --- */

struct report_interval { /* a figure and its 95 % interval; NaN: not known */
    double value, low, high;
};
struct report_variant {
    const char *name; /* owned by the JSON */
    double share, perplexity, accuracy, bits, speed, overhead;
    double share_of_items;
    struct report_interval times;  /* perplexity over that of dense */
    struct report_interval kept;   /* accuracy over that of dense */
    struct report_interval closed; /* share of the gap from static to the ceiling, in nats */
    struct report_interval kl, pairs, choices, last_word;
    struct report_interval pairs_kept, choices_kept;       /* corrected for chance */
    struct report_interval pairs_changed, choices_changed; /* share answered otherwise than by dense */
};
struct report_eval {
    int n;
    struct report_variant v[REPORT_VARIANTS_MAX]; /* dense first, then the router, the others, the controls */
    const struct report_variant *dense;           /* or NULL */
};
status report_eval_read(struct report_eval *x, const struct report_run *run, struct err *e);
const struct report_variant *report_eval_find(const struct report_eval *x, const char *name); /* NULL */
int report_variant_kind(const char *name);                                                    /* colour and shape of its marks */
const char *report_variant_says(const char *name); /* "experts chosen by the trained router" or "" */
/* The first run of a kind, of one input (-1: of any); NULL: none. */
const struct report_run *report_find(const struct report *r, int input, enum job_kind kind);

/* --- the sections; each writes its heading and what belongs to it, or nothing if no input has anything for it --- */

void report_page(const struct report *r, struct str *out); /* all that was gathered, with head and foot */
void report_section(struct report *r, const char *id, const char *title, const char *lead); /* lead: HTML of ours, or NULL */
void report_section_end(struct report *r);
/* The name of an input, where there are several, and of the step. */
void report_heading(struct report *r, const struct report_run *run, bool step);
void report_missing(struct report *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
status report_runs(struct report *r, struct err *e);     /* report_runs.c: what was done, and the commands */
status report_controls(struct report *r, struct err *e); /* report_controls.c */
/* The paired differences of an eval as a table, if it has any (report_differences.c). */
status report_differences(struct str *out, const struct report_run *run, struct err *e);
status report_ladder(struct report *r, struct err *e);  /* report_ladder.c */
status report_scatter(struct report *r, struct err *e); /* report_scatter.c: quality against f and speed */
status report_curves(struct report *r, struct err *e);  /* report_curves.c: losses and agreement */
status report_routing(struct report *r, struct err *e); /* report_routing.c: loads, agreement by layer, the knowledge map */
status report_bench(struct report *r, struct err *e);   /* report_bench.c */
void report_gaps(struct report *r);                     /* what is missing */

#endif
