/* The room that a job asks for when it opens its model.  Asked by the job and by plan, so that plan cannot say anything else than run.
 *
 * The KV cache is sessions x positions, and a model's own positions may be many times what a job uses: every job takes the positions that
 * its text, items or prompts need, and no more sessions than fill a step.
 */
#ifndef JOBS_ROOM_H
#define JOBS_ROOM_H

#include "engine/cluster.h"
#include "jobs/training.h"

enum {
    ROOM_WINDOW = 2048,           /* of text where the spec does not say, and the model has so many positions */
    ROOM_END_TO_END_WINDOW = 512, /* the same in stage 2 */
    ROOM_SAMPLE_WINDOW = 256,     /* of the model's own text */
    ROOM_CALIBRATION_WINDOW = 512
};

struct room {
    struct model_limits limits;
    int window;                    /* tokens of a window of text; infer: 0 */
    struct training_cost training; /* finetune; its sum is limits.beside */
    const struct spec *spec;       /* borrowed */
};

/* What the spec asks for; and whether that is anything but `stored` for weights, so that factorize writes them packed, too. */
struct precision room_precision(const struct spec *s);
bool room_packs(const struct spec *s);
/* What it asks for, as a text to be compared: answers depend on it. */
struct json_t *room_precision_json(const struct spec *s);
enum format room_router(const struct spec *s); /* format of routers */
/* What a job opens its model with: one that writes a model works with the original as it is. */
struct precision room_opening(const struct spec *s);

/* ERR_SPEC, ERR_LIMIT: the spec asks for more positions than the model has. */
status room_factorize(struct room *r, const struct spec *s, const struct shape *shape, struct err *e);
/* Tokens of the sample of a calibration: so many as the grouping looks at (none, if it does not), the text may have, and calibration.profile_mib hold: 2 bytes for each
 * neuron and each element of h, of all layers. */
int room_sample(const struct spec *s, const struct shape *shape);
status room_finetune(struct room *r, const struct spec *s, const struct shape *shape, struct err *e);
/* longest: tokens of the longest item, 0 without items. */
status room_eval(struct room *r, const struct spec *s, const struct shape *shape, int longest, struct err *e);
/* requests: of the input; longest: most tokens of a prompt and its answer together. */
status room_infer(struct room *r, const struct spec *s, const struct shape *shape, int64_t requests, int64_t longest,
                  struct err *e);

/* Enough for every measurement of the bench job. */
status room_bench(struct room *r, const struct spec *s, const struct shape *shape, struct err *e);

/* Most positions of one sequence: limits.positions or the model's. */
int room_positions(const struct spec *s, const struct shape *shape);

/* cluster_model(), and where memory does not suffice the keys to turn. */
status room_open(struct cluster *c, const char *directory, const struct room *r, struct model **m, struct err *e);
/* Appends those keys to an ERR_LIMIT about memory, and what of it a training takes. */
status room_hint(const struct room *r, struct err *e);

#endif
