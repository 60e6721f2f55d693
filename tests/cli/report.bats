# kind: report: the page, what it says of broken inputs, and how it looks in a real browser.
load common

# Two factorizations of the toy model in $dir/a and $dir/b, each a pipeline that ends in a report of its own; and a bench.
two_runs() {
    for name in a b; do
        cat >"$dir/$name.yaml" <<YAML
kind: pipeline
model: $toy
output: $dir/$name
seed: 3
limits: {batch_rows: 256}
steps:
  - {kind: factorize, experts: 8, active: $([ $name = a ] && echo 4 || echo 2), grouping: contiguous, calibration: {sample_tokens: 300}}
  - {kind: finetune, text: {sample_tokens: 400}, sequence: 32, tokens: 768, batch_tokens: 64}
  - {kind: eval, text: {sample_tokens: 300, sample_seed: 3}, window: 32, bootstrap: 100, variants: [dense, static, random, router, oracle]}
  - {kind: report}
YAML
        "$FACTORLLM" run "$dir/$name.yaml" --quiet
    done
    cat >"$dir/report.yaml" <<YAML
kind: report
output: $dir/report
title: Two <b>runs</b> & a ladder
inputs: [$dir/a, $dir/b]
rows: {4 of 8: [$dir/a, $dir/b], "only <b>": [$dir/b]}
YAML
}

# refuses CODE TEXT: the report ends so, with one line
refuses() {
    run "$FACTORLLM" run "$dir/report.yaml" --quiet
    echo "$2: $status: $output"
    [ "$status" = "$1" ]
    [ "$(grep -c '^factorllm: ' <<<"$output")" = 1 ]
    grep -qF -- "$2" <<<"$output"
}

page() { cat "$dir/report/report.html"; }

@test "a report as the last step of a pipeline shows the steps before it, and is not done again" {
    two_runs
    [ -s "$dir/a/report/report.html" ]
    grep -qF "$(jq -r .factorize.source.digest "$dir/a/result.json")" "$dir/a/report/report.html"
    run "$FACTORLLM" run "$dir/a.yaml"
    [ "$status" = 0 ]
    [ "$(grep -c 'done before' <<<"$output")" = 4 ]
    jq -e '.report.jobs == 3 and .report.bytes > 10000' "$dir/a/result.json"
    run "$FACTORLLM" run "$dir/a.yaml" --set eval.bootstrap=50 # another eval: another page
    [ "$status" = 0 ]
    [ "$(grep -c 'done before' <<<"$output")" = 2 ]
}

@test "equal inputs give equal pages on any number of ranks; a page asks for nothing and escapes what it is told" {
    two_runs
    "$FACTORLLM" run "$dir/report.yaml" --quiet
    cp "$dir/report/report.html" "$dir/first.html"
    ranks 3 run "$dir/report.yaml" --quiet
    [ "$status" = 0 ]
    cmp "$dir/first.html" "$dir/report/report.html"
    refute grep -iE '<script|<img|<iframe|<object|<base|javascript:|@import|url\(|https?:|[^-]src=' "$dir/report/report.html"
    grep -qF '<h1>Two &lt;b&gt;runs&lt;/b&gt; &amp; a ladder</h1>' "$dir/report/report.html"
    grep -qF 'only &lt;b&gt;' "$dir/report/report.html"
    refute grep -F 'only <b>' "$dir/report/report.html"
    # names of variants, loads and texts come from files
    jq '.eval.perplexity["<i>x"] = 5 | .eval.active_share["<i>x"] = 0.5 | .eval.text.digest = "\"><b>" | .version = "<u>"' "$dir/a/result.json" >"$dir/r.json"
    mv "$dir/r.json" "$dir/a/result.json"
    "$FACTORLLM" run "$dir/report.yaml" --quiet
    grep -qF '&lt;i&gt;x' "$dir/report/report.html"
    refute grep -E '<i>x|"><b>|<u>' "$dir/report/report.html"
}

