# The main job from end to end on the toy model, and what must hold of it.
load common

# What must not depend on ranks or placement, in one text: every figure of eval but the times, the router's bytes, the answers in id order.
essence() {
    sha256sum <"$1/factorize/model/model.safetensors"
    sha256sum <"$1/factorize/model/routers/v1/router.safetensors"
    jq -S '.eval | {perplexity, accuracy, bits_per_byte, active_share, active_share_of_items, agreements, loads, figures, gap_closed, overhead, knowledge}' "$1/result.json"
    jq -S -c '{id, text, finish_reason, usage}' "$1/infer/responses.jsonl" | sort
}

@test "the main job gives the same bits on 1, 2, 3 and 5 ranks and for other placements" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_pipeline >"$dir/job.yaml"
    "$FACTORLLM" run "$dir/job.yaml" --set output="$dir/alone"
    essence "$dir/alone" >"$dir/alone.txt"
    [ "$(jq '.eval.perplexity | length' "$dir/alone/result.json")" = 7 ]
    [ "$(wc -l <"$dir/alone/infer/responses.jsonl")" = 9 ]
    for how in 2 3 5 "3 cluster.placement=round_robin" "3 cluster.shared_memory=never" "3 cluster.placement=balance" "2 cluster.tensor_parallel=true" "3 cluster.tensor_parallel=true cluster.shared_memory=never cluster.placement=balance" "2 cluster.coordinators=2" "3 cluster.coordinators=2" "5 cluster.coordinators=3 cluster.coordinator_experts=false" "3 cluster.coordinators=3 cluster.shared_memory=never limits.sessions=5" "2 cluster.coordinator_experts=true" "3 cluster.micro_batches=1 limits.sessions=3" "1 cluster.threads=3"; do
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

@test "what is rounded on its way between ranks: fewer bytes, near the exact answer, and the same bits every time" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_pipeline >"$dir/job.yaml"
    "$FACTORLLM" run "$dir/job.yaml" --set output="$dir/made" --quiet
    cat >"$dir/eval.yaml" <<YAML
kind: eval
model: $dir/made/factorize/model
output: $dir/out
text: {file: tests/cli/common.bash}
window: 32
variants: [dense, static, router]
YAML
    # figures OUTPUT KEY...: evaluates on two ranks
    figures() {
        local out=$1 sets=
        shift
        for s in "$@"; do sets="$sets --set cluster.$s"; done
        ranks 2 run "$dir/eval.yaml" --quiet --set output="$dir/$out" $sets
        echo "$*: $output"
        [ "$status" = 0 ]
    }
    figures exact
    bytes() { jq -e ".eval.exchange.$1" "$dir/$2/result.json"; }
    for how in "exchange_rows=bf16" "exchange_answers=f32" "exchange_answers=bf16" "exchange_rows=bf16 exchange_answers=bf16"; do
        figures once $how
        figures again $how shared_memory=never
        echo "$how: $(jq -c .eval.perplexity "$dir/once/result.json"), exact $(jq -c .eval.perplexity "$dir/exact/result.json")"
        [ "$(jq -c '.eval | [.perplexity, .accuracy]' "$dir/once/result.json")" = "$(jq -c '.eval | [.perplexity, .accuracy]' "$dir/again/result.json")" ]
        jq -s -e '[.[].eval.perplexity] | . as [$a, $b] | $a | keys | all(($a[.] / $b[.] - 1 | fabs) < 0.02)' "$dir/once/result.json" "$dir/exact/result.json"
        if [[ $how == *bf16* ]]; then [ "$(jq -c .eval.perplexity "$dir/once/result.json")" != "$(jq -c .eval.perplexity "$dir/exact/result.json")" ]; fi
        if [[ $how == *rows* ]]; then [ "$(bytes bytes_out once)" -lt "$(bytes bytes_out exact)" ]; fi
        if [[ $how == *answers* ]]; then [ "$(bytes bytes_back once)" -lt "$(bytes bytes_back exact)" ]; fi
        rm -r "$dir/once" "$dir/again"
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
    [ "$status" = 0 ]
    refute grep 'done before, see' <<<"$output"
    grep -q "responses.jsonl: its rows belonged to an earlier run of the pipeline; they are in .*responses.jsonl.old now" <<<"$output"
    [ "$(wc -l <"$dir/run/infer/responses.jsonl")" = 9 ]
    [ "$(wc -l <"$dir/run/infer/responses.jsonl.old")" = 9 ]
    run "$FACTORLLM" run "$dir/job.yaml" --set factorize.active=4
    echo "$output"
    [ "$status" = 0 ]
    [ "$(grep -c 'done before, see' <<<"$output")" = 4 ]
    jq -e '.finetune.chance | . * 7 - 4 | fabs < 1e-9' "$dir/run/result.json"
    # what was made is gone
    rm -r "$dir/run/factorize/model/routers"
    run "$FACTORLLM" run "$dir/job.yaml" --set factorize.active=4
    echo "$output"
    [ "$status" = 0 ]
    [ "$(grep -c 'done before, see' <<<"$output")" = 3 ] # the same router is trained again, so eval and infer stand
    refute grep 'finetune: done before' <<<"$output"
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

