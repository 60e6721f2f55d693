/* Job specs: what is read, what is refused and how, and that printing and packing lose nothing. */
#include "../check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/json.h"
#include "data/spec.h"
#include "num/exact.h"

#define HEAD   "model: m\noutput: o\n"
#define FACTOR "kind: factorize\n" HEAD
#define TUNE   "kind: finetune\n" HEAD "text: {file: t}\n"
#define EVAL   "kind: eval\n" HEAD "text: {file: t}\n"
#define INFER  "kind: infer\n" HEAD "input: i\n"
#define PIPE   "kind: pipeline\n" HEAD "steps:\n"

static struct spec *good(const char *text, const char *const *sets, int n)
{
    struct spec *s;
    struct err e = {0};

    if (spec_parse(&s, text, strlen(text), "job.yaml", sets, n, &e)) fail_msg("%s\n%s", e.text, text);
    return s;
}

static void refused(const char *text, const char *const *sets, int n, const char *expected)
{
    struct spec *s;
    struct err e = {0};

    assert_int_equal(spec_parse(&s, text, strlen(text), "job.yaml", sets, n, &e), ERR_SPEC);
    assert_null(s);
    if (!strstr(e.text, expected)) fail_msg("expected \"%s\"\nfound    \"%s\"", expected, e.text);
}

static void test_defaults(void **state)
{
    struct spec *s = good(FACTOR, NULL, 0);

    (void)state;
    assert_int_equal(s->kind, JOB_FACTORIZE);
    assert_string_equal(s->name, "factorize");
    assert_string_equal(s->source, "job.yaml");
    assert_int_equal(s->seed, 1);
    assert_int_equal(s->cluster.threads, 1);
    assert_true(s->cluster.deadline_seconds > 0);
    assert_int_equal(s->factorize.method, METHOD_DEFAULT);
    assert_int_equal(s->factorize.grouping, GROUP_PREDICTED);
    assert_int_equal(s->factorize.budget, BUDGET_KL);
    assert_int_equal(s->factorize.compensation, COMPENSATE_NONE);
    assert_true(spec_largest(&s->factorize.active) <= (double)s->factorize.experts);
    assert_true(s->factorize.calibration.sample_tokens > 0); /* the method needs it, and no text was given */
    spec_free(s);

    s = good(FACTOR "calibration: {file: t}\n", NULL, 0);
    assert_string_equal(s->factorize.calibration.file, "t");
    assert_int_equal(s->factorize.calibration.sample_tokens, 0);
    spec_free(s);

    s = good(EVAL, NULL, 0);
    assert_int_equal(s->eval.variants.n, VARIANTS - 2); /* all but the two oracles, which are slow */
    for (int i = 0, at = 0; i < VARIANTS; i++)
        if (i != VARIANT_ORACLE && i != VARIANT_ORACLE_VARIABLE)
            assert_string_equal(s->eval.variants.items[at++], spec_variant_name((enum spec_variant)i));
    assert_true(s->eval.max_drop < 0);
    spec_free(s);

    s = good(INFER, NULL, 0);
    assert_string_equal(s->infer.result, "o/responses.jsonl");
    assert_int_equal(s->infer.variant, VARIANT_ROUTER);
    spec_free(s);
}

static void test_method_factorllm(void **state)
{
    struct spec *s = good(FACTOR "method: factorllm\n", NULL, 0);

    (void)state;
    assert_int_equal(s->factorize.experts, 4);
    assert_int_equal((int)spec_number(&s->factorize.active, 0), 2);
    assert_int_equal(s->factorize.grouping, GROUP_CONTIGUOUS);
    assert_int_equal(s->factorize.scale, SCALE_PAPER);
    assert_int_equal(s->factorize.compensation, COMPENSATE_NONE);
    assert_int_equal(s->factorize.calibration.sample_tokens, 0);
    spec_free(s);

    /* keys that are given win, wherever they stand */
    s = good(FACTOR "grouping: random\nmethod: factorllm\nscale: one\n", NULL, 0);
    assert_int_equal(s->factorize.grouping, GROUP_RANDOM);
    assert_int_equal(s->factorize.scale, SCALE_ONE);
    assert_int_equal(s->factorize.compensation, COMPENSATE_NONE);
    spec_free(s);

    s = good(TUNE "method: factorllm\n", NULL, 0);
    assert_int_equal(s->finetune.labels, LABELS_PAPER);
    assert_int_equal(s->finetune.loss, LOSS_PAPER);
    assert_int_equal(s->finetune.token_weights, TOKENS_EVEN);
    assert_int_equal(s->finetune.select, SELECT_TOP_K);
    spec_free(s);

    const char *set[] = {"method=factorllm"};
    s = good(TUNE, set, 1);
    assert_int_equal(s->finetune.labels, LABELS_PAPER);
    spec_free(s);
}

static void test_values(void **state)
{
    struct spec *s =
        good("kind: infer\nmodel: 'a b'\noutput: \"x\\u00e9\"\ninput: 12\ntemperature: 1e-1\ntop_p: .5\n"
             "stop: [\"\\n\\n\", \"it's\", 'null']\nignore_eos: true\ncluster:\n  threads: 3\n  placement: round_robin\n",
             NULL, 0);

    (void)state;
    assert_string_equal(s->model, "a b");
    assert_string_equal(s->output, "x\xc3\xa9");
    assert_string_equal(s->infer.input, "12"); /* a path of digits is a path */
    assert_true(s->infer.temperature == 0.1);
    assert_true(s->infer.top_p == 0.5);
    assert_true(s->infer.ignore_eos);
    assert_int_equal(s->cluster.threads, 3);
    assert_int_equal(s->cluster.placement, PLACE_ROUND_ROBIN);
    spec_free(s);
}

