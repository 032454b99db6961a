#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The native trainer beside dilocox.torch: one GPT, with the same starting weights, windows,
schedule and AdamW in f32, on two sites that are processes with CURVE between them. The validation
losses must be within 0.5% of each other, anchors equal on both sites, each window trained on once.
Loaders with workers take windows ahead, so that leases are longer and windows others than the
native trainer's: such a run is compared with one of the same leases and without workers, too.

    bench/torch_equal.py --dilocox build/dilocox [--steps 400] [--workers 0,2]"""
import argparse
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dilocox.data import TokenFile
from dilocox.torch import DiLoCo, LeaseSampler

LAYERS, WIDTH, HEADS, CONTEXT, BATCH = 4, 128, 4, 128, 8
RATE, FINAL, DECAY, CLIP = 2e-3, 0.1, 0.1, 1.0
VALIDATION = 512  # windows
SITES, EXCHANGE_STEPS, SYNC_EVERY = 2, 4, 16
DATA = "data/kjv.%s.tokens"


def read_safetensors(path):
    """name → f32 tensor."""
    with open(path, "rb") as file:
        raw = bytearray(file.read())
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        flat = torch.frombuffer(raw, dtype=torch.float32, count=(end - first) // 4,
                                offset=8 + length + first)
        tensors[name] = flat.view(entry["shape"]).clone()
    return tensors


class GPT2(nn.Module):
    """In Hugging Face's names and layouts: x @ weight + bias."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(t)
                                         for name, t in weights.items()})

    def forward(self, tokens, targets):
        p = {name.replace("/", "."): t for name, t in self.weights.items()}
        B, T = tokens.shape
        x = p["transformer.wte.weight"][tokens] + p["transformer.wpe.weight"][:T]
        for layer in range(LAYERS):
            h = f"transformer.h.{layer}."
            y = F.layer_norm(x, (WIDTH,), p[h + "ln_1.weight"], p[h + "ln_1.bias"])
            q, k, v = (part.view(B, T, HEADS, -1).transpose(1, 2) for part in (
                y @ p[h + "attn.c_attn.weight"] + p[h + "attn.c_attn.bias"]).chunk(3, 2))
            scores = q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)
            later = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
            y = torch.softmax(scores.masked_fill(later, -math.inf), -1) @ v
            y = y.transpose(1, 2).reshape(B, T, WIDTH)
            x = x + y @ p[h + "attn.c_proj.weight"] + p[h + "attn.c_proj.bias"]
            y = F.layer_norm(x, (WIDTH,), p[h + "ln_2.weight"], p[h + "ln_2.bias"])
            y = F.gelu(y @ p[h + "mlp.c_fc.weight"] + p[h + "mlp.c_fc.bias"], approximate="tanh")
            x = x + y @ p[h + "mlp.c_proj.weight"] + p[h + "mlp.c_proj.bias"]
        x = F.layer_norm(x, (WIDTH,), p["transformer.ln_f.weight"], p["transformer.ln_f.bias"])
        return F.cross_entropy((x @ p["transformer.wte.weight"].T).flatten(0, 1), targets.flatten())


def rate(tokens, total):
    """As the trainer's schedule."""
    warmup = total * 0.05
    if tokens < warmup:
        return RATE * tokens / warmup
    progress = min((tokens - warmup) / (total - warmup), 1)
    return RATE * (FINAL + 0.5 * (1 - FINAL) * (1 + math.cos(math.pi * progress)))


class Windows(torch.utils.data.Dataset):
    """A TokenFile whose items have their index, too."""

    def __init__(self, path):
        self.file = TokenFile(path, CONTEXT)
        self.tokens_per_window, self.data_hash = CONTEXT, self.file.data_hash

    def __len__(self):
        return len(self.file)

    def __getitem__(self, window):
        return (window, *self.file[window])


def result_path(directory, site, workers, ahead):
    return os.path.join(directory, f"{site}-{workers}-{ahead}.json")


def train_site(directory, workers, ahead):
    torch.set_num_threads(1)
    data, validation = Windows(DATA % "train"), TokenFile(DATA % "validation", CONTEXT)
    model = GPT2(read_safetensors(os.path.join(directory, "start.safetensors")))
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": DECAY},
         {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}],
        lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    trained = []
    with DiLoCo(model, optimizer, data=data, batch_size=BATCH, exchange_steps=EXCHANGE_STEPS,
                sync_every=SYNC_EVERY, low_rank=0, windows_ahead=ahead) as sync:
        loader = DataLoader(data, BATCH, sampler=LeaseSampler(sync), num_workers=workers)
        for windows, tokens, targets in loader:
            counted = sync.tokens + BATCH * CONTEXT * sync.site_count
            for group in optimizer.param_groups:
                group["lr"] = rate(counted, sync.tokens_target)
            optimizer.zero_grad()
            model(tokens, targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            trained += windows.tolist()
            if sync.finished:
                break
        with torch.no_grad():
            losses = [model(*(torch.stack(part) for part in zip(
                *(validation[w] for w in range(first, first + 16))))).item()
                for first in range(0, VALIDATION, 16)]
        found = {"loss": sum(losses) / len(losses), "windows": trained,
                 "hashes": sync.anchor_hashes()}
    path = result_path(directory, os.environ["DILOCOX_SITE"], workers, ahead)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file)


