#!/usr/bin/env python3
"""Stage 2 by PyTorch: loss and gradients of a factorized tiny1m with straight-through gates, in double.  Writes stage2_tiny1m.json, which tests/mpi/test_stage2_golden.c is held against.

usage: make_stage2.py DIRECTORY_OF_TINY1M >tests/golden/stage2_tiny1m.json

The factorization is the contiguous one, 32 experts of 11 neurons; router, means and tokens come from the formulas below, which the test has, too.
experts and lora: a student whose norms and experts have moved away from the teacher's, with a scale and a term of low rank; of every gradient its norm and its product with
a wave, layer by layer, which tells the order of its numbers."""
import json, sys
import numpy as np, torch
import torch.nn.functional as F

N, ACTIVE, WINDOW, LM, BUDGET, TARGET, SCALE = 32, 16, 48, 0.3, 0.5, 0.4, 1.25
torch.set_grad_enabled(True)
f64 = torch.float64


def load(directory):
    raw = open(directory + "/model.safetensors", "rb").read()
    n = int.from_bytes(raw[:8], "little")
    out = {}
    for k, t in json.loads(raw[8:8 + n]).items():
        if k == "__metadata__":
            continue
        assert t["dtype"] == "F32"
        a, b = t["data_offsets"]
        out[k] = torch.tensor(np.frombuffer(raw[8 + n + a:8 + n + b], dtype=np.float32).reshape(t["shape"]).copy(), dtype=f64)
    return json.load(open(directory + "/config.json")), out


def numbers(n, size, step, phase):  # as numbers() of the test
    return torch.tensor(np.float32(size * np.sin(step * np.arange(n, dtype=np.float64) + phase)), dtype=f64)


