#!/bin/sh
# What a user would pick instead: llama.cpp (prebuilt, out of the npm package node-llama-cpp) and PyTorch, measured on random weights of
# TinyLlama-1.1B's shape: prefill of a prompt, and decoding of one sequence from an empty context.
#
#   scripts/bench_peers.sh                             everything: medians as a table and as lines of JSON
#   scripts/bench_peers.sh one PEER FORMAT THREADS     one round of one configuration, one line of JSON; loading is not counted
#   scripts/bench_peers.sh ask PEER FORMAT THREADS     loads once; then a round, and a line of JSON, for every line on stdin, so that rounds can
#                                                      take turns with those of another program.  The first line out says that it is ready.
#   scripts/bench_peers.sh check                       llama.cpp and PyTorch agree on the logits of a small model, in every format
#   scripts/bench_peers.sh prepare                     only fetches and makes what the others need
#
# PEER is llama.cpp (f32, bf16, q8_0, q4_0) or pytorch (f32, bf16).
# Needs node 20 or newer with npm, and python3 with numpy; PyTorch (on Debian: python3-torch) may be missing.  npm fetches one pinned version once,
# and runs no scripts of packages.  Everything lies in PEERS_DIR: 8.5 GB with all formats.
# Other work on the machine makes the figures worthless, above all those of llama.cpp on all cores: its threads wait for each other by spinning.
#
# Environment: PEERS_DIR; PYTHON; FORMATS, THREADS, ROUNDS, SHAPE (tinyllama or small), PROMPT, DECODE; FLASH (auto, on, off: llama.cpp's attention);
# PYTORCH_BF16=1 measures it also where the processor has no AVX-512 and it takes many minutes.
set -eu
: "${PEERS_DIR:=${TMPDIR:-/tmp}/peers-bench}" "${FORMATS:=f32 bf16 q8_0 q4_0}" "${THREADS:=1 2}" "${ROUNDS:=5}" "${SHAPE:=tinyllama}"
: "${PROMPT:=512}" "${DECODE:=32}" "${FLASH:=auto}" "${PYTORCH_BF16:=}"
PACKAGE_VERSION=3.22.1
here=$(cd "$(dirname "$0")" && pwd)/peers
export PYTHONDONTWRITEBYTECODE=1

fail() { echo "bench_peers: $*" >&2; exit 1; }
note() { echo "bench_peers: $*" >&2; }

# A python with numpy: the one asked for, the system's (Debian's packages belong to it), or the first on the path.
find_python() {
    for python in ${PYTHON:-/usr/bin/python3 python3}; do
        "$python" -c 'import numpy' 2>/dev/null && return
    done
    fail "needs python3 with numpy (on Debian: apt-get install python3-numpy); set PYTHON to the one that has it"
}

have_torch() { "$python" -c 'import torch' 2>/dev/null; }

# The prebuilt llama.cpp.  Optional parts are left out: they are the same for other machines and for GPUs.
install_llama() {
    command -v node >/dev/null || fail "llama.cpp needs node, which is missing (on Debian: apt-get install nodejs npm; version 20 or newer)"
    [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ] || fail "llama.cpp needs node 20 or newer, this is $(node --version)"
    [ -e "$PEERS_DIR/npm/done-$PACKAGE_VERSION" ] && return
    command -v npm >/dev/null || fail "llama.cpp needs npm, which is missing (on Debian: apt-get install npm)"
    case $(uname -s)-$(uname -m) in
        Linux-x86_64) machine=linux-x64 ;;
        Linux-aarch64) machine=linux-arm64 ;;
        *) fail "node-llama-cpp has nothing prebuilt that is used here for $(uname -s) on $(uname -m)" ;;
    esac
    note "fetching node-llama-cpp $PACKAGE_VERSION with npm into $PEERS_DIR/npm"
    rm -rf "$PEERS_DIR/npm"
    mkdir -p "$PEERS_DIR/npm"
    echo '{"private": true}' >"$PEERS_DIR/npm/package.json"
    (cd "$PEERS_DIR/npm" && npm install --ignore-scripts --omit=optional --no-audit --no-fund "node-llama-cpp@$PACKAGE_VERSION" \
        "@node-llama-cpp/$machine@$PACKAGE_VERSION") >"$PEERS_DIR/npm.log" 2>&1 ||
        { tail -n 5 "$PEERS_DIR/npm.log" >&2; fail "npm could not install it; the whole log is $PEERS_DIR/npm.log"; }
    : >"$PEERS_DIR/npm/done-$PACKAGE_VERSION"
}

