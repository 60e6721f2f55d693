#!/usr/bin/env python3
"""Makes the toy models of this directory and the numbers that the C code must reproduce: make_toys.py [NAME...]

Each toy is a Hugging Face directory with random weights and golden.json: what this file's own float64 implementation of the
architecture computes from the weights as they are stored. It shares nothing with the C code and is written to be read as a
definition. Weights are scaled so that attention looks around and logits are spread.
"""
import json
import math
import shutil
import struct
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
KINDS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BASE = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", bos_token_id=1, eos_token_id=2,
            max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None, tie_word_embeddings=False)
SMALL = dict(BASE, vocab_size=96, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1)
TOYS = {   # name: (stored as, shards, seed, config)
    "toy-llama": ("F32", 1, 11, dict(BASE, vocab_size=384, hidden_size=48, intermediate_size=44, num_hidden_layers=3,
                                     num_attention_heads=4, num_key_value_heads=2)),
    "toy-qwen2": ("BF16", 2, 12, dict(BASE, architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=160,
                                      hidden_size=48, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4,
                                      num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-6,
                                      use_sliding_window=False, sliding_window=4096)),
    "toy-mistral": ("F16", 1, 13, dict(BASE, architectures=["MistralForCausalLM"], model_type="mistral", vocab_size=160,
                                       hidden_size=48, intermediate_size=50, num_hidden_layers=2, num_attention_heads=4,
                                       num_key_value_heads=2, head_dim=16, sliding_window=None)),
    "toy-rope-linear": ("F32", 1, 14, dict(SMALL, rope_scaling={"type": "linear", "factor": 4.0})),
    "toy-rope-llama3": ("F32", 1, 15, dict(SMALL, rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32})),
}


def random_weights(c, kind, seed):
    """{name: tensor as stored}; every matrix keeps the size of what passes through it, queries and keys a little more."""
    g = torch.Generator().manual_seed(seed)
    D, F, V = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    head = c.get("head_dim") or D // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    matrix = lambda rows, cols, gain: normal(rows, cols) * gain / math.sqrt(cols)
    w = {"model.embed_tokens.weight": normal(V, D) * (0.35 if c["tie_word_embeddings"] else 1.0)}
    for l in range(c["num_hidden_layers"]):
        p = f"model.layers.{l}."
        w[p + "input_layernorm.weight"] = 1 + 0.2 * normal(D)
        w[p + "self_attn.q_proj.weight"] = matrix(q, D, 1.5)
        w[p + "self_attn.k_proj.weight"] = matrix(kv, D, 1.5)
        w[p + "self_attn.v_proj.weight"] = matrix(kv, D, 1.5)
        w[p + "self_attn.o_proj.weight"] = matrix(D, q, 1.5)
        if "Qwen2ForCausalLM" in c["architectures"]:
            for n, size in ("q", q), ("k", kv), ("v", kv):
                w[p + f"self_attn.{n}_proj.bias"] = 0.5 * normal(size)
        w[p + "post_attention_layernorm.weight"] = 1 + 0.2 * normal(D)
        w[p + "mlp.gate_proj.weight"] = matrix(F, D, 1.5)
        w[p + "mlp.up_proj.weight"] = matrix(F, D, 1.5)
        w[p + "mlp.down_proj.weight"] = matrix(D, F, 1.5)
    w["model.norm.weight"] = 1 + 0.2 * normal(D)
    if not c["tie_word_embeddings"]:
        w["lm_head.weight"] = matrix(V, D, 4.0)
    return {name: t.to(KINDS[kind]) for name, t in w.items()}


