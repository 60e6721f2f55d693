#include "cli/manual.h"

#include <string.h>

const char *manual_head(void)
{
    return "factorllm: factorizes the feed-forward networks of a dense LLaMA-type model into experts, trains the\n"
           "routers that choose among them, and runs the result over the ranks of an MPI job.\n"
           "\n"
           "usage: factorllm COMMAND ...\n"
           "       mpirun -n RANKS factorllm run JOB.yaml\n";
}

const char *manual_tail(void)
{
    return "\nA job is a YAML file; its key `kind` says what it does:\n"
           "  factorize   cut every FFN of a dense model into experts\n"
           "  finetune    train the routers, with the dense model as teacher\n"
           "  convert     pack the weights for the kernels, quantized on request\n"
           "  eval        what is kept of perplexity and accuracy, beside its controls\n"
           "  infer       answer a file of prompts\n"
           "  report      set all that was found on one page of HTML\n"
           "  bench       measure kernels, exchange, whole steps and start-up\n"
           "  pipeline    several of these in one launch\n"
           "\n"
           "Begin with\n"
           "  factorllm run configs/demo.yaml          all of it, on the model that comes with the program\n"
           "  factorllm help pipeline                  what such a file may say\n"
           "\n"
           "factorllm --version prints the version; every command takes --help.\n"
           "\n"
           "Exit codes: 0 done; 2 job file or command line; 3 cannot read or write; 4 malformed file; 5 does not fit;\n"
           "6 a rank was lost; 7 an evaluation gate was not passed; 75 stopped early, run it again to go on.\n";
}

static const char *const run_page =
    "usage: factorllm run JOB.yaml [--set key=value]... [--quiet]\n"
    "\n"
    "Runs the job that JOB.yaml describes.  Under mpirun or srun the experts are spread over the ranks; without,\n"
    "everything happens in this process.  The results are the same bits for any number of ranks.\n"
    "\n"
    "  --set key=value   as if the file said so; maps inside maps are joined by dots, lists are written a,b,\n"
    "                    and in a pipeline STEP.key reaches a step.  May be repeated.\n"
    "  --quiet           no progress, only warnings and errors\n"
    "\n"
    "SIGUSR1 asks it to finish the step and leave with 75; the same command goes on from there.\n"
    "\n"
    "Examples\n"
    "  factorllm run configs/demo.yaml\n"
    "  mpirun -n 3 factorllm run configs/demo.yaml --set cluster.threads=2 --set infer.max_tokens=20\n";

static const char *const plan_page =
    "usage: factorllm plan JOB.yaml [--set key=value]... [--ranks N]\n"
    "\n"
    "Prints what `run` would take and write: shapes, who holds which experts, memory of every rank, traffic per\n"
    "token, files.  Needs no MPI and loads no weights.  Refuses what `run` would refuse, with the same exit codes.\n"
    "\n"
    "  --ranks N         plan for N ranks (default 1).  With limits.memory_mib = 0 all of them are taken to share\n"
    "                    the memory of this machine; set it to the memory of one rank to plan for another one.\n"
    "  --set key=value   as for run\n"
    "\n"
    "Example\n"
    "  factorllm plan configs/demo.yaml --ranks 3 --set cluster.placement=round_robin\n";

static const char *const inspect_page =
    "usage: factorllm inspect DIR [--verify]\n"
    "\n"
    "Says in one screen what DIR is: a dense model, a factorized model with its routers, or the output of a job.\n"
    "\n"
    "  --verify          read every file of a model and of its routers, and compare it with the SHA256SUMS beside it,\n"
    "                    which jobs that make a model or a router write\n"
    "                    (opening a model looks at headers and sizes only); exit 4 and one line if one is not what it was\n"
    "\n"
    "Examples\n"
    "  factorllm inspect configs/models/quillan-6m\n"
    "  factorllm inspect runs/demo\n";

