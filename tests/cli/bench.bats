# The bench job and what belongs to it, on models so small that no figure means anything: that it runs, checks, and writes what it says.
load common

# a factorized twin of the model that ships, without calibration: $dir/e4/model
twin() {
    cat >"$dir/f.yaml" <<YAML
kind: factorize
model: configs/models/quillan-6m
output: $dir/e4
experts: 4
active: 2
grouping: contiguous
budget: uniform
YAML
    "$FACTORLLM" run --quiet "$dir/f.yaml"
}

small_bench() {
    cat >"$dir/b.yaml" <<YAML
kind: bench
model: configs/models/quillan-6m
compare: [$dir/e4/model]
output: $dir/bench
parts: [kernels, exchange, step, startup]
shares: [0.5, 0.25]
formats: [f32, q8]
rows: [1, 8]
prefill: 24
decode_tokens: 3
batches: [1, 4]
rounds: 2
seconds: 0.001
rivals: false
YAML
}

@test "bench writes a row for every figure, with all that is needed to repeat it" {
    twin
    small_bench
    run "$FACTORLLM" run "$dir/b.yaml"
    echo "$output"
    [ "$status" = 0 ]
    [[ $output == *"prefill of 24 tokens"* && $output == *"decode of 4 sequences"* && $output == *"start-up"* ]]
    jq -s -e 'length > 20' "$dir/bench/bench.jsonl"
    # every row says where it was measured and over how many rounds
    jq -s -e 'all(.commit != "" and .isa != "" and .ranks == 1 and .threads == 1 and .binding != "" and .rounds >= 2)' "$dir/bench/bench.jsonl"
    jq -s -e 'all(.min <= .median and .median <= .max)' "$dir/bench/bench.jsonl"
    # 2 + 2 formats x 3 matrices x 2 rows; prefill and two batches of three variants
    [ "$(jq -s 'map(select(.what == "product")) | length' "$dir/bench/bench.jsonl")" = 12 ]
    [ "$(jq -s 'map(select(.what == "product in cache" and .ratio > 0 and .bound > 0)) | length' "$dir/bench/bench.jsonl")" = 12 ]
    [ "$(jq -s 'map(select(.what == "decode" or .what == "prefill")) | length' "$dir/bench/bench.jsonl")" = 9 ]
    [ "$(jq -s 'map(select(.what == "decode" and .ratio and .bound)) | length' "$dir/bench/bench.jsonl")" = 4 ]
    # the CSV has as many rows, below its header
    [ "$(wc -l <"$dir/bench/bench.csv")" = $(($(wc -l <"$dir/bench/bench.jsonl") + 1)) ]
    jq -e '.bench.refused == 0 and .bench.timing.steps > 0 and .version' "$dir/bench/result.json"
}

@test "bench on two ranks: the exchange against plain MPI, and how long a step waits" {
    twin
    small_bench
    ranks 2 run "$dir/b.yaml" --set parts=exchange,step --set prefill=16
    echo "$output"
    [ "$status" = 0 ]
    jq -s -e 'map(select(.part == "exchange" and .side == "ours")) | length > 3 and all(.ratio > 0)' "$dir/bench/bench.jsonl"
    jq -s -e 'map(select(.what == "prefill wait")) | length == 2 and all(.median >= 0 and .median < 1 and (.samples | length) == .rounds)' "$dir/bench/bench.jsonl"
    jq -s -e 'all(.min <= .median and .median <= .max)' "$dir/bench/bench.jsonl"
    jq -s -e 'map(select(.part == "exchange" and .min < .max)) | length > 0' "$dir/bench/bench.jsonl" # of rounds, not of one figure
    jq -e '.bench.timing.ranks | length == 2' "$dir/bench/result.json"
}

@test "bench on ranks that share attention, in both ways: the same checks, the same rows" {
    twin
    small_bench
    for how in coordinators=2 tensor_parallel=true; do
        ranks 3 run "$dir/b.yaml" --set parts=step --set prefill=16 --set cluster.$how --set output="$dir/$how"
        echo "$output"
        [ "$status" = 0 ]
        [ "$(jq -s 'map(select(.what == "decode" or .what == "prefill")) | length' "$dir/$how/bench.jsonl")" = 9 ]
    done
}

