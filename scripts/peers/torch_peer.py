"""PyTorch on the processor, on the weights of a GGUF file in f32 or bf16: prefill of a prompt, and decoding of one sequence.

   torch_peer.py --model FILE --format f32|bf16 --threads N [--rounds N] [--prompt 512] [--decode 32] [--ask]
   torch_peer.py --model FILE --format f32 --threads N --logits 16      the logits after that many tokens, one line of JSON

One line of JSON per round, like llama_cpp.mjs.  The model is what one writes with plain modules: nn.Linear and nn.Embedding, a cache of keys and
values, the head for the last row.
"""
import argparse
import json
import struct
import sys
import time
import warnings

import numpy as np
import torch
from torch import nn

import shapes


class Reader:
    """Walks through the head of a GGUF file."""
    SIZE = {4: 4, 5: 4, 6: 4}  # of the kinds of values that make_gguf.py writes, besides strings (8) and arrays (9)

    def __init__(self, raw):
        self.raw, self.at = raw, 8

    def number(self, kind):
        value = struct.unpack_from(kind, self.raw, self.at)[0]
        self.at += struct.calcsize(kind)
        return value

    def text(self):
        n = self.number("<Q")
        self.at += n
        return bytes(self.raw[self.at - n:self.at]).decode()

    def skip(self, kind):
        if kind == 8:
            self.text()
        elif kind == 9:
            inner, n = self.number("<I"), self.number("<Q")
            for _ in range(n):
                self.skip(inner)
        else:
            self.at += self.SIZE[kind]


