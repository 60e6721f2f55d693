#include "cli/commands.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/stop.h"
#include "base/str.h"
#include "cli/manual.h"
#include "cli/router.h"
#include "data/spec.h"
#include "jobs/bench_model.h"
#include "jobs/inspect.h"
#include "jobs/launch.h"
#include "jobs/plan.h"
#include "jobs/routers.h"

enum { OVERRIDES_MAX = 256, OPERANDS_MAX = 4 };

/* What a command was given.  argc and argv are the program's, for MPI. */
struct call {
    const char *version, *operand[OPERANDS_MAX], *shape, *text[ROUTERS_TEXTS_MAX], *output;
    uint64_t seed;
    const char *overrides[OVERRIDES_MAX];
    int n_operands, n_texts, n_overrides, ranks;
    bool quiet, json, verify;
    int argc;
    char **argv;
};

enum { TAKES_SET = 1, TAKES_QUIET = 2, TAKES_RANKS = 4, TAKES_SHAPE = 8, TAKES_ROUTER = 16, TAKES_VERIFY = 32 };

/* To add a command: a function, a row here, a page in manual.c, a test in tests/cli. */
static int run_run(struct call *c);
static int run_plan(struct call *c);
static int run_inspect(struct call *c);
static int run_bench(struct call *c);
static int run_router(struct call *c);
static int run_help(struct call *c);
static const struct command {
    const char *name, *operand, *summary;
    int least, most; /* operands */
    unsigned takes;
    int (*run)(struct call *c);
} commands[] = {
    {"run", "JOB.yaml", "run a job, alone or on the ranks that mpirun or srun started", 1, 1, TAKES_SET | TAKES_QUIET, run_run},
    {"plan", "JOB.yaml", "what a job would take and write, without running it", 1, 1, TAKES_SET | TAKES_RANKS, run_plan},
    {"inspect", "DIR", "what a directory is: a model, a factorized model, a job's output", 1, 1, TAKES_VERIFY, run_inspect},
    {"router", "list MODEL", "the routers of a model: list, compare, promote, roll back", 2, 4,
     TAKES_ROUTER | TAKES_SET | TAKES_QUIET, run_router},
    {"bench", "make-model DIR", "make a model of random weights, to measure on", 2, 2, TAKES_SHAPE | TAKES_QUIET, run_bench},
    {"help", "COMMAND|KIND", "how to use a command, or the keys of a kind of job", 0, 1, 0, run_help},
};
enum { COMMANDS = sizeof(commands) / sizeof(commands[0]) };

static void report(const struct err *e)
{
    fflush(stdout);
    fprintf(stderr, "factorllm: %s\n", e->text);
    if (e->code == STOPPED && !strstr(e->text, " again"))
        fputs("factorllm: stopped early; run the same command again to go on\n", stderr);
    fflush(stderr);
}

static const struct command *command_find(const char *name)
{
    for (int i = 0; i < COMMANDS; i++)
        if (!strcmp(commands[i].name, name)) return &commands[i];
    return NULL;
}

static int usage_error(const struct command *c, const char *format, const char *what)
{
    struct err e;

    err_set(&e, ERR_SPEC, format, what);
    report(&e);
    if (c) fprintf(stderr, "usage: factorllm %s %s; factorllm help %s tells more\n", c->name, c->operand, c->name);
    else fputs("usage: factorllm COMMAND ...; factorllm --help tells more\n", stderr);
    return ERR_SPEC;
}

static int run_run(struct call *c)
{
    struct launch l = {.version = c->version,
                       .path = c->operand[0],
                       .overrides = c->overrides,
                       .n_overrides = c->n_overrides,
                       .quiet = c->quiet,
                       .report = report};

    return launch_run(&l, &c->argc, &c->argv);
}

static int run_plan(struct call *c)
{
    struct spec *s;
    struct err e = {0};
    status st = spec_load(&s, c->operand[0], c->overrides, c->n_overrides, &e);

    if (st == OK) {
        st = plan_print(stdout, s, c->ranks, &e);
        spec_free(s);
    }
    if (st) report(&e);
    return st;
}

static int run_inspect(struct call *c)
{
    struct err e = {0};
    status st = inspect_print(stdout, c->operand[0], c->verify, &e);

    if (st) report(&e);
    return st;
}