static void test_errors(void **state)
{
    static const struct {
        const char *text, *expected;
    } bad[] = {
        /* what is no job at all */
        {"", "job.yaml:1: expected a job spec, found an empty file"},
        {"# nothing\n", "expected a job spec, found an empty file"},
        {"- a\n- b\n", "job.yaml:1: kind: expected a map of keys, found a list"},
        {"kind\n", "expected a map of keys, found a value"},
        {"model: m\n",
         "job.yaml:1: kind: expected factorize, finetune, convert, eval, infer, bench, report or pipeline, found no such key"},
        {"model: m\nkind: factorise\n", "job.yaml:2: kind: expected factorize, finetune, convert, eval, infer, bench, report or "
                                        "pipeline, found 'factorise'; did you mean 'factorize'?"},
        {"kind: [eval]\n",
         "job.yaml:1: kind: expected factorize, finetune, convert, eval, infer, bench, report or pipeline, found a list"},
        {"kind: eval\nkind: eval\n", "job.yaml:2: kind: expected once, found again; the first is in line 1"},
        {"kind: \"eval\\0x\"\n", "kind: expected"},
        {FACTOR "a: [b\n", "job.yaml:5: expected YAML, found an error"},
        {FACTOR "\tseed: 1\n", "job.yaml:4: expected YAML, found an error"},
        {FACTOR "seed: \"\xff\"\n", "job.yaml:4: expected YAML, found an error"},
        {FACTOR "---\nkind: eval\n", "job.yaml:4: expected the end of the file, found a second document"},
        {FACTOR "seed: &a 1\n", "job.yaml:4: expected a value, found the anchor &a"},
        {FACTOR "seed: *a\n", "job.yaml:4: expected a value, found the alias *a"},
        {FACTOR "seed: !!int 1\n", "job.yaml:4: expected a value, found the tag tag:yaml.org,2002:int"},
        {FACTOR "? [a]\n: 1\n", "job.yaml:4: expected a key, found a list"},
        {FACTOR "seed: [[[[[[[[[[1]]]]]]]]]]\n", "job.yaml:4: expected at most 8 levels of nesting, found more"},

        /* keys */
        {FACTOR "expert: 4\n",
         "job.yaml:4: expert: expected a key of factorize jobs, found an unknown one; did you mean 'experts'?"},
        {FACTOR "tokens: 4\n",
         "job.yaml:4: tokens: expected a key of factorize jobs, found an unknown one; 'tokens' is a key of finetune jobs"},
        {FACTOR "cluster: {thread: 4}\n",
         "cluster.thread: expected a key of factorize jobs, found an unknown one; did you mean 'cluster.threads'?"},
        {FACTOR "cluster.threads: 4\n", "cluster.threads: expected a key of factorize jobs, found an unknown one"},
        {FACTOR "cluster: 4\n", "job.yaml:4: cluster: expected a map of keys, found a value"},
        {FACTOR "steps: []\n", "steps: expected a key of factorize jobs, found an unknown one; 'steps' is"},
        {FACTOR "seed: 1\nseed: 1\n", "job.yaml:5: seed: expected once, found again; the first is in line 4"},
        {FACTOR "cluster: {threads: 1}\ncluster: {micro_batches: 1}\n",
         "job.yaml:5: cluster: expected once, found again; the first is in line 4"},
        {FACTOR "cluster:\n  threads: 1\n  threads: 2\n", "job.yaml:6: cluster.threads: expected once"},
        {"kind: factorize\noutput: o\n", "job.yaml:1: model: expected directory of the model"},
        {"kind: factorize\nmodel: m\n", "job.yaml:1: output: expected"},

        /* types and ranges */
        {FACTOR "experts: many\n", "job.yaml:4: experts: expected an integer from 1 to 4096, found 'many'"},
        {FACTOR "experts: 0\n", "experts: expected an integer from 1 to 4096, found '0'"},
        {FACTOR "experts: 4097\n", "experts: expected an integer from 1 to 4096, found '4097'"},
        {FACTOR "experts: -3\n", "found '-3'"},
        {FACTOR "experts: 4.0\n", "expected an integer"},
        {FACTOR "experts: 0x10\n", "expected an integer"},
        {FACTOR "experts: --1\n", "expected an integer"},
        {FACTOR "experts: \"4\"\n", "experts: expected an integer from 1 to 4096, found the text '4'"},
        {FACTOR "experts: 99999999999999999999999\n", "expected an integer"},
        {FACTOR "experts:\n", "job.yaml:4: experts: expected an integer from 1 to 4096, found nothing"},
        {FACTOR "experts: [4]\n", "experts: expected an integer from 1 to 4096, found a list"},
        {FACTOR "experts: {n: 4}\n", "experts: expected an integer from 1 to 4096, found a map"},
        {FACTOR "seed: -1\n", "seed: expected an integer of at least 0, found '-1'"},
        {FACTOR "shared: .nan\n", "shared: expected a number from 0 to 0.95, or a list with one for every layer, found '.nan'"},
        {FACTOR "shared: nan\n", "expected a number"},
        {FACTOR "shared: inf\n", "expected a number"},
        {FACTOR "shared: 1e999\n", "expected a number"},
        {FACTOR "shared: 1\n", "shared: expected a number from 0 to 0.95, or a list with one for every layer, found '1'"},
        {FACTOR "shared: 0x1p-2\n", "expected a number"},
        {FACTOR "shared: 1e\n", "expected a number"},
        {FACTOR "verify_weights: yes\n", "verify_weights: expected true or false, found 'yes'"},
        {FACTOR "verify_weights: \"true\"\n", "found the text 'true'"},
        {FACTOR "grouping: coactivatio\n", "job.yaml:4: grouping: expected contiguous, random, coactivation, kmeans, importance "
                                           "or predicted, found 'coactivatio'; did you mean 'coactivation'?"},
        {FACTOR "grouping: 1\n",
         "grouping: expected contiguous, random, coactivation, kmeans, importance or predicted, found '1'"},
        {"kind: factorize\nmodel: ~\noutput: o\n", "job.yaml:2: model: expected text, found nothing"},
        {"kind: factorize\nmodel: \"\"\noutput: o\n", "model: expected text, found an empty text"},
        {"kind: factorize\nmodel: \"a\\nb\"\noutput: o\n", "model: expected text, found a control character"},
        {"kind: factorize\nmodel: \"a\\0b\"\noutput: o\n", "model: expected text, found a control character"},
        {EVAL "variants: router\n", "variants: expected a list of dense, static, random, router, oracle, oracle_variable or "
                                    "neurons, or router@VERSION, static@F or neurons@F, found 'router'"},
        {EVAL "variants: [dense, sttic]\n", "found 'sttic'; did you mean 'static'?"},
        {EVAL "variants: [dense, dense]\n", "variants: expected each item once, found 'dense' twice"},
        {EVAL "variants: [[dense]]\n", "variants: expected a list of single values, found a list in it"},
        {INFER "stop: [null]\n", "stop: expected a list of texts, found nothing"},
        {INFER "stop: [\"\"]\n", "stop: expected a list of texts, found an empty text"},
        {INFER "stop: [\"a\\0b\"]\n", "stop: expected a list of texts, found a control character"},

        /* what cannot be together */
        {FACTOR "experts: 4095\ncompensation: mean\n",
         "job.yaml:4: experts: expected at most 4094 with compensation: mean, found 4095"},
        {FACTOR "active: [4, 0.5]\n",
         "active: expected an integer from 1 to 4096, or a list with one for every layer, found '0.5'"},
        {FACTOR "active: []\n", "active: expected 1 to 1024 numbers, found 0"},
        {FACTOR "active: [4, 40]\n", "job.yaml:4: active: expected active <= experts, found 40 active of 32 experts"},
        {FACTOR "budget: kl\nscale: paper\n", "job.yaml:4: budget: expected uniform with scale: paper"},
        {FACTOR "budget: kl_shared\nscale: paper\n", "job.yaml:4: budget: expected uniform with scale: paper"},
        {FACTOR "grouping: kmeans\nbudget: kl\ncalibration: {sample_tokens: 0}\n", "budget: expected text to calibrate on"},
        {FACTOR "grouping: predicted\ncalibration: {sample_tokens: 0}\n", "grouping: expected text to calibrate on"},
        {FACTOR "calibration: {profile_tokens: 3}\n", "calibration.profile_tokens: expected an integer from 64 to"},
        {FACTOR "active: [2, 3]\nscale: paper\n", "job.yaml:4: active: expected one number with scale: paper"},
        {FACTOR "shared: [0, 0.96]\n",
         "shared: expected a number from 0 to 0.95, or a list with one for every layer, found '0.96'"},
        {FACTOR "shared: 'x'\n", "shared: expected a number from 0 to 0.95"},
        {FACTOR "experts: 4\nactive: 5\n", "job.yaml:5: active: expected active <= experts, found 5 active of 4 experts"},
        {FACTOR "experts: 4\n", "job.yaml:4: experts: expected active <= experts, found 16 active of 4 experts"},
        {FACTOR "calibration: {file: t, sample_tokens: 9}\n",
         "calibration.sample_tokens: expected a file or sample_tokens, found both"},
        {FACTOR "calibration: {bytes: 9}\n", "calibration.bytes: expected only with calibration.file, found 9"},
        {FACTOR "calibration: {file: t, sample_seed: 9}\n",
         "calibration.sample_seed: expected only with calibration.sample_tokens"},
        {FACTOR "calibration: {sample_tokens: 0}\n", "grouping: expected text to calibrate on"},
        {FACTOR "method: factorllm\nshared: 0.1\ncalibration: {sample_tokens: 0}\n",
         "job.yaml:5: shared: expected text to calibrate on"},
        {FACTOR "cluster: {coordinator_share: 0.25}\n",
         "cluster.coordinator_share: expected only with cluster.placement: balance, found 0.25"},
        {FACTOR "cluster: {placement: balance, coordinator_experts: false}\n",
         "cluster.coordinator_experts: expected only without cluster.placement: balance"},
        {FACTOR "cluster: {placement: file}\n", "cluster.placement: expected a file in cluster.placement_file, found none"},
        {FACTOR "cluster: {placement_file: p.json}\n",
         "cluster.placement_file: expected only with cluster.placement: file, found 'p.json'"},
        {FACTOR "cluster: {placement: file, placement_file: p, coordinator_experts: false}\n",
         "cluster.coordinator_experts: expected only without"},
        {FACTOR "limits: {sessions: 600}\n",
         "limits.sessions: expected limits.sessions <= limits.batch_rows, found 600 sessions and 512 rows"},
        {"kind: factorize\nmodel: m\noutput: m\n", "job.yaml:3: output: expected another directory than model"},
        {"kind: finetune\n" HEAD, "job.yaml:1: text: expected text to learn from in text.file or text.sample_tokens, found none"},
        {TUNE "from: v1\n", "job.yaml:5: from: expected only with stage: 2, which trains end to end"},
        {TUNE "lm_loss: 0.5\n", "job.yaml:5: lm_loss: expected only with stage: 2, which trains end to end"},
        {TUNE "load_balance: 0.5\nstage: 1\n", "job.yaml:5: load_balance: expected only with stage: 2"},
        {TUNE "stage: 3\n", "job.yaml:5: stage: expected an integer from 1 to 2, found '3'"},
        {TUNE "stage: 2\ntrain: []\n", "train: expected at least one of router, compensation, norms, experts, lora"},
        {TUNE "loss: paper\nselect: threshold\n", "select: expected loss: bce with select: threshold"},
        {TUNE "labels: energy\nloss: listwise\nselect: threshold\n", "select: expected loss: bce or regression"},
        {TUNE "labels: gram\nloss: regression\n", "loss: expected labels: energy or norm"},
        {TUNE "stage: 2\ntrain: [router]\ncompensation_rank: 3\n",
         "compensation_rank: expected compensation in train, found none"},
        {TUNE "stage: 2\ntrain: [router, norms]\ncompensation: constant\n", "compensation: expected compensation in train"},
        {TUNE "stage: 2\nstart: ridge\n", "start: expected only with stage: 1"},
        {TUNE "router_rank: 8\n", "job.yaml:5: router_rank: expected only with router: low_rank, bottleneck or gate; found 8"},
        {TUNE "train: [experts]\n", "job.yaml:5: train: expected only with stage: 2, which trains end to end; found [experts]"},
        {TUNE "final_gate_temperature_ratio: 0.5\n",
         "final_gate_temperature_ratio: expected only with stage: 2, which trains end to end; found 0.5"},
        {TUNE "gate_temperature: 0.5\n", "gate_temperature: expected only with stage: 2, which trains end to end; found 0.5"},
        {TUNE "lora_rank: 3\n", "lora_rank: expected only with stage: 2"},
        {TUNE "expert_rate: 3\n", "expert_rate: expected only with stage: 2"},
        {TUNE "budget: 3\n", "budget: expected only with stage: 2"},
        {TUNE "balance_over: rank\n", "balance_over: expected only with stage: 2, which trains end to end; found rank"},
        {TUNE "compensation_rate: 3\n", "compensation_rate: expected only with stage: 2"},
        {TUNE "stage: 2\nlabels: gram\n",
         "job.yaml:6: labels: expected only with stage: 1: stage 2 learns from the dense model's logits; found gram"},
        {TUNE "stage: 2\nloss: bce\n", "loss: expected only with stage: 1"},
        {TUNE "stage: 2\ntoken_weights: even\n", "token_weights: expected only with stage: 1"},
        {TUNE "token_weights: squares\n", "token_weights: expected even, length or square"},
        {TUNE "stage: 2\nridge: 0.5\n", "ridge: expected only with stage: 1, which fits by least squares; found 0.5"},
        {TUNE "stage: 2\nfit_tokens: 99\n", "fit_tokens: expected only with stage: 1"},
        {TUNE "stage: 2\nrouter_rank: 8\n", "router_rank: expected only with stage: 1"},
        {TUNE "stage: 2\ncompensation: unselected\n", "compensation: expected only with stage: 1"},
        {TUNE "stage: 2\nselect: top_k\nbudget: 2\n", "budget: expected only with select: threshold; found 2"},
        {TUNE "stage: 2\nbalance_over: rank\n", "balance_over: expected only with load_balance above 0; found rank"},
        {TUNE "stage: 2\nlora_rank: 3\ntrain: [experts]\n", "lora_rank: expected only with lora in train; found 3"},
        {TUNE "stage: 2\nexpert_rate: 3\n", "expert_rate: expected only with experts or lora in train; found 3"},
        {TUNE "stage: 2\ntrain: [router]\ncompensation_rate: 1\n",
         "compensation_rate: expected only with compensation in train; found 1"},
        {TUNE "router: wide\n", "router: expected"},
        {TUNE "router_rank: 0\n", "router_rank: expected"},
        {TUNE "method: factorllm\nrouter: gate\n", "router: expected router: linear"},
        {TUNE "method: factorllm\nselect: threshold\n", "job.yaml:6: select: expected loss: bce"},
        {TUNE "tokens: 10\nbatch_tokens: 20\n", "job.yaml:6: batch_tokens: expected batch_tokens <= tokens, found 20 > 10"},
        {TUNE "sequence: 65\nlimits: {positions: 64}\n",
         "job.yaml:5: sequence: expected at most limits.positions = 64, found 65"},
        {TUNE "version: current\n", "version: expected"},
        {TUNE "version: ../x\n", "version: expected"},
        {TUNE "version: .x\n", "version: expected"},
        {"kind: eval\n" HEAD, "text: expected something to evaluate on"},
        {EVAL "cluster: {coordinators: 2}\n", "cluster.coordinators: expected a key of eval jobs, found an unknown one"},
        {EVAL "variants: [router@]\n", "variants: expected a list of"},
        {EVAL "variants: [router@a/b]\n", "variants: expected the name of a router version behind router@, found 'a/b'"},
        {EVAL "variants: [static@]\n", "variants: expected a list of"},
        {EVAL "variants: [dense@0.5]\n", "variants: expected a list of"},
        {EVAL "variants: [static@0]\n",
         "variants: expected a share of the neurons, above 0 and at most 1 in up to 16 characters, behind static@, found '0'"},
        {EVAL "variants: [neurons@1.01]\n", "behind neurons@, found '1.01'"},
        {EVAL "variants: [static@0.5.5]\n", "behind static@, found '0.5.5'"},
        {EVAL "variants: [static@0.123456789012345]\n", "behind static@, found '0.123456789012345'"},
        {EVAL "variants: [static@1e-1]\n", "behind static@, found '1e-1'"},
        {EVAL "variants: [dense]\nbaseline: router@v1\n", "baseline: expected one of variants, found 'router@v1'"},
        {EVAL "variants: [dense, router@v1]\nmin_agreement: 0.5\n", "min_agreement: expected only with the variant router"},
        {EVAL "min_agreement: 1.5\n", "min_agreement: expected a number from 0 to 1"},
        {EVAL "domains: a.txt\n", "domains: expected a map of names to texts, found 'a.txt'"},
        {EVAL "domains: [a.txt]\n", "domains: expected NAME: TEXT with a name of 1 to 32"},
        {EVAL "domains: {a: [b]}\n", "domains: expected NAME: TEXT, found a list"},
        {EVAL "domains: {a b: c}\n", "domains: expected NAME: TEXT with a name"},
        {EVAL "domains: {a: b, a: c}\n", "domains: expected each name once, found 'a' twice"},
        {EVAL "domains: {a: ''}\n", "domains: expected NAME: TEXT with a name"},
        {EVAL "domain_tokens: 1\n", "domain_tokens: expected an integer from 16 to"},
        {EVAL "variants: []\n", "variants: expected at least one variant, found none"},
        {EVAL "compare_model: x\ncompare_router: v1\n", "compare_router: expected compare_model or compare_router, found both"},
        {EVAL "compare_model: m\n", "compare_model: expected another directory than model"},
        {EVAL "variants: [dense]\ncompare_router: v1\n", "compare_router: expected only with the variant router"},
        {EVAL "variants: [router]\nmax_drop: 0.1\n", "max_drop: expected only with the variants dense and router"},
        {"kind: eval\n" HEAD "minimal_pairs: [p]\nmax_drop: 0.1\n", "max_drop: expected only with text"},
        {"kind: eval\n" HEAD "minimal_pairs: [p]\nwindow: 8\n", "window: expected only with text"},
        {EVAL "items: 3\n", "items: expected only with minimal_pairs, multiple_choice or last_word"},
        {EVAL "max_drop: -0.1\n", "max_drop: expected a number from 0 to 1, found '-0.1'"},
        {"kind: infer\n" HEAD, "job.yaml:1: input: expected"},
        {INFER "result: i\n", "result: expected another file than input, found 'i' for both"},
        {INFER "max_tokens: 64\nlimits: {positions: 64}\n", "max_tokens: expected max_tokens < limits.positions"},

        {INFER "cluster: {coordinators: 2, placement: balance}\n",
         "cluster.coordinators: expected 1 with cluster.placement: balance, found 2"},
        {INFER "cluster: {coordinators: 2, tensor_parallel: true}\n",
         "cluster.tensor_parallel: expected false with cluster.coordinators: 2, found true"},
        {"kind: finetune\n" HEAD "text: {file: t}\ncluster: {tensor_parallel: true}\n",
         "cluster.tensor_parallel: expected a key of finetune jobs, found an unknown one"},

        {INFER "name: ../x\n", "name: expected at most 64 of a-z, 0-9, _ and -, found '../x'"},

        /* pipelines */
        {"kind: pipeline\n" HEAD, "job.yaml:1: steps: expected a list of 1 to 32 jobs, found no such key"},
        {PIPE " []\n", "steps: expected a list of 1 to 32 jobs, found none"},
        {"kind: pipeline\n" HEAD "steps: 3\n", "steps: expected a list of 1 to 32 jobs, found a value"},
        {PIPE "  - kind: pipeline\n",
         "job.yaml:5: kind: expected factorize, finetune, convert, eval, infer, bench or report, found 'pipeline'"},
        {PIPE "  - {}\n",
         "job.yaml:5: kind: expected factorize, finetune, convert, eval, infer, bench or report, found no such key"},
        {PIPE "  - eval\n", "job.yaml:5: steps: expected a map of keys, found a value"},
        {PIPE "  - kind: factorize\n    cluster: {threads: 2}\n",
         "job.yaml:6: cluster.threads: expected at the top of the pipeline"},
        {PIPE "  - kind: factorize\n    limits: {memory_mib: 2}\n", "limits.memory_mib: expected at the top of the pipeline"},
        {PIPE "  - kind: factorize\n    name: A\n", "name: expected at most 64 of a-z, 0-9, _ and -, found 'A'"},
        {PIPE "  - kind: factorize\n    name: status\n",
         "name: expected a name that is no member of result.json, found 'status'"},
        {PIPE "  - kind: factorize\n    name: kernels\n",
         "name: expected a name that is no member of result.json, found 'kernels'"},
        {PIPE "  - kind: factorize\n    name: cluster\n", "name: expected a name that is no key of a pipeline, found 'cluster'"},
        {PIPE "  - {kind: factorize, name: x}\n  - {kind: eval, text: {file: t}, name: x}\n",
         "job.yaml:6: name: expected a name of its own"},
        {PIPE "  - {kind: factorize}\n  - {kind: eval, text: {file: t}, output: o/factorize}\n",
         "job.yaml:6: eval.output: expected a directory of its own, found 'o/factorize', that of step factorize"},
        {PIPE "  - {kind: factorize, output: o}\n", "output: expected a directory of its own, found 'o', that of the pipeline"},
        {PIPE "  - kind: finetune\n", "job.yaml:5: finetune.text: expected text to learn from"},
        {PIPE "  - kind: factorize\n    tokens: 3\n", "job.yaml:6: tokens: expected a key of factorize jobs"},
        {"kind: pipeline\n" HEAD "tokens: 3\nsteps: [{kind: factorize}]\n",
         "job.yaml:4: tokens: expected a key of pipeline jobs, found an unknown one; 'tokens' is a key of finetune jobs"},
        {"kind: pipeline\n" HEAD "steps: [{kind: factorize}]\nsteps: [{kind: factorize}]\n",
         "job.yaml:5: steps: expected once, found again"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) refused(bad[i].text, NULL, 0, bad[i].expected);
}

/* What a spec lets pass can be opened: moe_open() adds two terms for each expert, and two more. */
static void test_most_experts_with_compensation(void **state)
{
    char text[128];

    (void)state;
    snprintf(text, sizeof(text), FACTOR "compensation: mean\nexperts: %d\n", (EXACT_TERMS - 2) / 2);
    spec_free(good(text, NULL, 0));
    snprintf(text, sizeof(text), FACTOR "compensation: mean\nexperts: %d\n", (EXACT_TERMS - 2) / 2 + 1);
    refused(text, NULL, 0, "with compensation: mean");
    spec_free(good(FACTOR "experts: 4096\n", NULL, 0));
}

static void test_overrides(void **state)
{
    const char *sets[] = {"cluster.threads=2", "experts=8", "active=2", "experts=12", "calibration.file=a=b"};
    struct spec *s = good(FACTOR "experts: 64\n", sets, 5);

    (void)state;
    assert_int_equal(s->cluster.threads, 2);
    assert_int_equal(s->factorize.experts, 12); /* the last wins */
    assert_string_equal(s->factorize.calibration.file, "a=b");
    spec_free(s);

    const char *lists[] = {"variants=[dense, router]", "minimal_pairs=a,b c"};
    s = good(EVAL, lists, 2);
    assert_int_equal(s->eval.variants.n, 2);
    assert_string_equal(s->eval.variants.items[1], "router");
    assert_int_equal(s->eval.minimal_pairs.n, 2);
    assert_string_equal(s->eval.minimal_pairs.items[1], "b c");
    spec_free(s);

    const char *steps[] = {"a.tokens=5000", "seed=9", "infer.stop=END"};
    s = good(PIPE "  - {kind: finetune, name: a, text: {file: t}}\n  - {kind: infer, input: i}\n", steps, 3);
    assert_int_equal(s->steps[0].finetune.tokens, 5000);
    assert_int_equal(s->steps[0].seed, 9);
    assert_string_equal(s->steps[1].infer.stop.items[0], "END");
    spec_free(s);

    static const struct {
        const char *set, *expected;
    } bad[] = {
        {"experts", "--set: expected key=value, found 'experts'"},
        {"=3", "--set: expected key=value, found '=3'"},
        {"experts=", "--set: experts: expected an integer from 1 to 4096, found nothing"},
        {"experts=x", "--set: experts: expected an integer from 1 to 4096, found 'x'"},
        {"expert=3", "--set: expert: expected a key of factorize jobs, found an unknown one; did you mean 'experts'?"},
        {"kind=eval", "--set: kind: expected in the job file"},
        {"active=40", "--set: active: expected active <= experts, found 40 active of 32 experts"},
        {"model=", "--set: model: expected text, found an empty text"},
        {"model=\xff", "--set: model: expected text, found text that is not UTF-8"},
        {"model=a\nb", "--set: model: expected text, found a control character"},
        {"a.b=3", "--set: a.b: expected a key"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) refused(FACTOR, &bad[i].set, 1, bad[i].expected);
    const char *misplaced[] = {"eval.cluster.threads=3"}, *unknown[] = {"evl.window=3"};
    refused(PIPE "  - {kind: eval, text: {file: t}}\n", misplaced, 1,
            "--set: eval.cluster.threads: expected at the top of the pipeline");
    refused(PIPE "  - {kind: eval, text: {file: t}}\n", unknown, 1, "--set: evl.window: expected a key of pipeline jobs");
}

static const char pipeline_text[] =
    "kind: pipeline\nmodel: dense\noutput: out/\nseed: 5\nverify_weights: true\n"
    "limits: {sessions: 4, positions: 200}\ncluster: {threads: 2, deadline_seconds: 0.7}\n"
    "steps:\n"
    "  - {kind: eval, minimal_pairs: [p]}\n"
    "  - {kind: factorize, calibration: {file: \"c\\u2028\\t1\", bytes: 77}}\n"
    "  - {kind: finetune, seed: 6, text: {sample_tokens: 9000, sample_seed: 3}, learning_rate: 0.30000000000000004}\n"
    "  - {kind: eval, text: {file: t}, limits: {sessions: 2}, max_drop: 0.05}\n"
    "  - {kind: infer, input: i, model: other, output: elsewhere, stop: [\"\\n\", 'null', \"\\x01\\ufeff\"]}\n"
    "  - {kind: eval, name: eval-2, text: {file: t}}\n"
    "  - {kind: eval, text: {file: t}}\n"
    "  - {kind: factorize, method: factorllm}\n"
    "  - {kind: infer, input: i}\n";

static void test_pipeline(void **state)
{
    (void)state;
    char *text = strdup(pipeline_text);
    *strstr(text, "\\t1") = 'x'; /* a path has no control characters */
    struct spec *s = good(text, NULL, 0);
    static const char *const names[] = {"eval",   "factorize", "finetune",    "eval-3", "infer",
                                        "eval-2", "eval-4",    "factorize-2", "infer-2"};

    assert_int_equal(s->n_steps, 9);
    for (int i = 0; i < 9; i++) assert_string_equal(s->steps[i].name, names[i]);
    assert_string_equal(s->steps[0].model, "dense");
    assert_string_equal(s->steps[1].model, "dense");
    assert_string_equal(s->steps[1].output, "out/factorize");
    assert_string_equal(s->steps[2].model, "out/factorize/model");
    assert_string_equal(s->steps[3].model, "out/factorize/model");
    assert_string_equal(s->steps[4].model, "other");
    assert_string_equal(s->steps[4].infer.result, "elsewhere/responses.jsonl");
    assert_string_equal(s->steps[7].model, "dense"); /* only a dense model can be factorized */
    assert_string_equal(s->steps[8].model, "out/factorize-2/model");
    assert_int_equal(s->steps[1].seed, 5);
    assert_int_equal(s->steps[2].seed, 6);
    assert_true(s->steps[2].verify_weights);
    assert_int_equal(s->steps[2].limits.sessions, 4);
    assert_int_equal(s->steps[3].limits.sessions, 2);
    assert_int_equal(s->steps[3].limits.positions, 200);
    assert_int_equal(s->steps[3].cluster.threads, 2);
    spec_free(s);
    free(text);
}

/* A spec, what it prints read again, and what it packs unpacked again, print the same. */
/* A step that trains weights makes a model, and the steps behind it work on that; they may name it, too. */
static void test_adapted_step(void **state)
{
    struct spec *s = good("kind: pipeline\nmodel: dense\noutput: out\nsteps:\n"
                          "  - {kind: factorize, experts: 8, active: 4, budget: uniform, grouping: contiguous}\n"
                          "  - {kind: finetune, text: {file: t}}\n"
                          "  - {kind: finetune, name: weights, text: {file: t}, stage: 2, train: [norms]}\n"
                          "  - {kind: eval, text: {file: t}}\n"
                          "  - {kind: eval, text: {file: t}, model: out/factorize/model, compare_model: weights}\n",
                          NULL, 0);

    (void)state;
    assert_true(!spec_makes_model(&s->steps[1]) && spec_makes_model(&s->steps[2]));
    assert_string_equal(s->steps[2].model, "out/factorize/model");
    assert_string_equal(s->steps[3].model, "out/weights/model");
    assert_string_equal(s->steps[4].eval.compare_model, "out/weights/model");
    spec_free(s);
}

static void survives(const char *text)
{
    struct spec *s = good(text, NULL, 0), *again, *arrived;
    struct str first = {0}, second = {0};
    struct err e = {0};
    uint8_t *bytes;
    size_t n;

    spec_dump(&first, s);
    again = good(first.text, NULL, 0);
    spec_dump(&second, again);
    assert_string_equal(first.text, second.text);
    spec_pack(&bytes, &n, s);
    if (spec_unpack(&arrived, bytes, n, &e)) fail_msg("%s", e.text);
    str_clear(&second);
    spec_dump(&second, arrived);
    assert_string_equal(first.text, second.text);
    assert_string_equal(arrived->source, s->source);
    assert_int_equal(arrived->n_steps, s->n_steps);
    free(bytes);
    spec_free(s);
    spec_free(again);
    spec_free(arrived);
    str_free(&first);
    str_free(&second);
}

static char *good_pipeline(void)
{
    char *text = strdup(pipeline_text);

    *strstr(text, "\\t1") = 'x';
    return text;
}

static void test_round_trips(void **state)
{
    char *pipeline = good_pipeline();

    (void)state;
    survives(FACTOR);
    survives(FACTOR "method: factorllm\ncluster: {placement: file, placement_file: p.json}\n");
    survives(FACTOR "active: [1, 2, 2]\nshared: [0.25, 0, 1e-2]\n");
    survives(FACTOR "shared: 0.1\nseed: 9007199254740991\nshard_mib: 0\n");
    survives(TUNE "version: v7\nlearning_rate: 0.1\nbeta2: 0.999\n");
    survives(TUNE "method: factorllm\nloss: bce\n");
    survives(TUNE "stage: 2\ngate_temperature: 0.3\nfinal_gate_temperature_ratio: 0.5\ntrain: [router]\n");
    survives(TUNE "stage: 2\n");
    survives(TUNE "stage: 2\nmethod: factorllm\n");
    survives(TUNE "stage: 2\nmethod: factorllm\nselect: threshold\nbudget: 2\n");
    survives(TUNE "stage: 2\nselect: top_k\ncompensation_rank: 3\nload_balance: 1\nbalance_over: rank\n");
    survives(TUNE "stage: 2\nfrom: v1\ntrain: [router, compensation, norms, lora]\nlora_rank: 3\nexpert_rate: 0.1\n");
    survives(TUNE "labels: gram\n");
    survives(TUNE "labels: norm\ntoken_weights: square\nloss: listwise\nrouter: gate\nrouter_rank: 8\nstart: ridge\nridge: "
                  "0.5\nscale: fitted\n"
                  "compensation: unselected\ncompensation_rank: 4\nfit_tokens: 99\n");
    survives(EVAL "variants: [router, router@v1, dense, static@0.55, neurons@.5]\nbaseline: static@0.55\ndomains: {b: 'x y', "
                  "a-1: /z=1}\nlast_word: "
                  "[w]\nmin_agreement: 0.25\n");
    survives(EVAL "variants: [router, dense]\nmax_drop: 0\nmultiple_choice: ['a: b', \"#c\", '12', 'a, b']\n");
    survives(INFER "stop: [\"\\\"\\\\\", '~', ' x ', \"\\U0001F600\"]\n");
    survives(pipeline);
    free(pipeline);
}

/* A real read back exactly, whatever its digits. */
static void test_reals_are_exact(void **state)
{
    static const char *const values[] = {"0.1", "0.30000000000000004", "1e-9", "3.141592653589793",
                                         "0.333333333333333314829616256247"};

    (void)state;
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        char text[300];
        struct str dump = {0};

        snprintf(text, sizeof(text), TUNE "learning_rate: %s\n", values[i]);
        struct spec *s = good(text, NULL, 0);
        spec_dump(&dump, s);
        struct spec *again = good(dump.text, NULL, 0);
        assert_true(s->finetune.learning_rate == strtod(values[i], NULL));
        assert_true(again->finetune.learning_rate == s->finetune.learning_rate);
        spec_free(s);
        spec_free(again);
        str_free(&dump);
    }
}

/* What nobody gave follows from the stage and the length of the run. */
static void test_pace(void **state)
{
    static const struct {
        const char *more;
        double rate;
        int64_t batch;
    } wanted[] = {{"", 0.01, 512},
                  {"stage: 2\n", 0.004, 2048},
                  {"stage: 2\ntokens: 1000000\n", 0.004, 2048},
                  {"stage: 2\ntokens: 1000001\n", 0.002, 4096},
                  {"tokens: 1000001\n", 0.01, 512},
                  {"stage: 2\ntokens: 2000000\nlearning_rate: 0.003\nbatch_tokens: 100\n", 0.003, 100},
                  {"stage: 2\ntokens: 500\n", 0.004, 500}};

    (void)state;
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        char text[300];

        snprintf(text, sizeof(text), TUNE "%s", wanted[i].more);
        struct spec *s = good(text, NULL, 0);
        assert_true(s->finetune.learning_rate == wanted[i].rate);
        assert_int_equal(s->finetune.batch_tokens, wanted[i].batch);
        spec_free(s);
    }
}