@test "a side that answers wrong gets no figure, and the job ends with 7" {
    twin
    small_bench
    # other weights in the same shape: with all experts it is not the dense model
    "$FACTORLLM" bench make-model --quiet --shape quillan "$dir/other"
    mv "$dir/e4/model/model.safetensors" "$dir/kept"
    sed "s|model: .*|model: $dir/other|; s|output: .*|output: $dir/wrong|" "$dir/f.yaml" >"$dir/g.yaml"
    "$FACTORLLM" run --quiet "$dir/g.yaml"
    run "$FACTORLLM" run "$dir/b.yaml" --set compare="$dir/wrong/model" --set parts=step
    echo "$output"
    [ "$status" = 7 ]
    [[ $output == *"model: logits are"*"no figure for it"* ]]
    [ "$(jq -s 'map(select(.side == "model")) | length' "$dir/bench/bench.jsonl")" = 0 ]
    [ "$(jq -s 'map(select(.side == "quillan-6m")) | length' "$dir/bench/bench.jsonl")" -gt 0 ]
}

@test "make-model: the same shape and seed give the same bytes, another seed others; an infer job runs on it" {
    for d in a b; do "$FACTORLLM" bench make-model --quiet --shape quillan,layers=2 "$dir/$d"; done
    "$FACTORLLM" bench make-model --quiet --shape quillan,layers=2 --seed 2 "$dir/c"
    cmp "$dir/a/model.safetensors" "$dir/b/model.safetensors"
    refute cmp "$dir/a/model.safetensors" "$dir/c/model.safetensors"
    run "$FACTORLLM" bench make-model "$dir/a"
    [ "$status" = 2 ]
    run "$FACTORLLM" bench make-model --shape width=3 "$dir/d"
    [ "$status" = 2 ]
    run "$FACTORLLM" bench measure "$dir/d"
    [ "$status" = 2 ]
    toy_prompts >"$dir/prompts.jsonl"
    printf 'kind: infer\nmodel: %s\noutput: %s\ninput: %s\nmax_tokens: 4\nignore_eos: true\n' "$dir/a" "$dir/i" "$dir/prompts.jsonl" >"$dir/i.yaml"
    run "$FACTORLLM" run "$dir/i.yaml"
    echo "$output"
    [ "$status" = 0 ]
    [ "$(wc -l <"$dir/i/responses.jsonl")" = 9 ]
    # the timing block: sections, and what was got out of the machine
    [[ $output == *"section "*"attention "*"expert "*"rank 0 "*"machine "* ]]
    jq -e '.infer.timing | (.sections | length == 12) and .tokens == 36 and .sections.expert.avg > 0 and .ranks[0].memory_bytes > 0' "$dir/i/result.json"
}

@test "what a bench job cannot be is said by name" {
    small_bench
    for bad in parts=[] rows=0 rows=x shares=2 batches=1.5 formats=q5 compare=configs/models/quillan-6m; do
        run "$FACTORLLM" run "$dir/b.yaml" --set "$bad"
        echo "$bad: $output"
        [ "$status" = 2 ]
        [[ $output == *"${bad%%=*}: expected"* ]]
    done
    run "$FACTORLLM" run "$dir/b.yaml" --set compare="$toy"
    [ "$status" = 2 ]
    [[ $output == *"has another shape"* ]]
    run "$FACTORLLM" plan configs/bench.yaml --set model=configs/models/quillan-6m --set prefill=128 --set output="$dir/p"
    echo "$output"
    [ "$status" = 0 ]
    [[ $output == *"bench.csv"* ]]
}

@test "plots: the numbers behind the pictures come from bench.csv" {
    twin
    small_bench
    "$FACTORLLM" run --quiet "$dir/b.yaml"
    run scripts/plot_bench.sh "$dir/bench"
    echo "$output"
    if command -v gnuplot; then
        [ "$status" = 0 ]
        [ -s "$dir/bench/gain.svg" ]
        [ -s "$dir/bench/bandwidth.svg" ]
    else
        [ "$status" = 3 ]
        [[ $output == *"gnuplot is not installed"* ]]
    fi
    [ "$(grep -c f= "$dir/bench/gain.dat")" = 2 ]
    grep -q '"q8 768x256"' "$dir/bench/bandwidth.dat"
    run scripts/plot_bench.sh "$dir"
    [ "$status" = 3 ]
}
