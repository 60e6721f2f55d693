/* The finetune job on a toy model: routers learn; a run that is stopped after every single step and gone on with ends with the bits of one that
 * was not; the bits are the same wherever the experts are; other settings are refused by name, and so are damaged checkpoints.
 * np: 1 2 3 5 */
#include <math.h>
#include <pthread.h>
#include <signal.h>

#include "../job_world.h"
#include "model/router_file.h"

static int steps; /* of a whole run: 1200 tokens in batches of at most 200, whole windows */

#define PAPER LEARNED_ONLY "labels: paper\nloss: paper\nselect: top_k\n"
#define GRAM  LEARNED_ONLY "labels: gram\nloss: bce\nselect: threshold\n"
#define FITTED                                                                                                                   \
    "labels: energy\nloss: regression\nselect: threshold\nrouter: gate\nrouter_rank: 6\nstart: ridge\ncompensation: "            \
    "unselected\n"                                                                                                               \
    "compensation_rank: 3\nscale: fitted\nfit_tokens: 300\n"
#define WIDE  "labels: norm\nloss: listwise\nrouter: bottleneck\nrouter_rank: 5\ncompensation: unselected\nfit_tokens: 100\n"
#define BLIND "start: random\ncompensation_rank: 0\n"

#define LOW                                                                                                                      \
    "loss: bce\nselect: top_k\nrouter: low_rank\nrouter_rank: 3\ncompensation: constant\ncompensation_rank: 0\nfit_tokens: "     \
    "300\n"
#define BENT "loss: bce\nselect: top_k\nrouter: bottleneck\nrouter_rank: 4\nfit_tokens: 300\n"

static status finetune(struct json_t **result, const char *version, const char *output, const char *more, struct err *e)
{
    struct str all = {0};

    str_addf(&all, "tokens: 1200\nbatch_tokens: 200\nlearning_rate: 0.02\n%s", more);
    status s = world_finetune(result, version, output, all.text, e);
    str_free(&all);
    return s;
}

static char *checkpoint_path(const char *output)
{
    struct str path = {0};

    str_addf(&path, "%s/%s/checkpoint", world.directory, output);
    return path.text;
}

static void make_model(void **state)
{
    (void)state;
    world_model("method: factorllm\nexperts: 4\nactive: 2\n");
}

static double mean_of(const struct json_t *array)
{
    double sum = 0;

    for (size_t i = 0; i < json_length(array); i++) sum += json_number(json_item(array, i));
    return sum / (double)json_length(array);
}

static void learns(const char *version, const char *more)
{
    struct json_t *o;
    struct err e;
    char *left = checkpoint_path(version);

    if (finetune(&o, version, version, more, &e)) fail_msg("%s", e.text);
    const struct json_t *agreement = json_at(o, "agreement"), *loss = json_at(o, "loss");
    assert_int_equal(json_length(json_at(agreement, "after")), 3);
    assert_true(mean_of(json_at(agreement, "after")) > mean_of(json_at(agreement, "before")) + 0.05);
    assert_true(mean_of(json_at(agreement, "after")) > 0.6); /* chance is 0.5 */
    assert_true(json_number(json_at(loss, "after")) < json_number(json_at(loss, "before")));
    assert_true(json_int(json_at(o, "tokens")) >= 1200 && json_int(json_at(o, "tokens")) < 1220);
    steps = (int)json_int(json_at(o, "steps"));
    assert_in_range(steps, 6, 7);
    assert_string_equal(json_text(json_at(o, "version")), version);
    assert_false(file_exists(left));
    json_free(o);
    free(left);
}

static void stopped_after_every_step(const char *version, const char *whole, const char *more)
{
    char *path = checkpoint_path(version);
    int stops = 0;
    status s;
    struct err e;

    do {
        stop_reset();
        if (stops < steps) raise(SIGUSR1);
        s = finetune(NULL, version, version, more, &e);
        if (s == STOPPED) {
            struct str expected = {0};

            stops++;
            str_addf(&expected, "stopped after step %d of %d", stops, steps);
            assert_non_null(strstr(e.text, expected.text));
            assert_true(file_exists(path));
            str_free(&expected);
        }
    } while (s == STOPPED && stops < 20);
    stop_reset();
    if (s) fail_msg("%s", e.text);
    assert_int_equal(stops, steps);
    assert_false(file_exists(path));
    same_router(version, whole);
    free(path);
}