/* Every beginning of a good file, and the file with one byte changed, is a spec or an error in one line. */
static void test_damaged_yaml(void **state)
{
    char *text = good_pipeline();
    size_t length = strlen(text);

    (void)state;
    for (size_t n = 0; n < length; n++) {
        struct spec *s;
        struct err e = {0};
        status st = spec_parse(&s, text, n, "job.yaml", NULL, 0, &e);

        assert_true(st == OK || (st == ERR_SPEC && !s && strstr(e.text, "job.yaml:") == e.text && !strchr(e.text, '\n')));
        spec_free(s);
    }
    for (size_t n = 0; n < length; n++) {
        struct spec *s;
        struct err e = {0};
        char kept = text[n];

        text[n] = "\0:[\xf0"[n % 4];
        status st = spec_parse(&s, text, length, "job.yaml", NULL, 0, &e);
        assert_true(st == OK || (st == ERR_SPEC && !s && *e.text));
        spec_free(s);
        text[n] = kept;
    }
    free(text);
}

static void test_damaged_message(void **state)
{
    char *text = good_pipeline();
    struct spec *s = good(text, NULL, 0), *out;
    struct err e = {0};
    uint8_t *bytes;
    size_t n;

    (void)state;
    spec_pack(&bytes, &n, s);
    for (size_t i = 0; i < n; i++) {
        uint8_t *part = malloc(i + 1); /* exactly as long, so that a sanitizer sees a read behind it */

        memcpy(part, bytes, i);
        status st = spec_unpack(&out, part, i, &e);
        assert_true(st == OK || (st == ERR_SPEC && !out));
        spec_free(out);
        free(part);
    }
    for (size_t i = 0; i < n; i++) {
        static const uint8_t flips[] = {1, 0x80, 0xff};
        uint8_t kept = bytes[i];

        bytes[i] ^= flips[i % 3];
        status st = spec_unpack(&out, bytes, n, &e);
        assert_true(st == OK || (st == ERR_SPEC && !out));
        spec_free(out);
        bytes[i] = kept;
    }
    free(bytes);
    spec_free(s);
    free(text);
}

