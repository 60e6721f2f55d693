# The command line and job files: what is refused, in one line on stderr, with which exit code; help, plan, inspect.
load common

model=configs/models/quillan-6m

# refuses CODE TEXT ARGS...: exit code, nothing on stdout, one line "factorllm: ..." with TEXT on stderr (usage may follow)
refuses() {
    local code=$1 text=$2
    shift 2
    run --separate-stderr "$FACTORLLM" "$@"
    echo "exit $status, stdout: $output, stderr: $stderr"
    [ "$status" = "$code" ]
    [ -z "$output" ]
    [ "$(grep -c '^factorllm: ' <<<"$stderr")" = 1 ]
    grep -qF -- "$text" <<<"$stderr"
}

job() {
    cat >"$dir/job.yaml"
}

bats_require_minimum_version 1.5.0

@test "help: the overview, every command and every kind teach, with an example" {
    run "$FACTORLLM" --help
    [ "$status" = 0 ]
    for word in run plan inspect help factorize finetune eval infer pipeline 75; do grep -qw -- "$word" <<<"$output"; done
    for command in run plan inspect help; do
        run "$FACTORLLM" "$command" --help
        [ "$status" = 0 ]
        grep -q "^usage: factorllm $command" <<<"$output"
        grep -q '^Example' <<<"$output"
        by_option=$output
        run "$FACTORLLM" help "$command"
        [ "$status" = 0 ]
        [ "$output" = "$by_option" ]
    done
    for kind in factorize finetune eval infer report pipeline; do
        run "$FACTORLLM" help "$kind"
        [ "$status" = 0 ]
        grep -q '^Example' <<<"$output"
        grep -qE '^  cluster.threads +1 ' <<<"$output"
    done
    run "$FACTORLLM" --version
    [ "$status" = 0 ]
    [[ "$output" == "factorllm "* ]]
}

@test "no command prints the overview on stderr and is an error" {
    run --separate-stderr "$FACTORLLM"
    [ "$status" = 2 ]
    [ -z "$output" ]
    grep -q '^usage:' <<<"$stderr"
}

@test "wrong command lines are refused with what was meant" {
    refuses 2 "did you mean 'plan'?" pln
    refuses 2 "expected a command, found an unknown word" frobnicate
    refuses 2 "did you mean 'eval'?" help evl
    refuses 2 "run: the operand is missing" run
    refuses 2 "run: unknown option '--qiet'; did you mean '--quiet'?" run --qiet x.yaml
    refuses 2 "plan: unknown option '--quiet'" plan --quiet x.yaml
    refuses 2 "--set: expected a value behind it" run x.yaml --set
    refuses 2 "--set: expected key=value, found 'seed'" run x.yaml --set seed
    refuses 2 "expected one operand, found another one" run x.yaml y.yaml
    refuses 2 "--ranks: expected a number from 1 to 32767, found '0'" plan x.yaml --ranks 0
    refuses 2 "--ranks: expected a number" plan x.yaml --ranks 3x
}

@test "wrong job files are refused with file, line, key, expected and found" {
    refuses 3 "$dir/none.yaml: No such file or directory" run "$dir/none.yaml"
    refuses 3 "is a directory" run "$dir"
    job <<YAML
kind: factorize
model: $model
output: $dir/out
expert: 4
YAML
    refuses 2 "$dir/job.yaml:4: expert: expected a key of factorize jobs, found an unknown one; did you mean 'experts'?" run "$dir/job.yaml"
    sed -i 's/expert: 4/experts: four/' "$dir/job.yaml"
    refuses 2 "$dir/job.yaml:4: experts: expected an integer from 1 to 4096, found 'four'" run "$dir/job.yaml"
    refuses 2 "experts: expected an integer" plan "$dir/job.yaml"
    sed -i 's/experts: four/experts: 4/' "$dir/job.yaml"
    refuses 2 "$dir/job.yaml:4: experts: expected active <= experts, found 16 active of 4 experts" run "$dir/job.yaml"
    refuses 2 "--set: active: expected active <= experts, found 5 active of 4" run "$dir/job.yaml" --set active=5
    refuses 2 "--set: seed: expected an integer of at least 0, found 'x'" run "$dir/job.yaml" --set active=2 --set seed=x
    [ ! -e "$dir/out" ]
}

