#include "data/spec_table.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/utf8.h"

static const char *const kind_names[] = {"factorize", "finetune", "convert",  "eval", "infer",
                                         "bench",     "report",   "pipeline", NULL};
static const char *const placement_names[] = {"block", "round_robin", "file", "balance", NULL};
static const char *const shared_memory_names[] = {"auto", "never", NULL};
static const char *const exchange_rows_names[] = {"f32", "bf16", NULL};
static const char *const exchange_answers_names[] = {"exact", "f32", "bf16", NULL};
static const char *const precision_names[] = {"stored", "f32", "bf16", "q8", "q4", NULL};
static const char *const kv_names[] = {"f32", "bf16", "q8", NULL};
static const char *const activation_names[] = {"f32", "bf16", NULL};
static const char *const kernel_names[] = {"auto", "plain", "avx2", "avx512", "vnni", "bf16", "amx", NULL};
static const char *const method_names[] = {"default", "factorllm", NULL};
static const char *const grouping_names[] = {"contiguous", "random", "coactivation", "kmeans", "importance", "predicted", NULL};
static const char *const budget_names[] = {"uniform", "kl", "kl_shared", NULL};
static const char *const scale_names[] = {"one", "paper", NULL};
static const char *const compensation_names[] = {"none", "mean", NULL};
static const char *const labels_names[] = {"paper", "gram", "energy", "norm", NULL};
static const char *const loss_names[] = {"paper", "bce", "listwise", "regression", NULL};
static const char *const router_names[] = {"linear", "bottleneck", "gate", "low_rank", NULL};
static const char *const token_weights_names[] = {"even", "length", "square", NULL};
static const char *const start_names[] = {"random", "ridge", "current", NULL};
static const char *const refit_names[] = {"model", "unselected", "constant", NULL};
static const char *const refit_scale_names[] = {"model", "fitted", NULL};
static const char *const train_names[] = {"router", "compensation", "norms", "experts", "lora", NULL};
static const char *const balance_names[] = {"expert", "rank", NULL};
static const char *const select_names[] = {"top_k", "threshold", NULL};
static const char *const part_names[] = {"kernels", "exchange", "step", "startup", NULL};
static const char *const bench_formats[] = {"f32", "bf16", "q8", "q4", NULL};
static const char *const variant_names[] = {"dense", "static", "random", "router", "oracle", "oracle_variable", "neurons", NULL};
static const char *const infer_variants[] = {"dense", "static", "random", "router", "oracle", NULL};

enum {
    F = 1 << JOB_FACTORIZE,
    T = 1 << JOB_FINETUNE,
    C = 1 << JOB_CONVERT,
    E = 1 << JOB_EVAL,
    I = 1 << JOB_INFER,
    B = 1 << JOB_BENCH,
    R = 1 << JOB_REPORT, /* has no model: its rows say so */
    P = 1 << JOB_PIPELINE,
    JOBS = F | T | C | E | I | B,
    ALL = JOBS | P
};

#define AT(field) offsetof(struct spec, field)
#define SEED_MAX  9007199254740991.0 /* 2^53 - 1: exact in every reader of JSON */

