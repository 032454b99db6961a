# SPDX-License-Identifier: Apache-2.0
"""Loads the checkpoints of write_model_case into PyTorch models (f64) and compares loss, gradients and the weights after
optimiser steps: an oracle that shares no code with the library. Use: torch_model.py WRITER [BACKEND]
Exits 77, Meson's skip, if PyTorch is missing."""
import json
import math
import os
import subprocess
import struct
import sys
import tempfile

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("skipped: PyTorch is not installed (Debian: python3-torch)")
    sys.exit(77)


def read_safetensors(path):
    with open(path, "rb") as file:
        raw = file.read()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32", entry
        begin, end = entry["data_offsets"]
        values = struct.unpack("<%df" % ((end - begin) // 4), raw[8 + length + begin:8 + length + end])
        tensors[name] = torch.tensor(values, dtype=torch.float64).reshape(entry["shape"])
    return tensors


def read_parts(directory):
    """Reads a sharded checkpoint as transformers does; no tensor may be missing, surplus, or in another file."""
    with open(os.path.join(directory, "model.safetensors.index.json")) as file:
        index = json.load(file)
    tensors, held, size = {}, {}, 0
    for name in sorted(set(index["weight_map"].values())):
        for tensor, value in read_safetensors(os.path.join(directory, name)).items():
            tensors[tensor], held[tensor] = value, name
            size += 4 * value.numel()
    assert held == index["weight_map"], (held, index)
    assert size == index["metadata"]["total_size"], (size, index)
    assert sorted(os.listdir(directory)) == sorted(["config.json", "model.safetensors.index.json"] + list(set(held.values())))
    assert len(set(held.values())) == 2
    return tensors


def attention(q, k, v, heads, kv_heads):
    """q [B,T,C]; k, v [B,T,K]; causal, query head h reads key head h // (heads / kv_heads)."""
    B, T, C = q.shape
    D = C // heads
    q = q.reshape(B, T, heads, D).transpose(1, 2)
    k = k.reshape(B, T, kv_heads, D).transpose(1, 2).repeat_interleave(heads // kv_heads, dim=1)
    v = v.reshape(B, T, kv_heads, D).transpose(1, 2).repeat_interleave(heads // kv_heads, dim=1)
    scores = q @ k.transpose(2, 3) / math.sqrt(D)
    mask = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
    weights = torch.softmax(scores.masked_fill(mask, -math.inf), dim=-1)
    return (weights @ v).transpose(1, 2).reshape(B, T, C)


def gpt2_logits(p, c, token):
    B, T = token.shape
    eps, C, heads = c["layer_norm_epsilon"], c["n_embd"], c["n_head"]
    activate = torch.relu if c["activation_function"] == "relu" else lambda x: F.gelu(x, approximate="tanh")
    x = p["transformer.wte.weight"][token] + p["transformer.wpe.weight"][:T]
    for layer in range(c["n_layer"]):
        h = "transformer.h.%d." % layer
        norm = F.layer_norm(x, (C,), p[h + "ln_1.weight"], p[h + "ln_1.bias"], eps)
        q, k, v = (norm @ p[h + "attn.c_attn.weight"] + p[h + "attn.c_attn.bias"]).split(C, dim=2)
        x = x + attention(q, k, v, heads, heads) @ p[h + "attn.c_proj.weight"] + p[h + "attn.c_proj.bias"]
        norm = F.layer_norm(x, (C,), p[h + "ln_2.weight"], p[h + "ln_2.bias"], eps)
        up = activate(norm @ p[h + "mlp.c_fc.weight"] + p[h + "mlp.c_fc.bias"])
        x = x + up @ p[h + "mlp.c_proj.weight"] + p[h + "mlp.c_proj.bias"]
    x = F.layer_norm(x, (C,), p["transformer.ln_f.weight"], p["transformer.ln_f.bias"], eps)
    return x @ p["transformer.wte.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T


def rms_norm(x, gain, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * gain


def rotate(x, heads, theta):
    """As Hugging Face's Llama: pairs (d, d + D/2), angle position / theta^(2d/D)."""
    B, T, C = x.shape
    D = C // heads
    x = x.reshape(B, T, heads, D)
    frequency = theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.outer(torch.arange(T, dtype=torch.float64), frequency)
    cos, sin = [torch.cat([f(angle)] * 2, dim=-1)[None, :, None, :] for f in (torch.cos, torch.sin)]
    half = torch.cat([-x[..., D // 2:], x[..., :D // 2]], dim=-1)
    return (x * cos + half * sin).reshape(B, T, C)


def llama_logits(p, c, token):
    eps, heads, kv_heads = c["rms_norm_eps"], c["num_attention_heads"], c["num_key_value_heads"]
    bias = c["model_type"] == "qwen2"
    x = p["model.embed_tokens.weight"][token]
    for layer in range(c["num_hidden_layers"]):
        h = "model.layers.%d." % layer
        norm = rms_norm(x, p[h + "input_layernorm.weight"], eps)
        q, k, v = [norm @ p[h + "self_attn.%s_proj.weight" % n].T + (p[h + "self_attn.%s_proj.bias" % n] if bias else 0)
                   for n in "qkv"]
        q, k = rotate(q, heads, c["rope_theta"]), rotate(k, kv_heads, c["rope_theta"])
        x = x + attention(q, k, v, heads, kv_heads) @ p[h + "self_attn.o_proj.weight"].T
        norm = rms_norm(x, p[h + "post_attention_layernorm.weight"], eps)
        gate, up = [norm @ p[h + "mlp.%s_proj.weight" % n].T for n in ("gate", "up")]
        x = x + (F.silu(gate) * up) @ p[h + "mlp.down_proj.weight"].T
    x = rms_norm(x, p["model.norm.weight"], eps)
    return x @ p["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T


def loss_of(p, c, batch):
    shape = (batch["batch"], batch["length"])
    token, target = [torch.tensor(batch[n]).reshape(shape) for n in ("token", "target")]
    logits = (gpt2_logits if c["model_type"] == "gpt2" else llama_logits)(p, c, token)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))


def gradients_of(p, c, batch):
    p = {n: t.clone().requires_grad_() for n, t in p.items()}
    loss = loss_of(p, c, batch)
    loss.backward()
    return loss.item(), {n: t.grad for n, t in p.items()}


def is_hidden(name, tensor):
    return tensor.dim() == 2 and (".h." in name or ".layers." in name)


MUON = ((8.34517045, -24.6139068, 18.2361797),
        (6.69231269, -16.1584461, 13.6986838, -4.51825888, 0.505826548),
        (4.06029946, -8.38082796, 7.61718652, -2.86652401, 0.375695102))


def muon_direction(m):
    """Singular values through odd polynomials, one after the other, in f64."""
    u, s, vt = torch.linalg.svd(m.double(), full_matrices=False)
    s = s / (s ** 8).sum() ** 0.125
    for c in MUON:
        s = sum(c[i] * s ** (2 * i + 1) for i in range(len(c)))
    return (0.875 * 0.2 * math.sqrt(max(m.shape)) * (u @ torch.diag(s) @ vt)).float()


def split_fused(name, m):
    """The matrices that Muon sees in a file's tensor: c_attn holds q, k and v side by side."""
    return m.chunk(3, dim=1) if name.endswith("c_attn.weight") else [m]


def train(p, c, batch, muon):
    lr, decay, clip, mu = 0.01, 0.1, 0.5, 0.95
    p = {n: t.clone() for n, t in p.items()}
    adam = {n: t.requires_grad_() for n, t in p.items() if not (muon and is_hidden(n, t))}
    groups = [{"params": [t for t in adam.values() if t.dim() == d], "weight_decay": decay if d == 2 else 0.0}
              for d in (1, 2)]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.95), eps=1e-6)
    momentum = {n: torch.zeros_like(t) for n, t in p.items()}
    for _ in range(batch["steps"]):
        _, gradient = gradients_of({n: t.detach() for n, t in p.items()}, c, batch)
        norm = torch.sqrt(sum((g * g).sum() for g in gradient.values()))
        scale = min(1.0, clip / norm.item())
        for n, t in p.items():
            g = gradient[n] * scale
            if n in adam:
                t.grad = g
                continue
            momentum[n] = mu * momentum[n] + g
            ahead = g + mu * momentum[n]
            update = torch.cat([muon_direction(m) for m in split_fused(n, ahead)], dim=1)
            p[n] = t * (1 - lr * decay) - lr * update
        optimizer.step()
    return {n: t.detach() for n, t in p.items()}


def compare(what, ours, theirs, tolerance, base=None):
    """Relative in the norm of each tensor; with base, of the change since base."""
    assert set(ours) == set(theirs), (what, set(ours) ^ set(theirs))
    worst = 0.0
    for name in theirs:
        size = (theirs[name] if base is None else theirs[name] - base[name]).norm().item()
        difference = (ours[name] - theirs[name]).norm().item()
        # the gradient of a key's bias is zero except for rounding: softmax ignores a common shift
        relative = difference / max(size, 1e-3)
        worst = max(worst, relative)
        assert relative <= tolerance, "%s %s: relative difference %g above %g" % (what, name, relative, tolerance)
    print("%-16s worst relative difference %.2e" % (what, worst))


def main():
    writer, backend = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "ref"
    torch.set_num_threads(1)
    for case in ("gpt2", "opt", "llama", "qwen"):
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run([writer, case, directory, backend], check=True)
            with open(os.path.join(directory, "batch.json")) as file:
                batch = json.load(file)
            with open(os.path.join(directory, "start", "config.json")) as file:
                config = json.load(file)
            read = {n: read_safetensors(os.path.join(directory, n, "model.safetensors"))
                    for n in ("start", "gradients", "adamw", "muon")}
            parts = read_parts(os.path.join(directory, "parts"))
        assert set(parts) == set(read["start"]) and all(torch.equal(parts[n], read["start"][n]) for n in parts)
        loss, gradients = gradients_of(read["start"], config, batch)
        assert abs(loss - batch["loss"]) <= 1e-5 * loss, (loss, batch["loss"])
        compare(case + " gradients", read["gradients"], gradients, 1e-5)
        start = read["start"]
        compare(case + " adamw", read["adamw"], train(start, config, batch, False), 1e-3, start)
        # X Xᵀ in f32 knows the least singular values that grow to 1 only to some per mille
        compare(case + " muon", read["muon"], train(start, config, batch, True), 3e-3, start)


main()