@test "under mpirun an error is printed once and is mpirun's exit code" {
    job <<YAML
kind: factorize
model: $dir/none
output: $dir/out
YAML
    for n in 1 3; do
        ranks "$n" run "$dir/job.yaml"
        echo "$output"
        [ "$status" = 3 ]
        [ "$(grep -c "^factorllm: $dir/none/config.json: No such file or directory" <<<"$output")" = 1 ]
        ranks "$n" run "$dir/job.yaml" --set experts=-1
        [ "$status" = 2 ]
        [ "$(grep -c '^factorllm: --set: experts: expected an integer' <<<"$output")" = 1 ]
    done
}

@test "a job that is refused leaves its error in result.json" {
    job <<YAML
kind: finetune
model: $model
output: $dir/out
text: {sample_tokens: 100}
YAML
    run "$FACTORLLM" run "$dir/job.yaml"
    echo "$output"
    [ "$status" = 2 ]
    grep -q "$model is a dense model" <<<"$output"
    [ "$(jq -r .status "$dir/out/result.json")" = failed ]
    jq -r .error "$dir/out/result.json" | grep -q "is a dense model"
    # and plan says the same
    refuses_plan=$(grep '^factorllm: ' <<<"$output")
    run --separate-stderr "$FACTORLLM" plan "$dir/job.yaml"
    [ "$status" = 2 ]
    [ "$stderr" = "$refuses_plan" ]
}

@test "spec.yaml is the spec as resolved, and reads back as itself" {
    job <<YAML
kind: finetune
model: $model
output: $dir/out
text: {sample_tokens: 100}
learning_rate: 0.30000000000000004
YAML
    run "$FACTORLLM" run "$dir/job.yaml" --set cluster.threads=2
    [ "$status" = 2 ] # the model is dense
    cp "$dir/out/spec.yaml" "$dir/first.yaml"
    grep -q '^  threads: 2$' "$dir/first.yaml"
    grep -q '^learning_rate: 0.30000000000000004$' "$dir/first.yaml"
    run "$FACTORLLM" run "$dir/first.yaml"
    [ "$status" = 2 ] # still
    diff "$dir/first.yaml" "$dir/out/spec.yaml"
}

@test "plan: ranks, bytes and traffic of the demo, a model that does not exist yet included" {
    run --separate-stderr "$FACTORLLM" plan configs/demo.yaml --ranks 3 --set output="$dir/demo" --set factorize.experts=4 --set factorize.active=2
    echo "$output$stderr"
    [ "$status" = 0 ]
    [ -z "$stderr" ]
    [ ! -e "$dir/demo" ]
    [ "$(grep -c '^  *2  follower ' <<<"$output")" -ge 3 ]
    grep -q "which will be made by step factorize" <<<"$output"
    grep -q "4 experts per layer of 192 neurons, 2 active, 0 neurons shared: f = 50.0 %" <<<"$output"
    # 4 experts over 3 ranks: 2, 1, 1.  Either remote rank is needed with probability 1 - C(3,2)/C(4,2) = 1/2.
    grep -q "1.00 remote ranks of 2, 1032 bytes out, 2048 bytes back" <<<"$output"
    run "$FACTORLLM" plan configs/demo.yaml --set output="$dir/demo"
    [ "$status" = 0 ]
    grep -q "none between ranks" <<<"$output"
}