/* name, kinds, type, field, default, default of method: factorllm, least, most, names, flags, help */
/* clang-format off */
static const struct key table[] = {
    {"name", JOBS | R, KEY_TEXT, AT(name), NULL, NULL, 0, 0, NULL, KEY_ASIDE, "name of a step in result.json and on the command line"},
    {"model", ALL, KEY_TEXT, AT(model), NULL, NULL, 0, 0, NULL, KEY_REQUIRED | KEY_ASIDE, "directory of the model: config.json, safetensors, tokenizer"},
    {"output", ALL | R, KEY_TEXT, AT(output), NULL, NULL, 0, 0, NULL, KEY_REQUIRED | KEY_ASIDE, "directory for everything the job writes"},
    {"seed", ALL, KEY_INT, AT(seed), "1", NULL, 0, SEED_MAX, NULL, 0, "of everything random"},
    {"verify_weights", ALL, KEY_BOOL, AT(verify_weights), "true", NULL, 0, 0, NULL, KEY_ASIDE, "look for NaN and infinity while loading"},

    {"cluster.placement", ALL | R, KEY_ENUM, AT(cluster.placement), "block", NULL, 0, 0, placement_names, KEY_TOP, "how experts are laid over the ranks; balance: fewer on rank 0, which has attention to do as well"},
    {"cluster.coordinator_share", ALL | R, KEY_REAL, AT(cluster.coordinator_share), "0", NULL, 0, 1, NULL, KEY_TOP, "share of the experts on rank 0 with placement: balance, 0: estimated"},
    {"cluster.placement_file", ALL | R, KEY_TEXT, AT(cluster.placement_file), NULL, NULL, 0, 0, NULL, KEY_TOP, "JSON with the rank of every expert, for placement: file"},
    {"cluster.coordinator_experts", ALL | R, KEY_BOOL, AT(cluster.coordinator_experts), "true", NULL, 0, 0, NULL, KEY_TOP, "rank 0 holds experts too"},
    {"cluster.deadline_seconds", ALL | R, KEY_REAL, AT(cluster.deadline_seconds), "30", NULL, 0.1, 86400, NULL, KEY_TOP, "a rank that is silent for longer is lost"},
    {"cluster.threads", ALL | R, KEY_INT, AT(cluster.threads), "1", NULL, 1, 1024, NULL, KEY_TOP, "threads per rank"},
    {"cluster.kernels", ALL | R, KEY_ENUM, AT(cluster.kernels), "auto", NULL, 0, 0, kernel_names, KEY_TOP, "the highest level of instructions of the matrix products; auto: what the processor has"},
    {"cluster.micro_batches", ALL | R, KEY_INT, AT(cluster.micro_batches), "2", NULL, 1, 2, NULL, KEY_TOP, "2: attention of one half overlaps the experts of the other"},
    {"cluster.coordinators", I | B | P, KEY_INT, AT(cluster.coordinators), "1", NULL, 1, 64, NULL, KEY_TOP, "ranks that run attention, each for its own sequences; infer and bench only"},
    {"cluster.tensor_parallel", E | I | B | P, KEY_BOOL, AT(cluster.tensor_parallel), "false", NULL, 0, 0, NULL, KEY_TOP, "attention is parted by heads and the head by words among all ranks; eval, infer and bench only"},
    {"cluster.shared_memory", ALL | R, KEY_ENUM, AT(cluster.shared_memory), "auto", NULL, 0, 0, shared_memory_names, KEY_TOP, "auto: ranks of one host hand rows over through shared memory"},
    {"cluster.exchange_rows", ALL | R, KEY_ENUM, AT(cluster.exchange_rows), "f32", NULL, 0, 0, exchange_rows_names, KEY_TOP, "rows on their way to experts; bf16: half the bytes, and results depend on the placement"},
    {"cluster.exchange_answers", ALL | R, KEY_ENUM, AT(cluster.exchange_answers), "exact", NULL, 0, 0, exchange_answers_names, KEY_TOP, "sums on their way back; not exact: fewer bytes, and results depend on the placement"},

    {"limits.memory_mib", ALL, KEY_INT, AT(limits.memory_mib), "0", NULL, 0, 1 << 30, NULL, KEY_TOP, "memory of one rank in MiB, 0: what the machine has"},
    {"limits.batch_rows", ALL, KEY_INT, AT(limits.batch_rows), "512", NULL, 1, 1 << 20, NULL, 0, "most token rows in one step"},
    {"limits.prefill_chunk", I | P, KEY_INT, AT(limits.prefill_chunk), "0", NULL, 0, 1 << 20, NULL, 0, "most rows of prompts in a step in which a sequence decodes, 0: what is left of batch_rows"},
    {"limits.sessions", ALL, KEY_INT, AT(limits.sessions), "16", NULL, 1, 1 << 16, NULL, KEY_ASIDE, "most sequences in flight"},
    {"limits.positions", ALL, KEY_INT, AT(limits.positions), "0", NULL, 0, 1 << 24, NULL, 0, "most positions of one sequence, 0: what the job needs, at most the model's"},

    {"precision.experts", ALL, KEY_ENUM, AT(precision.experts), "stored", NULL, 0, 0, precision_names, 0, "format of the FFNs' weights; stored: the one that keeps every value"},
    {"precision.attention", ALL, KEY_ENUM, AT(precision.attention), "stored", NULL, 0, 0, precision_names, 0, "of the projections of attention"},
    {"precision.head", ALL, KEY_ENUM, AT(precision.head), "stored", NULL, 0, 0, precision_names, 0, "of the matrix behind the last layer"},
    {"precision.router", E | I | B | P, KEY_ENUM, AT(precision.router), "f32", NULL, 0, 0, precision_names, 0, "of the routers"},
    {"precision.kv", E | I | B | P, KEY_ENUM, AT(precision.kv), "f32", NULL, 0, 0, kv_names, 0, "of the cache of keys and values"},
    {"precision.activations", E | I | B | P, KEY_ENUM, AT(precision.activations), "f32", NULL, 0, 0, activation_names, 0, "what goes into products with bf16 weights; bf16: faster where the processor has AVX-512 BF16 or AMX, results depend on which"},

    {"method", F, KEY_ENUM, AT(factorize.method), "default", NULL, 0, 0, method_names, 0, "default: the best we have measured; factorllm: the paper's choices"},
    {"experts", F, KEY_INT, AT(factorize.experts), "32", "4", 1, 4096, NULL, 0, "routed experts of a layer, N"},
    {"active", F, KEY_NUMBERS, AT(factorize.active), "16", "2", 1, 4096, NULL, KEY_WHOLE, "active experts of a token, k"},
    {"shared", F, KEY_NUMBERS, AT(factorize.shared), "0", NULL, 0, 0.95, NULL, 0, "share of all neurons that is always active"},
    {"grouping", F, KEY_ENUM, AT(factorize.grouping), "predicted", "contiguous", 0, 0, grouping_names, 0, "how neurons come together in experts"},
    {"budget", F, KEY_ENUM, AT(factorize.budget), "kl", "uniform", 0, 0, budget_names, 0, "active experts of a layer: as `active` says, or from the KL of the output, with the same total; kl_shared: shared neurons, too"},
    {"budget_tokens", F, KEY_INT, AT(factorize.budget_tokens), "2048", NULL, 16, 1 << 24, NULL, 0, "of the calibration text, on which that KL is measured"},
    {"scale", F, KEY_ENUM, AT(factorize.scale), "one", "paper", 0, 0, scale_names, 0, "of active experts; paper: N/k"},
    {"compensation", F, KEY_ENUM, AT(factorize.compensation), "none", "none", 0, 0, compensation_names, 0, "mean: inactive experts give their mean output"},
    {"calibration.file", F, KEY_TEXT, AT(factorize.calibration.file), NULL, NULL, 0, 0, NULL, 0, "text for grouping, shared neurons, compensation, static control"},
    {"calibration.bytes", F, KEY_INT, AT(factorize.calibration.bytes), "0", NULL, 0, LARGE, NULL, 0, "first bytes of the file, 0: all"},
    {"calibration.sample_tokens", F, KEY_INT, AT(factorize.calibration.sample_tokens), "0", NULL, 0, LARGE, NULL, 0, "or tokens sampled from the model itself"},
    {"calibration.sample_seed", F, KEY_INT, AT(factorize.calibration.sample_seed), "1", NULL, 0, SEED_MAX, NULL, 0, "of the sampling"},
    {"calibration.profile_tokens", F, KEY_INT, AT(factorize.profile_tokens), "8192", NULL, 64, 1 << 24, NULL, 0, "tokens of the text, evenly spread, of which groupings see every neuron's value"},
    {"calibration.profile_mib", F, KEY_INT, AT(factorize.profile_mib), "1024", NULL, 1, 1 << 30, NULL, 0, "and fewer where those values would take more memory, in MiB, all ranks together"},
    {"shard_mib", F, KEY_INT, AT(factorize.shard_mib), "4096", NULL, 0, 1 << 30, NULL, 0, "size of the weight files in MiB, 0: one file"},

    {"method", T, KEY_ENUM, AT(finetune.method), "default", NULL, 0, 0, method_names, 0, "default: the best we have measured; factorllm: the paper's choices"},
    {"labels", T, KEY_ENUM, AT(finetune.labels), "energy", "paper", 0, 0, labels_names, 0, "which experts a token should have chosen"},
    {"loss", T, KEY_ENUM, AT(finetune.loss), "regression", "paper", 0, 0, loss_names, 0, "of the router against the labels"},
    {"token_weights", T, KEY_ENUM, AT(finetune.token_weights), "length", "even", 0, 0, token_weights_names, 0, "what a token counts in the loss and in start: ridge: all the same; by the length of its FFN's output, or by its square"},
    {"select", T, KEY_ENUM, AT(finetune.select), "threshold", "top_k", 0, 0, select_names, 0, "how the router chooses; threshold: k in the mean"},
    {"router", T, KEY_ENUM, AT(finetune.router), "linear", "linear", 0, 0, router_names, 0, "low_rank: W V h + b; bottleneck: W silu(V h) + b; gate: W (silu(V h) * U h) + b"},
    {"router_rank", T, KEY_INT, AT(finetune.router_rank), "16", NULL, 1, 1 << 16, NULL, 0, "rows of V, of all but the linear one"},
    {"start", T, KEY_ENUM, AT(finetune.start), "ridge", "random", 0, 0, start_names, KEY_STAGE1, "ridge: least squares of the labels on fit_tokens; current: the model's router"},
    {"ridge", T, KEY_REAL, AT(finetune.ridge), "0.01", NULL, 1e-9, 1e3, NULL, 0, "of least squares, over the mean variance of the inputs"},
    {"compensation", T, KEY_ENUM, AT(finetune.compensation), "constant", "model", 0, 0, refit_names, KEY_STAGE1, "after training: unselected: means over tokens that do not select the expert; constant: one vector a layer (stage 2: in place of means)"},
    {"compensation_rank", T, KEY_INT, AT(finetune.compensation_rank), "4", "0", 0, 1 << 16, NULL, KEY_STAGE1, "of a term B A h + d for what is still missing, fitted after training; stage 2 adds and trains it"},
    {"scale", T, KEY_ENUM, AT(finetune.refit_scale), "model", "model", 0, 0, refit_scale_names, 0, "of active experts; fitted: least squares per layer, after training"},
    {"fit_tokens", T, KEY_INT, AT(finetune.fit_tokens), "8192", NULL, 1, 1 << 24, NULL, 0, "of the text, for start: ridge and for what is fitted after training"},
    {"text.file", T, KEY_TEXT, AT(finetune.text.file), NULL, NULL, 0, 0, NULL, 0, "text to learn from"},
    {"text.bytes", T, KEY_INT, AT(finetune.text.bytes), "0", NULL, 0, LARGE, NULL, 0, "first bytes of the file, 0: all"},
    {"text.sample_tokens", T, KEY_INT, AT(finetune.text.sample_tokens), "0", NULL, 0, LARGE, NULL, 0, "or tokens sampled from the model itself"},
    {"text.sample_seed", T, KEY_INT, AT(finetune.text.sample_seed), "1", NULL, 0, SEED_MAX, NULL, 0, "of the sampling"},
    {"tokens", T, KEY_INT, AT(finetune.tokens), "200000", NULL, 1, LARGE, NULL, 0, "budget, counted over all passes"},
    {"sequence", T, KEY_INT, AT(finetune.sequence), "0", NULL, 0, 1 << 24, NULL, 0, "tokens of one window, 0: 2048, in stage 2 512, or the model's positions if it has fewer"},
    {"batch_tokens", T, KEY_INT, AT(finetune.batch_tokens), "0", NULL, 0, 1 << 24, NULL, 0, "tokens of one optimizer step, 0: 512, in stage 2 2048, for more than a million tokens 4096"},
    {"learning_rate", T, KEY_REAL, AT(finetune.learning_rate), "0", NULL, 0, 10, NULL, 0, "of AdamW, after the warm-up, 0: 0.01, in stage 2 0.004, for more than a million tokens 0.002"},
    {"final_learning_rate_ratio", T, KEY_REAL, AT(finetune.final_learning_rate_ratio), "0.1", NULL, 0, 1, NULL, 0, "learning rate at the end over the one above"},
    {"weight_decay", T, KEY_REAL, AT(finetune.weight_decay), "0.01", NULL, 0, 10, NULL, 0, "of AdamW"},
    {"beta1", T, KEY_REAL, AT(finetune.beta1), "0.9", NULL, 0, 0.99999, NULL, 0, "of AdamW"},
    {"beta2", T, KEY_REAL, AT(finetune.beta2), "0.95", NULL, 0, 0.999999, NULL, 0, "of AdamW"},
    {"clip", T, KEY_REAL, AT(finetune.clip), "1", NULL, 0, 1e6, NULL, 0, "largest norm of a gradient, 0: no clipping"},
    {"warmup", T, KEY_REAL, AT(finetune.warmup), "0.05", NULL, 0, 1, NULL, 0, "share of the steps"},
    {"checkpoint_tokens", T, KEY_INT, AT(finetune.checkpoint_tokens), "0", NULL, 0, LARGE, NULL, KEY_ASIDE, "tokens between checkpoints, 0: by time only"},
    {"checkpoint_seconds", T, KEY_REAL, AT(finetune.checkpoint_seconds), "300", NULL, 0, 1e7, NULL, KEY_ASIDE, "seconds between checkpoints, 0: by tokens only"},
    {"version", T, KEY_TEXT, AT(finetune.version), NULL, NULL, 0, 0, NULL, KEY_ASIDE, "name of the router, default: v1, v2, ..., the next free"},
    {"stage", T, KEY_INT, AT(stage2.stage), "1", NULL, 1, 2, NULL, 0, "1: layer by layer, from labels; 2: end to end, from the dense model's logits"},
    {"from", T, KEY_TEXT, AT(stage2.from), NULL, NULL, 0, 0, NULL, 0, "stage 2: router version to start from, default: the current one"},
    {"train", T, KEY_LIST, AT(stage2.train), "[router, compensation]", NULL, 0, 0, train_names, 0, "stage 2: what is trained; norms, experts and lora (updates of low rank of experts) make another model, OUTPUT/model"},
    {"lm_loss", T, KEY_REAL, AT(stage2.lm_loss), "0.3", NULL, 0, 1e3, NULL, 0, "stage 2: weight of the next token's -log p beside the KL divergence"},
    {"budget", T, KEY_REAL, AT(stage2.budget), "1", NULL, 0, 1e6, NULL, 0, "stage 2 with select: threshold: weight of 100 (f - f by design)^2"},
    {"load_balance", T, KEY_REAL, AT(stage2.load_balance), "0", NULL, 0, 1e6, NULL, 0, "stage 2: weight of the mean of (load / mean load - 1)^2"},
    {"balance_over", T, KEY_ENUM, AT(stage2.balance_over), "expert", NULL, 0, 0, balance_names, 0, "what load_balance looks at: each expert, or what each rank holds"},
    {"gate_temperature", T, KEY_REAL, AT(stage2.gate_temperature), "0.25", NULL, 0.001, 1e3, NULL, 0, "stage 2: a gate has the gradient of sigmoid((z - threshold) / (this * std z))"},
    {"final_gate_temperature_ratio", T, KEY_REAL, AT(stage2.final_gate_temperature_ratio), "0.3", NULL, 0.001, 1e3, NULL, 0, "stage 2: gate_temperature at the end over the one above, which it leaves linearly"},
    {"compensation_rate", T, KEY_REAL, AT(stage2.compensation_rate), "0.5", NULL, 0, 1e3, NULL, 0, "stage 2: learning rate of the means and of d over learning_rate; scales learn at learning_rate"},
    {"expert_rate", T, KEY_REAL, AT(stage2.expert_rate), "1", NULL, 0, 1e3, NULL, 0, "stage 2: learning rate of experts and lora over learning_rate"},
    {"lora_rank", T, KEY_INT, AT(stage2.lora_rank), "4", NULL, 1, 4096, NULL, 0, "stage 2: rank of the updates of each matrix of an expert, with train: lora"},

    {"shard_mib", C, KEY_INT, AT(convert.shard_mib), "0", NULL, 0, 1 << 30, NULL, 0, "size of the weight files in MiB, 0: one file"},

    {"text.file", E, KEY_TEXT, AT(eval.text.file), NULL, NULL, 0, 0, NULL, 0, "text for perplexity and next-token accuracy"},
    {"text.bytes", E, KEY_INT, AT(eval.text.bytes), "0", NULL, 0, LARGE, NULL, 0, "first bytes of the file, 0: all"},
    {"text.sample_tokens", E, KEY_INT, AT(eval.text.sample_tokens), "0", NULL, 0, LARGE, NULL, 0, "or tokens sampled from the model itself"},
    {"text.sample_seed", E, KEY_INT, AT(eval.text.sample_seed), "1", NULL, 0, SEED_MAX, NULL, 0, "of the sampling"},
    {"window", E, KEY_INT, AT(eval.window), "0", NULL, 0, 1 << 24, NULL, 0, "tokens of one window, 0: 2048, or the model's positions if it has fewer"},
    {"variants", E, KEY_LIST, AT(eval.variants), "[dense, static, random, router, neurons]", NULL, 0, 0, variant_names, KEY_VARIANTS, "what is measured side by side; the two oracles, which are slow with many experts, where they are asked for"},
    {"baseline", E, KEY_TEXT, AT(eval.baseline), NULL, NULL, 0, 0, NULL, 0, "a variant that all others are held against, beside dense"},
    {"minimal_pairs", E, KEY_LIST, AT(eval.minimal_pairs), NULL, NULL, 0, 0, NULL, 0, "JSONL files of sentence pairs"},
    {"multiple_choice", E, KEY_LIST, AT(eval.multiple_choice), NULL, NULL, 0, 0, NULL, 0, "JSONL files of questions with choices"},
    {"last_word", E, KEY_LIST, AT(eval.last_word), NULL, NULL, 0, 0, NULL, 0, "JSONL files of contexts whose next word is the target"},
    {"domains", E, KEY_LIST, AT(eval.domains), NULL, NULL, 0, 0, NULL, KEY_MAP, "texts by name: which experts answer which, the knowledge map"},
    {"domain_tokens", E, KEY_INT, AT(eval.domain_tokens), "8192", NULL, 16, 1 << 24, NULL, 0, "first tokens of each of domains"},
    {"items", E, KEY_INT, AT(eval.items), "0", NULL, 0, LARGE, NULL, 0, "first items of each set in these files, 0: all"},
    {"compare_model", E, KEY_TEXT, AT(eval.compare_model), NULL, NULL, 0, 0, NULL, 0, "another model directory, or the earlier step of the pipeline that makes it, side by side"},
    {"compare_router", E, KEY_TEXT, AT(eval.compare_router), NULL, NULL, 0, 0, NULL, 0, "another router version of the model, side by side"},
    {"bootstrap", E, KEY_INT, AT(eval.bootstrap), "1000", NULL, 0, 1000000, NULL, 0, "resamples for confidence intervals, 0: none"},
    {"decode_batch", E, KEY_INT, AT(eval.decode_batch), "0", NULL, 0, 4096, NULL, 0, "score so many sequences in lockstep, as they would decode together; 0: whole prompts (the same figures, sooner, unless batch_experts is below 1)"},
    {"batch_experts", E, KEY_REAL, AT(eval.batch_experts), "1", NULL, 1e-3, 1, NULL, 0, "as in infer, for the variant router: what that costs is seen with decode_batch"},
    {"agreement_tokens", E, KEY_INT, AT(eval.agreement_tokens), "8192", NULL, 0, LARGE, NULL, 0, "first tokens on which routers are held against the oracle, which is slow with many experts; 0: not"},
    {"min_agreement", E, KEY_REAL, AT(eval.min_agreement), "-1", NULL, 0, 1, NULL, 0, "gate: least share of the oracle's experts that the router chooses"},
    {"max_drop", E, KEY_REAL, AT(eval.max_drop), "-1", NULL, 0, 1, NULL, 0, "gate: largest relative loss of accuracy, router against dense"},

    {"input", I, KEY_TEXT, AT(infer.input), NULL, NULL, 0, 0, NULL, KEY_REQUIRED, "JSONL with one request per line"},
    {"result", I, KEY_TEXT, AT(infer.result), NULL, NULL, 0, 0, NULL, 0, "JSONL of answers, default: OUTPUT/responses.jsonl"},
    {"max_tokens", I, KEY_INT, AT(infer.max_tokens), "128", NULL, 1, 1 << 24, NULL, 0, "of an answer, where a request does not say"},
    {"temperature", I, KEY_REAL, AT(infer.temperature), "0.8", NULL, 0, 100, NULL, 0, "0: greedy"},
    {"top_k", I, KEY_INT, AT(infer.top_k), "0", NULL, 0, 1 << 24, NULL, 0, "sample from the k likeliest tokens, 0: all"},
    {"top_p", I, KEY_REAL, AT(infer.top_p), "1", NULL, 1e-6, 1, NULL, 0, "sample from the likeliest tokens of this total probability"},
    {"min_p", I, KEY_REAL, AT(infer.min_p), "0", NULL, 0, 1, NULL, 0, "drop tokens below this share of the likeliest one's probability"},
    {"stop", I, KEY_LIST, AT(infer.stop), NULL, NULL, 0, 0, NULL, KEY_FREE, "texts that end an answer"},
    {"variant", I, KEY_ENUM, AT(infer.variant), "router", NULL, 0, 0, infer_variants, 0, "how tokens are routed"},
    {"ignore_eos", I, KEY_BOOL, AT(infer.ignore_eos), "false", NULL, 0, 0, NULL, 0, "go on behind the end of the text"},
    {"batch_experts", I, KEY_REAL, AT(infer.batch_experts), "1", NULL, 1e-3, 1, NULL, 0, "share of a layer's experts that a step without prompts may touch; below 1 an answer depends on what else is in the batch"},

    {"parts", B, KEY_LIST, AT(bench.parts), "[kernels, exchange, step, startup]", NULL, 0, 0, part_names, 0, "what is measured"},
    {"compare", B, KEY_LIST, AT(bench.compare), NULL, NULL, 0, 0, NULL, 0, "directories that take turns with model: factorized, or in other formats"},
    {"shares", B, KEY_LIST, AT(bench.shares), NULL, NULL, 0, 0, NULL, 0, "shares of the experts that are active, none: as each model says"},
    {"formats", B, KEY_LIST, AT(bench.formats), "[f32, bf16, q8, q4]", NULL, 0, 0, bench_formats, 0, "of weights, for kernels"},
    {"rows", B, KEY_LIST, AT(bench.rows), "[1, 8, 32, 512]", NULL, 0, 0, NULL, 0, "rows of a product, for kernels"},
    {"batch_experts", B, KEY_REAL, AT(bench.batch_experts), "1", NULL, 1e-3, 1, NULL, 0, "decoding batches of factorized models once more, held to this share of the experts (as infer can); 1: not"},
    {"batches", B, KEY_LIST, AT(bench.batches), "[1, 8, 32]", NULL, 0, 0, NULL, 0, "sequences that decode together"},
    {"prefill", B, KEY_INT, AT(bench.prefill), "512", NULL, 0, 1 << 20, NULL, 0, "tokens of a prompt, 0: no prefill"},
    {"decode_tokens", B, KEY_INT, AT(bench.decode_tokens), "16", NULL, 0, 1 << 20, NULL, 0, "tokens that a sequence decodes in a round, 0: no decode"},
    {"context", B, KEY_INT, AT(bench.context), "0", NULL, 0, 1 << 24, NULL, 0, "positions before those of a decode"},
    {"rounds", B, KEY_INT, AT(bench.rounds), "5", NULL, 1, 1000, NULL, 0, "in which the sides take turns; figures are medians over them"},
    {"seconds", B, KEY_REAL, AT(bench.seconds), "0.2", NULL, 0.001, 60, NULL, 0, "least time of one measurement of a product"},
    {"rivals", B, KEY_BOOL, AT(bench.rivals), "true", NULL, 0, 0, NULL, 0, "other libraries' products beside ours, where they are installed"},

    {"inputs", R, KEY_LIST, AT(report.inputs), NULL, NULL, 0, 0, NULL, 0, "output directories of jobs that are shown in full; in a pipeline: the steps before"},
    {"rows", R, KEY_LIST, AT(report.rows), NULL, NULL, 0, 0, NULL, KEY_MAP | KEY_LISTS, "the ladder: of every row its evals' directories, as many as seeds; DIRECTORY#VARIANT: that one, else the router"},
    {"shares", R, KEY_LIST, AT(report.shares), NULL, NULL, 0, 0, NULL, 0, "f of the ladder's columns: every run goes to the one nearest to its measured f"},
    {"about", R, KEY_TEXT, AT(report.about), NULL, NULL, 0, 0, NULL, 0, "a paragraph at the top of the page"},
    {"title", R, KEY_TEXT, AT(report.title), NULL, NULL, 0, 0, NULL, 0, "of the page"},
};
/* clang-format on */

