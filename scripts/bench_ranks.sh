#!/bin/bash
# Ranks against threads on the same cores: launches of 2 ranks of 1 thread, in several settings, and of 1 rank of 2 threads take turns; ratios of the medians.
#
#   scripts/bench_ranks.sh PROGRAM [--set key=value]...        ROUNDS=5 MODEL=bench-data/e88-bf16 DENSE=bench-data/dense-bf16
#   SETTINGS="tensor_parallel=true placement=balance coordinators=2"      what the 2 ranks are given, one launch each (cluster.KEY=VALUE, with + for more)
#   OUT=runs/bench_ranks                                                  where it writes; what is there is not overwritten:
#   MORE=1                                                                adds rounds to it
#
# Every launch is a bench job of one round (its sides are checked before they are timed).
#   tensor_parallel=true   all ranks have a part of attention and head: the best for decoding on one host
#   placement=balance      one coordinator with attention and head, and so few experts that prefill is balanced: its decode is bound by what it does alone
#   coordinators=2         each rank has attention and head of half of the sequences
set -eu
cd "$(dirname "$0")/.."
. scripts/env.sh
program=${1:-}
if [ -z "$program" ]; then
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
[ -x "$program" ] || { echo "bench_ranks: $program is not there: run make" >&2; exit 2; }
for tool in jq mpirun; do
    command -v $tool >/dev/null || { echo "bench_ranks: $tool is not there" >&2; exit 2; }
done
shift
rounds=${ROUNDS:-5} model=${MODEL:-bench-data/e88-bf16} dense=${DENSE:-bench-data/dense-bf16}
settings=${SETTINGS:-tensor_parallel=true placement=balance coordinators=2}
for side in "$model" "$dense"; do
    [ -f "$side/config.json" ] || { echo "bench_ranks: no model at $side: scripts/bench.sh BUILD ranks makes the models" >&2; exit 2; }
done
out=${OUT:-runs/bench_ranks}
if [ -e "$out" ] && [ -z "${MORE:-}" ]; then
    echo "bench_ranks: $out is there: MORE=1 adds rounds to it, OUT=... writes elsewhere" >&2
    exit 2
fi
mkdir -p "$out"
cat >"$out/job.yaml" <<YAML
kind: bench
model: $dense
compare: [$model]
output: $out/unused
parts: [step]
rounds: 1
rivals: false
prefill: 256
batches: [1, 8, 32]
decode_tokens: 6
YAML
# launch SETTING I ARGS...: "one" is one rank of two threads
launch() {
    local setting=$1 to=$out/$1:$2 args=
    shift 2
    if [ "$setting" = one ]; then
        "$program" run --quiet "$out/job.yaml" --set output="$to" --set cluster.threads=2 "$@" </dev/null
    else
        for key in ${setting//+/ }; do args="$args --set cluster.$key"; done
        mpirun -n 2 "$program" run --quiet "$out/job.yaml" --set output="$to" $args "$@" </dev/null
    fi
    jq -c --arg setting "$setting" '. + {setting: $setting}' "$to/bench.jsonl" >>"$out/all.jsonl"
}
before=$(ls -d "$out"/one:* 2>/dev/null | wc -l)
for ((i = before + 1; i <= before + rounds; i++)); do
    order="$settings one"
    [ $((i % 2)) = 0 ] && order="one $settings"
    for setting in $order; do
        echo "bench_ranks: round $i of $((before + rounds)), $setting" >&2
        launch "$setting" "$i" "$@"
    done
done
side=$(basename "$model")
# medians by what, rows and setting; then the ratio of 2 ranks over 1
jq -r -s --arg side "$side" '
    def median: sort | if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2 - 1] + .[length / 2]) / 2 end;
    def middle: map(.median) | median;
    map(select(.side == $side and (.what == "prefill" or .what == "decode" or (.what | endswith("wait")))))
    | group_by([.what, .rows, .share])[]
    | map(select(.setting == "one")) as $one
    | group_by(.setting)[] | select(.[0].setting != "one")
    | if .[0].what | endswith("wait") then
        "\(.[0].what) \(.[0].rows) rows, \(.[0].setting): \(1000 * middle | round / 10) % of the time of rank 0 (median of \(length))"
      else
        "\(.[0].what) \(.[0].rows) rows, \(.[0].setting): 2 ranks x 1 thread over 1 rank x 2 threads: \(middle / ($one | middle) * 1000 | round / 1000)  (\(middle * 100 | round / 100) and \($one | middle * 100 | round / 100) tokens/s, medians of \(length) and \($one | length))"
      end' "$out/all.jsonl" | tee "$out/ranks.txt"
# One sequence with one coordinator: its attention and head are serial, only the experts are shared.  With A weights of the former read and F of the latter, two
# threads take (A + F) / 2 and two ranks at best A + F / 2.
jq -r --argjson share "$(jq -s --arg side "$side" 'map(select(.side == $side and .share))[0].share' "$out/all.jsonl")" '
    (.head_dim // (.hidden_size / .num_attention_heads)) as $head | .hidden_size as $d
    | (.num_hidden_layers * 2 * $d * $head * (.num_attention_heads + .num_key_value_heads) + .vocab_size * $d) as $a
    | ($share * .num_hidden_layers * 3 * $d * .intermediate_size) as $f
    | "decode 1 rows: at most \((($a + $f) / 2) / ($a + $f / 2) * 1000 | round / 1000) with one coordinator that does attention and head alone"' \
    "$model/config.json" | tee -a "$out/ranks.txt"