static const char *const bench_page =
    "usage: factorllm bench make-model DIR [--shape SHAPE] [--seed N] [--quiet]\n"
    "\n"
    "Makes DIR, a model with random weights in the Hugging Face format: it says nothing, but costs what a real one of\n"
    "its shape does.  The same shape and seed give the same bytes.  Measuring is a job: factorllm help bench.\n"
    "\n"
    "  --shape SHAPE     tinyllama (1.1B, the default) or quillan (the small model that ships), then key=value with\n"
    "                    commas: width, neurons, layers, heads, kv_heads, vocab, positions, tied (0 or 1),\n"
    "                    dtype (f32, f16, bf16); or the path of a config.json\n"
    "  --seed N          of the weights (default 1)\n"
    "  --quiet           no progress, only warnings and errors\n"
    "\n"
    "Examples\n"
    "  factorllm bench make-model runs/bench-data/dense\n"
    "  factorllm bench make-model /tmp/small --shape quillan,layers=2,dtype=f32\n";

static const char *const router_page =
    "usage: factorllm router list MODEL [--json]\n"
    "       factorllm router compare MODEL A B [--text FILE]... [--output DIR] [--set key=value]... [--json] [--quiet]\n"
    "       factorllm router promote MODEL VERSION [--json]\n"
    "       factorllm router rollback MODEL [--json]\n"
    "\n"
    "Every finetune job adds a version of the routers to its model (MODEL/routers/VERSION) and takes it into use.\n"
    "\n"
    "  list        a line per version: its parent, how it was trained and on how many tokens, f, what it keeps,\n"
    "              when it was made; * is the one in use.  ppl and kept are those of the last compare, and compare only\n"
    "              with those on the same text\n"
    "  compare     A against B, side by side on the same text: an eval job (factorllm help eval), alone or under mpirun;\n"
    "              differences are B - A with 95 % intervals of a paired bootstrap\n"
    "  promote     take a version into use\n"
    "  rollback    take the one into use that was in use before; again: the one before that\n"
    "\n"
    "promote and rollback replace one small file (MODEL/routers/current) in one step: a job that starts meanwhile\n"
    "sees the old or the new version, and a crash leaves one of them.  Running jobs keep what they opened.\n"
    "\n"
    "  --text FILE       compare: text to measure on, best one that no router has learned from; may be repeated.\n"
    "                    Without it the model writes 6000 tokens itself\n"
    "  --output DIR      compare: where the eval goes, default runs/routers-A-B\n"
    "  --set key=value   compare: any key of the eval, like minimal_pairs=pairs.jsonl (with several texts: text-1.key)\n"
    "  --quiet           compare: no progress\n"
    "  --json            for programs\n"
    "\n"
    "Examples\n"
    "  factorllm router list runs/factorize/model\n"
    "  factorllm router compare runs/factorize/model v1 v2 --text held-out.txt\n"
    "  factorllm router promote runs/factorize/model v2\n"
    "  factorllm router rollback runs/factorize/model\n";

static const char *const help_page = "usage: factorllm help [COMMAND|KIND]\n"
                                     "\n"
                                     "How to use a command, or every key that a kind of job may have.\n"
                                     "\n"
                                     "Examples\n"
                                     "  factorllm help run\n"
                                     "  factorllm help finetune\n";

const char *manual_command(const char *name)
{
    if (!strcmp(name, "run")) return run_page;
    if (!strcmp(name, "plan")) return plan_page;
    if (!strcmp(name, "inspect")) return inspect_page;
    if (!strcmp(name, "router")) return router_page;
    if (!strcmp(name, "bench")) return bench_page;
    return help_page;
}

