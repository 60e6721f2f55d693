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
    [ "$(grep -c '^  *v1 .*stage 1, linear, energy, regression, threshold *256 *50.0 %' <<<"$output")" = 1 ]
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
    mkdir "$model/routers/v7" # without a router it is none
    says 3 "has no router version v7; there are v1, v2" promote "$model" v7
    rmdir "$model/routers/v7"
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
    jq '.metrics.active_share = {before: 0.5, after: 0.375}' "$model/routers/v2/router.json" >"$dir/r.json" # as stage 2 has it
    cp "$dir/r.json" "$model/routers/v2/router.json"
    "$FACTORLLM" router list "$model" --json | grep -q '0.375'
    echo '{"stage": 5}' >"$model/routers/v2/router.json"
    says 4 "routers/v2/router.json: stage: expected" list "$model"
    echo '../../etc' >"$model/routers/current"
    says 4 "routers/current: expected the name of a router version" list "$model"
    rm -r "$model/routers"
    says 0 "no routers yet: a finetune job makes the first" list "$model"
    says 3 "there are none yet" promote "$model" v1
    says 2 "has no router in use" rollback "$model"
}

@test "two routers side by side: figures and intervals are those of the eval, on any number of ranks, and are kept for the list" {
    two_routers
    cp tests/cli/common.bash "$dir/text.txt"
    ranks 2 router compare "$model" v2 v1 --text "$dir/text.txt" --set window=32 --set bootstrap=50 --output "$dir/c" --quiet
    echo "$output"
    [ "$status" = 0 ]
    [ "$(grep -c "$model on $dir/text.txt" <<<"$output")" = 1 ] # one rank speaks
    [ "$(grep -cE 'v1 is (better|worse)|no difference is shown' <<<"$output")" = 1 ]
    figure() { LC_ALL=C printf '%+.4f' "$(jq ".eval.compare[\"router@v1_vs_router@v2\"].accuracy.$1" "$dir/c/result.json")"; }
    grep '^  accuracy ' <<<"$output" | grep -qF -- " $(figure difference)   $(figure low) to $(figure high)"
    grep '^  perplexity ' <<<"$output" | grep -qF -- "$(LC_ALL=C printf '%.3f' "$(jq '.eval.perplexity["router@v2"]' "$dir/c/result.json")")"
    "$FACTORLLM" router list "$model" --json >"$dir/list.json"
    jq -s -e '.[0].eval as $e | .[1] | map(.perplexity) == [$e.perplexity["router@v1"], $e.perplexity["router@v2"]] and .[0].text_digest == ($e.text.digest | .[0:8])' "$dir/c/result.json" "$dir/list.json"
    head -c 2000 README.md >"$dir/other.txt"
    "$FACTORLLM" router compare "$model" v1 v2 --text "$dir/text.txt" --text "$dir/other.txt" --set text-1.window=32 --set text-2.window=32 --set text-1.bootstrap=9 --set text-2.bootstrap=9 \
        --output "$dir/two" --quiet --json | jq -e --arg a "$dir/text.txt" --arg b "$dir/other.txt" '(keys | sort) == ([$a, $b] | sort) and (.[$a].accuracy.difference | type) == "number"'
    says 3 "has no router version v9; there are v1, v2" compare "$model" v1 v9
    says 2 "expected two versions, found v1 twice" compare "$model" v1 v1
    says 2 "expected MODEL A B, found 2 operands" compare "$model" v1
    says 3 "$dir/none.txt: No such file or directory" compare "$model" v1 v2 --text "$dir/none.txt" --output "$dir/none" --quiet
    says 2 "--set: text-1.windw" compare "$model" v1 v2 --text "$dir/text.txt" --text "$dir/other.txt" --set text-1.windw=3 --output "$dir/none"
    says 4 "keep both versions in variants" compare "$model" v1 v2 --text "$dir/text.txt" --set variants=dense,router@v1 --set window=32 --output "$dir/none" --quiet
    echo '{"perplexity": "x"}' >"$model/routers/v1/measured.json"
    says 4 "routers/v1/measured.json: perplexity: expected a number" list "$model"
}

@test "a step does not replace the version that it names: other keys want another output; what a version brings along is told" {
    cat >"$dir/named.yaml" <<YAML
kind: pipeline
model: $toy
output: $dir/run
steps:
  - {kind: factorize, experts: 8, active: 4, grouping: contiguous, calibration: {sample_tokens: 200}}
  - {kind: finetune, name: one, version: one, text: {sample_tokens: 300}, sequence: 32, tokens: 256, batch_tokens: 128}
  - {kind: finetune, name: two, version: two, stage: 2, from: one, text: {sample_tokens: 300}, sequence: 32, tokens: 256, batch_tokens: 128}
YAML
    model=$dir/run/factorize/model
    "$FACTORLLM" run "$dir/named.yaml" --quiet
    # stage 2 trains a scale a layer, stage 1 has none unless it is asked for
    jq -e '.one.router.scale == null and (.two.router.scale | length == 3 and all(. > 0.5 and . < 2))' "$dir/run/result.json"
    jq -e --slurpfile all "$dir/run/result.json" '.router.scale == $all[0].two.router.scale' "$model/routers/two/router.json"
    run "$FACTORLLM" inspect "$model"
    echo "$output"
    [ "$(jq -r '.router.scale | "scale \(min * 1000 | round / 1000) to"' "$model/routers/two/router.json")" = "$(grep -oE 'scale [0-9.]+ to' <<<"$output" | sed 's/\.\?0* to/ to/')" ]
    before=$(cat "$model"/routers/*/* "$model/routers/current" | sha256sum)
    run "$FACTORLLM" run "$dir/named.yaml" --quiet --set one.tokens=384
    echo "$output"
    [ "$status" = 2 ]
    [ "$(grep -c '^factorllm: ' <<<"$output")" = 1 ]
    grep -qF "version: $model/routers/one exists already, and stays whatever becomes of output: it belongs to the model; choose another name, or none for the next free one, or remove that directory" <<<"$output"
    # what is in use would be missed; and what is not there is named beside what is
    printf 'kind: finetune\nmodel: %s\noutput: %s/more\nstage: 2\ntext: {sample_tokens: 300}\n' "$model" "$dir" >"$dir/more.yaml"
    for how in run plan; do
        run "$FACTORLLM" $how "$dir/more.yaml" --set version=two
        echo "$output"
        [ "$status" = 2 ]
        grep -qF "or take another version into use (factorllm router promote, or rollback) and remove that directory" <<<"$output"
        run "$FACTORLLM" $how "$dir/more.yaml" --set from=nine
        echo "$output"
        [ "$status" = 3 ]
        grep -qF "$model: has no router version nine; there are one, two" <<<"$output"
    done
    [ "$(cat "$model"/routers/*/* "$model/routers/current" | sha256sum)" = "$before" ]
    "$FACTORLLM" run "$dir/named.yaml" --quiet --set one.tokens=384 --set output="$dir/other"
    # `spec` of router.json is keys of a spec with their values: given back one by one they are taken as they stand
    jq -e '.spec.train == ["router", "compensation"] and .spec.from == "one" and .spec["precision.experts"] == "stored"' "$model/routers/two/router.json"
    mapfile -t sets < <(jq -r '.spec | to_entries[] | "--set", "\(.key)=\(.value | if type == "array" then join(",") else . end)"' "$model/routers/two/router.json")
    [ ${#sets[@]} -gt 50 ]
    "$FACTORLLM" plan "$dir/more.yaml" "${sets[@]}"
    # another factorization begins without versions
    "$FACTORLLM" run "$dir/named.yaml" --quiet --set one.tokens=384 --set factorize.active=2
    jq -e '.one.tokens > 256' "$dir/run/result.json"
}