enum { KEYS = sizeof(table) / sizeof(table[0]) };
_Static_assert((int)KEYS <= (int)KEYS_MAX, "struct draft has a line per row");
_Static_assert(sizeof(kind_names) / sizeof(kind_names[0]) == JOB_KINDS + 1, "a name per kind");
_Static_assert(sizeof(grouping_names) / sizeof(grouping_names[0]) == GROUPINGS + 1, "a name per grouping");
_Static_assert(sizeof(part_names) / sizeof(part_names[0]) == PARTS + 1, "a name per part");
_Static_assert(sizeof(variant_names) / sizeof(variant_names[0]) == VARIANTS + 1, "a name per variant");
_Static_assert(sizeof(infer_variants) / sizeof(infer_variants[0]) == VARIANTS_INFER + 1, "the first of them");

int key_count(void)
{
    return KEYS;
}

const struct key *key_row(int i)
{
    return &table[i];
}

const char *spec_needs_text(const struct spec *s)
{
    switch (s->factorize.grouping) {
    case GROUP_COACTIVATION:
    case GROUP_IMPORTANCE:
    case GROUP_PREDICTED:
        return "grouping";
    default:
        return s->factorize.budget != BUDGET_UNIFORM          ? "budget"
               : s->factorize.compensation == COMPENSATE_MEAN ? "compensation"
               : spec_largest(&s->factorize.shared) > 0       ? "shared"
                                                              : NULL;
    }
}

