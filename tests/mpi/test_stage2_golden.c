/* Stage 2 on tiny1m against PyTorch (tests/golden/make_stage2.py): losses and gradients of routers, and of a student whose norms and experts have moved away from
 * the teacher's; wherever the experts are.
 * np: 1 2 3 5 */
#include "../job_world.h"
#include "model/router_file.h"
#include "train/stage2.h"

static void numbers(float *x, size_t n, double size, double step, double phase)
{
    for (size_t i = 0; i < n; i++) x[i] = (float)(size * sin(step * (double)i + phase));
}

static void near(double found, const struct json_t *wanted, const char *what)
{
    double x = json_number(wanted);

    if (!(fabs(found - x) <= 1e-4 * fabs(x))) fail_msg("%s: expected %.8g, found %.8g", what, x, found);
}

static void as_pytorch(struct model *m, const struct json_t *golden, bool by_threshold)
{
    enum { WINDOW = 48, ROWS = 2 * WINDOW };
    const struct shape *y = model_shape(m);
    struct stage2_options o = {.lm = 0.3,
                               .budget = 0.5,
                               .target = 0.4,
                               .temperature = json_number(json_at(golden, "temperature")),
                               .train_router = true,
                               .train_means = true,
                               .compensate = true,
                               .scale = 1.25f,
                               .rows = ROWS,
                               .sessions = 2};
    struct router_param *param[STAGE2_PARAMS];
    int32_t ids[ROWS + 1];
    struct window w[2];
    struct stage2 *trainer;
    struct router r;
    struct err e;

    for (int i = 0; i <= ROWS; i++) ids[i] = (i * i * 7 + i * 37 + 11) % y->vocab;
    for (int i = 0; i < 2; i++) w[i] = (struct window){ids + i * WINDOW, WINDOW, ids + i * WINDOW + 1};
    if (router_alloc_form(&r, y, &(struct router_form){.means = true}, &e)) fail_msg("%s", e.text);
    size_t n = (size_t)r.layers * (size_t)r.experts, d = (size_t)r.width;
    numbers(r.weight, n * d, 0.2, 0.7, 0.1);
    numbers(r.bias, n, 0.3, 1.3, 0.2);
    numbers(r.mu, n * d, 0.02, 0.9, 0.3);
    r.by_threshold = by_threshold;
    if (stage2_open(&trainer, &r, m, &o, &e) || stage2_batch(trainer, STAGE2_LEARN, w, 2, &e)) fail_msg("%s", e.text);
    near(stage2_tally(trainer)->kl, json_at(golden, "kl"), "kl");
    near(stage2_tally(trainer)->nll, json_at(golden, "nll"), "nll");
    near(stage2_tally(trainer)->loss, json_at(golden, "loss"), "loss");
    near(stage2_tally(trainer)->share, json_at(golden, "share"), "share");
    int params = stage2_params(trainer, param);
    for (int i = 0; i < params; i++) {
        const struct router_param *p = param[i];
        char name[64];

        near(sqrt(sum_of_squares(p->gradient, p->n)), json_at(golden, p->name), p->name);
        snprintf(name, sizeof(name), "%s_of_layers", p->name);
        for (size_t l = 0, each = p->n / (size_t)r.layers; l < (size_t)r.layers; l++)
            near(sqrt(sum_of_squares(p->gradient + l * each, each)), json_item(json_at(golden, name), l), name);
    }
    stage2_close(trainer);
    router_free(&r);
}

/* adapted() of make_stage2.py: a student that has moved away from the teacher in all that can be trained. */
enum { TERM = 3, LORA = 2, BOTH = 2 * 48 };

static void move(float *x, size_t n, double size, double step, double phase, size_t from)
{
    for (size_t i = 0; i < n; i++) x[i] += (float)(size * sin(step * (double)(from + i) + phase));
}