static void paper(void **state)
{
    (void)state;
    learns("paper", PAPER);
    stopped_after_every_step("paper-stopped", "paper", PAPER);
}

static void gram(void **state)
{
    (void)state;
    learns("gram", GRAM);
    stopped_after_every_step("gram-stopped", "gram", GRAM);
}

/* FITTED, in router.json: what the end fits, too. */
static void says_how_it_was_made(const char *version)
{
    static const char *const words[][2] = {{"labels", "energy"}, {"loss", "regression"}, {"select", "threshold"},
                                           {"router", "gate"},   {"start", "ridge"},     {"compensation", "unselected"},
                                           {"scale", "fitted"}};
    static const struct {
        const char *key;
        double value;
    } numbers[] = {
        {"router_rank", 6}, {"compensation_rank", 3}, {"fit_tokens", 300},   {"stage", 1},    {"tokens", 1200},
        {"seed", 1},        {"sequence", 20},         {"batch_tokens", 200}, {"ridge", 0.01}, {"limits.batch_rows", 64}};
    struct str path = {0};
    struct json_t *o;
    struct err e;

    str_addf(&path, "%s/model/routers/%s/router.json", world.directory, version);
    if (json_read(&o, path.text, 1 << 20, &e)) fail_msg("%s", e.text);
    const struct json_t *spec = json_at(o, "spec");
    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
        assert_non_null(json_at(spec, words[i][0]));
        assert_string_equal(json_text(json_at(spec, words[i][0])), words[i][1]);
    }
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
        assert_true(json_number(json_at(spec, numbers[i].key)) == numbers[i].value);
    assert_null(json_at(spec, "lm_loss"));
    assert_string_equal(json_text(json_at(spec, "precision.experts")), "stored");
    for (void *i = json_first(spec); i; i = json_next(spec, i)) /* keys of the spec and nothing else: no section, no digest */
        if (strchr(json_key(i), ' ') || !strcmp(json_key(i), "precision")) fail_msg("spec has %s", json_key(i));
    assert_int_equal(strlen(json_text(json_at(json_at(o, "inputs"), "text (digest)"))), 64);
    json_free(o);
    str_free(&path);
}

/* Every part that is fitted, not learned: from a start by least squares, which no stop may repeat. */
static void fitted(void **state)
{
    struct json_t *o;
    struct err e;

    (void)state;
    if (finetune(&o, "fitted", "fitted", FITTED, &e)) fail_msg("%s", e.text);
    const struct json_t *agreement = json_at(o, "agreement"), *router = json_at(o, "router"), *missing = json_at(o, "missing");
    assert_true(mean_of(json_at(agreement, "after")) > mean_of(json_at(agreement, "before")) + 0.05);
    assert_string_equal(json_text(json_at(router, "kind")), "gate");
    assert_int_equal(json_int(json_at(router, "rank")), 6);
    assert_true(json_number(json_at(json_at(router, "cost"), "share_of_ffn")) > 0);
    assert_int_equal(json_length(missing), 3);
    for (size_t l = 0; l < 3; l++) assert_true(json_number(json_item(missing, l)) > 0 && json_number(json_item(missing, l)) < 1);
    json_free(o);
    stopped_after_every_step("fitted-stopped", "fitted", FITTED);
    says_how_it_was_made("fitted-stopped");
    if (finetune(NULL, "wide", "wide", WIDE BLIND, &e)) fail_msg("%s", e.text);
    /* and on from there */
    if (finetune(&o, "wider", "wider", WIDE "start: current\ncompensation_rank: 0\n", &e)) fail_msg("%s", e.text);
    assert_true(mean_of(json_at(json_at(o, "agreement"), "before")) > 0.55); /* chance is 0.5 */
    json_free(o);
    assert_int_equal(finetune(NULL, "narrow", "narrow", "labels: gram\nstart: current\n", &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "expected router: bottleneck and router_rank: 5"));
    assert_int_equal(finetune(NULL, "narrow", "narrow", WIDE "start: random\ncompensation_rank: 5000\n", &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "compensation_rank: expected at most"));
}