@test "what a training takes is in the total, and is refused beyond limits.memory_mib by plan and run alike" {
    made=$(made_by_factorize)
    seq 20000 >"$dir/long.txt"
    printf 'kind: finetune\nmodel: %s\noutput: %s/t\ntext: {file: %s/long.txt}\ntokens: 256\nbatch_tokens: 128\nsequence: 32\nselect: top_k\n' "$made" "$dir" "$dir" >"$dir/t.yaml"
    # "training" and "total" of rank 0, with few and with many tokens to fit on, to 0.1 MiB: of each two states, a target for every expert, a weight, and what it is and where
    rank0() { "$FACTORLLM" plan "$dir/t.yaml" --ranks 2 "$@" | awk '$1 == 0 && $2 == "coordinator" {print $(NF - 1), $NF}'; }
    few=$(rank0 --set fit_tokens=100) many=$(rank0 --set fit_tokens=60000)
    echo "$few; $many"
    floats=$(jq '2 * .hidden_size + .factorization.experts + 4' "$made/config.json")
    awk -v f="$floats" '{more = 4 * f * 59900 / 1048576; if (($3 - $1 - more)^2 > 0.05 || ($4 - $2 - more)^2 > 0.05) exit 1}' <<<"$few $many"
    for how in run plan; do
        run "$FACTORLLM" $how "$dir/t.yaml" --set limits.memory_mib=80 --set fit_tokens=60000
        echo "$output"
        [ "$status" = 5 ]
        grep -qE "rank 0 .*needs [0-9]+ MiB, limits.memory_mib allows 80; training takes [0-9.]+ MiB of rank 0's \(router 0.[0-9], fit_tokens [0-9.]+\); lower fit_tokens \(60000\), limits.batch_rows" <<<"$output"
        # no more than is taken of the text, and than its file has
        "$FACTORLLM" $how "$dir/t.yaml" --set limits.memory_mib=80 --set fit_tokens=60000 --set text.bytes=1500
    done
    "$FACTORLLM" plan "$dir/t.yaml" --set limits.memory_mib=80 --set fit_tokens=60000 --set text.file=README.md
    # with thresholds beside what is fitted, and with nothing that is fitted
    [ "$(rank0 --set fit_tokens=60000 --set select=threshold)" = "$many" ]
    "$FACTORLLM" plan "$dir/t.yaml" --set limits.memory_mib=80 --set fit_tokens=60000 --set scale=model --set compensation=model --set compensation_rank=0 --set start=random
}

@test "plan refuses what run would refuse, with the same codes" {
    plan_refuses() { # as refuses, but part of the plan may be printed already
        run --separate-stderr "$FACTORLLM" plan "${@:3}"
        echo "exit $status: $stderr"
        [ "$status" = "$1" ]
        grep -qF -- "$2" <<<"$stderr"
    }
    plan_refuses 3 "/config.json: No such file or directory" configs/demo.yaml --set model="$dir/none"
    plan_refuses 3 "$dir/none.jsonl: No such file or directory" configs/demo.yaml --set infer.input="$dir/none.jsonl"
    plan_refuses 5 "rank 0 needs" configs/demo.yaml --set limits.memory_mib=8
    plan_refuses 2 "experts: expected 1 to 768, so that each has a neuron" configs/demo.yaml --set factorize.experts=1000
    plan_refuses 3 "has no router yet" configs/infer.yaml --set model="$(made_by_factorize)"
    printf 'kind: report\noutput: %s/report\nrows: {a: ["%s/none#router"]}\n' "$dir" "$dir" >"$dir/report.yaml"
    plan_refuses 3 "rows: $dir/none: expected the output directory of a job, found none" "$dir/report.yaml"
    # a router version is there, or a step before makes it
    printf 'kind: pipeline\nmodel: %s\noutput: %s/p\nsteps:\n' "$model" "$dir" >"$dir/job.yaml"
    printf '  - %s\n' "{kind: factorize, calibration: {sample_tokens: 64}}" "{kind: finetune, version: here, text: {file: README.md}}" \
        "{kind: finetune, text: {file: README.md}}" "{kind: convert, precision: {experts: q8}}" >>"$dir/job.yaml"
    for version in here v1 nothere; do
        { cat "$dir/job.yaml"; echo "  - {kind: eval, text: {file: README.md}, variants: [dense, router@$version]}"; } >"$dir/with.yaml"
        [ $version = nothere ] || "$FACTORLLM" plan "$dir/with.yaml"
    done
    plan_refuses 3 "variants: $dir/p/convert/model: has no router version nothere, and no step before makes it" "$dir/with.yaml"
    plan_refuses 5 "limits.positions: expected 2 to the model's 256, found 300" configs/demo.yaml --set limits.positions=300
    echo '{"ranks": 2, "layers": [[0, 1], [0, 1]]}' >"$dir/p.json"
    plan_refuses 2 "$dir/p.json: ranks: expected 3, the ranks of this launch, found 2" configs/demo.yaml --ranks 3 \
        --set cluster.placement=file --set cluster.placement_file="$dir/p.json"
    echo 'no json' >"$dir/p.json"
    plan_refuses 4 "$dir/p.json" configs/demo.yaml --ranks 3 --set cluster.placement=file --set cluster.placement_file="$dir/p.json"
}