const char *manual_kind(enum job_kind k)
{
    switch (k) {
    case JOB_FACTORIZE:
        return "kind: factorize    dense model directory -> OUTPUT/model, a factorized one; no weight is changed\n"
               "\n"
               "Example (configs/factorize.yaml)\n"
               "  kind: factorize\n"
               "  model: configs/models/quillan-6m\n"
               "  output: runs/factorize\n"
               "  experts: 32\n"
               "  active: 16\n"
               "  calibration: {sample_tokens: 12000, sample_seed: 1}\n";
    case JOB_FINETUNE:
        return "kind: finetune    trains the routers of a factorized model; the dense model is the teacher\n"
               "\n"
               "Example (configs/finetune.yaml)\n"
               "  kind: finetune\n"
               "  model: runs/factorize/model\n"
               "  output: runs/finetune\n"
               "  text: {sample_tokens: 24000, sample_seed: 2}\n"
               "  tokens: 48000\n";
    case JOB_CONVERT:
        return "kind: convert    a model directory -> OUTPUT/model, the same model with its weights packed as the kernels read "
               "them:\n"
               "mapped and used in place, so that opening it reads and copies nothing; quantized on request\n"
               "\n"
               "Example (configs/convert.yaml)\n"
               "  kind: convert\n"
               "  model: configs/models/quillan-6m\n"
               "  output: runs/convert\n"
               "  precision: {experts: q8, attention: q8, head: bf16}\n";
    case JOB_EVAL:
        return "kind: eval    perplexity, accuracy and routing of several variants of a model, side by side\n"
               "\n"
               "Example (configs/eval.yaml)\n"
               "  kind: eval\n"
               "  model: runs/factorize/model\n"
               "  output: runs/eval\n"
               "  text: {sample_tokens: 6000, sample_seed: 3}\n"
               "  bootstrap: 500\n";
    case JOB_INFER:
        return "kind: infer    a JSONL file of requests -> OUTPUT/responses.jsonl; finished rows survive an interruption\n"
               "\n"
               "Example (configs/infer.yaml)\n"
               "  kind: infer\n"
               "  model: runs/factorize/model\n"
               "  output: runs/infer\n"
               "  input: configs/prompts.jsonl\n"
               "  max_tokens: 40\n";
    case JOB_BENCH:
        return "kind: bench    how fast it is: ratios measured side by side in one run -> tables, OUTPUT/bench.csv and "
               "bench.jsonl\n"
               "\n"
               "`model` is one side, the directories in `compare` are the others; they take turns, a figure is the median over\n"
               "the rounds, and a side whose answers are not right gets no figure.  Models to measure on:\n"
               "factorllm bench make-model --help.  scripts/bench.sh makes them and runs all; scripts/plot_bench.sh draws.\n"
               "\n"
               "Example (configs/bench.yaml)\n"
               "  kind: bench\n"
               "  model: bench-data/dense\n"
               "  output: runs/bench\n"
               "  compare: [bench-data/e4, bench-data/e88]\n"
               "  shares: [0.5, 0.25]\n";
    case JOB_REPORT:
        return "kind: report    output directories of jobs -> OUTPUT/report.html, one page that needs no network\n"
               "\n"
               "What stands in their result.json, log.jsonl and bench.jsonl, as tables and drawings: the controls with their\n"
               "intervals, losses, loads of the experts, quality against f and against speed, the ladder of several runs.\n"
               "As the last step of a pipeline it shows the steps before it.  It needs no model, and runs in a second.\n"
               "\n"
               "Example (configs/report.yaml)\n"
               "  kind: report\n"
               "  output: runs/report\n"
               "  inputs: [runs/demo]\n";
    default:
        return "kind: pipeline    several jobs in one launch; the keys below hold for all steps\n"
               "\n"
               "`steps` is a list of jobs, each with its kind and keys and, if wanted, a name (default: the kind, then\n"
               "kind-2, ...).  A step writes to OUTPUT/NAME unless it says otherwise, and works on the pipeline's model\n"
               "until a factorize or convert step has made one, then on that.  A step that ended well is not done again.\n"
               "factorllm help factorize, finetune, convert, eval, infer: the keys of the steps.\n"
               "\n"
               "Example (configs/demo.yaml)\n"
               "  kind: pipeline\n"
               "  model: configs/models/quillan-6m\n"
               "  output: runs/demo\n"
               "  steps:\n"
               "    - kind: factorize\n"
               "      experts: 32\n"
               "      active: 16\n"
               "      calibration: {sample_tokens: 9000, sample_seed: 1}\n"
               "    - kind: finetune\n"
               "      text: {sample_tokens: 9000, sample_seed: 2}\n"
               "      tokens: 18000\n"
               "    - kind: eval\n"
               "      text: {sample_tokens: 6000, sample_seed: 3}\n"
               "    - kind: infer\n"
               "      input: configs/prompts.jsonl\n"
               "      max_tokens: 40\n";
    }
}