static void test_sizes(void **state)
{
    struct str text = {0};
    struct err e = {0};
    struct spec *s;

    (void)state;
    str_addz(&text, FACTOR);
    for (int i = 0; i < 120000; i++) str_addz(&text, "# comment\n");
    assert_int_equal(spec_parse(&s, text.text, text.length, "job.yaml", NULL, 0, &e), ERR_SPEC);
    assert_non_null(strstr(e.text, "expected at most 1048576 bytes of YAML"));
    str_clear(&text);
    str_addz(&text, "kind: factorize\noutput: o\nmodel: ");
    for (int i = 0; i < 5000; i++) str_addz(&text, "x");
    refused(text.text, NULL, 0, "job.yaml:3: model: expected at most 4096 bytes of text, found 5000");
    str_clear(&text);
    str_addz(&text, INFER "stop: [");
    for (int i = 0; i < 1025; i++) str_addf(&text, "s%d, ", i);
    str_addz(&text, "]\n");
    refused(text.text, NULL, 0, "job.yaml:5: stop: expected at most 1024 items, found 1025");
    str_clear(&text);
    str_addz(&text, PIPE);
    for (int i = 0; i < 33; i++) str_addz(&text, "  - kind: factorize\n");
    refused(text.text, NULL, 0, "steps: expected a list of 1 to 32 jobs, found more");
    str_free(&text);
    assert_int_equal(spec_load(&s, "tests/unit/no-such-file.yaml", NULL, 0, &e), ERR_IO);
    assert_null(s);
}

