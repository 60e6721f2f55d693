#!/bin/sh
# Installs what building and testing factorllm needs on Debian 12 and its relatives, by package name; nothing else is touched.
#
#   scripts/bootstrap.sh           say what is missing, ask, install
#   scripts/bootstrap.sh --yes     do not ask
#   scripts/bootstrap.sh --check   only say what is missing; exit 1 if anything is
#   scripts/bootstrap.sh --dev     also what `make check` and `make fuzz` need (clang 14)
#   scripts/bootstrap.sh --bench   also what benchmarks compare with and draw with (OpenBLAS, oneDNN, gnuplot)
#   scripts/bootstrap.sh --browser also a browser for the test of pages (chromium, 115 MB and what it needs): `make test` asks for it as root
#                                  in CI or a container, where it costs nobody anything; elsewhere the test is skipped, and says so
#
# As root, or with CI set, it does not ask.  Packages are installed with apt-get; with sudo only after you agree.
set -eu

build="gcc g++ make pkg-config libopenmpi-dev openmpi-bin libyaml-dev libprotobuf-c-dev protobuf-c-compiler
       libjansson-dev libpcre2-dev libutf8proc-dev libsentencepiece-dev libssl-dev"
tests="libcmocka-dev bats jq procps"
[ "${1:-}" = --dev ] && tests="$tests clang-14 clang-format-14 libclang-rt-14-dev"
if [ "${1:-}" = --browser ]; then
    for b in chromium chromium-headless-shell google-chrome; do command -v $b >/dev/null && exit 0; done
    tests="$tests chromium"
fi
[ "${1:-}" = --bench ] && tests="$tests libopenblas0-pthread libdnnl-dev gnuplot-nox"

missing=
for p in $build $tests; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -z "$missing" ] && exit 0

echo "factorllm needs these Debian packages, which are not installed:"
printf '   %s\n' $missing
[ "${1:-}" = --check ] && exit 1
if ! command -v apt-get >/dev/null; then
    echo "This is no Debian-like system: please install the same libraries with its package manager." >&2
    exit 1
fi

sudo=
if [ "$(id -u)" != 0 ]; then
    sudo=sudo
    command -v sudo >/dev/null || { echo "Please run as root: apt-get install$missing" >&2; exit 1; }
fi
if [ "${1:-}" != --yes ] && [ -z "${CI:-}" ] && [ -n "$sudo" ]; then
    [ -t 0 ] || { echo "Please run: sudo apt-get install$missing" >&2; exit 1; }
    printf 'Install them now with "sudo apt-get install"? [y/N] '
    read -r answer
    case $answer in y | Y | yes) ;; *) echo "Nothing was installed."; exit 1 ;; esac
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# a package list that is a little old still works; one that was never fetched does not
if ! $sudo apt-get install -y -q --no-install-recommends $missing >"$log" 2>&1; then
    if ! { $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends $missing; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        exit 1
    fi
fi
echo "installed."
