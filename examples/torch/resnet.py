# SPDX-License-Identifier: Apache-2.0
"""A small residual network (78 thousand parameters) on Fashion-MNIST as one site of a run: images
are samples, not tokens, and the statistics of batch normalisation are averaged with the weights.
python3 -m dilocox launch --sites 2 --tokens 120000 -- python3 examples/torch/resnet.py"""
import argparse
import gzip
import math
import os
import struct

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dilocox.torch import DiLoCo, LeaseSampler

FILES = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist


def read_idx(path):
    """uint8 values of a file in MNIST's format: a magic number, sizes, bytes."""
    with gzip.open(path) as file:
        raw = file.read()
    dimensions = raw[3]
    shape = struct.unpack_from(f">{dimensions}I", raw, 4)
    values = torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=4 + 4 * dimensions)
    return values.view(shape)


def load(folder, part):
    images = read_idx(os.path.join(folder, f"{part}-images-idx3-ubyte.gz"))
    labels = read_idx(os.path.join(folder, f"{part}-labels-idx1-ubyte.gz"))
    return TensorDataset((images[:, None].float() / 255 - 0.286) / 0.353, labels.long())


class Residual(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.short = nn.Identity()
        if before != after:
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False),
                                       nn.BatchNorm2d(after))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.short(x))


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@torch.no_grad()
def accuracy(model, data):
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in DataLoader(data, 500))
    model.train()
    return right / len(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=FILES, help="of t10k-images-idx3-ubyte.gz and so on")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--buffers", default="average", choices=("average", "local"))
    parser.add_argument("--overlap", default="carry")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if not os.path.isdir(args.data):
        parser.error(f"--data: {args.data} is not there; install Debian's dataset-fashion-mnist, "
                     "or give the directory of such files")
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    data, test = load(args.data, "train"), load(args.data, "t10k")
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.02)
    with DiLoCo(model, optimizer, data=data, batch_size=args.batch, buffers=args.buffers,
                overlap=args.overlap) as sync:
        loader = DataLoader(data, args.batch, sampler=LeaseSampler(sync))
        for step, (images, labels) in enumerate(loader):
            cosine = 0.5 + 0.5 * math.cos(math.pi * sync.progress)
            optimizer.param_groups[0]["lr"] = args.lr * max(cosine, 0.01)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 100 == 0:
                print(f"step {step}  loss {loss.item():.3f}", flush=True)
        print(f"test accuracy {100 * accuracy(model, test):.2f}%", flush=True)


if __name__ == "__main__":
    main()