# A factorized model without a router.
made_by_factorize() {
    [ -e "$dir/f" ] || "$FACTORLLM" run --quiet configs/factorize.yaml --set method=factorllm --set experts=4 --set active=2 --set grouping=contiguous \
        --set compensation=none --set calibration.sample_tokens=64 --set output="$dir/f" >&2
    echo "$dir/f/model"
}

@test "inspect: a dense model, a factorized model, a job's output, and nothing of these" {
    run "$FACTORLLM" inspect "$model"
    echo "$output"
    [ "$status" = 0 ]
    grep -q "a dense model (LlamaForCausalLM)" <<<"$output"
    grep -q "6 layers, width 256, 768 neurons, 8 heads (4 of keys and values)" <<<"$output"
    grep -q "parameters   5.77 M" <<<"$output"
    grep -q "SentencePiece BPE, 4096 pieces" <<<"$output"
    made=$(made_by_factorize)
    run "$FACTORLLM" inspect "$made"
    echo "$output"
    [ "$status" = 0 ]
    grep -q "a factorized model" <<<"$output"
    grep -q "4 per layer, 2 active: 1R4E2K, f = 50.0 %" <<<"$output"
    grep -q "none yet" <<<"$output"
    run "$FACTORLLM" inspect "$dir/f"
    [ "$status" = 0 ]
    grep -q "the output of a job" <<<"$output"
    grep -qE '^status +ok' <<<"$output"
    grep -q "factorllm inspect $made" <<<"$output"
    refuses 3 "$dir/none: No such file or directory" inspect "$dir/none"
    refuses 3 "expected a directory, found a file" inspect configs/demo.yaml
    refuses 3 "expected a model (config.json) or a job's output (result.json), found neither" inspect "$dir"
    mkdir "$dir/bad"
    echo '{"architectures": ["GPT2LMHeadModel"]}' >"$dir/bad/config.json"
    refuses 4 "GPT2LMHeadModel" inspect "$dir/bad"
}

