# SPDX-License-Identifier: Apache-2.0
"""A process of a run that tests start: one rank of one site. Its argument is a JSON object; what it
found is the JSON object that it prints last."""
import json
import logging
import os
import signal
import sys

import torch_support
from torch_support import batch, mlp, torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import dilocox
from dilocox.torch import DiLoCo

ROWS = 16  # of a site's batch
HIDDEN = 24


class Rows(nn.Module):
    """A rank's rows of both matrices of mlp(): the hidden units are divided, and outputs are added
    over the ranks. The last bias is on all of them."""

    def __init__(self, rank, ranks):
        super().__init__()
        whole = mlp(width=HIDDEN)
        n = HIDDEN // ranks
        mine = slice(rank * n, rank * n + n)
        self.up = nn.Parameter(whole[0].weight.detach()[mine].clone())
        self.up_bias = nn.Parameter(whole[0].bias.detach()[mine].clone())
        self.down = nn.Parameter(whole[2].weight.detach().t()[mine].clone())
        self.bias = nn.Parameter(whole[2].bias.detach().clone())
        self.rank, self.rows = rank, f"[rows {mine.start}:{mine.stop}]"

    def named(self):
        return [("up" + self.rows, self.up), ("up_bias" + self.rows, self.up_bias),
                ("down" + self.rows, self.down), ("bias", self.bias)]

    def outputs(self, x):
        part = torch.tanh(x @ self.up.t() + self.up_bias) @ self.down
        whole = part.detach().clone()
        dist.all_reduce(whole)
        return part, whole + self.bias

    def backward(self, x, y):
        """Loss; gradients of what this rank has."""
        part, out = self.outputs(x)
        loss = ((out - y) ** 2).mean()
        slope = (2 * (out - y) / y.numel()).detach()
        part.backward(slope)
        self.bias.grad = slope.sum(0)
        return loss.item()


def step_ddp(model, x, y, rank, ranks):
    n = len(x) // ranks
    mine = slice(rank * n, rank * n + n)
    loss = ((model(x[mine]) - y[mine]) ** 2).mean()
    loss.backward()
    return loss.item()


def attempt(spec, kind, options):
    """The error of one that should fail."""
    model = Rows(spec["rank"], spec["ranks"]) if kind == "rows" else mlp(width=HIDDEN)
    try:
        DiLoCo(model.named() if kind == "rows" else model, site=spec["site"],
               coordinator=spec["coordinator"], unencrypted=True, tokens_per_step=ROWS, **options)
    except dilocox.DilocoxError as error:
        return [type(error).__name__, str(error)]


def main():
    spec = json.loads(sys.argv[1])
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("dilocox").setLevel(logging.INFO)
    rank, ranks, kind = spec.get("rank", 0), spec.get("ranks", 1), spec.get("kind", "ddp")
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{spec['store']}", rank=rank,
                                world_size=ranks)
    if spec.get("stays"):  # comes no further than the group
        dist.new_group(backend="gloo")
        print("made", flush=True)
        signal.pause()
    if "attempts" in spec:
        print(json.dumps({"errors": [attempt(spec, *one) for one in spec["attempts"]]}))
        return
    model = Rows(rank, ranks) if kind == "rows" else mlp(seed=rank, width=HIDDEN)
    if kind == "ddp" and ranks > 1:
        model = DistributedDataParallel(model)
    if spec.get("optimizer") == "zero":
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.05)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    steps, found = 0, {}
    try:
        with DiLoCo(model.named() if kind == "rows" else model, optimizer, site=spec["site"],
                    coordinator=spec["coordinator"], unencrypted=True, tokens_per_step=ROWS,
                    timeout=spec.get("timeout", 10.0), **spec.get("options", {})) as sync:
            print("joined", flush=True)
            group = sync._ranks.group if ranks > 1 else None
            while not sync.finished:
                x, y = batch(1000 * ord(spec["site"][-1]) + steps, ROWS)
                optimizer.zero_grad()
                if kind == "rows":
                    found["loss"] = model.backward(x, y)
                else:
                    found["loss"] = step_ddp(model, x, y, rank, ranks)
                steps += 1
                if steps == spec.get("dies_at"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if steps != spec.get("skips_at"):
                    optimizer.step()
            with sync.evaluate():
                x, y = batch(1, 512)
                out = model.outputs(x)[1] if kind == "rows" else model(x)
                found["final"] = ((out - y) ** 2).mean().item()
            found["hashes"] = {k: f"{v:016x}" for k, v in sync.anchor_hashes().items()}
            statistics = sync.statistics()
            found["raw_bytes"] = statistics.raw_bytes
            anchor = sync.anchor()
            found["anchor"] = {k: v.flatten().tolist() for k, v in anchor.items()}
        if group is not None:
            try:
                dist.get_process_group_ranks(group)
            except (KeyError, ValueError):
                found["group"] = "gone"
    except dilocox.DilocoxError as error:
        found["error"] = [type(error).__name__, str(error)]
    found["steps"] = steps
    print(json.dumps(found), flush=True)


main()
