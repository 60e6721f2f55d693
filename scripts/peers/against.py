"""Our own decode and prefill against llama.cpp's: one round each, in turns, on models of the same shape and format.

   against.py --program FACTORLLM --models DIR --format FORMAT --threads N [--rounds 5] [--prompt 512] [--what prefill,decode]

DIR holds what scripts/bench_data.sh makes (dense-f32, dense-bf16, dense-q8, dense-q4).  Both sides begin with an empty context; loading is not
counted.  Prints the medians as one line of JSON.  Which side begins changes from round to round.
"""
import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile

from rounds import Program

THEIRS = {"f32": "f32", "bf16": "bf16", "q8": "q8_0", "q4": "q4_0"}
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def ours(a, what, where):
    """One round of kind: bench; tokens/s."""
    prompt = a.prompt if what == "prefill" else 0
    subprocess.run([a.program, "run", os.path.join(os.path.dirname(HERE), "configs", "bench.yaml"), "--set", "model=%s/dense-%s" % (a.models, a.format),
                    "--set", "compare=[]", "--set", "parts=step", "--set", "rounds=1", "--set", "rivals=false", "--set", "batches=1",
                    "--set", "prefill=%d" % prompt, "--set", "decode_tokens=%d" % (1 if prompt else 32), "--set", "cluster.threads=%d" % a.threads,
                    "--set", "output=" + where], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(os.path.join(where, "bench.csv")) as f:
        return next(float(r["median"]) for r in csv.DictReader(f) if r["what"] == what)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--program", required=True)
    args.add_argument("--models", required=True)
    args.add_argument("--format", required=True, choices=sorted(THEIRS))
    args.add_argument("--threads", type=int, required=True)
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--prompt", type=int, default=512)
    args.add_argument("--what", default="prefill,decode")
    a = args.parse_args()
    what = a.what.split(",")
    os.environ["PROMPT"] = str(a.prompt if "prefill" in what else 8)
    os.environ["DECODE"] = str(32 if "decode" in what else 1)
    peer = Program(os.path.join(HERE, "bench_peers.sh"), ["llama.cpp", THEIRS[a.format], str(a.threads)])
    got = {key: {"ours": [], "theirs": []} for key in what}
    cpu = []
    with tempfile.TemporaryDirectory() as where:
        def peer_round():
            line = peer.round()
            for key in what:
                got[key]["theirs"].append(line[key + "_tps"])
                cpu.append(line[key + "_cpu"])

        def our_round():
            for key in what:
                got[key]["ours"].append(ours(a, key, where))

        for i in range(a.rounds):
            for side in (peer_round, our_round) if i % 2 == 0 else (our_round, peer_round):
                side()
    peer.close()
    result = {"format": a.format, "threads": a.threads, "rounds": a.rounds, "their_cpu_least": min(cpu)}
    for key, sides in got.items():
        middle = {side: statistics.median(values) for side, values in sides.items()}
        result[key] = {"ours": round(middle["ours"], 2), "theirs": round(middle["theirs"], 2), "ratio": round(middle["ours"] / middle["theirs"], 3),
                       "range_ours": [round(min(sides["ours"]), 2), round(max(sides["ours"]), 2)],
                       "range_theirs": [round(min(sides["theirs"]), 2), round(max(sides["theirs"]), 2)]}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    sys.exit(main())
