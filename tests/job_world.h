/* A world of ranks for tests of jobs: a directory, a model in it, and a cluster for each of several placements, one after the other. */
#ifndef TESTS_JOB_WORLD_H
#define TESTS_JOB_WORLD_H

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/directory.h"
#include "base/file.h"
#include "base/rng.h"
#include "base/stop.h"
#include "check.h"
#include "comm/comm.h"
#include "jobs/job.h"

#define TOY "tests/golden/toy-llama"
/* Stage 1 with nothing fitted, neither before nor after. */
#define LEARNED_ONLY "start: random\ncompensation: model\ncompensation_rank: 0\n"

static struct {
    struct comm *comm;
    struct cluster *cluster;
    char directory[64];
} world;

/* Runs a spec; *result, unless NULL: what the job says, the caller's. */
static inline status world_run(struct json_t **result, const char *yaml, struct err *e)
{
    struct json_t *file;
    struct err late;
    struct spec *s;

    if (result) *result = NULL;
    if (spec_parse(&s, yaml, strlen(yaml), "test.yaml", NULL, 0, e)) fail_msg("%s", e->text);
    struct log *log = log_open(stderr, 1);
    status st = job_run(s, "test", world.cluster, log, e);
    char *path = str_join(s->output, "result.json");

    log_close(log);
    if (result && !st && json_read(&file, path, 1 << 24, &late) == OK) {
        *result = json_clone(json_at(file, s->name));
        json_free(file);
    }
    free(path);
    spec_free(s);
    return st;
}

/* DIRECTORY/text, 500 words, and DIRECTORY/model, the toy factorized; `more`: lines of the spec. */
static inline void world_model(const char *more)
{
    static const char *const words[] = {"the", "cat", "sat",  "on",  "a",   "mat",  "and",
                                        "saw", "two", "dogs", "run", "far", "away", "."};
    struct str text = {0}, yaml = {0};
    char *path = str_join(world.directory, "text");
    struct rng r;
    struct err e;

    rng_seed(&r, 1, 0);
    for (int i = 0; i < 500; i++) str_addf(&text, "%s ", words[rng_below(&r, sizeof(words) / sizeof(words[0]))]);
    assert_int_equal(file_write(path, text.text, text.length, &e), OK);
    str_addf(&yaml, "kind: factorize\nmodel: " TOY "\noutput: %s\n%s", world.directory, more);
    if (world_run(NULL, yaml.text, &e)) fail_msg("%s", e.text);
    free(path);
    str_free(&text);
    str_free(&yaml);
}

/* A finetune job on that model and text, version and output of one name unless there is another one. */
static inline status world_finetune(struct json_t **result, const char *version, const char *output, const char *more,
                                    struct err *e)
{
    struct str yaml = {0};

    str_addf(&yaml, "kind: finetune\nmodel: %s/model\noutput: %s/%s\nversion: %s\n", world.directory, world.directory, output,
             version);
    str_addf(&yaml, "text: {file: %s/text}\nsequence: 20\nlimits: {batch_rows: 64}\n%s", world.directory, more);
    status s = world_run(result, yaml.text, e);
    str_free(&yaml);
    return s;
}

/* format: of (directory, name). */
static inline char *world_bytes(const char *format, const char *name, size_t *n)
{
    struct str path = {0};
    struct err e;
    char *bytes;

    str_addf(&path, format, world.directory, name);
    if (file_read(&bytes, n, path.text, 1 << 24, &e)) fail_msg("%s", e.text);
    str_free(&path);
    return bytes;
}

static inline void same_bytes(const char *format, const char *a, const char *b)
{
    size_t n, m;
    char *x = world_bytes(format, a, &n), *y = world_bytes(format, b, &m);

    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

static inline void same_router(const char *a, const char *b)
{
    same_bytes("%s/model/routers/%s/router.safetensors", a, b);
}

/* main() of such a test: lead(turn) on the coordinator, and how many tests failed, with the ranks as placement[turn] says. */
static inline int world_main(int argc, char **argv, const char *const *placement, int turns, int (*lead)(int turn))
{
    int failed = 0;
    struct err e;

    if (comm_open(&world.comm, &argc, &argv, &e)) return 1;
    stop_install();
    strcpy(world.directory, "/tmp/factorllm-test-XXXXXX");
    if (comm_rank(world.comm) == 0 && !mkdtemp(world.directory)) return 1;
    for (int turn = 0; turn < turns; turn++) {
        struct str yaml = {0};
        struct spec *s;

        str_addf(&yaml, "kind: finetune\nmodel: unused\noutput: unused-too\ntext: {file: unused}\ncluster: %s\n",
                 placement[turn]);
        if (spec_parse(&s, yaml.text, yaml.length, "world", NULL, 0, &e) || cluster_open(&world.cluster, world.comm, s, &e)) {
            fprintf(stderr, "%s\n", e.text);
            return 1;
        }
        if (comm_rank(world.comm) == 0) {
            failed += lead(turn);
            cluster_release(world.cluster);
            cluster_stop(world.cluster, OK);
        } else {
            failed += cluster_follow(world.cluster, &e) != OK;
        }
        cluster_close(world.cluster);
        spec_free(s);
        str_free(&yaml);
    }
    if (comm_rank(world.comm) == 0 && directory_remove(world.directory, &e)) printf("# %s\n", e.text);
    comm_close(world.comm, OK);
    return failed != 0;
}

#endif
