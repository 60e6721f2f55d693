# Ranks of two hosts: network namespaces with names, processes, shared memory and kernels of their own, as far as a program can see (scripts/two_hosts.sh).
load common

@test "two hosts joined by TCP give the bits of one rank, in every way to share the work" {
    run scripts/two_hosts.sh 1 1 true
    [ "$status" != 77 ] || skip "$output"
    [ "$status" = 0 ]
    "$FACTORLLM" run configs/factorize.yaml --quiet --set model="$toy" --set output="$dir/made" --set experts=4 --set active=2 \
        --set method=default --set grouping=random --set compensation=none --set budget=uniform --set calibration.sample_tokens=0
    for i in $(seq 12); do echo "{\"id\": \"p$i\", \"prompt\": \"go $i and $i\"}"; done >"$dir/prompts.jsonl"
    cat >"$dir/infer.yaml" <<YAML
kind: infer
model: $dir/made/model
input: $dir/prompts.jsonl
output: $dir/out
variant: random
max_tokens: 12
ignore_eos: true
cluster: {deadline_seconds: 20}
limits: {sessions: 5}
YAML
    answers() { jq -S -c '{id, text, usage}' "$dir/$1/responses.jsonl" | sort; }
    "$FACTORLLM" run "$dir/infer.yaml" --quiet --set output="$dir/alone"
    [ "$(answers alone | wc -l)" = 12 ]
    for how in "2 1 placement=block" "1 2 tensor_parallel=true" "1 1 coordinators=2" "2 2 coordinators=3"; do
        set -- $how
        run timeout 150 scripts/two_hosts.sh "$1" "$2" "$FACTORLLM" run "$dir/infer.yaml" --quiet --set output="$dir/$3" --set cluster."$3"
        echo "$how: $output"
        [ "$status" = 0 ]
        diff <(answers alone) <(answers "$3")
    done
}

@test "a rank of the other host that is killed or cannot be reached any more is named" {
    run scripts/two_hosts.sh 1 1 true
    [ "$status" != 77 ] || skip "$output"
    [ "$status" = 0 ]
    "$FACTORLLM" run configs/factorize.yaml --quiet --set model="$toy" --set output="$dir/made" --set experts=4 --set active=2 \
        --set method=default --set grouping=random --set compensation=none --set budget=uniform --set calibration.sample_tokens=0
    for i in $(seq 400); do echo "{\"id\": \"p$i\", \"prompt\": \"go $i\"}"; done >"$dir/prompts.jsonl"
    printf 'kind: infer\nmodel: %s\ninput: %s\noutput: %s\nvariant: random\nmax_tokens: 100\nignore_eos: true\ncluster: {deadline_seconds: 10}\n' \
        "$dir/made/model" "$dir/prompts.jsonl" "$dir/infer" >"$dir/infer.yaml"
    for how in KILL STOP unplugged; do
        rank=
        rm -rf "$dir/infer"
        timeout -k 5 120 scripts/two_hosts.sh 1 1 "$FACTORLLM" run "$dir/infer.yaml" --quiet >"$dir/out" 2>&1 &
        launched=$!
        for _ in $(seq 600); do
            [ -s "$dir/infer/responses.jsonl" ] && break
            sleep 0.1
        done
        # the rank is the one with a host of its own and a watcher above it
        for p in $(pgrep -f "factorllm run $dir/infer.yaml"); do
            tr '\0' '\n' <"/proc/$p/environ" 2>/dev/null | grep -qx OMPI_COMM_WORLD_RANK=1 && rank=$p
        done
        echo "$how: rank 1 is process $rank"
        [ "$rank" ]
        if [ "$how" = unplugged ]; then
            card=$(nsenter -t "$rank" -n ip -o link show type veth | sed 's/^[0-9]*: \([^@:]*\).*/\1/')
            nsenter -t "$rank" -n ip link set "$card" down
            # both sides see that they are alone; mpirun's daemons wait for each other until the line is back
            for _ in $(seq 300); do
                grep -q 'was lost' "$dir/out" && [ ! -e "/proc/$rank" ] && break
                sleep 0.1
            done
            [ ! -e "/proc/$rank" ]
            grep -q 'rank 1 (factorllm-b.*was lost: no answer for .*(deadline 10.0 s)' "$dir/out"
            ip -n "${card/#fb/factorllm-b}" link set "$card" up
        else
            kill -"$how" "$rank"
        fi
        status=0
        wait $launched || status=$?
        cat "$dir/out"
        [ "$status" = 6 ]
        grep -q 'rank 1 (factorllm-b.*was lost' "$dir/out"
    done
}