@test "figures on the page are those of result.json" {
    two_runs
    "$FACTORLLM" run "$dir/report.yaml" --quiet
    for v in dense static router oracle; do
        ppl=$(LC_ALL=C jq -r ".eval.perplexity.$v" "$dir/a/result.json" | awk '{printf "%.2f", $1}')
        page | tr '\n' ' ' | grep -oE "</svg>$v</th><td>[^<]*</td><td>[^<]*" | head -n 1 | grep -qF ">$ppl" || { echo "$v $ppl"; false; }
    done
    kept=$(jq -r '100 * .eval.accuracy.router / .eval.accuracy.dense' "$dir/a/result.json" | awk '{printf "%.1f", $1}')
    page | grep -qF "router: $kept %"
    [ "$(page | grep -c '<dt>dense model</dt>')" = 2 ]
    # an eval alone says its model; domains make the knowledge map
    cat >"$dir/k.yaml" <<YAML
kind: eval
model: $dir/a/factorize/model
output: $dir/k
window: 32
variants: [dense, router, router@v1, neurons]
bootstrap: 20
text: {file: $BATS_TEST_DIRNAME/common.bash, bytes: 600}
domains: ["code=$BATS_TEST_DIRNAME/common.bash", "prose=README.md"]
domain_tokens: 64
YAML
    "$FACTORLLM" run "$dir/k.yaml" --quiet
    printf 'kind: report\noutput: %s/kr\ninputs: [%s/k]\n' "$dir" "$dir" >"$dir/kr.yaml"
    "$FACTORLLM" run "$dir/kr.yaml" --quiet
    grep -qF "<dt>model</dt><dd><code>$dir/a/factorize/model</code>" "$dir/kr/report.html"
    grep -qF '<th scope="row">prose</th>' "$dir/kr/report.html"
    times=$(jq '.eval.knowledge.specialisation.code[0][1] | exp2' "$dir/k/result.json" | awk '{printf "%.2f", $1}')
    grep -qF "layer 0, expert 1: $times times as often in code as on average" "$dir/kr/report.html"
    kept=$(jq '100 * .eval.kept.neurons.accuracy.raw.value' "$dir/k/result.json" | awk '{printf "%.1f", $1}')
    grep -qF "neurons: $kept %" "$dir/kr/report.html"
    # the ladder: mean and standard deviation over the two runs of its first row
    read -r mean sd < <(jq -s -r 'map(.eval.perplexity.router / .eval.perplexity.dense) | (.[0] + .[1]) / 2, ((.[0] - .[1]) | fabs) / (2 | sqrt)' "$dir/a/result.json" "$dir/b/result.json" | awk '{printf "%.3f ", $1} END {print ""}')
    page | grep -F '>4 of 8</th>' | grep -qF "<td>$mean</td><td class=\"ci\">$sd</td>"
}

# At shares .5 and .25: a static control, a coarse row and a part more of the same models
ladder() {
    cat >"$dir/report.yaml" <<YAML
kind: report
output: $dir/report
about: a <ladder> of toys
rows:
  "static, no routing": ["$dir/a/eval#static", "$dir/b/eval#static"]
  "random = is no label" : [$dir/a/eval]
YAML
    refuses 2 "rows: expected NAME: [TEXT, ...], found something else"
    sed -i '$d' "$dir/report.yaml"
    cat >>"$dir/report.yaml" <<YAML
  by lot: ["$dir/a/eval#random", "$dir/b/eval#random"]
  + a router: ["$dir/a/eval#router", "$dir/b/eval"]
  + more: [$dir/c]
  ceiling: ["$dir/c#neurons", "$dir/b/eval#oracle"]
shares: [0.5, 0.25]
YAML
    cat >"$dir/c.yaml" <<YAML
kind: eval
model: $dir/a/factorize/model
output: $dir/c
window: 32
variants: [dense, static, router, neurons]
bootstrap: 20
text: {sample_tokens: 300, sample_seed: 3}
YAML
    "$FACTORLLM" run "$dir/c.yaml" --quiet
}

