#!/bin/bash
# The models that benchmarks run on, made once and kept: random weights of a shape, factorized, packed in several formats.
#
#   scripts/bench_data.sh PROGRAM DIRECTORY SIDE...
#
# SIDE is NAME-FORMAT: NAME dense or eN (N experts a layer, contiguous), FORMAT f32, bf16, q8 or q4: DIRECTORY/dense-bf16, DIRECTORY/e88-q8, ...
# SHAPE=tinyllama (make-model's --shape) is the shape; it is written down in DIRECTORY/shape, and another one there is refused.
set -eu
program=$1 to=$2
shift 2
SHAPE=${SHAPE:-tinyllama}
mkdir -p "$to"
if [ -e "$to/shape" ] && [ "$(cat "$to/shape")" != "$SHAPE" ]; then
    echo "bench_data: $to has models of the shape '$(cat "$to/shape")', asked for is '$SHAPE'" >&2
    exit 2
fi
echo "$SHAPE" >"$to/shape"
job=$to/.job
trap 'rm -rf "$job" "$job.yaml"' EXIT

# run KIND MODEL KEYS: a job's model/ becomes $to/$name
run() {
    rm -rf "$job"
    printf 'kind: %s\nmodel: %s\noutput: %s\nverify_weights: false\ncluster: {threads: %s}\n%s\n' "$1" "$2" "$job" "$(nproc)" "$3" >"$job.yaml"
    "$program" run --quiet "$job.yaml"
    rm -rf "${to:?}/$name"
    mv "$job/model" "$to/$name"
}

for side in "$@"; do
    cut=${side%-*} format=${side##*-}
    [ -e "$to/$side/config.json" ] && continue
    echo "bench_data: making $to/$side"
    if [ ! -e "$to/dense/config.json" ]; then
        rm -rf "$to/dense"
        "$program" bench make-model --quiet --shape "$SHAPE" "$to/dense"
    fi
    if [ ! -e "$to/$cut/config.json" ]; then
        n=${cut#e}
        name=$cut run factorize "$to/dense" "experts: $n
active: $(((n + 1) / 2))
grouping: contiguous
budget: uniform
shard_mib: 0"
    fi
    name=$side run convert "$to/$cut" "precision: {experts: $format, attention: $format, head: $format}"
done
