# A rank that is lost, at the level of the exchange: one line that names rank, host, layer and phase, and exit code 6 from mpirun.
# tests/mpi/lost_rank.c is the job; LOST_RANK is where it was built.
load common

# job ARGS...: on three ranks; sets $status and $output, and fails if a process of it is left
job() {
    : "${LOST_RANK:=$PWD/build/tests/mpi/lost_rank}"
    # a name of its own, by which what is left of it is found
    probe=$dir/lost_$$
    cp "$LOST_RANK" "$probe"
    run timeout -s KILL 90 mpirun -n 3 "$probe" "$@"
    for i in $(seq 200); do
        left=$(ps -eo stat=,args= | awk -v probe="$probe" '$1 !~ /^Z/ && $2 == probe' | wc -l)
        [ "$left" = 0 ] && break
        sleep 0.1
    done
    echo "exit $status, left $left: $output"
    [ "$left" = 0 ]
}

all_at_work() {
    for _ in $(seq 600); do
        grep -q computes "$dir/out" && return
        sleep 0.1
    done
    cat "$dir/out"
    return 1
}

# says PATTERN: exactly one line of ours, and this one
says() {
    [ "$(grep -c 'was lost' <<<"$output")" = 1 ]
    grep -qE "$1" <<<"$output"
}

@test "nobody is lost: exit 0" {
    job 0 none
    [ "$status" = 0 ]
    [[ $output == *"done: 6 rounds"* ]]
}

@test "a follower is killed: named at once, with layer and phase, exit 6" {
    job 1 kill
    [ "$status" = 6 ]
    says "lost_rank: rank 1 \(.+\) was lost: no answer for [0-9.]+ s to 'experts', layer 2 \(its process is gone\)"
}

@test "a follower has a segmentation fault: the same" {
    job 2 segv
    [ "$status" = 6 ]
    says "lost_rank: rank 2 \(.+\) was lost: .*'experts', layer 2 \(its process is gone\)"
}

@test "a follower ends in the middle of the job with exit code 0: the same" {
    job 1 exit
    [ "$status" = 6 ]
    says "lost_rank: rank 1 \(.+\) was lost: .*'experts', layer 2 \(its process is gone\)"
}

@test "a follower is stopped: named after the deadline, and nothing stays behind" {
    job 1 stop 0 2
    [ "$status" = 6 ]
    says "lost_rank: rank 1 \(.+\) was lost: no answer for ([2-9]|[0-9]{2})\.[0-9] s to 'experts', layer 2 \(deadline 2\.0 s\)"
}

@test "a follower hangs: named after the deadline" {
    job 2 hang 0 2
    [ "$status" = 6 ]
    says "lost_rank: rank 2 \(.+\) was lost: no answer for ([2-9]|[0-9]{2})\.[0-9] s to 'experts', layer 2 \(deadline 2\.0 s\)"
}

@test "the coordinator hangs: one follower names it, though both wait" {
    job 0 hang 0 2
    [ "$status" = 6 ]
    says "rank 0 \(.+, the coordinator\) was lost: rank 1 heard nothing for ([2-9]|[0-9]{2})\.[0-9] s after 'experts', layer 1 \(deadline"
}

@test "a follower is killed while the coordinator computes: named by the process that watches it" {
    job 2 kill 8
    [ "$status" = 6 ]
    says "factorllm: rank 2 \(.+\) was lost: killed by signal 9"
}

@test "a follower hangs while the coordinator computes for longer than the deadline: named, and the others are patient" {
    job 2 hang 4 2
    [ "$status" = 6 ]
    says "lost_rank: rank 2 \(.+\) was lost: no answer for [0-9.]+ s to 'experts', layer 2"
}

@test "the coordinator is killed: a follower names it" {
    job 0 kill
    [ "$status" = 6 ]
    says "lost_rank: rank 0 \(.+, the coordinator\) was lost: rank 1 heard nothing for [0-9.]+ s after 'experts', layer 1 \(its process is gone\)"
}

@test "the coordinator is stopped: a follower names it after the deadline" {
    job 0 stop 0 2
    [ "$status" = 6 ]
    says "rank 0 \(.+, the coordinator\) was lost: rank 1 heard nothing for ([2-9]|[0-9]{2})\.[0-9] s after 'experts', layer 1 \(deadline"
}

# Open MPI decides the exit code itself when what it started is killed: here nothing can be done but to say who it was and to leave nothing behind.
@test "the process that watches a follower is killed: named, exit 137, nothing stays behind" {
    job 1 parent
    [ "$status" = 137 ]
    grep -qE "lost_rank: rank 1 \(.+\) was lost: .*'experts', layer 2 \(its process is gone\)" <<<"$output"
}

@test "a follower is stopped at the very end: it is not waited for" {
    job 1 late
    [ "$status" = 6 ]
    [[ $output == *"done: 6 rounds"*"a rank did not come to its end"* ]]
    [[ $output != *"was lost"* ]]
}

@test "SIGUSR1 to a follower and to the coordinator does no harm" {
    job 1 usr1
    [ "$status" = 0 ]
    [[ $output == *"done: 6 rounds" ]]
    job 0 usr1
    [ "$status" = 0 ]
    [[ $output == *"done: 6 rounds, asked to stop soon" ]]
}

@test "SIGTERM to the coordinator: an orderly end, exit 75" {
    job 0 term
    [ "$status" = 75 ]
    [[ $output == *"stopped by a signal"* ]]
    [[ $output != *"was lost"* ]]
}

@test "SIGUSR1 to mpirun reaches the ranks" {
    : "${LOST_RANK:=$PWD/build/tests/mpi/lost_rank}"
    mpirun -n 3 "$LOST_RANK" 0 none 60 >"$dir/out" 2>&1 &
    pid=$!
    all_at_work
    kill -USR1 $pid
    wait $pid
    grep -q "done: 6 rounds, asked to stop soon" "$dir/out"
}

@test "SIGTERM to mpirun ends all ranks, and none is called lost" {
    : "${LOST_RANK:=$PWD/build/tests/mpi/lost_rank}"
    # its ranks are told from those of other tests by $dir
    probe=$dir/lost_term
    cp "$LOST_RANK" "$probe"
    mpirun -n 3 "$probe" 0 none 60 >"$dir/out" 2>&1 &
    pid=$!
    all_at_work
    kill -TERM $pid
    terminated_mpirun $pid
    cat "$dir/out"
    [ "$status" != 0 ]
    refute grep "was lost" "$dir/out"
}