@test "the ladder: every f has its columns, parts are held against the row above, ends of the gap are borrowed" {
    two_runs
    ladder
    "$FACTORLLM" run "$dir/report.yaml" --quiet
    page | grep -qF '<p>a &lt;ladder&gt; of toys</p>'
    page | grep -qF '<th colspan="1" class="g"></th><th colspan="4" scope="colgroup" class="g">f 50 %</th>'
    cells() { page | grep -F "<th scope=\"row\">$1</th>" | head -n 1; }
    times() { jq -r "100 * .eval.accuracy.$2 / .eval.accuracy.dense, .eval.perplexity.$2 / .eval.perplexity.dense" "$dir/$1/eval/result.json"; }
    for row in "a static static, no routing" "a random by lot"; do
        read -r run variant label <<<"$row"
        read -r kept ppl < <(times "$run" "$variant" | awk '{printf "%.6f ", $1} END {print ""}')
        cells "$label" | grep -qF "$(printf '<td>%.3f</td>' "$ppl")"
        cells "$label" | grep -qF "$(printf '<td>%.1f</td>' "$kept")"
    done
    # what the part brings at f 50 % is a difference of logarithms
    part=$(jq -r '(.eval.perplexity.router / .eval.perplexity.random) | log' "$dir/a/eval/result.json" | awk '{printf "%.3f", $1 < 0 ? -$1 : $1}')
    [ "$part" ]
    cells "+ a router" | grep -qF "$part</td>"
    # a has no ceiling of its own: that of c, on the same text
    gap=$(jq -r -s '100 * ((.[0].eval.perplexity.static | log) - (.[0].eval.perplexity.router | log)) / ((.[1].eval.perplexity.static | log) - (.[1].eval.perplexity.neurons | log))' \
        "$dir/a/eval/result.json" "$dir/c/result.json" | awk '{v = sprintf("%.1f", $1); sub("-", "", v); print v}')
    [ "$gap" ]
    cells "+ a router" | grep -qF "$gap</td>"
    page | grep -qF "factorllm run $dir/a/spec.yaml" # that of the pipeline, which makes the model too
    page | grep -qF "factorllm run $dir/c/spec.yaml"
    page | grep -qF "<summary>The first of them, $dir/a.yaml</summary>"
    # the same as text
    grep -qF "$(printf '| by lot | %.3f |' "$(jq '.eval.perplexity.random / .eval.perplexity.dense' "$dir/a/eval/result.json")")" "$dir/report/ladder.md"
    [ "$(awk -F'|' '{print NF}' "$dir/report/ladder.md" | sort -u)" = 15 ]
    # read again from its resolved spec, and by other ranks: the same page
    cp "$dir/report/report.html" "$dir/first.html"
    cp "$dir/report/spec.yaml" "$dir/again.yaml"
    ranks 2 run "$dir/again.yaml" --quiet
    [ "$status" = 0 ]
    cmp "$dir/first.html" "$dir/report/report.html"
    sed -i 's/#random"/#nothing"/' "$dir/report.yaml"
    "$FACTORLLM" run "$dir/report.yaml" --quiet
    page | grep -qF "eval: has no figure of nothing, so it is not in the ladder"
    # a run stands in the column that is no more than 3 points beside its f; two runs a row: the part has an interval
    page | refute grep -oF '>part, 95 %<'
    printf 'kind: report\noutput: %s/report\nshares: [0.5]\nrows:\n  one: ["%s/a/eval#random", "%s/b/eval#random"]\n  + two: ["%s/a/eval#router", "%s/c#router"]\n' "$dir" "$dir" "$dir" "$dir" "$dir" >"$dir/report.yaml"
    cp "$dir/b/eval/result.json" "$dir/r.json"
    for share in 0.471:0 0.529:0 0.469:1 0.531:1; do
        jq ".eval.active_share.random = ${share%:*}" "$dir/r.json" >"$dir/b/eval/result.json"
        "$FACTORLLM" run "$dir/report.yaml" --quiet
        [ "$(page | grep -c 'more than 3 points beside all shares')" = "${share#*:}" ]
        [ "$(page | grep -c '>part, 95 %<')" = $((1 - ${share#*:})) ]
    done
    # both rows have seeds 3 and 1: the interval is that of two differences, t 12.706
    jq ".eval.active_share.random = 0.5" "$dir/r.json" >"$dir/b/eval/result.json"
    # the second row needs a spread of its own: without it Welch's interval is the paired one
    jq '.eval.perplexity.router *= 1.2 | .eval.ppl_ratio.router.value *= 1.2' "$dir/c/result.json" >"$dir/r.json"
    mv "$dir/r.json" "$dir/c/result.json"
    "$FACTORLLM" run "$dir/report.yaml" --quiet
    cells "+ two" >"$dir/two_samples"
    sed -i 's/^seed: 3$/seed: 1/' "$dir/b/eval/spec.yaml"
    "$FACTORLLM" run "$dir/report.yaml" --quiet
    refute cmp <(cells "+ two") "$dir/two_samples"
    read -r low high < <(jq -s -r '[.[0].eval.perplexity | (.router / .random) | log] + [((.[2].eval.perplexity | .router / .dense) | log) - ((.[1].eval.perplexity | .random / .dense) | log)] |
        ((.[0] + .[1]) / 2) as $mean | (12.706 * ((.[0] - .[1]) / 2 | fabs)) as $half | $mean - $half, $mean + $half' \
        "$dir/a/eval/result.json" "$dir/b/eval/result.json" "$dir/c/result.json" | awk '{printf "%+.3f ", $1} END {print ""}')
    echo "$low to $high: $(cells "+ two")"
    cells "+ two" | sed 's/−/-/g' | grep -qF -- ">$low to $high</td>"
}

@test "scripts/ladder.sh: every row has its figures, and nothing that ended well is done again" {
    # one text for both: a threshold gives other text another f, and the ladder leaves out runs whose f is not what their column says
    words=(the cat sat on a mat and saw two dogs run far away .)
    for i in $(seq 1200); do echo -n "${words[(i * i * 7 + i / 5 * 3 + i / 11) % 14]} "; done >"$dir/text"
    make_ladder() {
        MODEL=$toy TEXT=$dir/text VALID=$dir/text OUT=$dir/ladder SEEDS=1 SHARES=0.5 EXPERTS=8 CALIBRATE=2000 TRAIN=3000 TOKENS=${1:-200} TOKENS2=200 BYTES=${2:-1500} ORACLE_BYTES=800 EXPERT_TOKENS=200 \
            THREADS=1 scripts/ladder.sh "$FACTORLLM"
    }
    make_ladder >"$dir/first.txt"
    [ "$(grep -c '^| ' "$dir/ladder/report/ladder.md")" = 17 ] # a head and 16 rows
    # trained weights are at no distance to the dense model and at no place between the ends of frozen ones: two cells are empty there, and there only
    grep -F '| - | - |' "$dir/ladder/report/ladder.md" >"$dir/empty"
    [ "$(wc -l <"$dir/empty")" = 1 ]
    grep -q '^| FactorLLM with trained experts' "$dir/empty"
    [ "$(grep -c '^+ \|^| + ' "$dir/ladder/report/ladder.md")" = 9 ]
    cp "$dir/ladder/report/ladder.md" "$dir/first.md"
    make_ladder >"$dir/second.txt"
    [ "$(grep -c ' -> ' "$dir/first.txt")" = 25 ]
    [ "$(grep -c 'done before' "$dir/second.txt")" = 25 ] # all but the page
    cmp "$dir/first.md" "$dir/ladder/report/ladder.md"
    run make_ladder 300 # other training wants another OUT
    echo "$output"
    [ "$status" = 1 ]
    grep -qF "version: $dir/ladder/1-0.5/paper/model/routers/router exists already" <<<"$output"
    run scripts/ladder.sh "$FACTORLLM"
    [ "$status" = 2 ]
    grep -qF 'MODEL=' <<<"$output"
}

@test "what is missing is said, what is malformed is one line with file and key" {
    two_runs
    rm "$dir/b/finetune/log.jsonl"
    jq 'del(.eval.load, .eval.agreement, .eval.accuracy, .eval.perplexity.dense, .eval.ppl_ratio, .factorize.source, .finetune.loss)' "$dir/b/result.json" >"$dir/r.json"
    cp "$dir/r.json" "$dir/b/result.json"
    mkdir -p "$dir/empty"
    sed -i "s|inputs: .*|inputs: [$dir/a, $dir/b, $dir/empty]|" "$dir/report.yaml"
    "$FACTORLLM" run "$dir/report.yaml" --quiet
    page | grep -qF "$dir/empty: has no result.json"
    page | grep -qF "$dir/b/finetune/log.jsonl: is not there, so no curve"
    page | grep -qF "$dir/b/result.json: eval: dense was not measured"
    page | grep -qF "$dir/b/result.json: eval: the router was not measured"
    page | refute grep -oiE '.{0,60}[>" ]-?(nan|inf)[<" %].{0,20}'

    breaks() { # JQ TEXT
        jq "$1" "$dir/r.json" >"$dir/b/result.json"
        refuses 4 "$dir/b/result.json: $2"
    }
    breaks '.eval.perplexity.router = "x"' "eval.perplexity: router: expected a number, found"
    breaks '.eval.active_share = 7' "eval: active_share: expected an object, found"
    breaks '.eval.load = [[1, 2], [3]]' "eval: load: expected lists of 2 numbers"
    breaks '.eval.load = [[1, "x"]]' "eval: load: expected numbers"
    breaks '.eval.load = {"a": 1}' "eval: load: expected a list"
    breaks '.eval.compare.router_vs_static.accuracy.low = []' "eval.compare.router_vs_static.accuracy: low: expected a number"
    breaks '.factorize.layers = "six"' "factorize: layers: expected a number"
    breaks '.eval.agreement = [0.5] | .finetune.agreement.after = [null]' "finetune.agreement: after: expected numbers"
    breaks '.version = 5' "version: expected a text"
    breaks '[1]' "expected an object"
    printf '{"a": 1, "a": 2}' >"$dir/b/result.json"
    refuses 4 "$dir/b/result.json"
    printf '{' >"$dir/b/result.json"
    refuses 4 "$dir/b/result.json"
    cp "$dir/r.json" "$dir/b/result.json"
    printf '{"event": "step", "step": 1, "tokens": 5, "loss": 1}\nnonsense\n{}\n' >"$dir/b/finetune/log.jsonl"
    refuses 4 "$dir/b/finetune/log.jsonl line 2"
    sed -i "s|inputs: .*|inputs: [$dir/none]|" "$dir/report.yaml"
    refuses 3 "$dir/none: expected the output directory of a job, found none"
    run "$FACTORLLM" plan "$dir/report.yaml"
    [ "$status" = 3 ]
    printf 'kind: report\noutput: %s/report\n' "$dir" >"$dir/report.yaml"
    refuses 2 "inputs: expected output directories of jobs in inputs or rows, found none"
    printf 'kind: report\noutput: %s/report\nrows: [a]\n' "$dir" >"$dir/report.yaml"
    refuses 2 "rows: expected NAME: [TEXT, ...] with a name of 1 to 120 bytes, found 'a'"
    printf 'kind: report\noutput: %s/report\nrows: {a: [x], a: [y]}\n' "$dir" >"$dir/report.yaml"
    refuses 2 "rows: expected each name once, found 'a' twice"
    printf 'kind: report\noutput: %s/report\nrows: {a: ["x#"]}\n' "$dir" >"$dir/report.yaml"
    refuses 2 "rows: expected DIRECTORY or DIRECTORY#VARIANT, found 'x#'"
    printf 'kind: report\noutput: %s/report\nshares: [0.5]\ninputs: [x]\n' "$dir" >"$dir/report.yaml"
    refuses 2 "shares: expected only with rows, found 1"
    printf 'kind: report\nmodel: x\noutput: %s/report\ninputs: [x]\n' "$dir" >"$dir/report.yaml"
    refuses 2 "model: expected a key of report jobs"
}

# browse ARGS...: a browser that knows nobody's address, and nothing from before; its words in $dir/browser.log
browse() {
    timeout 100 "$browser" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync \
        --disable-dev-shm-usage --host-resolver-rules='MAP * ~NOTFOUND' --hide-scrollbars --enable-logging=stderr --user-data-dir="$dir/profile" "$@" 2>>"$dir/browser.log"
}

@test "in a real browser: everything is there, no errors, no network, nothing wider than the window" {
    browser=$(command -v chromium || command -v chromium-headless-shell || command -v google-chrome) || skip "no browser is installed (scripts/bootstrap.sh --browser)"
    two_runs
    ladder
    sed -i "3s|^|inputs: [$dir/a, $dir/b]\n|" "$dir/report.yaml"
    "$FACTORLLM" run "$dir/report.yaml" --quiet
    browse --log-net-log="$dir/net.json" --dump-dom "file://$dir/report/report.html" >"$dir/dom.html"
    # what the browser made of it is what was written: no element was moved or mended
    count() { grep -oE "$1" "$2" | wc -l; }
    for what in '<section' '<h2' '<table' '<tr' '<td' '<svg' '<rect' 'class="mark' '<title' '</figure>'; do
        echo "$what: $(count "$what" "$dir/report/report.html") written, $(count "$what" "$dir/dom.html") in the browser"
        [ "$(count "$what" "$dir/report/report.html")" = "$(count "$what" "$dir/dom.html")" ]
    done
    for section in runs controls ladder pareto training routing; do grep -qF "<section id=\"$section\">" "$dir/dom.html"; done
    # 2 evals of 5 variants in two tables; a cell for every expert of every layer, and the 9 shades of the key
    layers=$(jq '.eval.load | length' "$dir/a/result.json")
    [ "$(count '<rect' "$dir/dom.html")" = $((2 * (8 * layers + 9))) ]
    [ "$(count 'class="swatch"[^>]*><path class="k[0-9]"[^>]*></path></svg>(dense|static|random|router|oracle)</th>' "$dir/dom.html")" = 20 ]
    refute grep -iE 'CONSOLE|Uncaught|Refused to' "$dir/browser.log"
    sed 's|</main>|<script>1</script>&|' "$dir/report/report.html" >"$dir/refused.html" # its policy refuses scripts, and the console says so
    browse --dump-dom "file://$dir/refused.html" >/dev/null
    grep -q 'CONSOLE.*Content Security Policy' "$dir/browser.log"
    # the page asked for nothing from a network; a page that does is seen to (what browsers ask for of themselves has no origin)
    asked() { jq -r '.events[].params | objects | select((.url // "" | test("^(https?|wss?|ftp):")) and .initiator and .initiator != "not an origin") | .url' "$1" | sort -u; }
    jq -e '.events | length > 0' "$dir/net.json"
    [ "$(asked "$dir/net.json")" = "" ]
    echo '<img src="http://somewhere.invalid/x.png">' >"$dir/asks.html"
    browse --log-net-log="$dir/asks.json" --dump-dom "file://$dir/asks.html" >/dev/null
    [ "$(asked "$dir/asks.json")" = http://somewhere.invalid/x.png ]

    # widths: the page as it is, with a script that measures itself and tells the frame around it
    sed 's|<meta http-equiv[^>]*>||; s|</main>|&<script>onload = () => parent.postMessage([innerWidth, document.documentElement.scrollWidth, document.querySelectorAll("svg").length], "*")</script>|' \
        "$dir/report/report.html" >"$dir/measured.html"
    cat >"$dir/frames.html" <<'HTML'
<body><script>
onmessage = e => document.body.insertAdjacentHTML("beforeend", `<p class=width>${e.data.join(" ")}</p>`)
</script><iframe src="measured.html" style="border:0;width:1200px;height:800px"></iframe><iframe src="measured.html" style="border:0;width:400px;height:800px"></iframe></body>
HTML
    browse --virtual-time-budget=10000 --dump-dom "file://$dir/frames.html" >"$dir/frames.txt"
    grep -oE '<p class="?width"?>[0-9 ]+' "$dir/frames.txt" | sed 's/.*>//' | sort -n >"$dir/widths"
    cat "$dir/widths"
    [ "$(wc -l <"$dir/widths")" = 2 ]
    while read -r inside content drawings; do
        [ "$inside" = 400 ] || [ "$inside" = 1200 ]
        [ "$content" -le "$inside" ]
        [ "$drawings" -gt 10 ]
    done <"$dir/widths"
    browse --window-size=1200,2000 --screenshot="$dir/page.png" "file://$dir/report/report.html"
    [ "$(stat -c %s "$dir/page.png")" -gt 30000 ]
}

@test "scripts/pairs_from_text.py: one thing wrong in every pair, in the place and form of what was right, no pieces of sentences, and eval takes them" {
    command -v python3 >/dev/null || skip "python3 is not there"
    printf 'CHAPTER ONE\nThe river was wide, and I saw him there. "It is a mill," said he, as if it was his own. "And this is its wheel!" It was told to Mr. Pringle who has a house. We have a small boat. No.\n\nThey hid themselves in a barn.\n' >"$dir/text.txt"
    python3 scripts/pairs_from_text.py "$dir/text.txt" >"$dir/pairs.jsonl" 2>"$dir/counts"
    grep -qx 'article 2; be 1; case 3; have 1; order 3; reflexive 1' "$dir/counts"
    jq -r 'select(.set != "case" and .set != "order") | .bad' "$dir/pairs.jsonl" | sort | diff - <(
        printf '%s\n' 'The river were wide, and I saw him there.' 'They hid himself in a barn.' 'They hid themselves in an barn.' 'We has a small boat.' 'We have an small boat.'
    )
    # the only places: I or him, We, They
    jq -r 'select(.set == "case") | .bad' "$dir/pairs.jsonl" | sed 's/The river was wide, and \(me saw him\|I saw he\) there\./first/' | sort | diff - <(printf '%s\n' 'Them hid themselves in a barn.' 'Us have a small boat.' first)
    # order: the words of the sentence, two neighbours of them changed places
    jq -se 'map(select(.set == "order") | [(.good, .bad) | split(" ")] as [$a, $b]
        | ($a | sort) == ($b | sort) and ([range($a | length) | select($a[.] != $b[.])] | length == 2 and .[1] == .[0] + 1)) | all' "$dir/pairs.jsonl"
    python3 scripts/pairs_from_text.py "$dir/text.txt" 2>&1 >"$dir/again" | diff - "$dir/counts"
    diff "$dir/pairs.jsonl" "$dir/again"
    run python3 scripts/pairs_from_text.py "$dir/text.txt" --words 50-60
    [ "$status" = 1 ]
    [ "$output" = "$dir/text.txt: no sentence of 50 to 60 words that any of the rules can change" ]
    run python3 scripts/pairs_from_text.py "$dir/text.txt" --words 5
    [ "$status" = 2 ]
    [ "$(tail -n 1 <<<"$output")" = "pairs_from_text.py: error: --words: expected LEAST-MOST, found '5'" ]
    [ "$(python3 scripts/pairs_from_text.py "$dir/text.txt" --from-byte 170 2>/dev/null | jq -r .set | sort -u | tr '\n' ' ')" = 'article case order reflexive ' ]
    jq -se 'map(.id) | (unique | length) == length and all(startswith("text/"))' "$dir/pairs.jsonl"
    printf 'kind: eval\nmodel: %s\noutput: %s\nvariants: [dense]\nminimal_pairs: [%s]\n' "$toy" "$dir/eval" "$dir/pairs.jsonl" >"$dir/eval.yaml"
    "$FACTORLLM" run "$dir/eval.yaml" --quiet
    jq -e '.eval.minimal_pairs.dense | .order != null and .reflexive != null and .all != null' "$dir/eval/result.json"
    # the same ids from two files: measured, and said where one figure takes another's place
    cp "$dir/pairs.jsonl" "$dir/once-more.jsonl"
    run "$FACTORLLM" run "$dir/eval.yaml" --quiet --set variants=dense,static@0.5 --set minimal_pairs="$dir/pairs.jsonl,$dir/once-more.jsonl" --set output="$dir/twice"
    [ "$status" = 0 ]
    [ "$output" = "warning: $dir/twice/items.json: $(wc -l <"$dir/pairs.jsonl") items have the id of an item before them, whose place they take there" ]
}