@test "the model that ships: equal bits on 1, 2, 3 and 5 ranks, and a little training beats chance and the fixed choice" {
    head -n 3 configs/prompts.jsonl >"$dir/prompts.jsonl"
    toy_pipeline | sed 's/experts: 7/experts: 32/; s/active: 3/active: 16/; /shared:/d; /select:/d; s/compensation: mean/compensation: none/
        s/sample_tokens: 400/sample_tokens: 1000/; s/sample_tokens: 600/sample_tokens: 2500/; s/sample_tokens: 300/sample_tokens: 768/
        s/sequence: 32/sequence: 128/; s/window: 32/window: 128/; s/tokens: 1200/tokens: 2500/
        s/batch_tokens: 128/batch_tokens: 256/; s/sessions: 8/sessions: 16/; s/variants: .*/variants: [dense, static, random, router, oracle]/' >"$dir/job.yaml"
    "$FACTORLLM" run "$dir/job.yaml" --set model=configs/models/quillan-6m --set output="$dir/alone"
    essence "$dir/alone" >"$dir/alone.txt"
    ranks 3 run "$dir/job.yaml" --set model=configs/models/quillan-6m --set cluster.placement=round_robin
    echo "$output"
    [ "$status" = 0 ]
    essence "$dir/run" >"$dir/run.txt"
    diff "$dir/alone.txt" "$dir/run.txt"
    cat >"$dir/infer.yaml" <<YAML
kind: infer
model: $dir/alone/factorize/model
input: $dir/prompts.jsonl
output: $dir/answers
max_tokens: 12
temperature: 0.9
seed: 3
YAML
    "$FACTORLLM" run "$dir/infer.yaml" --quiet --set output="$dir/answers-alone"
    for n in 2 5; do
        rm -rf "$dir/answers"
        ranks "$n" run "$dir/infer.yaml" --set cluster.coordinator_experts=false
        echo "$output"
        [ "$status" = 0 ]
        diff <(sort "$dir/answers-alone/responses.jsonl") <(sort "$dir/answers/responses.jsonl")
    done
    jq -c .eval.perplexity "$dir/run/result.json"
    jq -e '.eval.perplexity | .dense < .oracle and .oracle < .router and .router < .static and .router < .random' "$dir/run/result.json"
}

@test "a model of very many positions takes memory for what the job uses, and plan says so" {
    cp -r "$toy" "$dir/long"
    sed -i 's/"max_position_embeddings": *[0-9]*/"max_position_embeddings": 131072/' "$dir/long/config.json"
    toy_prompts >"$dir/prompts.jsonl"
    echo '{"context": "one two three four", "target": "five"}' >"$dir/words.jsonl"
    toy_pipeline | sed '/sequence: 32/d; /window: 32/d; s/tokens: 1200/tokens: 6000/; s/sample_tokens: [36]00/sample_tokens: 3000/' >"$dir/job.yaml"
    set -- "$dir/job.yaml" --set model="$dir/long" --set eval.multiple_choice="$dir/words.jsonl" --set limits.memory_mib=40
    run "$FACTORLLM" plan "$@"
    echo "$output"
    [ "$status" = 0 ]
    grep -q "room  *2048 rows a step, 1 session of 2048 positions" <<<"$output"
    run "$FACTORLLM" run "$@"
    echo "$output"
    [ "$status" = 0 ]
    # what does not fit is refused by both, with the keys to turn
    for command in plan run; do
        run "$FACTORLLM" "$command" "$@" --set limits.memory_mib=1 --set output="$dir/none"
        echo "$output"
        [ "$status" = 5 ]
        grep -q "limits.memory_mib allows 1; lower limits.batch_rows (256 rows now), limits.sessions ([0-9]*) or limits.positions (512)" <<<"$output"
    done
    # a window longer than limits.batch_rows raises the rows
    run "$FACTORLLM" run "$dir/job.yaml" --set output="$dir/small" --set finetune.sequence=64 --set limits.batch_rows=16
    echo "$output"
    [ "$status" = 0 ]
}