/* The loss of the first batch, which is that of the start. */
static double start_loses(const char *version, const char *more)
{
    struct json_t *o;
    struct err e;

    if (finetune(&o, version, version, more, &e)) fail_msg("%s", e.text);
    double found = json_number(json_at(json_at(o, "loss"), "first"));

    json_free(o);
    return found;
}

/* With as many directions as experts low_rank begins as the linear router does, and a bottleneck, with its bend, near it. */
static void starts_by_directions(void **state)
{
    double blind = start_loses("blind", "loss: bce\nstart: random\n"), line = start_loses("line", "loss: bce\nfit_tokens: 300\n"),
           all = start_loses("all", "loss: bce\nfit_tokens: 300\nrouter: low_rank\nrouter_rank: 4\n"),
           bent = start_loses("bent", BENT), few = start_loses("low", LOW);
    struct json_t *o;
    struct err e;

    (void)state;
    assert_true(line < 0.9 * blind && fabs(line - all) < 1e-4 * line);
    assert_true(bent < line + 0.5 * (blind - line) && few < line + 0.5 * (blind - line));
    stopped_after_every_step("low-stopped", "low", LOW);
    if (finetune(&o, "low-none", "low-none",
                 "loss: bce\nrouter: low_rank\nrouter_rank: 3\nfit_tokens: 300\ncompensation_rank: 2\n", &e))
        fail_msg("%s", e.text);
    assert_int_equal(json_int(json_at(json_at(o, "router"), "compensation_rank")), 2);
    json_free(o);
}

/* The fitted factors are there to be read, in the result and beside the version, as it has them. */
static void tells_scale(const struct json_t *o, const char *version)
{
    const struct json_t *list = json_at(json_at(o, "router"), "scale");
    char *model = str_join(world.directory, "model");
    struct shape shape;
    struct router r;
    struct err e;

    if (shape_read(&shape, model, &e) || router_read(&r, model, version, &shape, &e)) fail_msg("%s", e.text);
    assert_non_null(r.scale);
    assert_true(json_is_array(list) && json_length(list) == (size_t)r.layers);
    for (int l = 0; l < r.layers; l++) {
        assert_true((float)json_number(json_item(list, (size_t)l)) == r.scale[l]);
        assert_true(r.scale[l] > 0 && r.scale[l] != 1);
    }
    router_free(&r);
    free(model);
}

/* A constant leaves less missing than nothing, layer by layer, where the states are the same: in the first. */
static void constant(void **state)
{
    double missing[2];

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct json_t *o;
        struct err e;

        if (finetune(&o, i ? "with-none" : "with-constant", "c",
                     i ? "scale: fitted\ncompensation_rank: 0\ncompensation: model\n" : "scale: fitted\ncompensation_rank: 0\n",
                     &e))
            fail_msg("%s", e.text);
        missing[i] = json_number(json_item(json_at(o, "missing"), 0));
        assert_true(json_bool(json_at(json_at(o, "router"), "constant")) == !i);
        tells_scale(o, i ? "with-none" : "with-constant");
        json_free(o);
    }
    assert_true(missing[0] < missing[1]);
}

/* Asks to stop at once, `microseconds` after the log has the last step. */
struct late_stop {
    const char *log;
    useconds_t microseconds;
};

static void *stop_late(void *context)
{
    const struct late_stop *o = context;

    for (int tries = 0, seen = 0; tries < 100000 && seen < steps; tries++, usleep(100)) {
        struct err e;
        char *text;
        size_t n;

        if (file_read(&text, &n, o->log, 1 << 24, &e)) continue;
        seen = 0;
        for (const char *at = text; (at = strstr(at, "\"gradient_norm\"")); at++) seen++;
        free(text);
    }
    usleep(o->microseconds);
    raise(SIGTERM);
    return NULL;
}

