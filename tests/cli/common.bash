# Shared by the bats files.  FACTORLLM is the program under test; every test works in a directory of its own.
setup() {
    cd "$BATS_TEST_DIRNAME/../.." || return
    source scripts/env.sh
    : "${FACTORLLM:=$PWD/build/factorllm}" "${FACTORLLM_SHARED:=../shared}"
    export FACTORLLM_SHARED
    dir=$(mktemp -d)
    toy=$PWD/tests/golden/toy-llama
}

teardown() {
    rm -rf "$dir"
}

# ranks N ARGS...: the program on N ranks, errors and all in $output, exit code in $status
ranks() {
    local n=$1
    shift
    run timeout 120 mpirun -n "$n" "$FACTORLLM" "$@"
}

# refute CMD...: CMD says no (exit code 1) and nothing else: neither yes, nor that it could not look.
# A test cannot use `! CMD` for that: bash ends a test at the first command that fails, but never at a negated one.
refute() {
    local found code=0
    found=$("$@" 2>&1) || code=$?
    [ "$code" != 1 ] || return 0
    echo "expected nothing from: $*; exit code $code, found: $found"
    return 1
}

# nobody_left MPIRUN: within 20 seconds no process is left that has $dir in its command line, but for mpirun itself
nobody_left() {
    local left
    for _ in $(seq 200); do
        left=$(ps -eo stat=,pid=,args= | awk -v mpirun="$1" -v dir="$dir" '$1 !~ /^Z/ && $2 != mpirun && $3 !~ /awk/ && index($0, dir)')
        [ "$left" ] || return 0
        sleep 0.1
    done
    echo "left: $left"
    return 1
}

# terminated_mpirun PID: waits for the end of an mpirun that was sent SIGTERM; $status is its exit code.  What is ours to promise is that
# all ranks (what has $dir in its command line) are gone within 20 seconds.  mpirun itself may then lock up in its own end (Open MPI 4.1
# over PMIx 4.2: PMIx_server_finalize waits for a thread that waits for a lock nobody holds, about one time in twenty); it has nothing left
# to do then and is killed.
terminated_mpirun() {
    nobody_left "$1"
    for _ in $(seq 50); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null && echo "mpirun locked up after its ranks had ended"
    status=0
    wait "$1" || status=$?
}

# The main job, small: factorize, fine-tune, evaluate, answer; on the toy model.
toy_pipeline() {
    cat <<YAML
kind: pipeline
model: $toy
output: $dir/run
seed: 3
limits: {batch_rows: 256, sessions: 8}
steps:
  - kind: factorize
    experts: 7
    active: 3
    shared: 0.15
    grouping: coactivation
    scale: one
    compensation: mean
    calibration: {sample_tokens: 400}
  - kind: finetune
    text: {sample_tokens: 600, sample_seed: 2}
    labels: gram
    select: threshold
    sequence: 32
    tokens: 1200
    batch_tokens: 128
  - kind: eval
    text: {sample_tokens: 300, sample_seed: 3}
    variants: [dense, static, random, router, oracle, oracle_variable, neurons]
    window: 32
    bootstrap: 100
    domains: {story: tests/golden/toy-llama/config.json, script: tests/cli/common.bash}
    domain_tokens: 200
  - kind: infer
    input: $dir/prompts.jsonl
    max_tokens: 12
    temperature: 0.9
YAML
}

toy_prompts() {
    for i in 1 2 3 4 5 6 7 8 9; do echo "{\"id\": \"p$i\", \"prompt\": \"$(printf 'word %.0s' $(seq $i))\"}"; done
}