static int run_bench(struct call *c)
{
    struct bench_shape shape;
    struct err e = {0};

    if (strcmp(c->operand[0], "make-model") != 0) {
        err_set(&e, ERR_SPEC, "bench: expected make-model, found '%.80s'; measuring is a job: factorllm help bench",
                c->operand[0]);
        report(&e);
        return ERR_SPEC;
    }
    struct log *log = log_open(stderr, c->quiet);
    stop_install();
    status st = bench_shape_parse(&shape, c->shape ? c->shape : "tinyllama", &e);
    if (!st) st = bench_make_model(c->operand[1], &shape, c->seed, log, &e);
    if (!st)
        log_line(log, "%s: %.2f M random weights of seed %llu", c->operand[1], (double)bench_shape_parameters(&shape) / 1e6,
                 (unsigned long long)c->seed);
    log_close(log);
    if (st) report(&e);
    return st;
}

static int run_router(struct call *c)
{
    struct router_call r = {.version = c->version,
                            .operand = c->operand,
                            .n_operands = c->n_operands,
                            .text = c->text,
                            .n_texts = c->n_texts,
                            .output = c->output,
                            .overrides = c->overrides,
                            .n_overrides = c->n_overrides,
                            .quiet = c->quiet,
                            .json = c->json,
                            .report = report,
                            .argc = &c->argc,
                            .argv = &c->argv};
    struct err e = {0};
    int code = router_command(&r, &e);

    if (e.code == ERR_SPEC && r.usage) return usage_error(command_find("router"), "%s", e.text);
    if (e.code) report(&e);
    return code;
}

static const char *nearest(const char *word, bool kinds)
{
    const char *names[COMMANDS + JOB_KINDS];
    int n = 0;

    for (int i = 0; i < COMMANDS; i++) names[n++] = commands[i].name;
    for (int k = 0; kinds && k < JOB_KINDS; k++) names[n++] = spec_kind_name((enum job_kind)k);
    return strlen(word) < 60 ? str_nearest(word, names, n) : NULL;
}

static int unknown(const char *what, const char *word, bool kinds)
{
    const char *near = nearest(word, kinds);
    struct str text = {0};

    str_addf(&text, "'%.80s': expected %s, found an unknown word", word, what);
    if (near) str_addf(&text, "; did you mean '%s'?", near);
    int code = usage_error(NULL, "%s", text.text);
    str_free(&text);
    return code;
}

static void print_overview(FILE *to)
{
    fputs(manual_head(), to);
    fputs("\nCommands\n", to);
    for (int i = 0; i < COMMANDS; i++) {
        struct str left = {0};

        str_addf(&left, "%s %s", commands[i].name, commands[i].operand);
        fprintf(to, "  %-22s %s\n", left.text, commands[i].summary);
        str_free(&left);
    }
    fputs(manual_tail(), to);
}

static int run_help(struct call *c)
{
    if (!c->n_operands) {
        print_overview(stdout);
        return OK;
    }
    int kind = spec_kind_find(c->operand[0]);
    if (kind >= 0) {
        fputs(manual_kind((enum job_kind)kind), stdout);
        printf("\nKeys, their defaults and what they mean:\n");
        spec_help(stdout, (enum job_kind)kind);
        return OK;
    }
    if (command_find(c->operand[0])) {
        fputs(manual_command(c->operand[0]), stdout);
        return OK;
    }
    return unknown("a command or a kind of job", c->operand[0], true);
}

static int read_ranks(int *ranks, const char *text)
{
    char *end;
    long n = strtol(text, &end, 10);

    if (*end || end == text || n < 1 || n > 32767) return ERR_SPEC;
    *ranks = (int)n;
    return OK;
}

static int read_seed(uint64_t *seed, const char *text)
{
    char *end;

    *seed = strtoull(text, &end, 10);
    return *end || end == text || *text == '-' ? ERR_SPEC : OK;
}

static int unknown_option(const struct command *c, const char *word)
{
    static const struct {
        const char *name;
        unsigned takes;
    } all[] = {{"--set", TAKES_SET},       {"--quiet", TAKES_QUIET},
               {"--ranks", TAKES_RANKS},   {"--shape", TAKES_SHAPE},
               {"--seed", TAKES_SHAPE},    {"--json", TAKES_ROUTER},
               {"--text", TAKES_ROUTER},   {"--output", TAKES_ROUTER},
               {"--verify", TAKES_VERIFY}, {"--help", 0}};
    const char *names[16];
    struct str text = {0};
    int n = 0;

    for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (!all[i].takes || c->takes & all[i].takes) names[n++] = all[i].name;
    const char *near = strlen(word) < 60 ? str_nearest(word, names, n) : NULL;
    str_addf(&text, "%s: unknown option '%.80s'", c->name, word);
    if (near) str_addf(&text, "; did you mean '%s'?", near);
    int code = usage_error(c, "%s", text.text);
    str_free(&text);
    return code;
}

