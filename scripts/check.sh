#!/bin/bash
# What `make check` checks: layers, one door per library, headers that compile alone, formatting, and warnings under gcc 12 and clang 14.
set -u
cd "$(dirname "$0")/.."
bad=0 left_out=
say() { echo "check: $*"; bad=1; }

# layers
while IFS=: read -r dir allowed; do
    case $dir in '' | \#*) continue ;; esac
    for used in $(grep -hoE '#include "[a-z]+/' "src/$dir"/*.[ch] "src/$dir"/*.cc 2>/dev/null | sed 's/.*"//; s/\///' | sort -u); do
        case " $dir $allowed " in *" $used "*) ;; *) say "src/$dir includes $used/, src/LAYERS does not allow it" ;; esac
    done
done <src/LAYERS
for dir in src/*/; do grep -q "^$(basename "$dir"):" src/LAYERS || say "$dir is not in src/LAYERS"; done

# one door per library
door() { # PATTERN PLACES...: only these files may match
    local pattern=$1 places
    shift
    places=$(printf '|^%s' "$@")
    grep -nE "$pattern" src/*/*.[ch] src/*/*.cc 2>/dev/null | grep -vE "${places#|}" && say "the lines above go round the one door: $*"
}
door '#include <mpi' src/comm/
door 'libopenblas|dnnl' src/num/rivals
door '#include <jansson' src/data/json
door '#include <yaml' src/data/spec
door '#include "job.pb-c' src/data/spec
door '#include <pcre2' src/data/pretokenize
door '#include <utf8proc' src/data/pretokenize
door '#include <sentencepiece' src/data/sentencepiece
door '#include <openssl' src/data/digest

# bash never ends a test at a negated command: `! grep x` in the middle of one cannot fail (tests/cli/common.bash has refute)
grep -nE '(^|;|&&|\|\||\||\{|\(|\bdo|\bthen|\belse)[[:space:]]*! ' tests/cli/*.bats tests/cli/*.bash && say "the lines above may not fail a test; use refute"

make --no-print-directory build/proto/job.pb-c.h >/dev/null
include="-Isrc -Ibuild/proto $(pkg-config --cflags-only-I jansson libpcre2-8 libutf8proc yaml-0.1 libprotobuf-c ompi-c sentencepiece libcrypto | sed 's/-I/-isystem /g')"
# -Wconversion without its sign part: sizes are size_t, counts are int, and the casts between them would say nothing
warn="-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wmissing-prototypes -Wstrict-prototypes -Wvla -Werror"

for cc in gcc clang-14; do
    command -v $cc >/dev/null || { left_out="$left_out $cc"; continue; }
    for h in src/*/*.h; do
        $cc -std=gnu11 -D_GNU_SOURCE $warn -Wno-unused-function $include -fsyntax-only -x c "$h" || say "$h does not compile alone under $cc"
    done
    for c in src/*/*.c tests/unit/*.c tests/mpi/*.c; do
        case $(uname -m)/$c in # as the Makefile has it
        x86_64/*/kernel_avx2.c) isa="-mavx2 -mfma" ;;
        x86_64/*/kernel_avx512.c) isa="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma" ;;
        x86_64/*/kernel_vnni.c) isa="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma" ;;
        x86_64/*/kernel_bf16.c) isa="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma" ;;
        x86_64/*/kernel_amx.c) isa="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mamx-tile -mamx-bf16 -mamx-int8 -mfma" ;;
        *) isa= ;;
        esac
        $cc $isa -std=gnu11 -D_GNU_SOURCE -O1 -DVERSION='""' $warn $include -c "$c" -o /dev/null || say "$c under $cc"
    done
    cxx=g++
    [ $cc = gcc ] || cxx=${cc/clang/clang++}
    for c in src/*/*.cc; do
        $cxx -std=c++17 -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Werror $include -fsyntax-only "$c" || say "$c under $cxx"
    done
done

if command -v clang-format-14 >/dev/null; then
    clang-format-14 --dry-run -Werror src/*/*.[ch] src/*/*.cc tests/*.h tests/*/*.[ch] || say "formatting; make format mends it"
else
    left_out="$left_out clang-format-14"
fi
[ -z "$left_out" ] || echo "check: NOT looked at, because it is not installed:$left_out (scripts/bootstrap.sh --dev)"
[ $bad = 0 ] && [ -z "$left_out" ] && echo "check: all good"
exit $bad
