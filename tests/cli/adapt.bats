# A pipeline that trains weights of the model: what it plans, makes, evaluates, and does not do again.
load common

adaptation() { # MORE: keys of the step that adapts
    cat <<YAML
kind: pipeline
model: $toy
output: $dir/run
steps:
  - {kind: factorize, experts: 8, active: 4, grouping: contiguous, budget: uniform, calibration: {sample_tokens: 200}}
  - {kind: finetune, text: {sample_tokens: 300}, sequence: 32, tokens: 256, batch_tokens: 128}
  - {kind: finetune, name: weights, stage: 2, text: {sample_tokens: 300}, sequence: 32, tokens: 256, batch_tokens: 128, ${1:-train: [norms, experts]}}
  - {kind: eval, text: {sample_tokens: 200}, variants: [dense, router], window: 32, bootstrap: 20, compare_model: $toy}
YAML
}

@test "a pipeline goes on with the model that a step adapted, and does nothing twice" {
    adaptation >"$dir/a.yaml"
    run "$FACTORLLM" plan "$dir/a.yaml"
    echo "$output"
    [ "$status" = 0 ]
    grep -qF "$dir/run/weights/model, which will be made by step weights" <<<"$output"
    # value and both moments of 3 x 3 layers x 44 x 48 weights: 12 bytes each
    grep -qE "on the coordinator, at least about [0-9.]+ MiB: .*, while a checkpoint is written 0.2$" <<<"$output"
    run "$FACTORLLM" run "$dir/a.yaml"
    echo "$output"
    [ "$status" = 0 ]
    jq -e '.factorization.adapted.trained == ["norms", "experts"]' "$dir/run/weights/model/config.json"
    jq -e '.weights == "adapted" and (.parent_model | endswith("factorize/model"))' "$dir/run/weights/model/routers/v1/router.json"
    jq -e '.weights.router | .kind == "linear" and has("scale") and .scale == null' "$dir/run/result.json" # it trained none
    jq -e '.eval | (.perplexity | has("dense") | not) and ((.ppl_ratio.router.value * .compare.other.perplexity.dense / .perplexity.router - 1) | fabs < 1e-9)' "$dir/run/eval/result.json"
    "$FACTORLLM" inspect --verify "$dir/run/weights/model"
    run "$FACTORLLM" plan "$dir/a.yaml" # with the model there
    [ "$status" = 0 ]
    run "$FACTORLLM" run "$dir/a.yaml"
    echo "$output"
    [ "$status" = 0 ]
    [ "$(grep -c 'done before' <<<"$output")" = 4 ]
    # a gate without the model that it is held against
    printf "kind: eval\nmodel: %s\noutput: %s\ntext: {sample_tokens: 200}\nvariants: [dense, router]\nmax_drop: 0.5\n" "$dir/run/weights/model" "$dir/gate" >"$dir/gate.yaml"
    for how in plan run; do
        run "$FACTORLLM" $how "$dir/gate.yaml"
        echo "$output"
        [ "$status" = 2 ]
        grep -qF "max_drop: expected compare_model, the model that" <<<"$output"
    done
    printf 'x' | dd of="$dir/run/weights/model/model.safetensors" bs=1 seek=9000 conv=notrunc status=none
    run "$FACTORLLM" inspect --verify "$dir/run/weights/model"
    [ "$status" = 4 ]
}