double spec_number(const struct spec_list *l, int layer)
{
    BUG_ON(l->n < 1 || layer < 0 || (l->n > 1 && layer >= l->n));
    return strtod(l->items[l->n > 1 ? layer : 0], NULL);
}

double spec_mean(const struct spec_list *l)
{
    double sum = 0;

    for (int i = 0; i < l->n; i++) sum += spec_number(l, i);
    return sum / l->n;
}

double spec_largest(const struct spec_list *l)
{
    double most = 0;

    for (int i = 0; i < l->n; i++)
        if (spec_number(l, i) > most) most = spec_number(l, i);
    return most;
}

const char *spec_kind_name(enum job_kind k)
{
    return kind_names[k];
}

const char *spec_variant_name(enum spec_variant v)
{
    return variant_names[v];
}

struct spec_variant_item spec_variant_of(const char *item)
{
    size_t n = strcspn(item, "@");
    const char *at = item[n] ? item + n + 1 : NULL;
    int v = 0;

    while (v < VARIANTS && (strncmp(item, variant_names[v], n) != 0 || variant_names[v][n])) v++;
    BUG_ON(v == VARIANTS); /* put_list() let nothing else in */
    bool router = v == VARIANT_ROUTER;
    return (struct spec_variant_item){(enum spec_variant)v, router ? at : NULL, router ? NULL : at};
}