/* Fills `call`.  Returns -1 to go on, or an exit code. */
static int read_options(const struct command *c, struct call *call, int argc, char **argv)
{
    enum { SET = 1, QUIET, RANKS, SHAPE, SEED, JSON, TEXT, OUTPUT, VERIFY, HELP };
    struct option options[16];
    int n = 0, option;

    options[n++] = (struct option){"help", no_argument, NULL, HELP};
    if (c->takes & TAKES_SET) options[n++] = (struct option){"set", required_argument, NULL, SET};
    if (c->takes & TAKES_QUIET) options[n++] = (struct option){"quiet", no_argument, NULL, QUIET};
    if (c->takes & TAKES_RANKS) options[n++] = (struct option){"ranks", required_argument, NULL, RANKS};
    if (c->takes & TAKES_SHAPE) {
        options[n++] = (struct option){"shape", required_argument, NULL, SHAPE};
        options[n++] = (struct option){"seed", required_argument, NULL, SEED};
    }
    if (c->takes & TAKES_ROUTER) {
        options[n++] = (struct option){"json", no_argument, NULL, JSON};
        options[n++] = (struct option){"text", required_argument, NULL, TEXT};
        options[n++] = (struct option){"output", required_argument, NULL, OUTPUT};
    }
    if (c->takes & TAKES_VERIFY) options[n++] = (struct option){"verify", no_argument, NULL, VERIFY};
    options[n] = (struct option){0};
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        const char *word = optind > 0 && optind <= argc ? argv[optind - 1] : "";

        switch (option) {
        case 'h':
        case HELP:
            fputs(manual_command(c->name), stdout);
            return OK;
        case QUIET:
            call->quiet = true;
            break;
        case VERIFY:
            call->verify = true;
            break;
        case RANKS:
            if (read_ranks(&call->ranks, optarg))
                return usage_error(c, "--ranks: expected a number from 1 to 32767, found '%.80s'", optarg);
            break;
        case SHAPE:
            call->shape = optarg;
            break;
        case JSON:
            call->json = true;
            break;
        case TEXT:
            if (call->n_texts == ROUTERS_TEXTS_MAX) return usage_error(c, "%s: too many --text", c->name);
            call->text[call->n_texts++] = optarg;
            break;
        case OUTPUT:
            call->output = optarg;
            break;
        case SEED:
            if (read_seed(&call->seed, optarg)) return usage_error(c, "--seed: expected a number, found '%.80s'", optarg);
            break;
        case SET:
            if (!strchr(optarg, '=')) return usage_error(c, "--set: expected key=value, found '%.80s'", optarg);
            if (call->n_overrides == OVERRIDES_MAX) return usage_error(c, "%s: too many --set", c->name);
            call->overrides[call->n_overrides++] = optarg;
            break;
        case ':':
            return usage_error(c, "%s: expected a value behind it, found none", word);
        default:
            return unknown_option(c, word);
        }
    }
    static const char *const expected[] = {"no operand", "one operand", "two operands", "three operands", "four operands"};
    char format[64];
    snprintf(format, sizeof(format), "'%%.80s': expected %s, found another one", expected[c->most]);
    if (optind + c->most < argc) return usage_error(c, format, argv[optind + c->most]);
    while (optind < argc) call->operand[call->n_operands++] = argv[optind++];
    if (call->n_operands < c->least)
        return usage_error(c, call->n_operands ? "%s: an operand is missing" : "%s: the operand is missing", c->name);
    return -1;
}

int commands_main(int argc, char **argv, const char *version)
{
    struct call call = {.version = version, .ranks = 1, .seed = 1, .argc = argc, .argv = argv};

    if (argc < 2) {
        print_overview(stderr);
        return ERR_SPEC;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("factorllm %s\n", version);
        return OK;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        print_overview(stdout);
        return OK;
    }
    const struct command *c = command_find(argv[1]);
    if (c) {
        int code = read_options(c, &call, argc - 1, argv + 1);

        return code >= 0 ? code : c->run(&call);
    }
    return unknown("a command", argv[1], false);
}
