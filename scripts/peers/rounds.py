"""Reads configurations (PEER FORMAT THREADS) from stdin, and runs those of one format in turns: one round each, ROUNDS times.

   rounds.py --script bench_peers.sh --rounds N --keep FILE

Prints the medians as lines of JSON and as a table; every round goes to FILE.
"""
import argparse
import itertools
import json
import statistics
import subprocess
import sys


class Program:
    """One configuration, loaded and waiting."""

    def __init__(self, script, configuration):
        self.name = " ".join(configuration)
        self.process = subprocess.Popen([script, "ask", *configuration], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if not self.line().get("ready"):
            sys.exit("bench_peers: %s does not start" % self.name)

    def line(self):
        text = self.process.stdout.readline()
        if not text:
            sys.exit("bench_peers: %s ended with status %d" % (self.name, self.process.wait()))
        return json.loads(text)

    def round(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(script, configurations, rounds, keep):
    """The median line of each configuration."""
    programs = [Program(script, c) for c in configurations]
    lines = [[] for _ in programs]
    for i in range(rounds):
        for program, own in zip(programs, lines):
            own.append(program.round())
            keep.write(json.dumps(own[-1]) + "\n")
            keep.flush()
            print("bench_peers: round %d: %s: prefill %.1f (got %.0f %% of its processors), decode %.2f (%.0f %%)" % (
                i + 1, program.name, own[-1]["prefill_tps"], 100 * own[-1]["prefill_cpu"], own[-1]["decode_tps"], 100 * own[-1]["decode_cpu"]),
                file=sys.stderr)
    for program in programs:
        program.close()
    for own in lines:
        result = dict(own[0], rounds=rounds)
        for key in ("prefill_tps", "decode_tps"):
            values = [line[key] for line in own]
            result[key] = round(statistics.median(values), 3)
            result[key.replace("tps", "range")] = [min(values), max(values)]
            share = key.replace("tps", "cpu")
            result[share] = round(statistics.median(line[share] for line in own), 3)
        yield result


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--script", required=True)
    args.add_argument("--rounds", type=int, required=True)
    args.add_argument("--keep", required=True)
    a = args.parse_args()
    configurations = [line.split() for line in sys.stdin]
    results = []
    with open(a.keep, "a") as keep:
        # one format at a time: all of them would not fit into the memory of a small machine
        for _, group in itertools.groupby(configurations, lambda c: c[1]):
            for result in measure(a.script, list(group), a.rounds, keep):
                print(json.dumps(result), flush=True)
                results.append(result)
    print("\n%-10s %-6s %7s   %-26s %-26s %-9s %s" % (
        "peer", "format", "threads", "prefill tokens/s (range)", "decode tokens/s (range)", "cpu %", "kernels"))
    for r in results:
        cells = ["%7.1f (%.1f-%.1f)" % (r["prefill_tps"], *r["prefill_range"]),
                 "%7.2f (%.2f-%.2f)" % (r["decode_tps"], *r["decode_range"])]
        cells.append("%3.0f / %3.0f" % (100 * r["prefill_cpu"], 100 * r["decode_cpu"]))
        print("%-10s %-6s %7d   %-26s %-26s %-9s %s %s" % (r["peer"], r["format"], r["threads"], *cells, r["version"], r["kernels"]))
    if any(min(r["prefill_cpu"], r["decode_cpu"]) < 0.9 for r in results):
        print("cpu %: the share of its processors that a peer got while prefilling / decoding.  Rows well below 100 were disturbed or wait a lot.")


if __name__ == "__main__":
    main()
