#!/bin/bash
# Runs every fuzz target for SECONDS each with clang's libFuzzer, ASan and UBSan.
#   scripts/fuzz.sh SECONDS TARGET...
# Seeds are in tests/fuzz/seeds/TARGET without "fuzz_"; what is found stays in build/fuzz/TARGET.
set -eu
cd "$(dirname "$0")/.."
seconds=$1
shift
clang=$(command -v clang-14 || command -v clang) || { echo "fuzz: needs clang-14 and libclang-rt-14-dev" >&2; exit 1; }
make --no-print-directory BUILD=build/fuzz CC="$clang" CXX="${clang/clang/clang++}" OPT="-O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined" -j2 build/fuzz/libfactorllm.a
libs="$(pkg-config --libs jansson libpcre2-8 libutf8proc yaml-0.1 libprotobuf-c ompi-c sentencepiece libcrypto) -lpthread -lm"
bad=0
for target in "$@"; do
    dir=build/fuzz/$target
    mkdir -p "$dir/corpus"
    $clang -std=gnu11 -D_GNU_SOURCE -O1 -g -fsanitize=fuzzer-no-link,address,undefined -Isrc -c "tests/fuzz/$target.c" -o "$dir/$target.o"
    ${clang/clang/clang++} -fsanitize=fuzzer,address,undefined "$dir/$target.o" build/fuzz/libfactorllm.a $libs -o "$dir/$target"
    printf '%-28s ' "$target"
    if "$dir/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -print_final_stats=1 -artifact_prefix="$dir/" "$dir/corpus" "tests/fuzz/seeds/${target#fuzz_}" >"$dir/log" 2>&1; then
        echo "$(grep -oE 'number_of_executed_units: *[0-9]+' "$dir/log" | grep -oE '[0-9]+$') runs, nothing found"
    else
        echo "FOUND SOMETHING: see $dir"
        grep -E 'ERROR|SUMMARY|runtime error' "$dir/log" | head -n 5
        bad=1
    fi
done
exit $bad
