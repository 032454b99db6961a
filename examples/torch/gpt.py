# SPDX-License-Identifier: Apache-2.0
"""The GPT of gpt_plain.py as one site of a run, started for each of two sites by
python3 -m dilocox launch --sites 2 --tokens 800000 -- python3 examples/torch/gpt.py"""
import argparse
import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from dilocox.torch import DiLoCo, LeaseSampler

from dilocox.data import TokenFile


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):  # x [B, T, C]
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2)
                   for part in self.qkv(x).chunk(3, dim=2))
        scores = q @ k.transpose(2, 3) / math.sqrt(C // self.heads)
        later = torch.triu(torch.ones(T, T, dtype=torch.bool, device=x.device), 1)
        weights = torch.softmax(scores.masked_fill(later, -math.inf), dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(),
                                 nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, vocabulary, context, layers=4, width=128, heads=4):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                ends = name.endswith(("out.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if ends else 0.02)

    def forward(self, tokens, targets):
        """Mean loss of tokens [B, T] before targets [B, T]; the head is the embedding table."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.tokens(tokens) + self.positions(places)))
        logits = x @ self.tokens.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rate(progress, peak):
    """Of learning, at a progress of 0 to 1: up over a twentieth, then down to a tenth."""
    cosine = 0.55 + 0.45 * math.cos(math.pi * progress)
    return peak * min(1.0, (progress + 0.002) / 0.05) * cosine


@torch.no_grad()
def evaluate(model, data, batches, batch):
    model.eval()
    total = 0.0
    for first in range(0, batches * batch, batch):
        windows = [data[w % len(data)] for w in range(first, first + batch)]
        total += model(*(torch.stack(part) for part in zip(*windows))).item() / batches
    model.train()
    return total


def train(args):
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data, validation = (TokenFile(f"{args.data}.{part}.tokens", args.context)
                        for part in ("train", "validation"))
    model = GPT(data.vocabulary, args.context, args.layers, args.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95))
    with DiLoCo(model, optimizer, data=data, batch_size=args.batch, overlap=args.overlap) as sync:
        sampler = LeaseSampler(sync)
        loader = DataLoader(data, args.batch, sampler=sampler)
        for step, (tokens, targets) in enumerate(loader):
            progress = sync.progress
            optimizer.param_groups[0]["lr"] = rate(progress, args.lr)
            loss = model(tokens, targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 50 == 0:
                print(f"step {step}  loss {loss.item():.3f}", flush=True)
        print(f"validation loss {evaluate(model, validation, 32, 16):.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/kjv", help="of DATA.train.tokens and so on")
    parser.add_argument("--overlap", default="carry")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