/* The keys of a resolved spec, one after the other with their section: NULL behind the last. */
static const char *next_key(char **line, char **at, char section[64], char full[160])
{
    for (; *line; *line = strtok_r(NULL, "\n", at)) {
        bool inside = **line == ' ', opens = (*line)[strlen(*line) - 1] == ':';
        char key[64];

        snprintf(key, sizeof(key), "%.*s", (int)strcspn(*line + 2 * inside, ":"), *line + 2 * inside);
        if (!inside) snprintf(section, 64, "%s", opens ? key : "");
        snprintf(full, 160, "%s%s%s", section, *section ? "." : "", key);
        if (opens) continue;
        *line = strtok_r(NULL, "\n", at);
        return full;
    }
    return NULL;
}

/* Whatever is added to the table is among the settings of a job that uses it: what shapes nothing is listed here, once more. */
static void every_key_counts(const char *const *jobs, int n)
{
    static const char *const aside = "|kind|name|model|output|verify_weights|limits.memory_mib|limits.sessions|checkpoint_tokens|"
                                     "checkpoint_seconds|version|";
    struct json_t *found[4];
    struct str dump = {0};
    char section[64] = "", full[160], bar[170], *at, *line;

    for (int i = 0; i < n; i++) {
        struct spec *s = good(jobs[i], NULL, 0);

        found[i] = spec_settings(s);
        if (i == n - 1) spec_dump(&dump, s); /* the one with all keys that have no default */
        spec_free(s);
    }
    line = strtok_r(dump.text, "\n", &at);
    for (const char *key; (key = next_key(&line, &at, section, full));) {
        bool counts = false;

        snprintf(bar, sizeof(bar), "|%s|", key);
        for (int i = 0; i < n; i++) counts |= json_at(found[i], key) != NULL;
        if (counts != (strncmp(key, "cluster.", 8) && !strstr(aside, bar)))
            fail_msg("%s: %s", key, counts ? "a setting" : "none");
    }
    for (int i = 0; i < n; i++) json_free(found[i]);
    str_free(&dump);
}

