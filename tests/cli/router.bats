# factorllm router: versions of a model's routers.
load common

# A factorized toy model with the routers v1 and v2, v2 in use.
two_routers() {
    cat >"$dir/make.yaml" <<YAML
kind: pipeline
model: $toy
output: $dir/run
steps:
  - {kind: factorize, experts: 8, active: 4, grouping: contiguous, calibration: {sample_tokens: 200}}
  - {kind: finetune, text: {sample_tokens: 300}, sequence: 32, tokens: 256, batch_tokens: 128}
  - {kind: finetune, text: {sample_tokens: 300}, sequence: 32, tokens: 512, batch_tokens: 128, labels: paper, loss: paper}
YAML
    "$FACTORLLM" run "$dir/make.yaml" --quiet
    model=$dir/run/factorize/model
}

# says CODE TEXT ARGS...: ends with the code and one line that has the text
says() {
    local code=$1 text=$2
    shift 2
    run "$FACTORLLM" router "$@"
    echo "router $*: $status: $output"
    [ "$status" = "$code" ]
    grep -qF -- "$text" <<<"$output"
    [ "$code" = 0 ] || [ "$(grep -c '^factorllm: ' <<<"$output")" = 1 ]
}

@test "routers are listed, promoted and rolled back" {
    two_routers
    says 0 "* in use; before it: v1" list "$model"
    [ "$(grep -c '^\* *v2 ' <<<"$output")" = 1 ]
    [ "$(grep -c '^  *v1 .*stage 1, gram, bce, top_k *256 *50.0 %' <<<"$output")" = 1 ]
    grep -q '^\* *v2 .*paper, paper' <<<"$output"
    "$FACTORLLM" router list "$model" --json | jq -e 'length == 2 and .[1].current and (.[0].current | not) and .[0].tokens == 256 and (.[0].agreement > 0)'
    says 0 "router v1 is in use now" promote "$model" v1
    [ "$(head -n 1 "$model/routers/current")" = v1 ]
    says 0 "router v2 is in use now" rollback "$model"
    says 0 "router v1 is in use now" rollback "$model"
    says 2 "there is none to roll back to" rollback "$model"
    "$FACTORLLM" router promote "$model" v2 --json | jq -e '.current == "v2" and .before == "v1"'
    # a job takes the one in use
    jq -cn '{id: "a", prompt: "word"}' >"$dir/p.jsonl"
    printf 'kind: infer\nmodel: %s\noutput: %s\ninput: %s\nmax_tokens: 2\n' "$model" "$dir/i" "$dir/p.jsonl" >"$dir/i.yaml"
    "$FACTORLLM" run "$dir/i.yaml" --quiet
}

@test "every mistake with routers is one clear line" {
    two_routers
    says 2 "router v2 is in use already" promote "$model" v2
    says 3 "has no router version v9; there are v1, v2" promote "$model" v9
    says 2 "router version: expected 1 to 63 letters" promote "$model" ../v1
    says 2 "is a dense model, it has no routers" list "$toy"
    says 3 "expected the directory of a factorized model" list "$dir/none"
    says 2 "did you mean 'rollback'" rolback "$model"
    says 2 "expected MODEL VERSION, found 1 operand" promote "$model"
    says 2 "an operand is missing" list
    says 2 "expected no --text" list "$model" --text x
    says 2 "did you mean '--json'" list "$model" --jsn
    rm -r "$model/routers/v1"
    says 3 "v1, which was in use before v2, is not there any more" rollback "$model"
    echo '{"stage": 5}' >"$model/routers/v2/router.json"
    says 4 "routers/v2/router.json: stage: expected" list "$model"
    echo '../../etc' >"$model/routers/current"
    says 4 "routers/current: expected the name of a router version" list "$model"
    rm -r "$model/routers"
    says 0 "no routers yet: a finetune job makes the first" list "$model"
    says 3 "there are none yet" promote "$model" v1
    says 2 "has no router in use" rollback "$model"
}