@test "plan refuses what run refuses: no tokenizer, an output that cannot be made, nothing to compare with, an input with two of one id" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_pipeline >"$dir/job.yaml"
    both() { # CODE TEXT ARGS...
        for command in plan run; do
            run "$FACTORLLM" "$command" "${@:3}"
            echo "$command: exit $status: $output"
            [ "$status" = "$1" ]
            grep -qF -- "$2" <<<"$output"
        done
    }
    "$FACTORLLM" run "$dir/job.yaml" --quiet
    made=$dir/run/factorize/model
    printf 'kind: eval\nmodel: %s\noutput: %s\ntext: {file: %s}\nwindow: 32\nbootstrap: 0\n' "$made" "$dir/e" "$BATS_TEST_DIRNAME/common.bash" >"$dir/eval.yaml"
    both 3 "$dir/prompts.jsonl/out" "$dir/eval.yaml" --set output="$dir/prompts.jsonl/out"
    both 3 "has no router version v9; there is v1" "$dir/eval.yaml" --set compare_router=v9
    both 3 "$dir/none/config.json" "$dir/eval.yaml" --set compare_model="$dir/none"
    cp -r "$toy" "$dir/mute"
    rm "$dir"/mute/tokenizer*
    both 3 "$dir/mute" "$dir/eval.yaml" --set model="$dir/mute" --set variants=dense
    printf 'kind: infer\nmodel: %s\noutput: %s\ninput: %s\n' "$made" "$dir/i" "$dir/prompts.jsonl" >"$dir/infer.yaml"
    echo '{"id": "p1", "prompt": "again"}' >>"$dir/prompts.jsonl"
    both 4 "lines 1 and 10 have the same id p1" "$dir/infer.yaml"
    printf 'kind: finetune\nmodel: %s\noutput: %s\ntext: {sample_tokens: 200}\n' "$made" "$dir/t" >"$dir/tune.yaml"
    both 2 "compensation_rank: expected at most 48, the width of the model, found 49" "$dir/tune.yaml" --set compensation_rank=49
    both 2 "router_rank: expected at most 48, the width of the model, found 49" "$dir/tune.yaml" --set router=gate --set router_rank=49
    mv "$made/routers" "$dir/routers"
    : >"$made/routers" # known before anything is trained
    both 3 "$made/routers: cannot be made: $made/routers is not a directory" "$dir/tune.yaml"
}

@test "a single infer job: rows at the end of the input are answered, anything else that changed is named in words" {
    toy_prompts >"$dir/prompts.jsonl"
    printf 'kind: infer\nmodel: %s\noutput: %s\ninput: %s\nmax_tokens: 5\n' "$toy" "$dir/i" "$dir/prompts.jsonl" >"$dir/infer.yaml"
    "$FACTORLLM" run "$dir/infer.yaml" --quiet
    for i in 1 2; do
        echo "{\"id\": \"new$i\", \"prompt\": \"a new one that is longer than all the others were\"}" >>"$dir/prompts.jsonl"
        run "$FACTORLLM" run "$dir/infer.yaml"
        echo "$output"
        [ "$status" = 0 ]
        grep -q "1 rows answered, 0 refused, $((8 + i)) done before" <<<"$output"
    done
    [ "$(jq -s 'map(.id) | unique | length' "$dir/i/responses.jsonl")" = 11 ]
    run "$FACTORLLM" run "$dir/infer.yaml" --set temperature=0.5
    echo "$output"
    [ "$status" = 2 ]
    grep -qF "what changed: temperature (was 0.8, is 0.5); move it away or choose another output" <<<"$output"
    run "$FACTORLLM" run "$dir/infer.yaml" --set temperature=0.8000000000000002
    [ "$status" = 2 ]
    grep -qF "what changed: temperature (was 0.8, is 0.80000000000000016)" <<<"$output"
    sed -i 1d "$dir/prompts.jsonl"
    run "$FACTORLLM" run "$dir/infer.yaml"
    [ "$status" = 2 ]
    grep -qF "what changed: the input" <<<"$output"
    refute grep -E '[0-9a-f]{64}' <<<"$output"
}

# A factorized model with a router, in $dir/cut/model.
toy_factorized() {
    toy_pipeline | sed '/kind: eval/,$d' >"$dir/cut.yaml"
    "$FACTORLLM" run "$dir/cut.yaml" --set output="$dir/cut" --quiet
}

