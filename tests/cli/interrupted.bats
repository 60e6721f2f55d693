# What happens when a job does not reach its end: lost and silent ranks, signals, and going on afterwards.
load common

# A factorized toy model in $dir/model and an infer job in $dir/infer.yaml that takes a few seconds.
make_infer_job() {
    "$FACTORLLM" run configs/factorize.yaml --quiet --set model="$toy" --set output="$dir/made" --set experts=4 --set active=2 \
        --set method=default --set grouping=random --set compensation=none --set budget=uniform --set calibration.sample_tokens=0
    for i in $(seq 400); do echo "{\"id\": \"p$i\", \"prompt\": \"go $i\"}"; done >"$dir/prompts.jsonl"
    cat >"$dir/infer.yaml" <<YAML
kind: infer
model: $dir/made/model
output: $dir/infer
input: $dir/prompts.jsonl
variant: random
max_tokens: 100
ignore_eos: true
cluster: {deadline_seconds: 10}
limits: {sessions: 8}
YAML
}

# start JOB ROWS [KEY=VALUE]: on three ranks; waits until rows are on disk
start() {
    mpirun -n 3 "$FACTORLLM" run "$1" --quiet ${3:+--set "$3"} >"$dir/out" 2>&1 &
    mpirun_pid=$!
    for i in $(seq 600); do
        [ -s "$2" ] && [ "$(wc -l <"$2")" -ge 3 ] && return
        sleep 0.1
    done
    cat "$dir/out"
    return 1
}

pid_of_rank() { # mpirun's child is a watcher that outlives the rank (src/comm/watch.c); the rank is the watcher's child
    for p in $(pgrep -P "$(pgrep -d, -P "$mpirun_pid")"); do
        tr '\0' '\n' <"/proc/$p/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$1" && echo "$p"
    done
    true
}

finish() {
    status=0
    wait "$mpirun_pid" || status=$?
    output=$(cat "$dir/out")
    echo "exit $status: $output"
}

whole_rows() { # every line is a whole row, no id twice
    jq -e -s 'map(.id) | length == (unique | length)' "$1"
}

complete() { # goes on where the job was, and has the rows that an undisturbed run gives
    run "$FACTORLLM" run "$dir/infer.yaml" --quiet
    echo "$output"
    [ "$status" = 0 ]
    whole_rows "$dir/infer/responses.jsonl"
    [ "$(wc -l <"$dir/infer/responses.jsonl")" = 400 ]
    "$FACTORLLM" run "$dir/infer.yaml" --quiet --set output="$dir/undisturbed"
    diff <(jq -S -c . "$dir/infer/responses.jsonl" | sort) <(jq -S -c . "$dir/undisturbed/responses.jsonl" | sort)
}

named_once() { # "RANK SIGNAL"...: the job ends each time with one line that names the rank, and then goes on to its end
    for how in "$@"; do
        set -- $how
        rm -rf "$dir/infer"
        # only a silent rank has to wait for its deadline
        start "$dir/infer.yaml" "$dir/infer/responses.jsonl" "$([ "$2" != STOP ] || echo cluster.deadline_seconds=3)"
        kill -"$2" "$(pid_of_rank "$1")"
        finish
        echo "$how"
        [ "$status" = 6 ]
        # a stopped rank may be woken up by the end of the others, and then say that they are gone
        [ "$(grep 'was lost' "$dir/out" | grep -vc "rank $1 heard nothing")" = 1 ]
        grep -q "rank $1 ($(hostname).*was lost" "$dir/out"
        whole_rows "$dir/infer/responses.jsonl"
    done
    complete
}

@test "a killed rank is named, the job ends with 6, finished rows survive" {
    make_infer_job
    start "$dir/infer.yaml" "$dir/infer/responses.jsonl"
    began=$(date +%s)
    kill -KILL "$(pid_of_rank 1)"
    finish
    [ $(($(date +%s) - began)) -le 60 ] # not for ever; the line says after how long
    [ "$status" = 6 ]
    grep -F "rank 1 ($(hostname))" "$dir/out" | grep -E 'layer [0-9]+' | grep -q experts
    whole_rows "$dir/infer/responses.jsonl"
    complete
}

