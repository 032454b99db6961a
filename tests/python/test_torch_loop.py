# SPDX-License-Identifier: Apache-2.0
"""DiLoCo around loops: what it reads and writes, what sites agree on, and how a run ends."""
import threading
import weakref

import torch_support
from support import main
from torch_support import Case, batch, loss_of, mlp, one_site, take_step, torch, values
from torch import nn
from torch.optim.swa_utils import AveragedModel

import dilocox
from dilocox import ConfigError, DilocoxError
from dilocox.torch import DiLoCo

EXACT = dict(bits=32, low_rank=0, sync_every=4)


class Learning(Case):
    def body(self, made, **more):
        return lambda keywords: self.train(keywords, *made(), **{**EXACT, **more})

    def test_sites_agree(self):
        for overlap in ("none", "delayed", "eager", "carry", "allreduce"):
            with self.subTest(overlap=overlap):
                body = self.body(lambda: (), overlap=overlap)
                found = self.sites({"a": body, "b": body}, 40)
                (one, hashes), (other, others) = found["a"], found["b"]
                self.assertEqual(hashes, others)
                for x, y in zip(values(one), values(other)):
                    self.assertTrue(torch.equal(x, y))
                self.assertLess(loss_of(one, 1).item(), loss_of(mlp(), 1).item())

    def test_allreduce_is_the_mean_gradient(self):
        """Two sites with half of a batch are one with all of it."""
        def body(keywords):
            model = mlp()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with DiLoCo(model, optimizer, overlap="allreduce", bits=32, **keywords) as sync:
                while not sync.finished:
                    x, y = batch(3, 16)
                    half = slice(0, 8) if keywords["site"] == "a" else slice(8, 16)
                    optimizer.zero_grad()
                    ((model(x[half]) - y[half]) ** 2).mean().backward()
                    optimizer.step()
            return model
        found = self.sites({"a": body, "b": body}, 10)
        whole = mlp()
        optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
        x, y = batch(3, 16)
        for _ in range(5):
            optimizer.zero_grad()
            ((whole(x) - y) ** 2).mean().backward()
            optimizer.step()
        for ours, theirs in zip(values(found["a"]), values(whole)):
            self.assertTrue(torch.allclose(ours, theirs, atol=1e-6))

    def test_unused_parameters_under_allreduce(self):
        """One without a gradient here takes the mean of the others'; without any it has none."""
        def body(keywords):
            model = nn.ModuleDict({"x": nn.Linear(6, 3), "y": nn.Linear(6, 3),
                                   "never": nn.Linear(6, 3)})
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with DiLoCo(model, optimizer, overlap="allreduce", bits=32, **keywords) as sync:
                while not sync.finished:
                    used = model["x" if keywords["site"] == "a" else "y"]
                    optimizer.zero_grad()
                    loss_of(used, 2).backward()
                    optimizer.step()
            self.assertIsNone(model["never"].weight.grad)
            return model
        torch.manual_seed(0)
        found = self.sites({"a": body, "b": body}, 4)
        for x, y in zip(values(found["a"]), values(found["b"])):
            self.assertTrue(torch.equal(x, y))

    def test_a_rate_of_zero_sends_nothing(self):
        """What is read is what was written: ‖M‖ is exactly 0 in each round, overlap and dtype."""
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            for overlap in ("none", "delayed", "eager", "carry"):
                with self.subTest(dtype=dtype, overlap=overlap):
                    norms = []

                    def body(keywords):
                        model = mlp().to(dtype)
                        with DiLoCo(model, overlap=overlap, **EXACT, **keywords) as sync:
                            while not sync.finished:
                                sync.step()
                                norms.append(sync.statistics().update_norm)
                    self.sites({"a": body, "b": body}, 32)
                    self.assertEqual(set(norms), {0.0})

    def test_clipping_accumulation_groups_and_averages(self):
        """What loops do beside steps: nothing has to be done for it."""
        model = mlp()
        average = AveragedModel(model)
        optimizer = torch.optim.AdamW([{"params": model[0].parameters()},
                                       {"params": model[2].parameters(), "lr": 0.02}], lr=0.01)
        with one_site(self, model, optimizer, tokens=8) as sync:
            while not sync.finished:
                for micro in range(2):
                    loss_of(model, micro).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                average.update_parameters(model)
            self.assertEqual(sync.tokens, 8)
        self.assertEqual(int(average.n_averaged), 8)


