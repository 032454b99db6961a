# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of dilocox.torch: skips without PyTorch; small models whose training repeats;
sites as threads on a hub."""
import contextlib
import os
import threading
import unittest

import support

try:
    import torch
except ImportError:
    support.skip("PyTorch is not installed (Debian: python3-torch)")

from torch import nn

from dilocox.torch import DiLoCo

torch.set_num_threads(1)

FORKS = "libtsan" not in os.environ.get("LD_PRELOAD", "")
with_workers = unittest.skipIf(
    not FORKS, "ThreadSanitizer can't follow the threads of forked processes")

_seeding = threading.Lock()


def mlp(seed=0, width=12):
    with _seeding:  # sites are threads
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))


def batch(seed, rows=8):
    """Inputs and targets that repeat."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator)
    return x, torch.stack([x.sum(1), x[:, 0] * x[:, 1], x[:, 2].tanh()], 1)


def loss_of(model, seed):
    x, y = batch(seed)
    return ((model(x) - y) ** 2).mean()


def take_step(model, optimizer, seed=1):
    optimizer.zero_grad()
    loss_of(model, seed).backward()
    optimizer.step()


def values(model):
    return [t.detach().clone() for t in model.state_dict().values()]


class Case(support.Case):
    def sites(self, bodies, tokens, together=True, **options):
        """Runs body(keywords) of each site in a thread; keywords have site, hub and
        tokens_per_step. Returns what they return, by name. together: what one raises ends all."""
        run, results = self.run_of(len(bodies), tokens, **options), {}
        for name, body in bodies.items():
            def of_site(name=name, body=body):
                try:
                    results[name] = body(dict(site=name, hub=run.hub, tokens_per_step=1))
                except BaseException:
                    if together:
                        run.coordinator.interrupt()
                    raise
            run.site(name, of_site)
        run.end()
        return results

    def train(self, keywords, model=None, optimizer=None, each=None, seed=0, **more):
        """A plain loop to the run's end. each(sync, model, step): behind each step. Returns the
        model and the anchor's hashes."""
        model = model if model is not None else mlp()
        if optimizer is None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        step, own = 0, 100 * (1 + ord(keywords["site"][-1])) + seed
        with DiLoCo(model, optimizer, **{**keywords, **more}) as sync:
            while not sync.finished:
                optimizer.zero_grad()
                loss_of(model, own + step).backward()
                optimizer.step()
                step += 1
                if each is not None:
                    each(sync, model, step)
            hashes = sync.anchor_hashes()
        return model, hashes


@contextlib.contextmanager
def one_site(case, model, optimizer=None, tokens=1000, **keywords):
    """A run of one site, in this thread, that is closed at the end."""
    run = case.run_of(1, tokens)
    with DiLoCo(model, optimizer, **{**dict(site="a", hub=run.hub, tokens_per_step=1, sync_every=4,
                                            overlap="none"), **keywords}) as sync:
        yield sync