def widened(raw, kind, n):
    """n elements of a q8_0 or q4_0 tensor as f32: for the check of the logits."""
    if kind == 8:
        block = np.frombuffer(raw, [("scale", "<f2"), ("q", "i1", 32)], n // 32)
        q = block["q"].astype(np.float32)
    else:
        block = np.frombuffer(raw, [("scale", "<f2"), ("q", "u1", 16)], n // 32)
        q = np.concatenate((block["q"] & 15, block["q"] >> 4), axis=1).astype(np.float32) - 8
    return torch.from_numpy(q * block["scale"].astype(np.float32)[:, None])


def read_gguf(path, kind):
    """Tensors by name, of a file that make_gguf.py wrote, as elements of `kind`; where they are so in the file, as views of it."""
    warnings.filterwarnings("ignore", "The given buffer is not writable")  # nobody writes
    raw = np.memmap(path, np.uint8, "r")
    r = Reader(raw)
    tensors, pairs = r.number("<Q"), r.number("<Q")
    for _ in range(pairs):
        r.text()
        r.skip(r.number("<I"))
    listed = []
    for _ in range(tensors):
        name, dims = r.text(), r.number("<I")
        shape = [r.number("<Q") for _ in range(dims)][::-1]
        listed.append((name, shape, r.number("<I"), r.number("<Q")))
    base = (r.at + 31) // 32 * 32
    out = {}
    for name, shape, element, offset in listed:
        n = int(np.prod(shape))
        if element in (0, 30):
            own = torch.float32 if element == 0 else torch.bfloat16
            t = torch.frombuffer(raw, dtype=own, count=n, offset=base + offset)
        else:
            t = widened(raw[base + offset:], element, n)
        out[name] = t.view(shape).to(kind)
    return out


def linear(w):
    m = nn.Linear(w.shape[1], w.shape[0], bias=False, device="meta")
    m.weight = nn.Parameter(w.clone(), requires_grad=False)  # a copy, so that no page of the file is missing later
    return m


def rms_norm(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


class Layer(nn.Module):
    def __init__(self, w, i, s, room, kind):
        super().__init__()
        b = "blk.%d." % i
        self.s = s
        self.q, self.k, self.v, self.o = (linear(w[b + "attn_%s.weight" % n]) for n in ("q", "k", "v", "output"))
        self.gate, self.up, self.down = (linear(w[b + "ffn_%s.weight" % n]) for n in ("gate", "up", "down"))
        self.norm1, self.norm2 = w[b + "attn_norm.weight"], w[b + "ffn_norm.weight"]
        self.head = s["width"] // s["heads"]
        self.keys = torch.zeros(s["kv_heads"], room, self.head, dtype=kind)
        self.values = torch.zeros(s["kv_heads"], room, self.head, dtype=kind)

    def rotate(self, x, cos, sin):
        """Pairs of neighbouring elements; x: [heads][T][head]."""
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

    def forward(self, x, at, cos, sin, mask):
        s, t, eps = self.s, x.shape[0], self.s["eps"]
        h = rms_norm(x, self.norm1, eps)
        q = self.rotate(self.q(h).view(t, s["heads"], self.head).transpose(0, 1), cos, sin)
        self.keys[:, at:at + t] = self.rotate(self.k(h).view(t, s["kv_heads"], self.head).transpose(0, 1), cos, sin)
        self.values[:, at:at + t] = self.v(h).view(t, s["kv_heads"], self.head).transpose(0, 1)
        share = s["heads"] // s["kv_heads"]
        k, v = self.keys[:, :at + t], self.values[:, :at + t]
        score = q.reshape(s["kv_heads"], share * t, self.head) @ k.transpose(1, 2)
        score = score.view(s["kv_heads"], share, t, at + t) * self.head ** -0.5
        if mask is not None:
            score = score + mask
        p = torch.softmax(score.float(), -1).to(x.dtype).view(s["kv_heads"], share * t, at + t)
        out = (p @ v).view(s["heads"], t, self.head).transpose(0, 1).reshape(t, s["width"])
        x = x + self.o(out)
        h = rms_norm(x, self.norm2, eps)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self, path, room, kind):
        super().__init__()
        w = read_gguf(path, kind)
        layers = 1 + max(int(n.split(".")[1]) for n in w if n.startswith("blk."))
        width, ffn = w["token_embd.weight"].shape[1], w["blk.0.ffn_gate.weight"].shape[0]
        self.s = next(s for s in map(shapes.shape, shapes.SHAPES) if (s["layers"], s["width"], s["ffn"]) == (layers, width, ffn))
        self.kind = kind
        self.embed = nn.Embedding.from_pretrained(w["token_embd.weight"].clone())
        self.layers = nn.ModuleList(Layer(w, i, self.s, room, kind) for i in range(layers))
        self.norm = w["output_norm.weight"]
        self.head = linear(w["output.weight"])
        half = width // self.s["heads"] // 2
        turn = self.s["rope_base"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(room, dtype=torch.float64)[:, None] * turn
        self.cos, self.sin = angle.cos().to(kind), angle.sin().to(kind)

    def forward(self, tokens, at):
        t = len(tokens)
        x = self.embed(tokens)
        cos, sin = self.cos[at:at + t], self.sin[at:at + t]
        mask = None
        if t > 1:
            mask = torch.full((t, at + t), float("-inf"), dtype=self.kind).triu(at + 1)
        for layer in self.layers:
            x = layer(x, at, cos, sin, mask)
        return self.head(rms_norm(x[-1:], self.norm, self.s["eps"]))[0]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", required=True)
    args.add_argument("--format", choices=["f32", "bf16"], required=True)
    args.add_argument("--threads", type=int, required=True)
    args.add_argument("--rounds", type=int, default=1)
    args.add_argument("--prompt", type=int, default=512)
    args.add_argument("--decode", type=int, default=32)
    args.add_argument("--ask", action="store_true")
    args.add_argument("--logits", type=int)
    a = args.parse_args()
    torch.set_num_threads(a.threads)
    torch.set_grad_enabled(False)
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[a.format]
    model = Model(a.model, max(a.prompt, a.decode, a.logits or 0) + 1, kind)
    vocab = model.s["vocab"]
    tokens = torch.tensor([259 + (i * 7919 + 13) % (vocab - 259) for i in range(max(a.prompt, a.decode, a.logits or 0))])
    if a.logits:
        print(json.dumps(model(tokens[:a.logits], 0).tolist()))
        return
    about = {"peer": "pytorch", "format": a.format, "threads": a.threads}
    kernels = torch.__config__.show().split("CPU capability usage: ")[-1].split()[0]
    tail = {"prompt": a.prompt, "decode": a.decode, "version": torch.__version__, "kernels": kernels}

    def timed(count, work):
        """Tokens per second, and the share of the threads' time that they were on a processor."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return round(count / wall, 3), round(cpu / wall / a.threads, 3)

    def one():
        prefill, prefill_cpu = timed(a.prompt, lambda: model(tokens[:a.prompt], 0))
        decode, decode_cpu = timed(a.decode, lambda: [model(tokens[i:i + 1], i) for i in range(a.decode)])
        return {"prefill_tps": prefill, "decode_tps": decode, "prefill_cpu": prefill_cpu, "decode_cpu": decode_cpu}

    model(tokens[:1], 0)  # warm up; all of the prompt would take minutes where bf16 is emulated
    if a.format == "f32":
        model(tokens[:a.prompt], 0)
    if a.ask:
        print(json.dumps({"ready": True, **about, **tail}), flush=True)
        for _ in sys.stdin:
            print(json.dumps({**about, **one(), **tail}), flush=True)
    else:
        for _ in range(a.rounds):
            print(json.dumps({**about, **one(), **tail}), flush=True)


if __name__ == "__main__":
    main()