@test "a converted model answers as the one that is packed when it is opened, on 1 and 3 ranks" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_factorized
    for how in "f32 f32 f32" "q8 bf16 q4"; do
        set -- $how
        precision="{experts: $1, attention: $2, head: $3}"
        printf 'kind: convert\nmodel: %s\noutput: %s\nprecision: %s\n' "$dir/cut/factorize/model" "$dir/packed" "$precision" >"$dir/convert.yaml"
        "$FACTORLLM" run "$dir/convert.yaml"
        [ ! -e "$dir/packed/model/model.safetensors" ]
        run "$FACTORLLM" inspect "$dir/packed/model"
        [ "$status" = 0 ]
        [[ $output == *"experts $1, attention $2, head $3; used in place"* && $output == *"routers      1"* ]]
        printf 'kind: infer\nmodel: %s\noutput: %s\ninput: %s\nprecision: %s\nmax_tokens: 12\nignore_eos: true\n' \
            "$dir/cut/factorize/model" "$dir/open" "$dir/prompts.jsonl" "$precision" >"$dir/infer.yaml"
        rm -rf "$dir/open"
        "$FACTORLLM" run "$dir/infer.yaml"
        jq -S -c '{id, text}' "$dir/open/responses.jsonl" | sort >"$dir/want.txt"
        [ "$(wc -l <"$dir/want.txt")" = 9 ]
        for n in 1 3; do
            rm -rf "$dir/run"
            ranks "$n" run "$dir/infer.yaml" --set model="$dir/packed/model" --set output="$dir/run"
            echo "$how on $n: $output"
            [ "$status" = 0 ]
            diff "$dir/want.txt" <(jq -S -c '{id, text}' "$dir/run/responses.jsonl" | sort)
        done
    done
}

@test "routers trained on a converted model are those of the original at its formats, both stages, on 1 and 3 ranks" {
    toy_factorized
    original=$dir/cut/factorize/model
    for format in q8 q4; do
        precision="{experts: $format, attention: $format, head: $format}"
        rm -rf "$dir/packed"
        printf 'kind: convert\nmodel: %s\noutput: %s\nprecision: %s\n' "$original" "$dir/packed" "$precision" >"$dir/convert.yaml"
        "$FACTORLLM" run "$dir/convert.yaml" --quiet
        # where labels need outputs of neurons, and where all that is fitted is
        [ $format = q8 ] && all=gram || all="energy, loss: regression, router: gate, start: ridge, compensation: unselected, compensation_rank: 2, scale: fitted, fit_tokens: 300"
        for labels in "$all"; do
            printf 'kind: pipeline\nmodel: %s\noutput: %s\nlimits: {batch_rows: 128}\nsteps:\n' "$original" "$dir/train" >"$dir/train.yaml"
            printf '  - {kind: finetune, text: {sample_tokens: 300}, tokens: 300, batch_tokens: 64, sequence: 32, version: %s}\n' "a, labels: $labels" "b, stage: 2, from: a" >>"$dir/train.yaml"
            rm -rf "$dir/train"
            run "$FACTORLLM" run "$dir/train.yaml" --quiet --set precision.experts=$format --set precision.attention=$format --set precision.head=$format
            echo "$format, $labels: $output"
            [ "$status" = 0 ]
            for n in 1 3; do # its formats are asked for by nobody: they are those that are stored
                rm -rf "$dir/train"
                ranks $n run "$dir/train.yaml" --quiet --set model="$dir/packed/model"
                echo "$format, $labels, on $n: $output"
                [ "$status" = 0 ]
                for version in a b; do cmp {"$original","$dir/packed/model"}/routers/$version/router.safetensors; done
                rm -r "$dir/packed/model/routers"/[ab]
            done
            rm -r "$original/routers"/[ab]
        done
        # formats that it has not
        run "$FACTORLLM" run "$dir/train.yaml" --quiet --set model="$dir/packed/model" --set output="$dir/other" --set precision.experts=bf16
        [ "$status" = 2 ]
        [[ $output == *"precision.experts: expected stored or $format, as its packed weights are, found bf16"* ]]
        [ "$(wc -l <<<"$output")" = 1 ]
    done
}

