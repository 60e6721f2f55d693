"""The shapes that are measured, their tensors, and the random weights of each."""
import zlib

import numpy as np

SHAPES = {
    "tinyllama": {"width": 2048, "ffn": 5632, "layers": 22, "heads": 32, "kv_heads": 4, "vocab": 32000},
    "small": {"width": 256, "ffn": 704, "layers": 3, "heads": 8, "kv_heads": 2, "vocab": 1024},
}


def shape(name):
    return dict(SHAPES[name], name=name, positions=2048, rope_base=10000.0, eps=1e-5)


def tensors(s):
    """(name, rows, columns) in the order of the file; a norm has one row.  A matrix of [rows][columns] maps columns to rows."""
    d, f, kv = s["width"], s["ffn"], s["width"] // s["heads"] * s["kv_heads"]
    yield "token_embd.weight", s["vocab"], d
    for i in range(s["layers"]):
        b = "blk.%d." % i
        yield b + "attn_norm.weight", 1, d
        yield b + "attn_q.weight", d, d
        yield b + "attn_k.weight", kv, d
        yield b + "attn_v.weight", kv, d
        yield b + "attn_output.weight", d, d
        yield b + "ffn_norm.weight", 1, d
        yield b + "ffn_gate.weight", f, d
        yield b + "ffn_up.weight", f, d
        yield b + "ffn_down.weight", d, f
    yield "output_norm.weight", 1, d
    yield "output.weight", s["vocab"], d


def weights(s, name, rows, cols):
    """[rows][cols] f32; of the name and the shape alone."""
    if rows == 1:
        return np.ones((1, cols), np.float32)
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
    x = rng.standard_normal((rows, cols), dtype=np.float32)
    x *= np.float32(1.0 if name == "token_embd.weight" else cols ** -0.5)
    return x
