# SPDX-License-Identifier: Apache-2.0
"""A run that stopped goes on from what torch.save wrote: equal to the bit to one that did not stop,
and with another number of sites about as well."""
import io
import threading

import torch_support
from support import DEADLINE_S, main
from torch_support import Case, batch, mlp, torch, values, with_workers
from torch.utils.data import DataLoader

from dilocox import DilocoxError
from dilocox.torch import DiLoCo, LeaseSampler

SETTINGS = dict(bits=8, low_rank=4, sync_every=5, batch_size=2, data=range(4096))
STOP = 23


def noisy_loss(model, seed):
    """One that training can't bring to 0."""
    x, y = batch(seed)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 10 ** 6))
    return ((model(x) - y - noise) ** 2).mean()


class Stopped(Case):
    def train(self, keywords, files=None, barrier=None, **more):
        """To the end; with `barrier` to step STOP, where it saves to files[site]; with files and no
        barrier it goes on from there."""
        site = keywords["site"]
        del keywords["tokens_per_step"]
        model = mlp(width=24)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        state, steps = None, 0
        if files and barrier is None:
            files[site].seek(0)
            read = torch.load(files[site])
            model.load_state_dict(read["model"])
            optimizer.load_state_dict(read["optimizer"])
            state, steps = read["sync"], read["sync"]["steps"]
        with DiLoCo(model, optimizer, state=state, **{**SETTINGS, **more}, **keywords) as sync:
            indices = iter(LeaseSampler(sync))
            while not sync.finished:
                optimizer.param_groups[0]["lr"] = 0.01 * (1 - 0.99 * sync.progress)
                optimizer.zero_grad()
                for _ in range(SETTINGS["batch_size"]):
                    noisy_loss(model, next(indices)).backward()
                optimizer.step()
                steps += 1
                if barrier is not None and steps == STOP:
                    files[site] = io.BytesIO()
                    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                                "sync": sync.state_dict()}, files[site])
                    barrier.wait(DEADLINE_S)
                    return None
            return values(model), sync.anchor_hashes(), steps

    def run_sites(self, sites, tokens=200, **more):
        return self.sites({name: lambda keywords: self.train(keywords, **more) for name in sites},
                          tokens)

    def test_equal_to_the_bit(self):
        for overlap, exchange_steps in (("carry", 2), ("none", 0), ("delayed", 0), ("eager", 0),
                                        ("allreduce", 0)):
            with self.subTest(overlap=overlap):
                more = dict(overlap=overlap, exchange_steps=exchange_steps,
                            inner_steps_max=5)  # waits, so that it repeats
                whole = self.run_sites("ab", **more)
                files, barrier = {}, threading.Barrier(2)
                self.run_sites("ab", files=files, barrier=barrier, **more)
                again = self.run_sites("ab", files=files, **more)
                for site in "ab":
                    self.assertEqual(again[site][1:], whole[site][1:])
                    for x, y in zip(again[site][0], whole[site][0]):
                        self.assertTrue(torch.equal(x, y))

    def test_another_number_of_sites(self):
        more = dict(overlap="carry", exchange_steps=2)
        whole = self.run_sites("ab", tokens=8000, **more)
        files, barrier = {}, threading.Barrier(2)
        self.run_sites("ab", tokens=8000, files=files, barrier=barrier, **more)
        files["c"] = io.BytesIO(files["a"].getvalue())
        for sites in ("a", "abc"):
            again = self.run_sites(sites, tokens=8000, files=files, **more)
            losses = []
            for found in (whole, again):
                model = mlp(width=24)
                model.load_state_dict(dict(zip(model.state_dict(), found["a"][0])))
                losses.append(sum(noisy_loss(model, i).item() for i in range(5000, 5100)) / 100)
            print(f"{len(sites)} sites: loss {losses[1]:.4f}, two all the way {losses[0]:.4f}")
            self.assertLess(abs(losses[1] - losses[0]), 0.01 * losses[0])

    @with_workers
    def test_what_workers_took_ahead(self):
        """It is trained on first, and nothing twice."""
        data, trained, owed, states = range(4096), [], set(), []
        for state, stop, workers in ((None, 7, 2), (True, 2, 0), (True, 9, 2), (True, None, 2)):
            run = self.run_of(1, 120)
            with DiLoCo(mlp(), site="a", hub=run.hub, data=data, batch_size=3, sync_every=5,
                        overlap="none", state=states[-1] if state else None) as sync:
                batches = iter(DataLoader(data, 3, sampler=LeaseSampler(sync),
                                          num_workers=workers))
                steps = 0
                for indices in batches:
                    trained += indices.tolist()
                    sync.step()
                    steps += 1
                    if sync.finished or steps == stop:
                        break
                if steps == stop:
                    next(batches)  # which is not trained on
                    buffer = io.BytesIO()
                    torch.save(sync.state_dict(), buffer)
                    buffer.seek(0)
                    states.append(torch.load(buffer))
                    self.assertGreater(len(states[-1]["windows"]), 0)
                    ahead = [sync._sync.window(p) for p in states[-1]["windows"]]
                    self.assertFalse(set(ahead) & set(trained))
                else:
                    self.assertEqual(sync.statistics().windows_taken
                                     - sync.statistics().windows_untrained, 3 * steps)
            run.close()
            owed |= set(ahead)
        self.assertTrue(owed <= set(trained))
        self.assertEqual(len(trained), 120)
        self.assertEqual(len(set(trained)), 120)

    def test_another_model(self):
        files, barrier = {}, threading.Barrier(1)
        self.run_sites("a", files=files, barrier=barrier)
        files["a"].seek(0)
        state = torch.load(files["a"])["sync"]
        run = self.run_of(1, 100)
        for model, change, text in ((mlp(width=25), {}, "part '.*' is"),
                                    (mlp(width=24), {"rank": 1}, "of rank 1, and this is rank 0"),
                                    (mlp(width=24), {"parts": {}}, "no part")):
            with self.assertRaisesRegex(DilocoxError, text):
                DiLoCo(model, state={**state, **change}, site="a", hub=run.hub, **SETTINGS)

    def test_after_the_end(self):
        run = self.run_of(1, 4)
        with DiLoCo(mlp(), site="a", hub=run.hub, tokens_per_step=1, sync_every=1) as sync:
            while not sync.finished:
                sync.step()
            with self.assertRaisesRegex(DilocoxError, "finished"):
                sync.state_dict()


if __name__ == "__main__":
    main()