class Values(Case):
    """What goes in, and what comes back, whatever the layout and dtype."""

    def layouts(self, dtype):
        """Models of the same numbers that lie in memory in other ways."""
        contiguous, strided, sliced = (mlp().to(dtype) for _ in range(3))
        first = contiguous[0].weight.detach()
        strided[0].weight = nn.Parameter(first.t().contiguous().t())
        wide = torch.zeros(12, 24, dtype=dtype)
        wide[:, ::4] = first
        sliced[0].weight = nn.Parameter(wide[:, ::4])
        self.assertFalse(strided[0].weight.is_contiguous() or sliced[0].weight.is_contiguous())
        return {"contiguous": contiguous, "strided": strided, "sliced": sliced}

    def walk(self, layout, dtype, **more):
        """Sites that change their parameters by the same numbers, whatever the layout: (hashes,
        update norms, parameters) of each."""
        def body(keywords):
            model, norms = self.layouts(dtype)[layout], []
            table = torch.Generator().manual_seed(ord(keywords["site"]))
            with DiLoCo(model, **{**EXACT, **more}, **keywords) as sync:
                while not sync.finished:
                    with torch.no_grad():
                        for p in model.parameters():
                            p.add_(torch.randint(-8, 9, p.shape, generator=table) / 64)
                    sync.step()
                    norms.append(sync.statistics().update_norm)
                return sync.anchor_hashes(), norms, [p.tolist() for p in values(model)]
        return self.sites({"a": body, "b": body}, 40)

    def test_layouts_are_equal_to_the_bit(self):
        """By address, or through fetch and store."""
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for overlap in ("none", "delayed", "eager", "carry"):
                more = dict(overlap=overlap, exchange_steps=2 if overlap == "carry" else 0,
                            inner_steps_max=4)  # waits, so that it repeats
                found = {layout: self.walk(layout, dtype, **more)
                         for layout in ("contiguous", "strided", "sliced")}
                with self.subTest(dtype=dtype, overlap=overlap):
                    self.assertEqual(found["strided"], found["contiguous"])
                    self.assertEqual(found["sliced"], found["contiguous"])
                    self.assertGreater(max(found["sliced"]["a"][1]), 0)

    def test_staging_smaller_than_rows(self):
        """Chunks begin and end anywhere in a tensor that is not contiguous."""
        from dilocox import _tensors
        base = torch.arange(4 * 5 * 6 * 7, dtype=torch.float32).view(4, 5, 6, 7)
        for tensor in (base.permute(3, 1, 0, 2), base.permute(0, 2, 3, 1)[:, 1:, ::2]):
            whole = tensor.reshape(-1)
            for count in (1, 7, 53, whole.numel()):
                found, back = torch.zeros(whole.numel()), torch.zeros_like(tensor)
                for first in range(0, whole.numel(), count):
                    n = min(count, whole.numel() - first)
                    _tensors.read(found[first:first + n], tensor, first)
                    _tensors.write(back, first, found[first:first + n])
                self.assertTrue(torch.equal(found, whole))
                self.assertTrue(torch.equal(back, tensor))

    def test_shapes_and_ties(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.scalar = nn.Parameter(torch.tensor(2.0))
                self.conv = nn.Conv2d(2, 3, 3)
                self.table = nn.Embedding(5, 4)
                self.head = nn.Linear(4, 5, bias=False)
                self.head.weight = self.table.weight
                self.again = nn.Linear(4, 5, bias=False)
                self.again.weight = nn.Parameter(self.table.weight.data)
                self.empty = nn.Parameter(torch.zeros(0, 3))
        with one_site(self, Odd(), plain=lambda name, _: "table" in name) as sync:
            found = {v.name: (v.rows, v.cols, v.plain) for v in sync._values}
            self.assertEqual(found, {
                "scalar": (1, 1, False), "conv.weight": (3, 18, False), "conv.bias": (1, 3, False),
                "table.weight": (5, 4, True)})
            anchor = sync.anchor()
            self.assertEqual(anchor["scalar"].shape, ())
            self.assertEqual(anchor["conv.weight"].shape, (3, 2, 3, 3))

    def test_names_without_wrappers(self):
        class Wrapper(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.module = inner
        compiled = nn.ModuleDict()
        compiled._modules["_orig_mod"] = mlp()
        for model in (mlp(), Wrapper(mlp()), Wrapper(Wrapper(mlp())), Wrapper(compiled)):
            with one_site(self, model) as sync:
                self.assertEqual(sorted(sync.anchor()), ["0.bias", "0.weight", "2.bias",
                                                         "2.weight"])
        both = nn.ModuleDict({"module": nn.Linear(2, 2)})
        both.register_parameter("weight", nn.Parameter(torch.zeros(2)))
        with one_site(self, both) as sync:
            self.assertEqual(sorted(sync.anchor()), ["bias", "module.weight", "weight"])

    def test_autograd_sees_an_outer_step(self):
        """Also of zero-copy tensors, which the library writes by address."""
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            model = mlp().to(dtype)
            with one_site(self, model, sync_every=2) as sync:
                x = torch.ones(4, 6, dtype=dtype, requires_grad=True)
                loss = model(x).sum()
                self.assertFalse(sync.step().applied)
                loss.backward()
                loss = model(x).sum()
                self.assertTrue(sync.step().applied)
                with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
                    loss.backward()

    def test_master_copies(self):
        """The optimizer steps f32 copies of a bf16 model: they are what is synchronised."""
        def body(keywords):
            model = mlp().to(torch.bfloat16)
            masters = [(n, p.detach().float().requires_grad_())
                       for n, p in model.named_parameters()]
            optimizer = torch.optim.SGD([p for _, p in masters], lr=0.05)

            def copy_back():
                with torch.no_grad():
                    for (_, master), p in zip(masters, model.parameters()):
                        p.copy_(master)
            own, steps = ord(keywords["site"]), 0
            with DiLoCo(masters, optimizer, after_apply=copy_back, overlap="none", **EXACT,
                        **keywords) as sync:
                while not sync.finished:
                    x, y = batch(own)
                    model.zero_grad()
                    ((model(x.bfloat16()) - y) ** 2).mean().backward()
                    for (_, master), p in zip(masters, model.parameters()):
                        master.grad = p.grad.float()
                    optimizer.step()
                    copy_back()
                    steps += 1
                    if steps == 6:  # in the middle of a round
                        before = values(model)
                        with sync.evaluate():
                            for x, (_, y), z in zip(values(model), masters, before):
                                self.assertTrue(torch.equal(x, y.bfloat16()))
                                self.assertFalse(torch.equal(x, z))
                        for x, y in zip(values(model), before):
                            self.assertTrue(torch.equal(x, y))
                        looked.append(own)
            return values(model)
        looked = []
        found = self.sites({"a": body, "b": body}, 24)
        for x, y in zip(found["a"], found["b"]):
            self.assertTrue(torch.equal(x, y))
        self.assertEqual(set(looked), set(map(ord, "ab")))

    def test_a_step_that_applies_and_fails(self):
        """What was written is told to autograd and to the loop all the same."""
        model, told = mlp(), []
        with self.assertRaises(KeyboardInterrupt), one_site(
                self, model, sync_every=1, after_apply=lambda: told.append(1)) as sync:
            step, before = sync._sync.step, model[0].weight._version

            def fails(tokens):
                step(tokens)
                raise KeyboardInterrupt
            sync._sync.step = fails
            del told[:]
            try:
                sync.step()
            finally:
                self.assertEqual(told, [1])
                self.assertGreater(model[0].weight._version, before)

    def test_flat_parameters(self):
        """Of FSDP 1, said once."""
        from dilocox import _tensors
        self.addCleanup(setattr, _tensors, "FSDP", _tensors.FSDP)
        _tensors.FSDP = nn.Linear
        with self.assertLogs("dilocox") as logs, one_site(self, mlp()):
            pass
        self.assertEqual(sum("never low rank" in line for line in logs.output), 1)

    def test_names_that_settings_cannot_have(self):
        from dilocox import _tensors
        names = ["a:b", "a_b", "a%3Ab", "a\nb"]
        with one_site(self, [(name, torch.zeros(2)) for name in names]) as sync:
            self.assertEqual(list(sync.anchor()), names)
            self.assertEqual(len(_tensors.lines_of(sync._values, [])), 4)


class Buffers(Case):
    def model(self, seed):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))

    def run_sites(self, **more):
        def body(keywords):
            model, _ = self.train(keywords, self.model(0), **{**EXACT, "overlap": "none", **more})
            return model
        return self.sites({"a": body, "b": body}, 24)

    def test_statistics_are_averaged(self):
        found = self.run_sites()
        self.assertTrue(torch.equal(found["a"][1].running_mean, found["b"][1].running_mean))
        self.assertTrue(torch.equal(found["a"][1].running_var, found["b"][1].running_var))
        self.assertEqual(int(found["a"][1].num_batches_tracked), 12)

    def test_local_statistics_stay(self):
        found = self.run_sites(buffers="local")
        self.assertFalse(torch.equal(found["a"][1].running_mean, found["b"][1].running_mean))

    def test_what_is_no_statistic(self):
        """Not saved, not finite, or integers."""
        class Mask(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(2, 2)
                self.register_buffer("minus", torch.tensor([0.0, float("-inf")]))
                self.register_buffer("cache", torch.ones(3), persistent=False)
                self.register_buffer("count", torch.tensor(3))
                self.register_buffer("mean", torch.ones(3))
        with self.assertLogs("dilocox") as logs, one_site(self, Mask()) as sync:
            self.assertEqual(sorted(sync.anchor()), ["linear.bias", "linear.weight", "mean"])
        self.assertTrue(any("not finite stay local: minus" in line for line in logs.output))

    def test_a_buffer_may_be_replaced(self):
        model = nn.Linear(2, 2)
        model.register_buffer("mean", torch.zeros(3))
        with one_site(self, model, sync_every=1) as sync:
            model.mean = model.mean + 2
            sync.step()
            self.assertEqual(model.mean.tolist(), [2.0] * 3)
            model.mean = torch.zeros(4)
            with self.assertRaisesRegex(ConfigError, "buffer 'mean' has the shape 4 now"):
                sync.step()


class Frozen(Case):
    def adapted(self, base):
        """A frozen layer and a trained one, as with adapters."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
        with torch.no_grad():
            model[0].weight.fill_(base)
        for p in model[0].parameters():
            p.requires_grad_(False)
        return model

    def test_frozen_parameters_are_not_sent(self):
        model = self.adapted(0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with one_site(self, model, optimizer) as sync:
            self.assertEqual(sorted(sync.anchor()), ["1.bias", "1.weight"])
            take_step(model, optimizer)

    def refused(self, models, settings=None):
        def body(keywords):
            site = keywords["site"]
            with DiLoCo(models[site], **(settings[site] if settings else {}), **keywords):
                pass
        with self.assertRaises(dilocox.RefusedError) as caught:
            self.sites({"a": body, "b": body}, 8)
        return str(caught.exception)

    def test_frozen_parameters_are_compared(self):
        text = self.refused({"a": self.adapted(0.1), "b": self.adapted(0.2)})
        self.assertRegex(text, "frozen 0.weight")

    def test_models_are_compared(self):
        text = self.refused({"a": mlp(width=12), "b": mlp(width=13)})
        self.assertRegex(text, "tensor 0.weight: .*1[23] x 6.*1[23] x 6")
        many = {site: nn.ParameterDict({f"{n:04d}" + "x" * 60: nn.Parameter(torch.zeros(1 + (
            site == "b" and n == 900))) for n in range(901)}) for site in "ab"}
        self.assertRegex(self.refused(many), "tensors: .*hash of names and values")

    def test_settings_are_compared(self):
        text = self.refused({"a": mlp(), "b": mlp()},
                            {"a": dict(sync_every=8), "b": dict(sync_every=16)})
        self.assertRegex(text, "sync_every: '(8|16)' on site '[ab]', '(8|16)' on site")


class Anchor(Case):
    def test_evaluate_holds_the_anchor(self):
        model = mlp()
        with one_site(self, model, sync_every=4, overlap="none") as sync:
            start = values(model)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(1)
            trained = values(model)
            sync.step()
            with sync.evaluate():
                for x, y in zip(values(model), start):
                    self.assertTrue(torch.equal(x, y))
                with self.assertRaisesRegex(DilocoxError, "inside evaluate"):
                    sync.step()
            for x, y in zip(values(model), trained):
                self.assertTrue(torch.equal(x, y))
            for x, y in zip(sync.anchor().values(), start):
                self.assertTrue(torch.equal(x, y))
            with self.assertRaises(ZeroDivisionError), sync.evaluate():
                1 / 0
            for x, y in zip(values(model), trained):
                self.assertTrue(torch.equal(x, y))

    def test_evaluate_of_modules_that_gather(self):
        """FSDP 2 keeps what a forward pass without a backward pass has gathered."""
        class Gathers(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight, self.whole = nn.Parameter(torch.zeros(2)), None

            def forward(self):
                self.whole = self.weight.detach().clone() if self.whole is None else self.whole
                return self.whole.tolist()

            def reshard(self):
                self.whole = None
        model = Gathers()
        with one_site(self, model) as sync:
            with torch.no_grad():
                model.weight.add_(1)
            self.assertEqual(model(), [1, 1])
            with sync.evaluate():
                self.assertEqual(model(), [0, 0])
            self.assertEqual(model(), [1, 1])

    def test_an_anchor_between_commits(self):
        """On several ranks: all of it is of one round."""
        class Ranks:
            share = close = staticmethod(lambda *_: None)
            gather_json = staticmethod(lambda own: [own, own])
        with one_site(self, mlp()) as sync:
            core, rounds, read = sync._sync, iter([0, 1, 1, 1]), []
            statistics, anchor = core.statistics, core.anchor
            core.statistics = lambda: statistics()._replace(rounds=next(rounds))
            core.anchor = lambda dst: (read.append(1), anchor(dst))
            sync._ranks = Ranks
            try:
                sync.anchor()
            finally:
                sync._ranks, core.statistics = None, statistics
            self.assertEqual(len(read), 2)

    def test_after_the_end_and_after_a_failure(self):
        model = mlp()
        with one_site(self, model, tokens=4) as sync:
            while not sync.finished:
                sync.step()
            for x, y in zip(sync.anchor().values(), values(model)):
                self.assertTrue(torch.equal(x, y))
            with sync.evaluate():
                pass
            with self.assertRaisesRegex(DilocoxError, "finished"):
                sync.step()
        with self.assertRaisesRegex(DilocoxError, "closed"):
            sync.step()
        with self.assertRaises(DilocoxError), one_site(self, model) as sync:
            sync.interrupt()
            try:
                for _ in range(4):
                    sync.step()
            finally:
                self.assertEqual(len(sync.anchor()), 4)

    def test_hashes_have_names(self):
        with one_site(self, mlp()) as sync:
            hashes = sync.anchor_hashes()
            self.assertEqual(list(hashes), ["0.weight", "0.bias", "2.weight", "2.bias"])
            self.assertEqual(sum(hashes.values()) % 2 ** 64, sync.statistics().anchor_hash)


class Ends(Case):
    def test_an_exception_is_the_reason(self):
        """The other site is told its type; it leaves with it, too."""
        model = mlp()
        said, began = [], threading.Barrier(2)

        def fails(keywords):
            with DiLoCo(mlp(), sync_every=1, overlap="none", **keywords):
                began.wait(60)
                raise ZeroDivisionError("of the loop")

        def stays(keywords):
            try:
                with DiLoCo(model, sync_every=1, overlap="none", **keywords) as sync:
                    began.wait(60)
                    for _ in range(100):
                        sync.step()
            except dilocox.PeerLostError as error:
                said.append(str(error))
        with self.assertRaises(ZeroDivisionError):
            self.sites({"a": fails, "b": stays}, 1000, together=False, sites_min=0,
                       patience_ms=1000)
        self.assertRegex(said[0], "ZeroDivisionError: of the loop")

    def test_an_exception_that_cannot_be_told(self):
        """With a zero byte, or while the site's own files can't be written."""
        for break_ in (lambda sync: None,
                       lambda sync: setattr(sync, "_say", lambda _: next(iter([])))):
            model = mlp()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with self.assertRaisesRegex(KeyError, "a.*b"), one_site(
                    self, model, optimizer) as sync:
                break_(sync)
                raise KeyError("a\0b")
            self.assertNotIn("step", vars(optimizer))
            with one_site(self, model, optimizer):
                pass

    def test_a_sync_that_is_dropped(self):
        """Without close, too, nothing is left that holds the model."""
        model = mlp()
        gone = weakref.ref(model)
        run = self.run_of(1, 100)
        sync = DiLoCo(model, site="a", hub=run.hub, tokens_per_step=1)
        del sync, model
        import gc
        gc.collect()
        self.assertIsNone(gone())

    def test_another_thread(self):
        """A call beside a call that runs is refused."""
        model, entered, refused = mlp(), threading.Event(), []
        model.register_buffer("mean", torch.zeros(2))
        with one_site(self, model, sync_every=1) as sync:
            fetch = sync._values[-1].now

            def beside():
                try:
                    sync.anchor()
                except DilocoxError as error:
                    refused.append(str(error))
                entered.set()
            real = type(sync._values[-1]).now

            def now(value):
                if not entered.is_set():
                    threading.Thread(target=beside).start()
                    entered.wait(60)
                return real(value)
            type(sync._values[-1]).now = now
            self.addCleanup(setattr, type(sync._values[-1]), "now", real)
            sync.step()
        self.assertRegex(refused[0], "a call on this Sync is running")

    def test_replaced_while_an_exchange_is_under_way(self):
        """Of many tensors: the update comes in the middle of a round."""
        model = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(100)])
        with self.assertRaisesRegex(ConfigError, "parameter '7' was replaced"), one_site(
                self, model, sync_every=8, overlap="carry", exchange_steps=4,
                inner_steps_max=8) as sync:
            while not sync.step().submitted:
                pass
            sync.step()
            model[7] = nn.Parameter(torch.ones(2))
            sync.step()

    def test_moved_parameters_are_named(self):
        def assign(model):
            model[2].weight = nn.Parameter(model[2].weight.detach().clone())

        def set_data(model):
            model[2].weight.data = model[2].weight.data.clone()
        for move, text in ((assign, "was replaced"), (set_data, "has moved"),
                           (lambda model: model.to(torch.float64), "0.weight' has moved")):
            model = mlp()
            with self.assertRaisesRegex(ConfigError, text), one_site(
                    self, model, sync_every=1) as sync:
                held = sync._values[2].kept
                before = held.clone()
                move(model)
                with torch.no_grad():
                    model[0].bias.add_(1)
                try:
                    sync.step()
                finally:
                    self.assertTrue(torch.equal(held, before))


if __name__ == "__main__":
    main()
