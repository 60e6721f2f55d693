#include "jobs/launch.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/stop.h"
#include "comm/comm.h"
#include "engine/cluster.h"
#include "jobs/job.h"

static status read_spec(const struct launch *l, struct spec **s, struct err *e)
{
    struct str yaml = {0};

    if (!l->make) return spec_load(s, l->path, l->overrides, l->n_overrides, e);
    status st = l->make(l->ctx, &yaml, e);
    if (!st) st = spec_parse(s, yaml.text, yaml.length, l->path, l->overrides, l->n_overrides, e);
    str_free(&yaml);
    return st;
}

/* The coordinator's spec on every rank.  The message is a status and, if that is OK, the packed spec: a spec that is refused ends
 * every rank, and is reported by the one that read it. */
static status share_spec(const struct launch *l, struct comm *c, struct spec **s, struct err *e)
{
    uint8_t *message = NULL, *packed = NULL;
    size_t n = 0;
    int32_t code = OK;
    struct err mine = {0};

    *s = NULL;
    if (comm_rank(c) == 0) {
        code = read_spec(l, s, &mine);
        if (code == OK) spec_pack(&packed, &n, *s);
        message = malloc(sizeof(code) + n);
        BUG_ON(!message);
        memcpy(message, &code, sizeof(code));
        if (n > 0) memcpy(message + sizeof(code), packed, n);
        n += sizeof(code);
        free(packed);
    }
    status st = comm_broadcast(c, &message, &n, e);
    if (st == OK && comm_rank(c) != 0) {
        BUG_ON(n < sizeof(code));
        memcpy(&code, message, sizeof(code));
        if (code == OK) st = spec_unpack(s, message + sizeof(code), n - sizeof(code), e);
    }
    free(message);
    if (code != OK) {
        if (comm_rank(c) == 0) l->report(&mine);
        *e = mine;
        return (status)code;
    }
    st = comm_agree(c, st, e);
    if (st && comm_rank(c) == 0) l->report(e);
    return st;
}

static void print_warnings(struct comm *c, const struct spec *s, struct log *log)
{
    struct str warnings = {0};

    comm_doctor(c, (int)s->cluster.threads, &warnings);
    for (char *save = NULL, *line = warnings.text ? strtok_r(warnings.text, "\n", &save) : NULL; line;
         line = strtok_r(NULL, "\n", &save))
        log_warn(log, "%s", line);
    str_free(&warnings);
}

static status lead(const struct launch *l, struct comm *c, struct cluster *ranks, const struct spec *s, struct err *e)
{
    struct log *log = log_open(stderr, l->quiet);

    print_warnings(c, s, log);
    status st = job_run(s, l->version, ranks, log, e);
    log_close(log);
    if (st) l->report(e);
    if (l->done && (st == OK || st == ERR_GATE)) {
        struct err late = {0};
        status said = l->done(l->ctx, s, &late);

        if (said) l->report(&late);
        if (!st) st = said;
    }
    if (st != ERR_RANK) cluster_stop(ranks, st);
    return st;
}

status launch_run(const struct launch *l, int *argc, char ***argv)
{
    struct comm *c = NULL;
    struct cluster *ranks = NULL;
    struct spec *s = NULL;
    struct err e = {0};
    status st;

    stop_install();
    if (comm_open(&c, argc, argv, &e)) {
        l->report(&e);
        return e.code;
    }
    st = share_spec(l, c, &s, &e);
    if (st == OK && (st = comm_share(c, (int)s->cluster.coordinators, &e)) && comm_rank(c) == 0) l->report(&e);
    if (st == OK) {
        st = comm_agree(c, cluster_open(&ranks, c, s, &e), &e);
        if (st && comm_rank(c) == 0) l->report(&e);
    }
    if (st == OK && comm_rank(c) == 0) {
        st = lead(l, c, ranks, s, &e);
    } else if (st == OK) {
        st = cluster_follow(ranks, &e);
        if (st == ERR_RANK) l->report(&e);
        /* stopped by a signal of its own, not by the coordinator's word: there is nobody to close with */
        if (st == STOPPED && e.code == STOPPED) comm_abort(c, STOPPED);
    }
    if (st == ERR_RANK) comm_abort(c, ERR_RANK);
    cluster_close(ranks);
    spec_free(s);
    comm_close(c, st);
    return st;
}
