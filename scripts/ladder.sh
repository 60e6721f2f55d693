#!/bin/bash
# The ladder: from the published factorization to ours one part at a time, for every f and seed, beside the controls.  Ends in one page, OUT/report/report.html.
#
#   MODEL=configs/models/quillan-6m TEXT=train.txt VALID=valid.txt OUT=runs/ladder scripts/ladder.sh build/factorllm
#
# Every (seed, f) is a pipeline, OUT/SEED-F.yaml; each of its jobs stands on the terminal with a line.  What ended well is not done again: run it again after
# an interruption, with more SEEDS or SHARES, or other BYTES to measure on (then what they change).  With other keys of training (TRAIN, TOKENS, TOKENS2,
# COMPENSATION, STAGE2) into another OUT: a router version that is there is not replaced, and the run ends saying so.  Needs nothing but the program.
#
#   SEEDS="1 2 3"  SHARES="0.5 0.25"   f = k / N
#   EXPERTS=32                         of the fine rows; COARSE=4 of the published ones (doubled where f is less than one of them)
#   CALIBRATE=60000                    first bytes of TEXT for groups, means and the static control
#   TRAIN=0                            first bytes of TEXT to train on, 0: all
#   TOKENS=20000  TOKENS2=300000       of stage 1, of stage 2; TOKENS2=0: no stage 2
#   COMPENSATION="compensation: constant, compensation_rank: 4"   of stage 1, from its row on: what stands for the experts that are not selected
#   STAGE2=""                          more keys of stage 2: "learning_rate: 0.002, gate_temperature: 0.5"
#   DEFAULTS=0                         1: a last row with all keys as the program has them, but for experts, active and tokens
#   EXPERT_TOKENS=0                    above 0: the published method once more with trained experts, on so many tokens
#   BYTES=60000                        first bytes of VALID that everything is measured on; ORACLE_BYTES=20000 for the slow oracles, 0: without them
#   THREADS=2  RANKS=1                 RANKS > 1 uses mpirun
set -euo pipefail
[ $# = 1 ] && [ "${MODEL:-}" ] && [ "${TEXT:-}" ] && [ "${VALID:-}" ] || { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
program=$1
: "${OUT:=runs/ladder}" "${SEEDS:=1 2 3}" "${SHARES:=0.5 0.25}" "${EXPERTS:=32}" "${COARSE:=4}" "${CALIBRATE:=60000}" "${TRAIN:=0}" "${TOKENS:=20000}" "${TOKENS2:=300000}"
: "${COMPENSATION:=compensation: constant, compensation_rank: 4}" "${STAGE2:=}" "${DEFAULTS:=0}" "${EXPERT_TOKENS:=0}" "${BYTES:=60000}" "${ORACLE_BYTES:=20000}" "${THREADS:=2}" "${RANKS:=1}"
. "$(dirname "$0")/env.sh"
mkdir -p "$OUT"

run() { if [ "$RANKS" -gt 1 ]; then mpirun -n "$RANKS" "$program" run "$@"; else "$program" run "$@"; fi; }
active() { awk -v n="$1" -v f="$2" 'BEGIN { k = int(n * f + 0.5); print k < 1 ? 1 : k }'; } # EXPERTS F

coarse_of() { # F: COARSE, doubled until an expert of them is no more than f
    local n=$COARSE
    while awk -v n="$n" -v f="$1" 'BEGIN { exit !(n * f < 0.999) }'; do n=$((2 * n)); done
    echo "$n"
}

# One (seed, f).  Models: paper, unscaled (coarse), and of fine experts random, coactivation, predicted, budget.
pipeline() { # SEED F
    local coarse
    coarse=$(coarse_of "$2")
    local text="text: {file: $TEXT, bytes: $TRAIN}" calibration="compensation: none, calibration: {file: $TEXT, bytes: $CALIBRATE}"
    local valid="text: {file: $VALID, bytes: $BYTES}, agreement_tokens: 0" few="text: {file: $VALID, bytes: $ORACLE_BYTES}, agreement_tokens: 0"
    local dir=$OUT/$1-$2 part="experts: $EXPERTS, active: $(active "$EXPERTS" "$2"), scale: one"
    local none="compensation: model, compensation_rank: 0, select: top_k" ours="labels: energy, loss: regression, start: ridge"
    local gram="labels: gram, loss: bce, start: random, $none"
    model() { echo "  - {kind: factorize, name: $1, model: $MODEL, $2, $calibration}"; }
    train() { echo "  - {kind: finetune, name: $1-$2, model: $dir/$1/model, version: $2, $text, $3}"; }
    measure() { echo "  - {kind: eval, name: $1-eval, model: $dir/$1/model, variants: [dense, $2], $valid}"; }
    cat <<YAML
kind: pipeline
model: $MODEL
output: $dir
seed: $1
cluster: {threads: $THREADS}
steps:
YAML
    model paper "method: factorllm, experts: $coarse, active: $(active "$coarse" "$2")"
    train paper router "method: factorllm, tokens: $TOKENS"
    [ "$EXPERT_TOKENS" = 0 ] || train paper experts "stage: 2, from: router, select: top_k, train: [experts], tokens: $EXPERT_TOKENS"
    measure paper "static, router@router, neurons"
    [ "$EXPERT_TOKENS" = 0 ] ||
        echo "  - {kind: eval, name: experts-eval, model: $dir/paper-experts/model, compare_model: $MODEL, variants: [dense, router@experts], $valid}"
    model unscaled "method: factorllm, experts: $coarse, active: $(active "$coarse" "$2"), scale: one"
    train unscaled router "method: factorllm, tokens: $TOKENS"
    measure unscaled router@router
    model random "grouping: random, budget: uniform, $part"
    train random gram "$gram, tokens: $TOKENS"
    measure random router@gram
    model coactivation "grouping: coactivation, budget: uniform, $part"
    train coactivation gram "$gram, tokens: $TOKENS"
    measure coactivation router@gram
    model predicted "grouping: predicted, budget: uniform, $part"
    train predicted gram "$gram, tokens: $TOKENS"
    train predicted energy "$ours, $none, tokens: $TOKENS"
    train predicted means "$ours, $COMPENSATION, select: top_k, tokens: $TOKENS"
    measure predicted "router@gram, router@energy, router@means"
    model budget "grouping: predicted, $part, budget: kl"
    train budget fixed "$ours, $COMPENSATION, select: top_k, tokens: $TOKENS"
    train budget threshold "$ours, $COMPENSATION, select: threshold, tokens: $TOKENS"
    [ "$TOKENS2" = 0 ] || train budget end "stage: 2, from: threshold, select: threshold, tokens: $TOKENS2${STAGE2:+, $STAGE2}"
    measure budget "random, router@fixed, router@threshold$([ "$TOKENS2" = 0 ] || echo ', router@end')"
    if [ "$DEFAULTS" = 1 ]; then
        echo "  - {kind: factorize, name: default, model: $MODEL, experts: $EXPERTS, active: $(active "$EXPERTS" "$2"), calibration: {file: $TEXT, bytes: $CALIBRATE}}"
        train default one "tokens: $TOKENS"
        [ "$TOKENS2" = 0 ] || train default two "stage: 2, from: one, tokens: $TOKENS2"
        measure default "$([ "$TOKENS2" = 0 ] && echo router@one || echo router@two)"
    fi
    [ "$ORACLE_BYTES" = 0 ] ||
        echo "  - {kind: eval, name: oracles, model: $dir/budget/model, variants: [dense, static, oracle, oracle_variable, neurons], $few}"
}

# A line a job: what the program says of a step, less its tables.
lines() { awk '/ -> / || /done before/ { print; fflush() }'; }

for seed in $SEEDS; do
    for f in $SHARES; do
        pipeline "$seed" "$f" >"$OUT/$seed-$f.yaml"
        run "$OUT/$seed-$f.yaml" 2>&1 | tee "$OUT/$seed-$f.log" | lines || { tail -n 5 "$OUT/$seed-$f.log" >&2; exit 1; }
    done
done

published="$COARSE experts"
for f in $SHARES; do
    n=$(coarse_of "$f")
    [ "$n" = "$COARSE" ] || published="$published ($n at f $f)"
done
row() { # LABEL EVAL VARIANT: the runs of a row, f after f
    local seed f runs=
    for f in $SHARES; do for seed in $SEEDS; do runs="$runs, \"$OUT/$seed-$f/$2#$3\""; done; done
    echo "  \"$1\": [${runs#, }]"
}
{
    cat <<YAML
kind: report
output: $OUT/report
title: "$(basename "$MODEL"): from the published factorization to ours, one part at a time"
about: "Frozen weights$([ "$EXPERT_TOKENS" = 0 ] || echo ", but for the row with trained experts ($EXPERT_TOKENS tokens)"). Stage 1: $TOKENS tokens, stage 2: $TOKENS2; measured on the first $BYTES bytes of $(basename "$VALID"), the oracles on $ORACLE_BYTES; seeds $SEEDS. Made by scripts/ladder.sh."
shares: [${SHARES// /, }]
rows:
YAML
    row "static: the same neurons, nothing of the others" paper-eval static
    row "random router, of $EXPERTS experts" budget-eval random
    [ "$EXPERT_TOKENS" = 0 ] || row "FactorLLM with trained experts, $TOKENS + $EXPERT_TOKENS tokens" experts-eval router@experts
    row "FactorLLM: $published, PA labels, × N/k, $TOKENS tokens" paper-eval router@router
    row "+ no × N/k" unscaled-eval router@router
    row "+ $EXPERTS experts at random, Gram sets" random-eval router@gram
    row "+ groups by co-activation" coactivation-eval router@gram
    row "+ groups that a router can predict" predicted-eval router@gram
    row "+ energy labels, regression, ridge start" predicted-eval router@energy
    row "+ $COMPENSATION" predicted-eval router@means
    row "+ k of every layer by KL" budget-eval router@fixed
    row "+ threshold" budget-eval router@threshold
    [ "$TOKENS2" = 0 ] || row "+ stage 2, end to end${STAGE2:+, $STAGE2}, $TOKENS + $TOKENS2 tokens" budget-eval router@end
    [ "$DEFAULTS" = 0 ] || row "all defaults of the program, $TOKENS$([ "$TOKENS2" = 0 ] || echo " + $TOKENS2") tokens" default-eval "$([ "$TOKENS2" = 0 ] && echo router@one || echo router@two)"
    if [ "$ORACLE_BYTES" != 0 ]; then
        row "oracle, fixed k" oracles oracle
        row "oracle, variable k" oracles oracle_variable
    fi
    row "ceiling: single neurons" paper-eval neurons
} >"$OUT/report.yaml"
"$program" run "$OUT/report.yaml"
cat "$OUT/report/ladder.md"