/* An expert's part: all of it, or A and B of an update, which begin with nothing. */
static void move_experts(struct moe *m, const struct shape *y, bool lora)
{
    struct err e;

    for (int l = 0; l < y->layers; l++)
        for (int i = 0; i < y->experts; i++) {
            size_t floats = moe_adapted_floats(m, l, i, MOE_ADAPTED_PARAM), at = (size_t)(l * y->experts + i);
            size_t inner = (size_t)(LORA * y->width), outer = floats - inner;
            float *p = calloc(floats, sizeof(*p));

            assert_non_null(p);
            for (int part = 0; part < 3; part++) {
                if (lora) {
                    memset(p, 0, floats * sizeof(*p));
                    move(p, inner, 0.1, 0.37, part, at * inner);
                    move(p + inner, outer, 0.1, 0.53, part, at * outer);
                } else {
                    if (moe_adapt_get(m, l, i, part, MOE_ADAPTED_PARAM, p, &e)) fail_msg("%s", e.text);
                    move(p, floats, 0.02, 0.37, part, at * floats);
                }
                if (moe_adapt_put(m, l, i, part, MOE_ADAPTED_PARAM, p, &e)) fail_msg("%s", e.text);
            }
            free(p);
        }
    if (moe_adapt_pack(m, &e)) fail_msg("%s", e.text);
}

/* A gradient's norm and its product with a wave, as far as it was given: from number `first` on. */
struct seen {
    double squares, along;
};

static void see(struct seen *s, const float *x, size_t n, size_t first)
{
    s->squares += sum_of_squares(x, n);
    for (size_t i = 0; i < n; i++) s->along += (double)x[i] * sin(0.41 * (double)(first + i) + 0.2);
}

static void as_seen(const struct seen *s, const struct json_t *golden, const char *name, int layer)
{
    const struct json_t *wanted = json_item(json_at(golden, name), (size_t)layer);
    double size = json_number(json_item(wanted, 0)), along = json_number(json_item(wanted, 1));

    assert_true(size > 0);
    if (fabs(sqrt(s->squares) - size) > 1e-4 * size || fabs(s->along - along) > 1e-4 * size)
        fail_msg("%s, layer %d: expected %.8g along %.8g, found %.8g along %.8g", name, layer, size, along, sqrt(s->squares),
                 s->along);
}

static void experts_as_seen(struct moe *m, const struct shape *y, const struct json_t *golden, bool lora)
{
    static const char *const names[3][3] = {{"gate", "gate.A", "gate.B"}, {"up", "up.A", "up.B"}, {"down", "down.A", "down.B"}};
    struct err e;
    double squares;

    if (moe_adapt_squares(m, &squares, &e)) fail_msg("%s", e.text); /* those of A and B are worked out for it */
    for (int l = 0; l < y->layers; l++)
        for (int part = 0; part < 3; part++) {
            struct seen seen[2] = {{0, 0}, {0, 0}};

            for (int i = 0; i < y->experts; i++) {
                size_t floats = moe_adapted_floats(m, l, i, MOE_ADAPTED_SLOPE), inner = lora ? (size_t)(LORA * y->width) : floats;
                float *p = malloc(floats * sizeof(*p));

                assert_non_null(p);
                if (moe_adapt_get(m, l, i, part, MOE_ADAPTED_SLOPE, p, &e)) fail_msg("%s", e.text);
                see(&seen[0], p, inner, (size_t)i * inner);
                see(&seen[1], p + inner, floats - inner, (size_t)i * (floats - inner));
                free(p);
            }
            as_seen(&seen[0], golden, names[part][lora], l);
            if (lora) as_seen(&seen[1], golden, names[part][2], l);
        }
}

static void adapted_router(struct router *r, const struct shape *y)
{
    const struct router_form form = {.means = true, .scaled = true, .low_rank = TERM};
    struct err e;

    if (router_alloc_form(r, y, &form, &e)) fail_msg("%s", e.text);
    size_t n = (size_t)r->layers * (size_t)r->experts, d = (size_t)r->width, layers = (size_t)r->layers;
    numbers(r->weight, n * d, 0.2, 0.7, 0.1);
    numbers(r->bias, n, 0.3, 1.3, 0.2);
    numbers(r->mu, n * d, 0.02, 0.9, 0.3);
    numbers(r->scale, layers, 0.2, 1.1, 0.4);
    for (size_t l = 0; l < layers; l++) r->scale[l] += 1;
    numbers(r->inward, layers * TERM * d, 0.2, 0.8, 0.5);
    numbers(r->outward, layers * TERM * d, 0.2, 1.2, 0.6);
    numbers(r->offset, layers * d, 0.05, 0.6, 0.7);
    r->by_threshold = true;
}