@test "ranks that wait long for the coordinator do not burn their processors" {
    make_infer_job
    sed -i 's/deadline_seconds: 10/deadline_seconds: 60/' "$dir/infer.yaml"
    ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; } # of 10 ms
    for memory in auto never; do
        rm -rf "$dir/infer"
        mpirun -n 3 "$FACTORLLM" run "$dir/infer.yaml" --quiet --set cluster.shared_memory=$memory >"$dir/out" 2>&1 &
        mpirun_pid=$!
        for _ in $(seq 600); do
            [ -s "$dir/infer/responses.jsonl" ] && break
            sleep 0.1
        done
        [ -s "$dir/infer/responses.jsonl" ]
        first=$(pid_of_rank 0) second=$(pid_of_rank 1)
        kill -STOP "$first"
        sleep 0.5
        before=$(ticks "$second")
        sleep 2
        used=$(($(ticks "$second") - before))
        kill -KILL "$first"
        finish
        echo "$memory: $used of 200 ticks"
        [ "$status" = 6 ]
        [ "$used" -lt 20 ]
    done
}

@test "with attention over all ranks a killed or silent rank is named once" {
    make_infer_job
    sed -i 's/deadline_seconds: 10/deadline_seconds: 10, tensor_parallel: true/' "$dir/infer.yaml"
    named_once "1 KILL" "2 STOP" "0 KILL"
}

@test "under two coordinators a killed or silent rank is named once, whichever it is" {
    make_infer_job
    sed -i 's/deadline_seconds: 10/deadline_seconds: 10, coordinators: 2/' "$dir/infer.yaml"
    named_once "1 KILL" "2 KILL" "1 STOP" "2 STOP" "0 KILL"
}

@test "under two coordinators a signal to rank 0 alone ends the job in order, also in the middle of the other's long pass" {
    make_infer_job
    words=$(printf 'a %.0s' $(seq 60))
    for i in $(seq 4000); do echo "{\"id\": \"p$i\", \"prompt\": \"$words$i\"}"; done >"$dir/prompts.jsonl"
    sed -i -e 's/deadline_seconds: 10/deadline_seconds: 10, coordinators: 2/' -e 's/max_tokens: 100/max_tokens: 1/' \
        -e 's/sessions: 8/sessions: 512, batch_rows: 65536/' "$dir/infer.yaml"
    for how in TERM INT; do
        rm -rf "$dir/infer"
        start "$dir/infer.yaml" "$dir/infer/responses.jsonl"
        kill -"$how" "$(pid_of_rank 0)"
        finish
        echo "$how"
        [ "$status" = 75 ]
        refute grep -E 'bug:|was lost' "$dir/out"
        whole_rows "$dir/infer/responses.jsonl"
        [ "$(wc -l <"$dir/infer/responses.jsonl")" -lt 4000 ]
    done
}

@test "a silent rank is named when the deadline has passed" {
    make_infer_job
    start "$dir/infer.yaml" "$dir/infer/responses.jsonl" cluster.deadline_seconds=3
    kill -STOP "$(pid_of_rank 2)"
    finish
    [ "$status" = 6 ]
    grep -F "rank 2 ($(hostname))" "$dir/out" | grep -E 'layer [0-9]+' | grep -q experts
    nobody_left "$mpirun_pid"
    whole_rows "$dir/infer/responses.jsonl"
    complete
}

@test "a lost coordinator does not leave the others waiting" {
    make_infer_job
    start "$dir/infer.yaml" "$dir/infer/responses.jsonl"
    kill -KILL "$(pid_of_rank 0)"
    finish
    [ "$status" = 6 ]
    grep -q "rank 0 ($(hostname), the coordinator) was lost" "$dir/out"
    nobody_left "$mpirun_pid" # mpirun may return a moment before the last of them is gone
}

@test "SIGUSR1: exit 75, and the next launch goes on" {
    make_infer_job
    start "$dir/infer.yaml" "$dir/infer/responses.jsonl"
    kill -USR1 "$mpirun_pid"
    finish
    [ "$status" = 75 ]
    whole_rows "$dir/infer/responses.jsonl"
    [ "$(wc -l <"$dir/infer/responses.jsonl")" -lt 400 ]
    complete
}

@test "SIGTERM: rows on disk are whole, and the next launch goes on" {
    make_infer_job
    start "$dir/infer.yaml" "$dir/infer/responses.jsonl"
    kill -TERM "$mpirun_pid"
    terminated_mpirun "$mpirun_pid"
    [ "$status" != 0 ]
    whole_rows "$dir/infer/responses.jsonl"
    complete
}