# $1: shape, $2: format.  Prints the file's name.
model() {
    file=$PEERS_DIR/$1-$2.gguf
    if [ ! -e "$file" ]; then
        note "writing $file"
        "$python" "$here/make_gguf.py" "$file" --shape "$1" --format "$2" || fail "cannot write $file"
    fi
    echo "$file"
}

# $1: peer, $2: format, $3: threads, the rest goes to the program
run() {
    peer=$1 format=$2 threads=$3
    shift 3
    case $peer-$format in
        llama.cpp-f32 | llama.cpp-bf16 | llama.cpp-q8_0 | llama.cpp-q4_0)
            install_llama
            file=$(model "$SHAPE" "$format")
            exec node "$here/llama_cpp.mjs" --npm "$PEERS_DIR/npm" --model "$file" --format "$format" --threads "$threads" --prompt "$PROMPT" \
                --decode "$DECODE" --flash "$FLASH" "$@" ;;
        pytorch-f32 | pytorch-bf16)
            have_torch || fail "PyTorch is not installed for $python (on Debian: apt-get install python3-torch)"
            file=$(model "$SHAPE" "$format")
            exec "$python" "$here/torch_peer.py" --model "$file" --format "$format" --threads "$threads" --prompt "$PROMPT" --decode "$DECODE" "$@" ;;
        *) fail "there is no $peer with $format: llama.cpp has f32, bf16, q8_0 and q4_0, pytorch f32 and bf16" ;;
    esac
}

# Every configuration that can be measured here, as PEER FORMAT THREADS
configurations() {
    for format in $FORMATS; do
        for threads in $THREADS; do echo "llama.cpp $format $threads"; done
        case $format in f32 | bf16) ;; *) continue ;; esac
        have_torch || continue
        [ "$format" = f32 ] || grep -qw avx512f /proc/cpuinfo || [ "$PYTORCH_BF16" ] || continue
        for threads in $THREADS; do echo "pytorch $format $threads"; done
    done
}

all() {
    install_llama
    have_torch || note "PyTorch is left out: not installed for $python (on Debian: apt-get install python3-torch)"
    grep -qw avx512f /proc/cpuinfo || [ "$PYTORCH_BF16" ] ||
        note "PyTorch in bf16 is left out: without AVX-512 it runs plain loops, many minutes a round (PYTORCH_BF16=1: all the same)"
    for format in $FORMATS; do model "$SHAPE" "$format" >/dev/null; done
    awk '$1 >= 0.5 { exit 1 }' /proc/loadavg || note "other work is running (load $(cut -d' ' -f1 /proc/loadavg)): the figures will be too low"
    configurations | "$python" "$here/rounds.py" --script "$0" --rounds "$ROUNDS" --keep "$PEERS_DIR/rounds.jsonl"
}

check() {
    install_llama
    have_torch || fail "the check needs PyTorch, which is not installed for $python (on Debian: apt-get install python3-torch)"
    for format in f32 bf16 q8_0 q4_0; do
        file=$(model small "$format")
        node "$here/llama_cpp.mjs" --npm "$PEERS_DIR/npm" --model "$file" --threads 1 --logits 16 >"$PEERS_DIR/llama.json"
        # PyTorch in f32 on the same weights, widened
        "$python" "$here/torch_peer.py" --model "$file" --format f32 --threads 1 --logits 16 >"$PEERS_DIR/torch.json"
        "$python" "$here/compare.py" "$format" "$PEERS_DIR/llama.json" "$PEERS_DIR/torch.json"
    done
}

find_python
mkdir -p "$PEERS_DIR"
case ${1:-all} in
    all) all ;;
    one | ask)
        [ $# = 4 ] || fail "usage: $0 $1 PEER FORMAT THREADS"
        ask=
        [ "$1" = one ] || ask=--ask
        run "$2" "$3" "$4" $ask ;;
    check) check ;;
    prepare)
        install_llama
        for format in $FORMATS; do model "$SHAPE" "$format"; done ;;
    *) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
esac
