#!/bin/bash
# Runs a unit test of src/num on an emulated processor with AVX-512, VNNI, BF16 and AMX, for machines that have none of them.
#
#   scripts/emulate.sh get                          unpacks the emulator (Bochs 3.0 of Debian 13) under build-emulate/; nothing is installed
#   scripts/emulate.sh [-c CPU] BUILD TEST [ARG...] runs tests/unit/TEST.c there, with BUILD/libfactorllm.a: e.g. build test_kernel
#
# CPU: sapphire_rapids (default; AMX), tigerlake or corei7_icelake_u (VNNI), corei7_skylake_x (AVX-512), corei7_haswell_4770 (AVX2).
# There is no Linux in it: tests/emulate/machine.c serves the system calls of a program without threads and files.  Some 30 million
# instructions a second, so tests should be small.
set -eu -o pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
home=${EMULATE_HOME:-$here/build-emulate} tree=$home/debian
limit=${EMULATE_SECONDS:-1200}

die() { echo "emulate: $*" >&2; exit 1; }

# A Debian 13 tree of its own, by apt's own means, beside the one of this machine
get() {
    local apt=$home/apt o from
    mkdir -p "$apt"/lists/partial "$apt"/cache/archives/partial "$tree"
    : >"$apt/status"
    from=${EMULATE_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | grep -m 1 -E '/debian/?$')} ||
        die "apt knows no Debian mirror; EMULATE_MIRROR=... says which to take"
    echo "deb $from trixie main" >"$apt/sources.list"
    o="-o APT::Sandbox::User=$(id -un) -o Dir::Etc::sourcelist=$apt/sources.list -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists=$apt/lists
       -o Dir::Cache=$apt/cache -o Dir::State::status=$apt/status -o APT::Install-Recommends=0"
    apt-get $o -q update
    apt-get $o -q -y --download-only install bochs bochs-term genisoimage isolinux syslinux-common
    for d in "$apt"/cache/archives/*.deb; do dpkg-deb --fsys-tarfile "$d" | tar -x --keep-directory-symlink -C "$tree"; done
    rm -rf "$apt"
    echo "emulate: $tree has Bochs"
}

# A program of that tree, with its own libraries
foreign() {
    local program=$1
    shift
    "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" "$tree/usr/bin/$program" "$@"
}

[ $# -ge 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
[ "$1" != get ] || { get; exit; }
cpu=sapphire_rapids
[ "$1" != -c ] || { cpu=$2; shift 2; }
build=$1 test=$2
shift 2
[ -x "$tree/usr/bin/bochs-bin" ] || die "no emulator here: scripts/emulate.sh get"
[ -e "$build/libfactorllm.a" ] || die "no $build/libfactorllm.a: make BUILD=$build"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
iso=$work/iso/isolinux
mkdir -p "$iso"
gcc -std=gnu11 -O2 -D_GNU_SOURCE -I"$here/tests/emulate" -I"$here/src" -I"$here/tests/unit" "$here/tests/unit/$test.c" "$build/libfactorllm.a" \
    -static -no-pie -Wl,-Ttext-segment=0x10000000 -lm -o "$iso/test"
strip "$iso/test"
gcc -O1 -ffreestanding -mgeneral-regs-only -mno-red-zone -fno-pic -no-pie -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none \
    -fno-tree-loop-distribute-patterns -nostdlib -static -Wl,-N,--no-warn-rwx-segments,-Ttext=0x100000,--build-id=none,-e,start \
    "$here"/tests/emulate/machine.[Sc] -o "$work/machine"
objcopy -O elf32-i386 "$work/machine" "$iso/machine"
cp "$tree/usr/lib/ISOLINUX/isolinux.bin" "$tree"/usr/lib/syslinux/modules/bios/{ldlinux,mboot,libcom32}.c32 "$iso/"
printf 'default test\nlabel test\n  kernel mboot.c32\n  append machine --- test %s\n' "$*" >"$iso/isolinux.cfg"
foreign genisoimage -quiet -o "$work/disk.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table "$work/iso"
cat >"$work/bochsrc" <<END
plugin_ctrl: unmapped=true, biosdev=true, speaker=false, e1000=false, parallel=false, serial=true
display_library: term
cpu: model=$cpu, count=1, ips=50000000, reset_on_triple_fault=0
memory: guest=768, host=768
romimage: file=$tree/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=$tree/usr/share/bochs/VGABIOS-lgpl-latest
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$work/disk.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial
clock: sync=none, time0=utc
log: $work/log
panic: action=fatal
error: action=ignore
info: action=ignore
END
export TERM=xterm BXSHARE=$tree/usr/share/bochs LTDL_LIBRARY_PATH=$tree/usr/lib/x86_64-linux-gnu/bochs/plugins
: >"$work/serial"
script -qfc "$(declare -f foreign); tree=$tree; foreign bochs-bin -q -f $work/bochsrc" /dev/null >"$work/screen" 2>&1 </dev/null &
bochs=$!
timeout "$limit" tail --pid=$bochs -f /dev/null || { kill $bochs; echo "emulate: stopped after $limit s"; }
wait || true
cat "$work/serial"
[ -z "${EMULATE_KEEP:-}" ] || cp "$work"/{serial,log,screen,machine} "$iso/test" "$EMULATE_KEEP/"
grep -q '^emulated: exit 0' "$work/serial"