/* The thresholds are set after the last step, from text; a stop in the middle of that changes nothing either. */
static void stopped_behind_the_last_step(void **state)
{
    (void)state;
    for (int i = 0; i < 7; i++) {
        char name[32], path[160];
        struct late_stop o = {path, 500u << i};
        pthread_t thread;
        struct err e;

        snprintf(name, sizeof(name), "late-%d", i);
        snprintf(path, sizeof(path), "%s/%s/log.jsonl", world.directory, name);
        assert_int_equal(pthread_create(&thread, NULL, stop_late, &o), 0);
        status s = finetune(NULL, name, name, GRAM, &e);
        assert_int_equal(pthread_join(thread, NULL), 0);
        stop_reset();
        if (s == STOPPED) s = finetune(NULL, name, name, GRAM, &e);
        if (s) fail_msg("%s", e.text);
        same_router(name, "gram");
    }
}

static void refusals(void **state)
{
    char *path = checkpoint_path("refused"), *bytes;
    size_t n;
    struct err e;

    (void)state;
    assert_int_equal(finetune(NULL, "paper", "again", PAPER, &e), ERR_SPEC); /* the version is taken */
    assert_non_null(strstr(e.text, "exists already"));

    raise(SIGUSR1);
    assert_int_equal(finetune(NULL, "refused", "refused", PAPER, &e), STOPPED);
    stop_reset();
    assert_int_equal(finetune(NULL, "refused", "refused", PAPER "seed: 2\n", &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "seed was 1 and is 2"));
    assert_int_equal(finetune(NULL, "refused", "refused", GRAM, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "labels was \"paper\" and is \"gram\""));
    assert_int_equal(file_read(&bytes, &n, path, 1 << 24, &e), OK);
    assert_int_equal(file_write(path, bytes, n / 2, &e), OK);
    assert_int_equal(finetune(NULL, "refused", "refused", PAPER, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, path));
    assert_int_equal(file_write(path, bytes, n, &e), OK);
    if (finetune(NULL, "refused", "refused", PAPER, &e)) fail_msg("%s", e.text);
    same_router("refused", "paper");
    free(bytes);
    free(path);
}

static void elsewhere(void **state)
{
    struct err e;

    (void)state;
    if (finetune(NULL, "paper-elsewhere", "e1", PAPER, &e)) fail_msg("%s", e.text);
    same_router("paper-elsewhere", "paper");
    if (finetune(NULL, "gram-elsewhere", "e2", GRAM, &e)) fail_msg("%s", e.text);
    same_router("gram-elsewhere", "gram");
    if (finetune(NULL, "fitted-elsewhere", "e3", FITTED, &e)) fail_msg("%s", e.text);
    same_router("fitted-elsewhere", "fitted");
    if (finetune(NULL, "wide-elsewhere", "e4", WIDE BLIND, &e)) fail_msg("%s", e.text);
    same_router("wide-elsewhere", "wide");
    if (finetune(NULL, "low-elsewhere", "e5", LOW, &e)) fail_msg("%s", e.text);
    same_router("low-elsewhere", "low");
    if (finetune(NULL, "bent-elsewhere", "e6", BENT, &e)) fail_msg("%s", e.text);
    same_router("bent-elsewhere", "bent");
}

static int lead(int turn)
{
    /* by a stop at once, which ends followers, too */
    const struct CMUnitTest lonely[] = {cmocka_unit_test(stopped_behind_the_last_step)};
    const struct CMUnitTest first[] = {
        cmocka_unit_test(make_model),           cmocka_unit_test(paper),    cmocka_unit_test(gram),    cmocka_unit_test(fitted),
        cmocka_unit_test(starts_by_directions), cmocka_unit_test(constant), cmocka_unit_test(refusals)};
    const struct CMUnitTest second[] = {cmocka_unit_test(elsewhere)};

    if (turn) return cmocka_run_group_tests(second, NULL, NULL);
    int failed = cmocka_run_group_tests(first, NULL, NULL);
    return failed + (comm_size(world.comm) == 1 ? cmocka_run_group_tests(lonely, NULL, NULL) : 0);
}

int main(int argc, char **argv)
{
    static const char *const placements[] = {"{placement: block}", "{placement: round_robin, coordinator_experts: false}"};

    return world_main(argc, argv, placements, 2, lead);
}