@test "a pipeline that converts works on what it made, and plan says so" {
    toy_prompts >"$dir/prompts.jsonl"
    { toy_pipeline | sed '/kind: eval/,$d'; printf '  - kind: convert\n    precision: {experts: q8}\n  - kind: eval\n    text: {file: tests/cli/common.bash}\n    variants: [dense, router]\n    bootstrap: 0\n    window: 32\n'; } >"$dir/job.yaml"
    run "$FACTORLLM" plan "$dir/job.yaml" --ranks 2
    echo "$output"
    [ "$status" = 0 ]
    [[ $output == *"convert/model, which will be made by step convert"*"experts q8, attention f32, head f32; used in place"* ]]
    ranks 2 run "$dir/job.yaml"
    echo "$output"
    [ "$status" = 0 ]
    jq -e '.convert.error.experts > 0 and .eval.perplexity.router > 1' "$dir/run/result.json"
    # an eval of another format than the one that is there
    run "$FACTORLLM" plan "$dir/job.yaml" --set eval.precision.experts=q4
    [ "$status" = 2 ]
    [[ $output == *"precision: expected stored, or that of step convert"* ]]
    printf 'kind: eval\nmodel: %s\noutput: %s\ntext: {file: tests/cli/common.bash}\nprecision: {experts: q4}\n' "$dir/run/convert/model" "$dir/other" >"$dir/eval.yaml"
    for command in plan run; do
        run "$FACTORLLM" $command "$dir/eval.yaml"
        [ "$status" = 2 ]
        [[ $output == *"precision.experts: expected stored or q8, as its packed weights are, found q4"* ]]
    done
}

@test "batch-aware routing: nothing changes until a batch is held to fewer experts, then on any number of ranks alike" {
    toy_prompts >"$dir/prompts.jsonl"
    toy_pipeline >"$dir/job.yaml"
    "$FACTORLLM" run "$dir/job.yaml" --quiet
    cat >"$dir/eval.yaml" <<YAML
kind: eval
model: $dir/run/factorize/model
output: $dir/eval
text: {file: README.md, bytes: 3000}
window: 32
bootstrap: 0
variants: [router]
YAML
    figure() { # KEYS...: perplexity of the router, f; in $(...), where nothing fails by itself
        "$FACTORLLM" run "$dir/eval.yaml" --quiet "$@" || return
        jq -c '.eval | [.perplexity.router, .active_share.router]' "$dir/eval/result.json"
    }
    whole=$(figure)
    [ "$(figure --set decode_batch=6)" = "$whole" ]
    held=$(figure --set decode_batch=6 --set batch_experts=0.5)
    echo "$whole $held"
    [ "$held" != "$whole" ]
    for batch in 6 70 100; do # many rows are cut in two for several ranks, but not these
        held=$(figure --set decode_batch=$batch --set batch_experts=0.5)
        ranks 3 run "$dir/eval.yaml" --quiet --set decode_batch=$batch --set batch_experts=0.5
        [ "$status" = 0 ]
        [ "$(jq -c '.eval | [.perplexity.router, .active_share.router]' "$dir/eval/result.json")" = "$held" ]
    done
    run "$FACTORLLM" run "$dir/eval.yaml" --set batch_experts=0.5
    [ "$status" = 2 ]
    [[ $output == *"batch_experts: expected only with decode_batch of 2 and more, found decode_batch 0"* ]]
    # infer: a batch held to all it may want answers as ever, held to less it does not, on any number of ranks alike
    cat >"$dir/infer.yaml" <<YAML
kind: infer
model: $dir/run/factorize/model
input: $dir/prompts.jsonl
output: $dir/i
max_tokens: 12
temperature: 0
ignore_eos: true
YAML
    answers() { # N KEYS...
        rm -rf "$dir/i"
        ranks "$1" run "$dir/infer.yaml" --quiet "${@:2}"
        [ "$status" = 0 ] || { echo "$output" >&2; return 1; }
        jq -S -c '{id, text}' "$dir/i/responses.jsonl" | sort | sha256sum
    }
    whole=$(answers 1)
    held=$(answers 1 --set batch_experts=0.2)
    [ "$held" != "$whole" ]
    [ "$(answers 3 --set batch_experts=0.2)" = "$held" ]
    ranks 2 run "$dir/infer.yaml" --set batch_experts=0.2 --set cluster.coordinators=2
    [ "$status" = 2 ]
    [[ $output == *"batch_experts: expected 1 with cluster.coordinators: 2, found 0.2"* ]]
    run "$FACTORLLM" run "$dir/eval.yaml" --set decode_batch=4000
    [ "$status" = 2 ]
    [[ $output == *"decode_batch: 4000 sequences, but limits.batch_rows is"* ]]
}
