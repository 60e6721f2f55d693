#!/bin/sh
# The figures of one model, as a table: what is kept by several factorizations, before and after fine-tuning their routers, beside the controls.
#
#   scripts/figures.sh MODEL TRAIN_TEXT VALID_TEXT OUT
#
# MODEL is a dense directory.  Means and groupings come from the first CALIBRATE bytes of TRAIN_TEXT, the routers learn TOKENS tokens from its first
# TRAIN bytes, everything is measured on the first VALID bytes of VALID_TEXT.  OUT/SETTING/result.json keep all numbers; run again after an interruption, it
# repeats no step that ended well.
# A cell is perplexity relative to the dense model's (x 1.00 is perfect) and next-token accuracy in percent of the dense model's (100 is perfect):
#   untrained  the router at its random start, after one step with a learning rate of 1e-9
#   router     the same after fine-tuning
#   static     no routing: the share f of the neurons that matters most, the same for every token; the rest gives its mean (left out if compensation: none)
#   random     experts by lot
#   oracle     the best experts of every token, chosen by looking at the dense output
# f is measured: the share of the FFN's neurons that the trained router makes active.  Static, random and oracle always use active / experts; a router that
# selects by threshold may come out below or above that, and then its figures are not like for like.
#
# Environment: FACTORLLM, the program; RANKS > 1 uses mpirun; CALIBRATE, TRAIN, VALID, TOKENS as above; SETTINGS, lines as below; FINETUNE, further keys of
# the training, such as "select: top_k".
set -eu
[ $# = 4 ] || { echo "usage: $0 MODEL TRAIN_TEXT VALID_TEXT OUT" >&2; exit 2; }
model=$1 train=$2 valid=$3 out=$4
: "${FACTORLLM:=build/factorllm}" "${RANKS:=1}" "${CALIBRATE:=60000}" "${TRAIN:=300000}" "${VALID:=20000}" "${TOKENS:=60000}" "${FINETUNE:=}"

# Name, method, experts, active, further keys of the factorization (or -).
: "${SETTINGS:=1R4E2K-factorllm   factorllm  4  2  -
               1R4E1K-factorllm   factorllm  4  1  -
               1R4E2K-default     default    4  2  -
               1R4E1K-default     default    4  1  -
               1R32E16K-default   default   32 16  -
               1R32E8K-default    default   32  8  -}"
# The same without compensation: a line such as "1R32E16K-plain default 32 16 compensation: none".

. "$(dirname "$0")/env.sh"
mkdir -p "$out"

# $1: a job file.  What a job says on its way goes to a file beside it.
job() {
    if [ "$RANKS" -gt 1 ]; then set -- mpirun -n "$RANKS" "$FACTORLLM" run "$1"; else set -- "$FACTORLLM" run "$1"; fi
    "$@" </dev/null >"$out/last.log" 2>&1 || { rc=$?; cat "$out/last.log" >&2; exit $rc; }
}

# The dense model, once.
printf 'kind: eval\nmodel: %s\noutput: %s\ntext: {file: %s, bytes: %s}\nvariants: [dense]\nbootstrap: 0\n' \
    "$model" "$out/dense" "$valid" "$VALID" >"$out/dense.yaml"
job "$out/dense.yaml"
jq -r '"dense: perplexity \(.eval.perplexity.dense), next-token accuracy \(.eval.accuracy.dense), \(.eval.text.tokens) tokens"' "$out/dense/result.json"

printf '%-20s %6s %17s %17s %17s %17s %17s\n' setting f untrained router static random oracle
echo "$SETTINGS" | while read -r name method experts active keys; do
    [ "$name" ] || continue
    [ "$keys" = - ] && keys=
    cat >"$out/$name.yaml" <<END
kind: pipeline
model: $model
output: $out/$name
steps:
  - {kind: factorize, method: $method, experts: $experts, active: $active, calibration: {file: $train, bytes: $CALIBRATE}${keys:+, $keys}}
  - {kind: finetune, name: start, method: $method, text: {file: $train, bytes: $TRAIN}, tokens: 512, batch_tokens: 512, learning_rate: 1.0e-9,
     version: start${FINETUNE:+, $FINETUNE}}
  - {kind: eval, name: before, text: {file: $valid, bytes: $VALID}, variants: [router], bootstrap: 0}
  - {kind: finetune, name: train, method: $method, text: {file: $train, bytes: $TRAIN}, tokens: $TOKENS, version: trained${FINETUNE:+, $FINETUNE}}
  - {kind: eval, name: after, text: {file: $valid, bytes: $VALID}, variants: [static, random, router, oracle], bootstrap: 0}
END
    job "$out/$name.yaml"
    # Numbers are rounded by printf of awk, as jq has none.
    jq -r --arg name "$name" --slurpfile d "$out/dense/result.json" '
        def cell(s; v): s.perplexity[v] / $d[0].eval.perplexity.dense, 100 * s.accuracy[v] / $d[0].eval.accuracy.dense;
        [$name, .after.active_share.router, cell(.before; "router"), cell(.after; "router"), cell(.after; "static"), cell(.after; "random"),
         cell(.after; "oracle")] | join(" ")' "$out/$name/result.json" |
        awk '{ printf "%-20s %6.3f", $1, $2; for (i = 3; i < NF; i += 2) printf " x %8.3f %6.1f", $i, $(i + 1); print "" }'
done
