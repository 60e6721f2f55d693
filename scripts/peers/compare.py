"""compare.py FORMAT A B: the logits of two programs on the same weights agree, relative to their root mean square; exit 1 if not."""
import json
import sys

import numpy as np

# What llama.cpp rounds: the cache is f16, inputs of a bf16 product are bf16, of a q8_0 or q4_0 product 8 bits
ROOM = {"f32": 2e-3, "bf16": 2e-2, "q8_0": 4e-2, "q4_0": 4e-2}

a, b = (np.array(json.load(open(f)), float) for f in sys.argv[2:4])
error = float(np.sqrt(((a - b) ** 2).mean() / (b ** 2).mean())) if a.shape == b.shape else float("inf")
good = error < ROOM[sys.argv[1]]  # false for NaN, too
print("%-5s logits differ by %.2e of their size: %s" % (
    sys.argv[1], error, "right" if good else "WRONG, at most %g expected" % ROOM[sys.argv[1]]))
sys.exit(not good)
