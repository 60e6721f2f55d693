# The main job from end to end on the toy model, and what must hold of it.
load common

# What must not depend on ranks or placement, in one text: every figure of eval but the times, the router's bytes, the answers in id order.
essence() {
    sha256sum <"$1/factorize/model/model.safetensors"
    sha256sum <"$1/factorize/model/routers/v1/router.safetensors"
    jq -S '.eval | {perplexity, accuracy, bits_per_byte, active_share, agreement, load}' "$1/result.json"
    jq -S -c '{id, text, finish_reason, usage}' "$1/infer/responses.jsonl" | sort
}

@test "the main job gives the same bits on 1, 2, 3 and 5 ranks and for other placements" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_pipeline >"$dir/job.yaml"
    "$FACTORLLM" run "$dir/job.yaml" --set output="$dir/alone"
    essence "$dir/alone" >"$dir/alone.txt"
    [ "$(jq '.eval.perplexity | length' "$dir/alone/result.json")" = 5 ]
    [ "$(wc -l <"$dir/alone/infer/responses.jsonl")" = 9 ]
    for how in 2 3 5 "3 cluster.placement=round_robin" "2 cluster.coordinator_experts=true" "3 cluster.micro_batches=1 limits.sessions=3" "1 cluster.threads=3"; do
        set -- $how
        n=$1 sets=
        shift
        for s in "$@"; do sets="$sets --set $s"; done
        rm -rf "$dir/run"
        ranks "$n" run "$dir/job.yaml" $sets
        echo "$how: $output"
        [ "$status" = 0 ]
        essence "$dir/run" >"$dir/run.txt"
        diff "$dir/alone.txt" "$dir/run.txt"
    done
}

@test "with all experts active the factorized model is the dense one" {
    for grouping in contiguous random coactivation; do
        toy_pipeline | sed "s/grouping: .*/grouping: $grouping/; s/active: 3/active: 7/" >"$dir/job.yaml"
        toy_prompts >"$dir/prompts.jsonl"
        rm -rf "$dir/run"
        ranks 2 run "$dir/job.yaml" --set eval.variants='[dense, random]'
        echo "$output"
        [ "$status" = 0 ]
        jq -e '.eval.perplexity | (.dense - .random) | fabs < 1e-9' "$dir/run/result.json"
        # and the dense reading of it is the model it came from
        cat >"$dir/dense.yaml" <<YAML
kind: eval
model: $toy
output: $dir/dense
text: {file: $BATS_TEST_DIRNAME/common.bash}
window: 32
variants: [dense]
YAML
        "$FACTORLLM" run "$dir/dense.yaml"
        "$FACTORLLM" run "$dir/dense.yaml" --set model="$dir/run/factorize/model" --set output="$dir/again"
        jq -s -e '.[0].eval.perplexity.dense / .[1].eval.perplexity.dense - 1 | fabs < 1e-5' "$dir/dense/result.json" "$dir/again/result.json"
    done
}

@test "a pipeline that ended well is not done again" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_pipeline >"$dir/job.yaml"
    "$FACTORLLM" run "$dir/job.yaml"
    run "$FACTORLLM" run "$dir/job.yaml"
    echo "$output"
    [ "$status" = 0 ]
    [ "$(grep -c 'done before' <<<"$output")" = 4 ]
}

@test "a step whose input or product changed is done again, and only then" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_pipeline >"$dir/job.yaml"
    "$FACTORLLM" run "$dir/job.yaml" --quiet
    # another factorization is another model for the steps behind it; answers of the old one are not mixed with new ones
    run "$FACTORLLM" run "$dir/job.yaml" --set factorize.active=4
    echo "$output"
    [ "$status" = 2 ]
    ! grep -q 'done before, see' <<<"$output"
    grep -q "responses.jsonl: its rows belong to another run" <<<"$output"
    rm "$dir/run/infer/responses.jsonl"
    run "$FACTORLLM" run "$dir/job.yaml" --set factorize.active=4
    echo "$output"
    [ "$status" = 0 ]
    [ "$(grep -c 'done before, see' <<<"$output")" = 3 ]
    jq -e '.finetune.chance | . * 7 - 4 | fabs < 1e-9' "$dir/run/result.json"
    # what was made is gone
    rm -r "$dir/run/factorize/model/routers"
    run "$FACTORLLM" run "$dir/job.yaml" --set factorize.active=4
    echo "$output"
    [ "$status" = 0 ]
    [ "$(grep -c 'done before, see' <<<"$output")" = 3 ] # the same router is trained again, so eval and infer stand
    ! grep -q 'finetune: done before' <<<"$output"
}

@test "two jobs in one directory: the second is refused, the first is not disturbed" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_pipeline >"$dir/job.yaml"
    mkdir -p "$dir/run/factorize"
    (
        flock 9
        run "$FACTORLLM" run "$dir/job.yaml" --quiet
        echo "$output"
        [ "$status" = 3 ]
        [ "$(grep -c '^factorllm: ' <<<"$output")" = 1 ]
        grep -q "$dir/run/factorize: another job is at work in this directory" <<<"$output"
        [ "$(ls "$dir/run/factorize")" = log.jsonl ]
    ) 9>>"$dir/run/factorize/log.jsonl"
    "$FACTORLLM" run "$dir/job.yaml" --quiet
}