static void adapted_as_pytorch(const char *made, const struct json_t *golden, bool lora)
{
    struct model_limits limits = {
        .rows = BOTH, .sessions = 2, .positions = 48, .train = true, .adapt = true, .lora = lora ? LORA : 0};
    const struct adapt_options more = {
        .term = true, .scale = true, .norms = true, .experts = true, .offset_rate = 1, .expert_rate = 1, .rows = BOTH};
    struct stage2_options o = {.lm = 0.3,
                               .budget = 0.5,
                               .target = 0.4,
                               .temperature = 0.5,
                               .train_router = true,
                               .train_means = true,
                               .compensate = true,
                               .scale = 1,
                               .rows = BOTH,
                               .sessions = 2};
    struct router_param *param[STAGE2_PARAMS];
    int32_t ids[BOTH + 1];
    struct stage2 *trainer = NULL;
    struct router r;
    struct model *m;
    struct err e;

    if (cluster_model(world.cluster, made, limits, &m, &e)) fail_msg("%s", e.text);
    const struct shape *y = model_shape(m);
    for (int i = 0; i <= BOTH; i++) ids[i] = (i * i * 7 + i * 37 + 11) % y->vocab;
    const struct window w[] = {{ids, BOTH / 2, ids + 1}, {ids + BOTH / 2, BOTH / 2, ids + BOTH / 2 + 1}};
    adapted_router(&r, y);
    if (adapt_open(&o.adapt, m, &r, &more, &e) || stage2_open(&trainer, &r, m, &o, &e)) fail_msg("%s", e.text);
    int params = stage2_params(trainer, param);
    for (int i = 0, norm = 0; i < params; i++)
        if (!strncmp(param[i]->name, "norm.", 5)) {
            move(param[i]->value, param[i]->n, 0.1, 0.7 + 0.1 * norm, 0.1 + 0.1 * norm, 0);
            norm++;
        }
    move_experts(model_moe(m), y, lora);
    if (stage2_batch(trainer, STAGE2_LEARN, w, 2, &e)) fail_msg("%s", e.text);
    near(stage2_tally(trainer)->kl, json_at(golden, "kl"), "kl");
    near(stage2_tally(trainer)->nll, json_at(golden, "nll"), "nll");
    near(stage2_tally(trainer)->loss, json_at(golden, "loss"), "loss");
    near(stage2_tally(trainer)->share, json_at(golden, "share"), "share");
    assert_int_equal(params, 10); /* weight, bias, mu, scale, the term's three, three norms */
    for (int i = 0; i < params; i++) {
        int layers = strcmp(param[i]->name, "norm.last") ? y->layers : 1;

        for (int l = 0; l < layers; l++) {
            size_t each = param[i]->n / (size_t)layers;
            struct seen seen = {0};

            see(&seen, param[i]->gradient + (size_t)l * each, each, 0);
            as_seen(&seen, golden, param[i]->name, l);
        }
    }
    experts_as_seen(model_moe(m), y, golden, lora);
    stage2_close(trainer);
    adapt_close(o.adapt);
    router_free(&r);
}

static void pytorch(void **state)
{
    const char *shared = getenv("FACTORLLM_SHARED");
    char *tiny = str_join(shared ? shared : "../shared", "models/tiny1m"), *golden = "tests/golden/stage2_tiny1m.json";
    struct model_limits limits = {.rows = 96, .sessions = 2, .positions = 48, .train = true};
    char *made = str_join(world.directory, "tiny1m/model");
    struct str yaml = {0};
    struct json_t *file;
    struct model *m;
    struct err e;

    (void)state;
    if (!file_exists(tiny)) {
        free(made), free(tiny);
        skip_because("models/tiny1m is not there");
    }
    str_addf(&yaml,
             "kind: factorize\ngrouping: contiguous\nbudget: uniform\ncompensation: none\nexperts: 32\nactive: 16\n"
             "model: %s\noutput: %s/tiny1m\n",
             tiny, world.directory);
    if (world_run(NULL, yaml.text, &e)) fail_msg("%s", e.text);
    if (json_read(&file, golden, 1 << 20, &e)) fail_msg("%s", e.text);
    if (cluster_model(world.cluster, made, limits, &m, &e)) fail_msg("%s", e.text);
    as_pytorch(m, json_at(file, "threshold"), true);
    as_pytorch(m, json_at(file, "top_k"), false);
    adapted_as_pytorch(made, json_at(file, "experts"), false);
    adapted_as_pytorch(made, json_at(file, "lora"), true);
    json_free(file);
    str_free(&yaml);
    free(made), free(tiny);
}

static int lead(int turn)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(pytorch)};

    (void)turn;
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    static const char *const placements[] = {"{placement: block, threads: 2}",
                                             "{placement: round_robin, coordinator_experts: false}"};

    return world_main(argc, argv, placements, 2, lead);
}
