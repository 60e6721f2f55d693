#!/bin/bash
# Ranks against threads on the same cores: launches of 2 ranks of 1 thread and of 1 rank of 2 threads take turns, ratio of the medians.
#
#   scripts/bench_ranks.sh PROGRAM [--set key=value]...        ROUNDS=5 MODEL=bench-data/e88-bf16 DENSE=bench-data/dense-bf16
#
# Every launch is a bench job of one round (its sides are checked before they are timed).  Experts are placed to balance the coordinator's own work.
set -eu
cd "$(dirname "$0")/.."
. scripts/env.sh
program=$1
shift
rounds=${ROUNDS:-5} model=${MODEL:-bench-data/e88-bf16} dense=${DENSE:-bench-data/dense-bf16}
out=runs/bench_ranks
rm -rf "$out"
mkdir -p "$out"
cat >"$out/job.yaml" <<YAML
kind: bench
model: $dense
compare: [$model]
output: $out/one
parts: [step]
rounds: 1
rivals: false
prefill: 256
batches: [1, 8, 32]
decode_tokens: 6
YAML
for ((i = 1; i <= rounds; i++)); do
    order="2 1"
    [ $((i % 2)) = 0 ] && order="1 2"
    for ranks in $order; do
        echo "bench_ranks: round $i of $rounds, $ranks rank(s)" >&2
        args="--set cluster.threads=$((3 - ranks)) --set output=$out/$ranks-$i"
        if [ "$ranks" = 2 ]; then
            mpirun -n 2 "$program" run --quiet "$out/job.yaml" $args --set cluster.placement=balance "$@" </dev/null
        else "$program" run --quiet "$out/job.yaml" $args "$@" </dev/null; fi
    done
done
side=$(basename "$model")
# medians by ranks, what and rows; then the ratio of 2 ranks over 1
cat "$out"/[12]-*/bench.jsonl >"$out/all.jsonl"
jq -r -s --arg side "$side" '
    def median: sort | if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2 - 1] + .[length / 2]) / 2 end;
    map(select(.side == $side and (.what == "prefill" or .what == "decode" or (.what | endswith("wait")))))
    | group_by([.what, .rows, .share])[]
    | (map(select(.ranks == 2).median)) as $two | (map(select(.ranks == 1).median)) as $one
    | if .[0].what | endswith("wait") then
        "\(.[0].what) \(.[0].rows) rows: \(100 * ($two | median) * 10 | round / 10) % of the time of 2 ranks\u0027 coordinator (median of \($two | length))"
      else
        "\(.[0].what) \(.[0].rows) rows: 2 ranks x 1 thread over 1 rank x 2 threads: \(($two | median) / ($one | median) * 1000 | round / 1000)  (\($two | median | . * 100 | round / 100) and \($one | median | . * 100 | round / 100) tokens/s, medians of \($two | length) and \($one | length))"
      end' "$out/all.jsonl" | tee "$out/ranks.txt"
# One sequence: the coordinator's attention and head are serial, only the experts are shared.  With A weights of the former read and F of the latter, two threads
# take (A + F) / 2 and two ranks at best A + F / 2.
jq -r --argjson share "$(jq -s --arg side "$side" 'map(select(.side == $side and .share))[0].share' "$out/all.jsonl")" '
    (.head_dim // (.hidden_size / .num_attention_heads)) as $head | .hidden_size as $d
    | (.num_hidden_layers * 2 * $d * $head * (.num_attention_heads + .num_key_value_heads) + .vocab_size * $d) as $a
    | ($share * .num_hidden_layers * 3 * $d * .intermediate_size) as $f
    | "decode 1 rows: at most \((($a + $f) / 2) / ($a + $f / 2) * 1000 | round / 1000) because attention and head are serial on the coordinator"' \
    "$model/config.json" | tee -a "$out/ranks.txt"
