# Which kernels compute, and with what activations: cluster.kernels and precision.activations.
load common

answers() { jq -S -c '{id, text, finish_reason, usage}' "$1" | sort; }

# The toy model answering, with all formats that there are in turn.
toy_infer() {
    cat <<YAML
kind: infer
model: $toy
output: $dir/run
input: $dir/prompts.jsonl
variant: dense
max_tokens: 16
temperature: 0
YAML
}

best_level() { "$FACTORLLM" run "$dir/job.yaml" --set output="$dir/best" --quiet >&2 && jq -r '.kernels | split(",")[0]' "$dir/best/result.json"; }

@test "every level of kernels gives the same answers, and one that the processor has not is refused" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_infer >"$dir/job.yaml"
    best=$(best_level)
    levels=(plain avx2 avx512 vnni bf16 amx)
    for format in f32 bf16 q8 q4; do
        has=yes want=
        for level in "${levels[@]}"; do
            rm -rf "$dir/run"
            run "$FACTORLLM" run "$dir/job.yaml" --set cluster.kernels=$level --set precision.experts=$format --set precision.attention=$format --set precision.head=$format
            if [ "$status" != 0 ]; then
                echo "$output"
                [ "$status" = 2 ]
                [ "$(grep -c 'cluster.kernels: expected auto or a level up to [a-z0-9]*, which this processor has, found '$level <<<"$output")" = 1 ]
                [ $level != plain ]
                [ $level != "$best" ]
                has=no
                continue
            fi
            [ $has = yes ] # levels are a ladder
            answers "$dir/run/responses.jsonl" >"$dir/$level.txt"
            [ "$(wc -l <"$dir/$level.txt")" = 9 ]
            [ -z "$want" ] || diff "$dir/plain.txt" "$dir/$level.txt"
            want=yes
        done
    done
}

@test "bf16 activations: the same answers on any number of ranks and threads, and nearly the same model" {
    toy_prompts >"$dir/prompts.jsonl"
    { toy_pipeline | sed '/kind: infer/,$d'; printf '  - kind: infer\n    input: %s\n    max_tokens: 16\n    temperature: 0.5\n' "$dir/prompts.jsonl"; } >"$dir/job.yaml"
    half="--set eval.precision.activations=bf16 --set infer.precision.activations=bf16"
    for part in experts attention head router; do half="$half --set eval.precision.$part=bf16 --set infer.precision.$part=bf16"; done
    "$FACTORLLM" run "$dir/job.yaml" $half --set output="$dir/alone" --quiet
    answers "$dir/alone/infer/responses.jsonl" >"$dir/alone.txt"
    [ "$(wc -l <"$dir/alone.txt")" = 9 ]
    for how in 2 3 "1 cluster.threads=3" "2 limits.sessions=3"; do
        set -- $how
        rm -rf "$dir/run"
        ranks "$1" run "$dir/job.yaml" $half ${2:+--set $2} --quiet
        echo "$how: $output"
        [ "$status" = 0 ]
        diff "$dir/alone.txt" <(answers "$dir/run/infer/responses.jsonl")
        [ "$(jq -c .eval.perplexity "$dir/alone/result.json")" = "$(jq -c .eval.perplexity "$dir/run/result.json")" ]
    done
    # against f32 activations over the same weights: not the same, and near
    for as in f32 bf16; do
        printf 'kind: eval\nmodel: %s\noutput: %s\ntext: {file: tests/cli/common.bash}\nwindow: 32\nvariants: [dense]\nprecision: {experts: bf16, attention: bf16, head: bf16, activations: %s}\n' "$toy" "$dir/$as" $as >"$dir/eval.yaml"
        "$FACTORLLM" run "$dir/eval.yaml" --quiet
    done
    jq -s -e '(.[0].eval.perplexity.dense / .[1].eval.perplexity.dense - 1 | fabs) as $d | $d > 0 and $d < 0.01' "$dir/bf16/result.json" "$dir/f32/result.json"
}
