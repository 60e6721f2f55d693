#!/bin/bash
# How fast it is.
#
#   scripts/bench.sh BUILD           configs/bench.yaml on one rank and the exchange on two: about five minutes once the models are made
#   scripts/bench.sh BUILD full      configs/bench_full.yaml: what the plots show; half an hour and more
#   scripts/bench.sh BUILD ranks     2 ranks of 1 thread against 1 rank of 2 threads, launches that take turns (scripts/bench_ranks.sh)
#
# Models of random weights are made under bench-data/ first, or under DATA=...  (TinyLlama's shape: about 2 GB each; SHAPE=... for another).  `make bench`
# is the first.
set -eu
cd "$(dirname "$0")/.."
. scripts/env.sh
program=$PWD/${1:-build}/factorllm
[ -x "$program" ] || { echo "bench: $program is not there: run make" >&2; exit 2; }
DATA=${DATA:-bench-data}
data() { scripts/bench_data.sh "$program" "$DATA" "$@"; }
# sides MODEL COMPARE...: the keys that say what takes turns
sides() {
    local list=
    for side in "${@:2}"; do list="$list${list:+,}$DATA/$side"; done
    echo "--set model=$DATA/$1 --set compare=$list"
}
cores=$(nproc)

# run OUTPUT ARGS...: one rank on all cores
run() {
    local out=$1
    shift
    "$program" run "$@" --set output="$out" --set cluster.threads="$cores"
    scripts/plot_bench.sh "$out" || true
}

case ${2:-} in
'')
    these="dense-bf16 dense-q8 e4-bf16 e88-bf16 e352-bf16"
    data $these
    run runs/bench configs/bench.yaml $(sides $these)
    mpirun -n 2 "$program" run configs/bench.yaml $(sides $these) --set output=runs/bench_exchange --set parts=exchange --set rounds=11 --set cluster.threads=1
    ;;
full)
    these="dense-bf16 dense-q8 e4-bf16 e88-bf16 e352-bf16 e4-q8 e88-q8 e352-q8"
    data $these
    run runs/bench_full configs/bench_full.yaml $(sides $these)
    ;;
ranks)
    data dense-bf16 e88-bf16
    DENSE=$DATA/dense-bf16 MODEL=$DATA/e88-bf16 scripts/bench_ranks.sh "$program"
    ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