const char *spec_grouping_name(enum spec_grouping g)
{
    return grouping_names[g];
}

const char *spec_part_name(enum spec_part p)
{
    return part_names[p];
}

bool spec_trains(const struct spec *s, enum spec_train what)
{
    for (int i = 0; i < s->stage2.train.n; i++)
        if (!strcmp(s->stage2.train.items[i], train_names[what])) return true;
    return false;
}

bool spec_trains_experts(const struct spec *s)
{
    return spec_trains(s, TRAIN_EXPERTS) || spec_trains(s, TRAIN_LORA);
}

bool spec_adapts(const struct spec *s)
{
    return s->kind == JOB_FINETUNE && s->stage2.stage == 2 && (spec_trains(s, TRAIN_NORMS) || spec_trains_experts(s));
}

bool spec_makes_model(const struct spec *s)
{
    return s->kind == JOB_FACTORIZE || s->kind == JOB_CONVERT || spec_adapts(s);
}

const char *spec_word(const struct spec *s, const char *name)
{
    const struct key *k = key_row(key_find(name, s->kind));

    BUG_ON(k->type != KEY_ENUM);
    return k->set[*key_int(s, k)];
}

const char *spec_train_name(enum spec_train what)
{
    return train_names[what];
}

int spec_kind_find(const char *name)
{
    for (int i = 0; i < JOB_KINDS; i++)
        if (!strcmp(kind_names[i], name)) return i;
    return -1;
}

