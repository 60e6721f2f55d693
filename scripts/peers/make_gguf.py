"""Writes a GGUF file of random weights of one shape in one format: what llama.cpp and PyTorch are measured on.

   make_gguf.py FILE --format f32|bf16|q8_0|q4_0 [--shape tinyllama|small]

Weights are normal with a variance that keeps the states of a deep network of order one; norms are 1.  The same shape and seed give the same
weights (before rounding) in every format, so that formats and programs can be compared.  Every matrix has the format asked for, the
embedding and the head too (other writers make the head of a q4_0 file finer); norms are f32.  The vocabulary is made up.
The file appears whole or not at all.
"""
import argparse
import os
import struct

import numpy as np

import shapes

# Numbers of the file format: kinds of values, and of tensor elements
U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9
ELEMENTS = {"f32": 0, "q4_0": 2, "q8_0": 8, "bf16": 30}
FILE_TYPE = {"f32": 0, "q4_0": 2, "q8_0": 7, "bf16": 32}
ALIGN = 32
BLOCK = 32  # elements that share a scale in q8_0 and q4_0


def bytes_of(fmt, elements):
    return {"f32": 4 * elements, "bf16": 2 * elements, "q8_0": elements // BLOCK * 34, "q4_0": elements // BLOCK * 18}[fmt]


def string(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def pair(key, kind, value):
    head = string(key) + struct.pack("<I", kind)
    if kind == STRING:
        return head + string(value)
    return head + struct.pack({U32: "<I", I32: "<i", F32: "<f"}[kind], value)


def array(key, kind, values):
    head = string(key) + struct.pack("<IIQ", ARRAY, kind, len(values))
    if kind == STRING:
        return head + b"".join(string(v) for v in values)
    return head + np.asarray(values, {I32: "<i4", F32: "<f4"}[kind]).tobytes()


def vocabulary(size):
    """Pieces, scores and kinds of a SentencePiece-like vocabulary: three special tokens, all bytes, and made-up words."""
    pieces = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)]
    kinds = [2, 3, 3] + [6] * 256
    pieces += ["w%d" % i for i in range(len(pieces), size)]
    kinds += [1] * (size - len(kinds))
    return pieces, [-float(i) for i in range(size)], kinds


def metadata(s, fmt):
    pieces, scores, kinds = vocabulary(s["vocab"])
    return [
        pair("general.architecture", STRING, "llama"),
        pair("general.name", STRING, "random weights, " + s["name"]),
        pair("general.file_type", U32, FILE_TYPE[fmt]),
        pair("general.quantization_version", U32, 2),
        pair("llama.context_length", U32, s["positions"]),
        pair("llama.embedding_length", U32, s["width"]),
        pair("llama.block_count", U32, s["layers"]),
        pair("llama.feed_forward_length", U32, s["ffn"]),
        pair("llama.rope.dimension_count", U32, s["width"] // s["heads"]),
        pair("llama.rope.freq_base", F32, s["rope_base"]),
        pair("llama.attention.head_count", U32, s["heads"]),
        pair("llama.attention.head_count_kv", U32, s["kv_heads"]),
        pair("llama.attention.layer_norm_rms_epsilon", F32, s["eps"]),
        pair("llama.vocab_size", U32, s["vocab"]),
        pair("tokenizer.ggml.model", STRING, "llama"),
        array("tokenizer.ggml.tokens", STRING, pieces),
        array("tokenizer.ggml.scores", F32, scores),
        array("tokenizer.ggml.token_type", I32, kinds),
        pair("tokenizer.ggml.unknown_token_id", U32, 0),
        pair("tokenizer.ggml.bos_token_id", U32, 1),
        pair("tokenizer.ggml.eos_token_id", U32, 2),
    ]


def bf16(x):
    """Rounded to nearest even; there are no NaNs here."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def q8_0(x):
    """Blocks of a half-precision scale and 32 signed bytes."""
    b = x.reshape(-1, BLOCK)
    scale = (np.abs(b).max(axis=1) / 127).astype(np.float32)
    out = np.empty(len(b), [("scale", "<f2"), ("q", "i1", BLOCK)])
    out["scale"] = scale
    out["q"] = np.rint(b * (1 / np.maximum(scale, 1e-30))[:, None])
    return out.tobytes()


def q4_0(x):
    """Blocks of a half-precision scale and 16 bytes: element i in the low, element i + 16 in the high half of byte i; value = (q - 8) scale.
    The element of largest magnitude is put at -8."""
    b = x.reshape(-1, BLOCK)
    far = b[np.arange(len(b)), np.abs(b).argmax(axis=1)]
    scale = far / np.float32(-8)
    safe = np.where(scale == 0, np.float32(1), scale)
    q = np.clip(np.floor(b / safe[:, None] + np.float32(8.5)), 0, 15).astype(np.uint8)
    out = np.empty(len(b), [("scale", "<f2"), ("q", "u1", BLOCK // 2)])
    out["scale"] = scale
    out["q"] = q[:, :16] | (q[:, 16:] << 4)
    return out.tobytes()


ENCODE = {"f32": lambda x: x.astype("<f4").tobytes(), "bf16": bf16, "q8_0": q8_0, "q4_0": q4_0}


def write(path, s, fmt):
    tensors = [(name, rows, cols, fmt if rows > 1 else "f32") for name, rows, cols in shapes.tensors(s)]
    pairs = metadata(s, fmt)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs)) + b"".join(pairs)
    offset = 0
    for name, rows, cols, f in tensors:
        dims = [cols, rows] if rows > 1 else [cols]  # the fastest one first
        head += string(name) + struct.pack("<I%dQIQ" % len(dims), len(dims), *dims, ELEMENTS[f], offset)
        offset += (bytes_of(f, rows * cols) + ALIGN - 1) // ALIGN * ALIGN
    part = path + ".part"
    with open(part, "wb") as out:
        out.write(head + bytes(-len(head) % ALIGN))
        for name, rows, cols, f in tensors:
            data = ENCODE[f](shapes.weights(s, name, rows, cols).reshape(-1))
            assert len(data) == bytes_of(f, rows * cols), name
            out.write(data + bytes(-len(data) % ALIGN))
    os.rename(part, path)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("file")
    args.add_argument("--format", choices=sorted(ELEMENTS), required=True)
    args.add_argument("--shape", choices=sorted(shapes.SHAPES), default="tinyllama")
    a = args.parse_args()
    write(a.file, shapes.shape(a.shape), a.format)


if __name__ == "__main__":
    main()