def native(dilocox, directory, name, tokens, learning_rate):
    """Its summary, and the file of its weights."""
    total = 2 * tokens
    run_dir = os.path.join(directory, name)
    config = os.path.join(directory, "native.yaml")
    with open(config, "w", encoding="utf-8") as file:
        json.dump({
            "run": {"dir": run_dir},
            "model": {"family": "gpt2", "layers": LAYERS, "width": WIDTH, "heads": HEADS,
                      "kv_heads": 0, "mlp_width": 4 * WIDTH, "context": CONTEXT,
                      "vocabulary": 256, "tied_head": True},
            "data": {"train": os.path.abspath(DATA % "train"),
                     "validation": os.path.abspath(DATA % "validation")},
            "train": {"tokens": total, "batch": BATCH, "optimizer": "adamw",
                      "learning_rate": learning_rate, "final_learning_rate": FINAL,
                      "warmup_tokens": 0.05 * total, "weight_decay": DECAY, "clip_norm": CLIP,
                      "precision": "f32", "eval_tokens": VALIDATION * CONTEXT},
            "sync": {"inner_steps": SYNC_EVERY, "exchange_steps": EXCHANGE_STEPS,
                     "pace": "constant", "compression": {"rank": 0}},
            "snapshots": {"keep": 0}}, file)
    subprocess.run([dilocox, "launch", config, "--sites", str(SITES)], check=True,
                   stdout=subprocess.DEVNULL)
    with open(os.path.join(run_dir, "summary.json"), encoding="utf-8") as file:
        return json.load(file), os.path.join(run_dir, "weights", "model.safetensors")


def train(directory, workers, ahead, steps):
    """What both sites found: the loss, or None where something else is wrong."""
    subprocess.run(
        [sys.executable, "-m", "dilocox", "launch", "--sites", str(SITES), "--tokens",
         str(SITES * steps * BATCH * CONTEXT), "--", sys.executable, os.path.abspath(__file__),
         "--site", directory, "--workers", str(workers), "--ahead", str(ahead)], check=True,
        stdout=subprocess.DEVNULL, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    sites = []
    for site in range(SITES):
        with open(result_path(directory, f"site-{site + 1}", workers, ahead),
                  encoding="utf-8") as file:
            sites.append(json.load(file))
    windows = [w for site in sites for w in site["windows"]]
    once = len(set(windows)) == len(windows)
    equal = all(site["hashes"] == sites[0]["hashes"] for site in sites)
    print(f"{workers} workers, {ahead} windows ahead: validation loss {sites[0]['loss']:.4f}; "
          f"anchors {'equal' if equal else 'DIFFER'}; {len(windows)} windows, "
          f"{'each once' if once else 'SOME TWICE'}", flush=True)
    good = once and equal and len(windows) >= SITES * steps * BATCH
    return sites[0]["loss"] if good else None


def near(loss, other, whose):
    if loss is None or other is None:
        return False
    print(f"  {100 * (loss / other - 1):+.2f}% of {whose}", flush=True)
    return abs(loss / other - 1) <= 0.005


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dilocox", default="build/dilocox")
    parser.add_argument("--steps", type=int, default=400, help="per site")
    parser.add_argument("--workers", default="0,2")
    parser.add_argument("--site", metavar="DIR", help="this process is one of a run in DIR")
    parser.add_argument("--ahead", type=int, default=0, help="of --site: windows taken ahead")
    args = parser.parse_args()
    if args.site:
        return train_site(args.site, int(args.workers), args.ahead)
    good = True
    with tempfile.TemporaryDirectory() as directory:
        _, start = native(args.dilocox, directory, "start", BATCH * CONTEXT, 0)
        os.rename(start, os.path.join(directory, "start.safetensors"))
        summary, _ = native(args.dilocox, directory, "native", args.steps * BATCH * CONTEXT, RATE)
        print(f"native trainer: validation loss {summary['val_loss']:.4f}, at the start "
              f"{summary['val_loss_initial']:.4f}", flush=True)
        for workers in map(int, args.workers.split(",")):
            ahead = 2 * workers * BATCH  # a DataLoader's prefetch_factor is 2
            loss = train(directory, workers, ahead, args.steps)
            good &= near(loss, summary["val_loss"], "the native trainer's")
            if workers > 0:
                same = train(directory, 0, ahead, args.steps)
                good &= near(loss, same, "the run without workers")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
