#!/bin/bash
# Runs every test and ends in one line "N passed, M failed[, K skipped]".
#
#   scripts/run_tests.sh BUILD [BUILD/sanitize]
#
# Unit tests run once, MPI tests without mpirun and at np = 1, 2, 3, 5 (at 3 under sanitizers); the command-line tests (bats) run with the
# first.  A test program that does not exist (did not compile) or prints no result is a failure.
set -u
cd "$(dirname "$0")/.."
. scripts/env.sh
export CMOCKA_MESSAGE_OUTPUT=TAP BATS_TEST_TIMEOUT=240
export FACTORLLM_SHARED=${FACTORLLM_SHARED:-../shared}
# Open MPI unloads plugins before it ends, so only slow unwinding gives stacks that lsan.supp can match
asan=detect_leaks=1:allocator_may_return_null=1
export ASAN_OPTIONS=$asan UBSAN_OPTIONS=print_stacktrace=1
export LSAN_OPTIONS=suppressions=$PWD/tests/mpi/lsan.supp:print_suppressions=0
passed=0 failed=0 skipped=0
out=$(mktemp)
trap 'rm -f "$out"' EXIT

if [ -d "$FACTORLLM_SHARED/models" ]; then
    echo "real models: $FACTORLLM_SHARED is there, they are tested too"
else
    echo "real models: $FACTORLLM_SHARED is not there; the toy models of tests/golden are tested, real ones are skipped"
fi

# run NAME COMMAND...: counts its TAP lines
run() {
    local name=$1 status ok bad skip from=$SECONDS
    shift
    timeout 1200 "$@" >"$out" 2>&1 </dev/null
    status=$?
    skip=$(grep -ciE '^(not )?ok .*# *skip' "$out") # cmocka 1.1.5 says "not ok 7 # SKIP"
    ok=$(grep -E '^ok ' "$out" | grep -civE '# *skip')
    bad=$(grep -E '^not ok ' "$out" | grep -civE '# *skip')
    if [ "$bad" = 0 ] && { [ "$status" != 0 ] || [ $((ok + skip)) = 0 ]; }; then bad=1; fi
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
    if [ "$bad" != 0 ]; then
        printf 'FAIL %-52s exit %d %5d s\n' "$name" "$status" $((SECONDS - from))
        grep -vE '^ok |^1\.\.' "$out" | tail -n 40 | sed 's/^/     | /'
    else
        printf 'ok   %-52s %4d %5d s\n' "$name" "$ok" $((SECONDS - from))
    fi
}

first=$1
for build in "$@"; do
    case $build in
    */sanitize) label=" (sanitizers)" nps=3 ;;
    *) label= nps="1 2 3 5" ;;
    esac
    export ASAN_OPTIONS=$asan
    for source in tests/unit/test_*.c; do
        name=$(basename "$source" .c)
        run "$name$label" "$build/tests/unit/$name"
    done
    export ASAN_OPTIONS=$asan:fast_unwind_on_malloc=0
    for source in tests/mpi/test_*.c; do
        name=$(basename "$source" .c)
        run "$name alone$label" "$build/tests/mpi/$name"
        for np in $nps; do
            # every rank prints the same results: rank 0's are counted, any rank's failure shows in the exit status
            run "$name np=$np$label" mpirun -n 1 "$build/tests/mpi/$name" $([ $np = 1 ] || echo : -n $((np - 1)) env CMOCKA_MESSAGE_OUTPUT=STDOUT "$build/tests/mpi/$name")
        done
    done
done
export ASAN_OPTIONS=$asan:fast_unwind_on_malloc=0
export FACTORLLM=$PWD/$first/factorllm
export LOST_RANK=$PWD/$first/tests/mpi/lost_rank
for file in tests/cli/*.bats; do
    run "$(basename "$file")" bats --tap "$file"
done

if [ $skipped = 0 ]; then echo "$passed passed, $failed failed"; else echo "$passed passed, $failed failed, $skipped skipped"; fi
[ $failed = 0 ]
