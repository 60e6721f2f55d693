#!/bin/bash
# Two hosts on one machine: runs a program on ranks of two network namespaces that a pair of virtual cards joins.  What is different of real hosts is different
# here: name, addresses, processes, shared memory, identity of the kernel; rows between them travel by TCP.  For root, with iproute2 and Open MPI.
#
#   scripts/two_hosts.sh RANKS_ONE RANKS_TWO PROGRAM ARGS...      ranks 0 .. RANKS_ONE - 1 on the first
#   RATE=1gbit DELAY=100us                                         of the line between them (tc), as it is without
#
# Exit code 77: this machine cannot do it.  The exit code of mpirun otherwise.
set -u
. "$(dirname "$0")/env.sh"
if [ $# -lt 3 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
[ "$(id -u)" = 0 ] || { echo "two_hosts: only root may make network namespaces" >&2; exit 77; }
for tool in ip unshare mpirun ${RATE:+tc} ${DELAY:+tc}; do
    command -v $tool >/dev/null || { echo "two_hosts: $tool is not there" >&2; exit 77; }
done
one=$1 two=$2
shift 2
id=$$ # of this script: hosts factorllm-aID and factorllm-bID, their cards faID and fbID
net=10.$((77 + id % 100)).$((id / 100 % 250))
a=factorllm-a$id b=factorllm-b$id
scratch=$(mktemp -d)
cleanup() {
    ip netns del "$a" 2>/dev/null
    ip netns del "$b" 2>/dev/null
    rm -rf "$scratch"
}
trap cleanup EXIT
{ ip netns add "$a" && ip netns add "$b"; } 2>"$scratch/why" &&
    ip link add fa$id netns "$a" type veth peer name fb$id netns "$b" 2>"$scratch/why" ||
    { echo "two_hosts: no network namespaces here: $(head -1 "$scratch/why")" >&2; exit 77; }
ip netns exec "$a" sh -c "ip link set lo up; ip addr add $net.1/24 dev fa$id; ip link set fa$id up"
ip netns exec "$b" sh -c "ip link set lo up; ip addr add $net.2/24 dev fb$id; ip link set fb$id up"
for end in "$a fa$id" "$b fb$id"; do
    read -r space card <<<"$end"
    [ "${RATE:-}${DELAY:-}" ] || continue
    # shellcheck disable=SC2086
    ip netns exec "$space" tc qdisc add dev "$card" root netem ${DELAY:+delay $DELAY} ${RATE:+rate $RATE} ||
        { echo "two_hosts: tc cannot shape this line" >&2; exit 77; }
done
cat /proc/sys/kernel/random/uuid >"$scratch/boot_id"
# What mpirun takes for ssh: the host, and what to run there.
cat >"$scratch/agent" <<AGENT
#!/bin/bash
shift
exec ip netns exec $b unshare --uts --ipc --pid --fork --kill-child --mount-proc bash -c '
    hostname $b
    mount --bind $scratch/boot_id /proc/sys/kernel/random/boot_id
    mount -t tmpfs none /dev/shm
    export TMPDIR=$scratch/two
    '"\$*"
AGENT
mkdir "$scratch/two"
chmod +x "$scratch/agent"
ip netns exec "$a" unshare --uts bash -c "hostname $a; exec \"\$@\"" - mpirun --host "$net.1:$one,$net.2:$two" -n $((one + two)) \
    --leave-session-attached --mca plm_rsh_agent "$scratch/agent" --mca plm_rsh_no_tree_spawn 1 --mca btl_tcp_if_include "$net.0/24" --mca oob_tcp_if_include "$net.0/24" \
    "$@"