int key_find(const char *name, enum job_kind kind)
{
    for (int i = 0; i < KEYS; i++)
        if (table[i].kinds >> kind & 1 && !strcmp(table[i].name, name)) return i;
    return -1;
}

bool key_is_section(const char *name, enum job_kind kind)
{
    size_t n = strlen(name);

    for (int i = 0; i < KEYS; i++)
        if (table[i].kinds >> kind & 1 && !strncmp(table[i].name, name, n) && table[i].name[n] == '.') return true;
    return false;
}

void key_suggest(struct str *out, const char *name, enum job_kind kind)
{
    const char *names[KEYS + 2];
    int n = 0;

    for (int i = 0; i < KEYS; i++)
        if (table[i].kinds >> kind & 1) names[n++] = table[i].name;
    names[n++] = "kind";
    if (kind == JOB_PIPELINE) names[n++] = "steps";
    for (int k = 0; k < JOB_KINDS; k++)
        if (k != (int)kind && (key_find(name, (enum job_kind)k) >= 0 || key_is_section(name, (enum job_kind)k) ||
                               (k == JOB_PIPELINE && !strcmp(name, "steps")))) {
            str_addf(out, "; '%s' is a key of %s jobs", name, kind_names[k]);
            return;
        }
    const char *near = strlen(name) < 60 ? str_nearest(name, names, n) : NULL;
    if (near) str_addf(out, "; did you mean '%s'?", near);
}