def norm(x, w, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def turn(x, theta):
    T, d = x.shape[-2:]
    a = torch.arange(T, dtype=f64)[:, None] / theta ** (torch.arange(0, d, 2, dtype=f64) / d)
    lo, hi = x.chunk(2, -1)
    return torch.cat((lo * a.cos() - hi * a.sin(), hi * a.cos() + lo * a.sin()), -1)


def attention(c, w, l, x):
    p = "model.layers.%d." % l
    H, K = c["num_attention_heads"], c["num_key_value_heads"]
    B, T, D = x.shape
    h = norm(x, w[p + "input_layernorm.weight"], c["rms_norm_eps"])
    q, k, v = (F.linear(h, w[p + "self_attn.%s_proj.weight" % i]).view(B, T, -1, D // H).transpose(1, 2) for i in "qkv")
    q, k = turn(q, c["rope_theta"]), turn(k, c["rope_theta"])
    k, v = k.repeat_interleave(H // K, 1), v.repeat_interleave(H // K, 1)
    mask = torch.full((T, T), float("-inf"), dtype=f64).triu(1)
    a = (q @ k.transpose(-1, -2) / (D // H) ** 0.5 + mask).softmax(-1)
    return x + F.linear((a @ v).transpose(1, 2).reshape(B, T, D), w[p + "self_attn.o_proj.weight"])


def run(c, w, tokens, router=None, threshold=True, temperature=1.0):
    x, share = w["model.embed_tokens.weight"][tokens], 0
    for l in range(c["num_hidden_layers"]):
        p = "model.layers.%d." % l
        x = attention(c, w, l, x)
        h = norm(x, w[p + "post_attention_layernorm.weight"], c["rms_norm_eps"])
        z = F.silu(F.linear(h, w[p + "mlp.gate_proj.weight"])) * F.linear(h, w[p + "mlp.up_proj.weight"])
        down = w[p + "mlp.down_proj.weight"]
        if router is None:
            x = x + F.linear(z, down)
            continue
        W, b, mu = (router[k][l] for k in ("weight", "bias", "mu"))
        s = F.linear(h, W, b)
        if threshold:
            hard, at = (s > 0).to(f64), 0.0
        else:
            hard = torch.zeros_like(s).scatter_(-1, s.topk(ACTIVE, -1).indices, 1.0)
            at = s.detach().topk(ACTIVE + 1, -1).values[..., -2:].mean(-1, keepdim=True)
        spread = temperature * s.detach().std(unbiased=False)
        if not threshold:  # moves so that the sum of the soft gates of a row stays what it is
            slope = torch.sigmoid((s.detach() - at) / spread)
            slope = slope * (1 - slope)
            at = at + (slope * (s - s.detach())).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True)
        soft = torch.sigmoid((s - at) / spread)
        g = hard + soft - soft.detach()
        share = share + g.mean() / c["num_hidden_layers"]
        scale = router["scale"][l] if "scale" in router else SCALE
        if "inward" in router:
            x = x + F.linear(F.linear(h, router["inward"][l]), router["outward"][l]) + router["offset"][l]
        x = x + scale * F.linear(z * g.repeat_interleave(z.shape[-1] // N, -1), down) + (1 - g) @ mu
    return F.linear(norm(x, w["model.norm.weight"], c["rms_norm_eps"]), w["lm_head.weight"]), share


def measure(c, w, threshold, temperature):
    L, D, V = c["num_hidden_layers"], c["hidden_size"], c["vocab_size"]
    ids = torch.tensor([(i * i * 7 + i * 37 + 11) % V for i in range(2 * WINDOW + 1)])
    tokens, target = ids[:-1].view(2, WINDOW), ids[1:].view(2, WINDOW)
    router = {"weight": numbers(L * N * D, 0.2, 0.7, 0.1).view(L, N, D), "bias": numbers(L * N, 0.3, 1.3, 0.2).view(L, N),
              "mu": numbers(L * N * D, 0.02, 0.9, 0.3).view(L, N, D)}
    for v in router.values():
        v.requires_grad_(True)
    taught = F.log_softmax(run(c, w, tokens)[0].detach(), -1)
    logits, share = run(c, w, tokens, router, threshold, temperature)
    said = F.log_softmax(logits, -1)
    rows = tokens.numel()
    kl = F.kl_div(said, taught, log_target=True, reduction="sum")
    nll = -said.gather(-1, target[..., None]).sum()
    loss = kl + LM * nll + (rows * BUDGET * 100 * (share - TARGET) ** 2 if threshold else 0)
    loss.backward()
    out = {"temperature": temperature, "kl": kl.item() / rows, "nll": nll.item() / rows, "loss": loss.item() / rows, "share": float(share)}
    for k, v in router.items():
        out[k] = v.grad.norm().item()
        out[k + "_of_layers"] = [v.grad[l].norm().item() for l in range(L)]
        out[k + "_first"] = v.grad.flatten()[:8].tolist()
    return out


TERM, LORA = 3, 2


def moved(x, size, step, phase):  # x and what the test adds to it, in f32
    return (x.to(torch.float32) + numbers(x.numel(), size, step, phase).view(x.shape).to(torch.float32)).to(f64)


def adapted(c, w, lora):
    L, D, V, each = c["num_hidden_layers"], c["hidden_size"], c["vocab_size"], c["intermediate_size"] // N
    ids = torch.tensor([(i * i * 7 + i * 37 + 11) % V for i in range(2 * WINDOW + 1)])
    tokens, target = ids[:-1].view(2, WINDOW), ids[1:].view(2, WINDOW)
    leaf = {"weight": numbers(L * N * D, 0.2, 0.7, 0.1).view(L, N, D), "bias": numbers(L * N, 0.3, 1.3, 0.2).view(L, N),
            "mu": numbers(L * N * D, 0.02, 0.9, 0.3).view(L, N, D), "scale": 1 + numbers(L, 0.2, 1.1, 0.4),
            "inward": numbers(L * TERM * D, 0.2, 0.8, 0.5).view(L, TERM, D), "outward": numbers(L * D * TERM, 0.2, 1.2, 0.6).view(L, D, TERM),
            "offset": numbers(L * D, 0.05, 0.6, 0.7).view(L, D)}
    leaf["scale"] = leaf["scale"].to(torch.float32).to(f64)
    names = ["model.layers.%d." % l for l in range(L)]
    leaf["norm.attention"] = moved(torch.stack([w[p + "input_layernorm.weight"] for p in names]), 0.1, 0.7, 0.1)
    leaf["norm.ffn"] = moved(torch.stack([w[p + "post_attention_layernorm.weight"] for p in names]), 0.1, 0.8, 0.2)
    leaf["norm.last"] = moved(w["model.norm.weight"], 0.1, 0.9, 0.3)
    student = dict(w)
    for part, name in enumerate(("gate", "up", "down")):
        whole = torch.stack([w[p + "mlp.%s_proj.weight" % name].T if name == "down" else w[p + "mlp.%s_proj.weight" % name] for p in names])  # [L, F, D]
        if lora:
            leaf[name + ".A"] = numbers(L * N * LORA * D, 0.1, 0.37, part).view(L, N, LORA, D)
            leaf[name + ".B"] = numbers(L * N * each * LORA, 0.1, 0.53, part).view(L, N, each, LORA)
        else:
            leaf[name] = moved(whole, 0.02, 0.37, part)
        leaf[name + "_"] = whole
    for v in leaf.values():
        v.requires_grad_(True)
    for l, p in enumerate(names):
        student[p + "input_layernorm.weight"], student[p + "post_attention_layernorm.weight"] = leaf["norm.attention"][l], leaf["norm.ffn"][l]
        for name in ("gate", "up", "down"):
            m = leaf[name + "_"][l] + (leaf[name + ".B"][l] @ leaf[name + ".A"][l]).reshape(-1, D) if lora else leaf[name][l]
            student[p + "mlp.%s_proj.weight" % name] = m.T if name == "down" else m
    student["model.norm.weight"] = leaf["norm.last"]
    taught = F.log_softmax(run(c, w, tokens)[0].detach(), -1)
    logits, share = run(c, student, tokens, leaf, True, 0.5)
    said = F.log_softmax(logits, -1)
    rows = tokens.numel()
    kl, nll = F.kl_div(said, taught, log_target=True, reduction="sum"), -said.gather(-1, target[..., None]).sum()
    loss = kl + LM * nll + rows * BUDGET * 100 * (share - TARGET) ** 2
    loss.backward()
    out = {"kl": kl.item() / rows, "nll": nll.item() / rows, "loss": loss.item() / rows, "share": float(share)}
    for k, v in leaf.items():
        if k.endswith("_"):
            continue
        g = v.grad.reshape(1 if k == "norm.last" else L, -1)
        wave = torch.sin(0.41 * torch.arange(g.shape[1], dtype=f64) + 0.2)
        out[k] = [[x.norm().item(), (x @ wave).item()] for x in g]
    return out


c, w = load(sys.argv[1])
json.dump({"threshold": measure(c, w, True, 0.5), "top_k": measure(c, w, False, 0.8), "experts": adapted(c, w, False), "lora": adapted(c, w, True)}, sys.stdout, indent=1)
print()
