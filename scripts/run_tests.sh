#!/bin/bash
# Runs every test and ends in one line "N passed, M failed[, K skipped]".
#
#   scripts/run_tests.sh BUILD [BUILD/sanitize]
#
# Unit tests run once, MPI tests without mpirun and at np = 1, 2, 3, 5; the command-line tests (bats) run with the first BUILD.  A second
# one repeats what it may find more in: MPI tests at np = 3 alone, where every message and all work of one rank is.
# TEST_JOBS at a time (default: one more than the processors, since some wait for deadlines, at least 3 and at most 5, since a test has up to
# five ranks), the long ones first; none knows of the others: each has files of its own, and what waits for others has deadlines that a busy
# machine keeps.
# TESTS: a pattern; only tests whose names match are run.
# Of every test: what passed, seconds, and seconds of processor time, its ranks' included.
# Skipped is what this machine lacks something for; the reasons stand below the test and once more at the end.
# A test program that does not exist (did not compile) or prints no result is a failure.
set -u
cd "$(dirname "$0")/.."
. scripts/env.sh
export CMOCKA_MESSAGE_OUTPUT=TAP BATS_TEST_TIMEOUT=600
export FACTORLLM_SHARED=${FACTORLLM_SHARED:-../shared}
# Open MPI unloads plugins before it ends, so only slow unwinding gives stacks that lsan.supp can match
asan=detect_leaks=1:allocator_may_return_null=1
export ASAN_OPTIONS=$asan UBSAN_OPTIONS=print_stacktrace=1
export LSAN_OPTIONS=suppressions=$PWD/tests/mpi/lsan.supp:print_suppressions=0
jobs=${TEST_JOBS:-$(nproc)}
[ -n "${TEST_JOBS:-}" ] || { [ "$jobs" -ge 2 ] || jobs=2; [ "$jobs" -le 4 ] || jobs=4; jobs=$((jobs + 1)); }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# what was started ends with this: each test is the process group of its timeout, whose number is in $work/*.pid
stop() {
    local file left
    trap '' INT TERM
    echo "stopped by SIG$1: ending the tests that run" >&2
    for left in TERM KILL; do
        for file in "$work"/*.pid; do [ ! -s "$file" ] || kill -$left -- "-$(cat "$file")" 2>/dev/null; done
        [ $left = KILL ] || for _ in $(seq 100); do
            [ -n "$(jobs -rp)" ] || break
            sleep 0.1
        done
    done
    wait
    exit "$2"
}
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM

if [ -d "$FACTORLLM_SHARED/models" ]; then
    echo "real models: $FACTORLLM_SHARED is there, they are tested too"
else
    echo "real models: $FACTORLLM_SHARED is not there; the toy models of tests/golden are tested, real ones are skipped"
fi

# one NUMBER NAME COMMAND...: runs it, counts its TAP lines and says so in one piece
one() {
    local out=$work/$1.out name=$2 status ok bad skip took why
    shift 2
    TIMEFORMAT='%R %U %S'
    took=$({ time bash -c 'echo $$ >"$0"; exec timeout 1200 "$@"' "${out%.out}.pid" "$@" >"$out" 2>&1 </dev/null; } 2>&1; exit $?)
    status=$?
    rm -f "${out%.out}.pid"
    took=$(awk '{printf "%6.1f s %6.1f s", $1, $2 + $3}' <<<"${took##*$'\n'}")
    skip=$(grep -ciE '^(not )?ok .*# *skip' "$out") # cmocka 1.1.5 says "not ok 7 # SKIP"
    ok=$(grep -E '^ok ' "$out" | grep -civE '# *skip')
    bad=$(grep -E '^not ok ' "$out" | grep -civE '# *skip')
    if [ "$bad" = 0 ] && { [ "$status" != 0 ] || [ $((ok + skip)) = 0 ]; }; then bad=1; fi
    {
        if [ "$bad" != 0 ]; then
            printf 'FAIL %-52s exit %d %s\n' "$name" "$status" "$took"
            grep -vE '^ok |^1\.\.' "$out" | tail -n 40 | sed 's/^/     | /'
        else
            printf 'ok   %-52s %4d %s\n' "$name" "$ok" "$took"
        fi
        # cmocka's tests say why on a line of their own (tests/check.h), every rank the same; bats behind the test's name
        [ "$skip" = 0 ] || {
            why=$(sed -nE 's/^# skipped: (.*)/\1/p; s/^ok [0-9]+ (.*) # skip (.*)/\1: \2/p' "$out" | sort -u)
            sed 's/^/     skipped: /' <<<"${why:-no reason given}" | tee -a "$work/skipped"
        }
    } >"$out.said"
    cat "$out.said"
    echo "$ok $bad $skip" >>"$work/counts"
}

started=0 running=0
# run NAME COMMAND...: as soon as there is room
run() {
    [[ $1 =~ ${TESTS:-} ]] || return 0
    if [ $running -ge "$jobs" ]; then
        wait -n
        running=$((running - 1))
    fi
    started=$((started + 1)) running=$((running + 1))
    one $started "$@" &
}

first=$1
with_mpi=$asan:fast_unwind_on_malloc=0
export FACTORLLM=$PWD/$first/factorllm
export LOST_RANK=$PWD/$first/tests/mpi/lost_rank
for file in $(ls -S tests/cli/*.bats); do # longer texts take longer, as it happens
    run "$(basename "$file")" env ASAN_OPTIONS=$with_mpi bats --tap "$file"
done
for build in "$@"; do
    case $build in */sanitize) label=" (sanitizers)" ;; *) label= ;; esac
    [ "$build" = "$first" ] && nps="1 2 3 5" || nps=3
    for source in tests/mpi/test_*.c; do
        name=$(basename "$source" .c)
        program="env ASAN_OPTIONS=$with_mpi $build/tests/mpi/$name"
        case $name in test_exchange | test_exchange_many) least=2 ;; *) least=1 ;; esac # one rank has nobody to talk to
        [ "$build" != "$first" ] || [ $least -gt 1 ] || run "$name alone$label" $program
        for np in $nps; do
            [ "$np" -ge $least ] || continue
            # every rank prints the same results: rank 0's are counted, any rank's failure shows in the exit status
            run "$name np=$np$label" mpirun -n 1 $program $([ $np = 1 ] || echo : -n $((np - 1)) env CMOCKA_MESSAGE_OUTPUT=STDOUT ${program#env })
        done
    done
done
for build in "$@"; do
    case $build in */sanitize) label=" (sanitizers)" ;; *) label= ;; esac
    for source in tests/unit/test_*.c; do
        name=$(basename "$source" .c)
        run "$name$label" "$build/tests/unit/$name"
    done
done
wait

if [ $started = 0 ]; then
    echo "FAIL no test has a name that matches TESTS=${TESTS:-}"
    echo "0 passed, 1 failed"
    exit 1
fi
[ ! -s "$work/skipped" ] || sort "$work/skipped" | uniq -c | sed -E 's/^ *([0-9]+) +/\1 x /'
read -r passed failed skipped < <(awk '{a += $1; b += $2; c += $3} END {print a + 0, b + 0, c + 0}' "$work/counts")
[ "$(wc -l <"$work/counts")" = $started ] || { echo "FAIL some tests did not say how they ended"; failed=$((failed + 1)); }
if [ "$skipped" = 0 ]; then echo "$passed passed, $failed failed"; else echo "$passed passed, $failed failed, $skipped skipped"; fi
[ "$failed" = 0 ]