@test "fine-tuning stopped by SIGUSR1 goes on to the same bits" {
    toy_prompts >"$dir/prompts.jsonl"
    cat >"$dir/job.yaml" <<YAML
kind: finetune
model: $dir/made/model
output: $dir/tune
text: {file: README.md}
sequence: 32
tokens: 60000
batch_tokens: 64
version: v1
YAML
    "$FACTORLLM" run configs/factorize.yaml --quiet --set model="$toy" --set output="$dir/made" --set experts=4 --set active=2 \
        --set method=factorllm --set grouping=random --set compensation=none --set budget=uniform --set calibration.sample_tokens=0
    "$FACTORLLM" run "$dir/job.yaml" --quiet
    sum=$(sha256sum <"$dir/made/model/routers/v1/router.safetensors")
    rm -rf "$dir/made/model/routers" "$dir/tune"
    mpirun -n 3 "$FACTORLLM" run "$dir/job.yaml" --quiet >"$dir/out" 2>&1 &
    mpirun_pid=$!
    for i in $(seq 600); do
        grep -q '"step"' "$dir/tune/log.jsonl" 2>/dev/null && break
        sleep 0.1
    done
    kill -USR1 "$mpirun_pid"
    finish
    [ "$status" = 75 ]
    [ ! -e "$dir/made/model/routers/v1" ]
    ranks 2 run "$dir/job.yaml"
    echo "$output"
    [ "$status" = 0 ]
    [ "$(sha256sum <"$dir/made/model/routers/v1/router.safetensors")" = "$sum" ]
}

@test "a step that was killed hard is done again, whatever stands there of an earlier run" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_pipeline >"$dir/job.yaml"
    "$FACTORLLM" run "$dir/job.yaml" --quiet
    cp "$dir/run/eval/result.json" "$dir/before.json"
    "$FACTORLLM" run "$dir/job.yaml" --quiet --set eval.bootstrap=1000000 2>"$dir/out" &
    pid=$!
    for i in $(seq 1200); do
        [ "$(grep -c '"start"' "$dir/run/eval/log.jsonl")" = 2 ] && break
        sleep 0.05
    done
    kill -KILL "$pid"
    wait "$pid" || true
    grep -q 'bootstrap: 1000000' "$dir/run/eval/spec.yaml"
    [ ! -e "$dir/run/eval/result.json" ]
    printf '{"torn' >>"$dir/run/eval/log.jsonl"
    run "$FACTORLLM" run "$dir/job.yaml" --set eval.bootstrap=50
    echo "$output"
    [ "$status" = 0 ]
    [ "$(grep -c 'done before' <<<"$output")" = 3 ]
    refute grep 'eval: done before' <<<"$output"
    [ "$(jq -s -R 'split("\n") | map(select(. != "" and . != "{\"torn") | fromjson) | length > 3' "$dir/run/eval/log.jsonl")" = true ]
    # an old result that came back speaks for the spec it was made with only
    cp "$dir/before.json" "$dir/run/eval/result.json"
    run "$FACTORLLM" run "$dir/job.yaml" --set eval.bootstrap=50
    [ "$status" = 0 ]
    [ "$(grep -c 'done before' <<<"$output")" = 3 ]
    jq -e '.finetune | .training_seconds <= .seconds' "$dir/run/result.json"
}

@test "an evaluation that was stopped keeps the variants it has, and ends with the same figures" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_pipeline >"$dir/job.yaml"
    "$FACTORLLM" run "$dir/job.yaml" --quiet
    printf 'kind: eval\nmodel: %s\noutput: %s\ntext: {file: README.md, bytes: 6000}\nwindow: 32\nbootstrap: 100\n' \
        "$dir/run/factorize/model" "$dir/e" >"$dir/eval.yaml"
    "$FACTORLLM" run "$dir/eval.yaml" --quiet --set output="$dir/whole"
    "$FACTORLLM" run "$dir/eval.yaml" --quiet &
    pid=$!
    for i in $(seq 3000); do
        [ -e "$dir/e/partial.json" ] && break
        sleep 0.02
    done
    kill -USR1 "$pid"
    status=0
    wait "$pid" || status=$?
    [ "$status" = 75 ]
    [ -e "$dir/e/partial.json" ]
    run "$FACTORLLM" run "$dir/eval.yaml"
    echo "$output"
    [ "$status" = 0 ]
    grep -q 'dense was measured before' <<<"$output"
    [ ! -e "$dir/e/partial.json" ]
    for d in e whole; do jq -S '.eval | {perplexity, accuracy, load, agreement, compare, figures, active_share, active_share_of_items}' "$dir/$d/result.json" >"$dir/$d.txt"; done
    diff "$dir/e.txt" "$dir/whole.txt"
}