def write_safetensors(path, tensors, kind):
    header, at, data = {}, 0, b""
    for name, t in tensors.items():
        raw = t.contiguous().view(torch.int32 if kind == "F32" else torch.int16).numpy().tobytes()
        header[name] = {"dtype": kind, "shape": list(t.shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_model(directory, c, w, kind, shards):
    directory.mkdir(exist_ok=True)
    dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind]
    (directory / "config.json").write_text(json.dumps(dict(c, torch_dtype=dtype), indent=2) + "\n")
    if shards == 1:
        return write_safetensors(directory / "model.safetensors", w, kind)
    names, places = list(w), {}
    for i in range(shards):     # cut in the middle of a layer
        part = names[i * len(names) // shards:(i + 1) * len(names) // shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(directory / file, {n: w[n] for n in part}, kind)
        places |= {n: file for n in part}
    total = sum(t.numel() * t.element_size() for t in w.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=1) + "\n")


def speeds(c, head):
    """Radians per position of every pair."""
    out = []
    r = c["rope_scaling"]
    for j in range(head // 2):
        speed = c["rope_theta"] ** (-2 * j / head)
        if r and r.get("type") == "linear":
            speed /= r["factor"]
        elif r:
            turns = r["original_max_position_embeddings"] * speed / (2 * math.pi)   # in the original context
            low, high = r["low_freq_factor"], r["high_freq_factor"]
            keep = min(1.0, max(0.0, (turns - low) / (high - low)))                 # 1: as it was, 0: stretched
            speed = keep * speed + (1 - keep) * speed / r["factor"]
        out.append(speed)
    return torch.tensor(out, dtype=torch.float64)


def forward(c, w, ids):
    """ids -> logits [T, V], and (FFN input, FFN output) of every layer; all in float64."""
    w = {name: t.double() for name, t in w.items()}
    heads, kv_heads, T = c["num_attention_heads"], c["num_key_value_heads"], len(ids)
    head = c.get("head_dim") or c["hidden_size"] // heads
    angle = torch.arange(T, dtype=torch.float64)[:, None] * speeds(c, head)[None]
    norm = lambda x, g: x / torch.sqrt((x * x).mean(-1, keepdim=True) + c["rms_norm_eps"]) * g

    def turn(x):    # [T, head]
        a, b = x[:, :head // 2], x[:, head // 2:]
        return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), 1)

    x, trace = w["model.embed_tokens.weight"][ids], []
    for l in range(c["num_hidden_layers"]):
        at = lambda name: w[f"model.layers.{l}.{name}.weight"]
        bias = lambda n: w.get(f"model.layers.{l}.self_attn.{n}_proj.bias", 0.0)
        a = norm(x, at("input_layernorm"))
        q, k, v = (a @ at(f"self_attn.{n}_proj").T + bias(n) for n in "qkv")
        mixed = []
        for h in range(heads):
            g = h * kv_heads // heads
            qh, kh = turn(q[:, h * head:(h + 1) * head]), turn(k[:, g * head:(g + 1) * head])
            score = qh @ kh.T / math.sqrt(head)
            for t in range(T):
                score[t, t + 1:] = -math.inf
            mixed.append(torch.softmax(score, 1) @ v[:, g * head:(g + 1) * head])
        x = x + torch.cat(mixed, 1) @ at("self_attn.o_proj").T
        h = norm(x, at("post_attention_layernorm"))
        gate, up = h @ at("mlp.gate_proj").T, h @ at("mlp.up_proj").T
        y = (gate / (1 + torch.exp(-gate)) * up) @ at("mlp.down_proj").T
        trace.append((h, y))
        x = x + y
    head_weight = w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"]
    return norm(x, w["model.norm.weight"]) @ head_weight.T, trace


def numbers(t):
    return [float(f"{v:.8g}") for v in t.tolist()]


def golden(c, w, seed):
    g = torch.Generator().manual_seed(1000 + seed)
    ids = [1] + torch.randint(3, c["vocab_size"], (99,), generator=g).tolist()
    logits, trace = forward(c, w, ids)
    best = logits.topk(2, dim=1)
    text, lead = ids[:6], []
    for _ in range(32):
        two = forward(c, w, text)[0][-1].topk(2)
        text = text + [int(two.indices[0])]
        lead.append(float(two.values[0] - two.values[1]))
    return {"computed_in": "float64", "ids": ids, "argmax": best.indices[:, 0].tolist(),
            "argmax_lead": numbers(best.values[:, 0] - best.values[:, 1]),
            "middle": 40, "logits_middle": numbers(logits[40]), "logits_last": numbers(logits[-1]),
            "ffn_in_first": numbers(trace[0][0][-1]), "ffn_out_first": numbers(trace[0][1][-1]),
            "ffn_in_last": numbers(trace[-1][0][-1]), "ffn_out_last": numbers(trace[-1][1][-1]),
            "greedy": {"prompt_ids": ids[:6], "ids": text[6:], "lead": numbers(torch.tensor(lead))}}


def main():
    for name in sys.argv[1:] or TOYS:
        kind, shards, seed, c = TOYS[name]
        w = random_weights(c, kind, seed)
        write_model(HERE / name, c, w, kind, shards)
        out = golden(c, w, seed)
        text = json.dumps(out).replace('], "', '],\n "').replace('{"computed', '{\n "computed')
        (HERE / name / "golden.json").write_text(text + "\n")
        if name == "toy-llama":
            shutil.copy(HERE / "tokenizers/sp-bpe/tokenizer.model", HERE / name / "tokenizer.model")
            (HERE / name / "tokenizer_config.json").write_text(json.dumps(
                {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
                 "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 128}, indent=2) + "\n")
        size = sum(f.stat().st_size for f in (HERE / name).iterdir())
        largest = max(abs(v) for v in out["logits_last"])
        print(f"{name:16} {size / 1024:6.1f} KiB  logits to {largest:.2f}  least lead {min(out['argmax_lead']):.5f}  "
              f"greedy: least lead {min(out['greedy']['lead']):.4f}, {len(set(out['greedy']['ids']))} different")


if __name__ == "__main__":
    main()