@test "a file of a model that was cut, made longer or changed: one line, and --verify sees what opening a model does not" {
    malformed() { # as refuses, but what was found before stands on stdout
        run --separate-stderr "$FACTORLLM" "${@:2}"
        echo "exit $status: $stderr"
        [ "$status" = 4 ]
        [ "$(wc -l <<<"$stderr")" = 1 ]
        grep -qF -- "$1" <<<"$stderr"
    }
    made=$(made_by_factorize)
    printf 'kind: convert\nmodel: %s\noutput: %s\nprecision: {experts: q8}\n' "$made" "$dir/c" >"$dir/convert.yaml"
    "$FACTORLLM" run "$dir/convert.yaml" --quiet
    for file in "$made/model.safetensors" "$dir/c/model/packed.safetensors"; do
        at=${file%/*}
        (cd "$at" && sha256sum --quiet -c SHA256SUMS && ls -p | grep -v / | grep -vx SHA256SUMS | diff - <(cut -c67- SHA256SUMS)) # all files, and as others read it
        run "$FACTORLLM" inspect --verify "$at"
        echo "$output"
        [ "$status" = 0 ]
        grep -qE "^verified     [0-9]+ files, [0-9.]+ MiB" <<<"$output"
        cp "$file" "$dir/kept"
        size=$(stat -c %s "$file")
        # one bit of a weight: only who reads all of it can see that
        printf "\\$(printf %o $(($(tail -c 1 "$file" | od -An -tu1) ^ 1)))" | dd of="$file" bs=1 seek=$((size - 1)) conv=notrunc status=none
        refute env -C "$at" sha256sum --quiet -c SHA256SUMS
        "$FACTORLLM" inspect "$at"
        refuses 4 "$file: is not what was written: its SHA-256 is" inspect --verify "$at"
        for broken in "truncate -s -1" "truncate -s 1000" "truncate -s 5" "truncate -s +1"; do
            cp "$dir/kept" "$file"
            $broken "$file"
            malformed "$file: " inspect "$at"
        done
        for place in 3 8 40 200; do # a bit of the length, of the header's brackets, names and shapes
            cp "$dir/kept" "$file"
            printf '\376' | dd of="$file" bs=1 seek=$place conv=notrunc status=none
            malformed "$file: " inspect "$at"
        done
        printf 'kind: infer\nmodel: %s\noutput: %s\ninput: configs/prompts.jsonl\nvariant: dense\n' "$at" "$dir/i" >"$dir/infer.yaml"
        malformed "$file: " run "$dir/infer.yaml" --quiet
        cp "$dir/kept" "$file"
    done
    # routers have sums of their own; those that were written without are said to be left out
    printf 'kind: finetune\nmodel: %s\noutput: %s\ntext: {file: README.md, bytes: 3000}\nsequence: 32\ntokens: 64\nbatch_tokens: 32\n' "$made" "$dir/t" >"$dir/train.yaml"
    "$FACTORLLM" run "$dir/train.yaml" --quiet
    (cd "$made/routers/v1" && sha256sum --quiet -c SHA256SUMS)
    "$FACTORLLM" inspect --verify "$made" | grep -qE '^verified .* says$'
    cp "$made/routers/v1/router.safetensors" "$dir/kept"
    size=$(stat -c %s "$dir/kept")
    printf "\\$(printf %o $(($(tail -c 1 "$dir/kept" | od -An -tu1) ^ 1)))" | dd of="$made/routers/v1/router.safetensors" bs=1 seek=$((size - 1)) conv=notrunc status=none
    refuses 4 "$made/routers/v1/router.safetensors: is not what was written" inspect --verify "$made"
    cp "$dir/kept" "$made/routers/v1/router.safetensors"
    rm "$made/routers/v1/SHA256SUMS"
    "$FACTORLLM" inspect --verify "$made" | grep -qE '^verified .*; 1 router without SHA256SUMS not looked at$'
    rm "$made/permutation.json"
    refuses 3 "permutation.json: No such file" inspect --verify "$made"
    echo "not a sum" >"$made/SHA256SUMS"
    refuses 4 "SHA256SUMS:1: expected 64 hexadecimal digits" inspect --verify "$made"
    rm "$made/SHA256SUMS"
    refuses 3 "has no SHA256SUMS to verify it against" inspect --verify "$made"
    refuses 2 "--verify: expected a model" inspect --verify "$dir/f"
}

@test "every example is a job that plans" {
    for file in configs/factorize.yaml configs/demo.yaml; do
        run "$FACTORLLM" plan "$file" --set output="$dir/o"
        echo "$output"
        [ "$status" = 0 ]
    done
    made=$(made_by_factorize)
    run "$FACTORLLM" plan configs/finetune.yaml --set output="$dir/o" --set model="$made"
    [ "$status" = 0 ]
    mkdir -p "$made/routers/v1"
    echo v1 >"$made/routers/current"
    for file in configs/eval.yaml configs/infer.yaml; do
        run "$FACTORLLM" plan "$file" --set output="$dir/o" --set model="$made"
        echo "$output"
        [ "$status" = 0 ]
    done
}

@test "every example that help shows is a job, and stands so in the file that it names" {
    for kind in factorize finetune eval infer pipeline; do
        run "$FACTORLLM" help "$kind"
        [ "$status" = 0 ]
        file=$(sed -n 's/^Example (\(.*\))$/\1/p' <<<"$output")
        sed -n '/^Example/,/^$/p' <<<"$output" | sed -n 's/^  //p' >"$dir/example.yaml"
        [ -s "$dir/example.yaml" ]
        while read -r line; do
            echo "$kind: $line"
            sed 's/ *#.*//; s/^[ -]*//' "$file" | grep -qxF -- "${line#- }"
        done <"$dir/example.yaml"
        run "$FACTORLLM" plan "$dir/example.yaml"
        echo "$output"
        # a single job works on what factorize has made, and nothing has been made
        [ "$status" = 0 ] || grep -q "runs/factorize/model/config.json: No such file" <<<"$output"
    done
}
