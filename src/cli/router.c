#include "cli/router.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "jobs/launch.h"
#include "jobs/routers.h"

static int list(struct router_call *c, struct err *e)
{
    return routers_list(stdout, c->operand[1], c->json, e);
}

static int compare(struct router_call *c, struct err *e)
{
    struct routers_compare x = {
        .model = c->operand[1], .a = c->operand[2], .b = c->operand[3], .output = c->output, .json = c->json};
    struct launch l = {.version = c->version,
                       .path = "router compare",
                       .make = routers_compare_spec,
                       .done = routers_compare_say,
                       .ctx = &x,
                       .overrides = c->overrides,
                       .n_overrides = c->n_overrides,
                       .quiet = c->quiet,
                       .report = c->report};

    (void)e; /* launch_run() has said it */
    for (int i = 0; i < c->n_texts; i++) x.text[x.n_texts++] = c->text[i];
    return launch_run(&l, c->argc, c->argv);
}

static int promote(struct router_call *c, struct err *e)
{
    return routers_promote(stdout, c->operand[1], c->operand[2], c->json, e);
}

static int rollback(struct router_call *c, struct err *e)
{
    return routers_rollback(stdout, c->operand[1], c->json, e);
}

static const struct verb {
    const char *name, *operands;
    int n;     /* operands behind the verb */
    bool runs; /* takes the options of a job */
    int (*run)(struct router_call *c, struct err *e);
} verbs[] = {
    {"list", "MODEL", 1, false, list},
    {"compare", "MODEL A B", 3, true, compare},
    {"promote", "MODEL VERSION", 2, false, promote},
    {"rollback", "MODEL", 1, false, rollback},
};
enum { VERBS = sizeof(verbs) / sizeof(verbs[0]) };

static int refuse_verb(const char *word, struct err *e)
{
    const char *names[VERBS];
    struct str expected = {0};

    for (int i = 0; i < VERBS; i++) {
        names[i] = verbs[i].name;
        str_addf(&expected, "%s%s", i == 0 ? "" : i == VERBS - 1 ? " or " : ", ", names[i]);
    }
    const char *near = strlen(word) < 60 ? str_nearest(word, names, VERBS) : NULL;
    err_set(e, ERR_SPEC, "router: expected %s, found '%.80s'%s%s%s", expected.text, word, near ? "; did you mean '" : "",
            near ? near : "", near ? "'?" : "");
    str_free(&expected);
    return ERR_SPEC;
}

int router_command(struct router_call *c, struct err *e)
{
    const struct verb *v = NULL;

    c->usage = true;
    for (int i = 0; i < VERBS; i++)
        if (!strcmp(verbs[i].name, c->operand[0])) v = &verbs[i];
    if (!v) return refuse_verb(c->operand[0], e);
    if (c->n_operands - 1 != v->n)
        return err_set(e, ERR_SPEC, "router %s: expected %s, found %d operand%s", v->name, v->operands, c->n_operands - 1,
                       c->n_operands == 2 ? "" : "s");
    const char *stray = c->n_texts ? "--text" : c->output ? "--output" : c->n_overrides ? "--set" : NULL;
    if (!v->runs && stray) return err_set(e, ERR_SPEC, "router %s: expected no %s, it is for compare", v->name, stray);
    c->usage = false;
    return v->run(c, e);
}