static void test_settings(void **state)
{
    struct spec *s = good(TUNE "scale: fitted\nfit_tokens: 300\nridge: 0.5\n", NULL, 0);
    struct json_t *o = spec_settings(s);

    (void)state;
    assert_string_equal(json_text(json_at(o, "scale")), "fitted");
    assert_string_equal(json_text(json_at(o, "compensation")), "constant");
    assert_string_equal(json_text(json_at(o, "text.file")), "t");
    assert_int_equal(json_int(json_at(o, "fit_tokens")), 300);
    assert_true(json_number(json_at(o, "ridge")) == 0.5);
    assert_int_equal(json_int(json_at(o, "stage")), 1);
    json_free(o);
    spec_free(s);
    static const char *const jobs[] = {TUNE "router: gate\n",
                                       TUNE "stage: 2\nload_balance: 1\ntrain: [compensation, lora]\nfrom: v1\nversion: v2\n"};
    every_key_counts(jobs, 2);
    s = good(TUNE "stage: 2\n", NULL, 0);
    o = spec_settings(s);
    assert_null(json_at(o, "labels"));
    assert_null(json_at(o, "lora_rank"));
    assert_int_equal(json_length(json_at(o, "train")), 2);
    assert_string_equal(json_text(json_item(json_at(o, "train"), 1)), "compensation");
    json_free(o);
    spec_free(s);
}

static void test_help(void **state)
{
    (void)state;
    for (int k = 0; k < JOB_KINDS; k++) {
        char *text = NULL;
        size_t n = 0;
        FILE *f = open_memstream(&text, &n);

        spec_help(f, (enum job_kind)k);
        fclose(f);
        assert_int_equal(strstr(text, "  model ") != NULL, k != JOB_REPORT);
        assert_non_null(strstr(text, "  cluster.threads "));
        assert_int_equal(strstr(text, "  experts ") != NULL, k == JOB_FACTORIZE);
        assert_int_equal(strstr(text, "  learning_rate ") != NULL, k == JOB_FINETUNE);
        assert_int_equal(spec_kind_find(spec_kind_name((enum job_kind)k)), k);
        free(text);
    }
    assert_int_equal(spec_kind_find("nothing"), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_method_factorllm),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_most_experts_with_compensation),
        cmocka_unit_test(test_overrides),
        cmocka_unit_test(test_pipeline),
        cmocka_unit_test(test_adapted_step),
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_pace),
        cmocka_unit_test(test_reals_are_exact),
        cmocka_unit_test(test_damaged_yaml),
        cmocka_unit_test(test_damaged_message),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_help),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
