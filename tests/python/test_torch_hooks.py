# SPDX-License-Identifier: Apache-2.0
"""Which of an optimizer's steps DiLoCo counts, and that the optimizer is its own again afterwards;
on this torch, and with hooks called as torch 2 calls them."""
import collections
import copy
import functools
import io
import pickle

import torch_support
from support import main
from torch_support import Case, loss_of, mlp, one_site, take_step, torch, values
from torch.optim.lr_scheduler import LambdaLR

from dilocox import ConfigError
from dilocox.torch import DiLoCo


def hooked(step):
    """A step as torch 2 wraps each class's own: hooks are given what it was called with."""
    @functools.wraps(step)
    def around(*args, **kwargs):
        optimizer = args[0]
        for hook in list(optimizer.ahead.values()):
            hook(optimizer, args, kwargs)
        result = step(*args, **kwargs)
        for hook in list(optimizer.behind.values()):
            hook(optimizer, args, kwargs)
        return result
    return around


class Handle:
    def __init__(self, hooks, hook):
        self.hooks = hooks
        hooks[id(self)] = hook

    def remove(self):
        self.hooks.pop(id(self), None)


class Sgd(torch.optim.SGD):
    """Has torch 2's hooks, on any torch."""

    def __init__(self, *args, **kwargs):
        self.ahead, self.behind = collections.OrderedDict(), collections.OrderedDict()
        super().__init__(*args, **kwargs)

    def register_step_pre_hook(self, hook):
        return Handle(self.ahead, hook)

    def register_step_post_hook(self, hook):
        return Handle(self.behind, hook)

    step = hooked(torch.optim.SGD.step)


class Nested(Sgd):
    """Its step calls that of its base, and both are wrapped."""
    fails = False

    @hooked
    def step(self, closure=None):
        result = super().step(closure)
        if self.fails:
            raise ArithmeticError("of the step")
        return result


class Hooks(Case):
    def count(self, sync):
        """Wraps the core's step, to count."""
        calls, step = [], sync._sync.step
        sync._sync.step = lambda tokens: (calls.append(tokens), step(tokens))[1]
        return calls

    def test_schedulers_before_after_and_both(self):
        for before, after in ((False, False), (True, False), (False, True), (True, True)):
            with self.subTest(before=before, after=after):
                model = mlp()
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                halve = [LambdaLR(optimizer, lambda n: 0.5 ** n)] if before else []
                with one_site(self, model, optimizer) as sync:
                    calls = self.count(sync)
                    if after:
                        halve.append(LambdaLR(optimizer, lambda n: 0.5 ** n))
                    for n in range(3):
                        take_step(model, optimizer)
                        for scheduler in halve:
                            scheduler.step()
                    self.assertEqual(calls, [1] * 3)
                    for scheduler in halve:
                        self.assertEqual(scheduler.last_epoch, 3)
                        self.assertEqual(scheduler.get_last_lr(), [0.1 * 0.5 ** 3])
                take_step(model, optimizer)  # closed: the step is the optimizer's again, or inert
                self.assertEqual(calls, [1] * 3)

    def test_the_step_is_given_back(self):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = copy.copy(vars(optimizer).get("step"))
        with one_site(self, model, optimizer):
            pass
        self.assertEqual(vars(optimizer).get("step"), before)
        with one_site(self, model, optimizer) as sync:  # and can be taken again
            take_step(model, optimizer)
            self.assertEqual(sync.tokens, 1)
        with one_site(self, model, optimizer, overlap="allreduce"):  # which has two hooks
            pass
        self.assertEqual(vars(optimizer).get("step"), before)

    def test_closures_copies_and_files(self):
        model = mlp()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
        with one_site(self, model, optimizer) as sync:
            calls = self.count(sync)

            def closure():
                optimizer.zero_grad()
                loss = loss_of(model, 1)
                loss.backward()
                return loss
            self.assertGreater(float(optimizer.step(closure)), 0)
            self.assertEqual(calls, [1])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with one_site(self, model, optimizer) as sync:
            take_step(model, optimizer)
            calls = self.count(sync)
            for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
                copied.step()
            self.assertEqual(calls, [], "a copy of the optimizer is none of the run")
            torch.save(optimizer.state_dict(), io.BytesIO())

    def test_the_last_of_several_optimizers(self):
        model = mlp()
        first, last = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[0], model[2]))
        with one_site(self, model, [first, last]) as sync:
            calls = self.count(sync)
            loss_of(model, 1).backward()
            first.step()
            self.assertEqual(calls, [])
            last.step()
            self.assertEqual(calls, [1])

    def test_steps_that_a_scaler_skips(self):
        """A fused optimizer is called even then, with found_inf; others are not called."""
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with one_site(self, model, optimizer) as sync:
            calls = self.count(sync)
            optimizer.found_inf = torch.tensor(1.0)
            take_step(model, optimizer)
            self.assertEqual(calls, [])
            optimizer.found_inf = torch.tensor(0.0)
            take_step(model, optimizer)
            sync.count(7)  # of a step that is skipped
            optimizer.found_inf = torch.tensor(1.0)
            take_step(model, optimizer)
            del optimizer.found_inf
            take_step(model, optimizer)
            self.assertEqual(calls, [1, 1])

    def test_a_scaler_that_does_not_say(self):
        """Torch 1 gives a fused optimizer the scaler, and learns nothing of what it skips."""
        class Fused(torch.optim.SGD):
            def step(self, closure=None, *, grad_scaler=None):
                return super().step(closure)
        if hasattr(torch.optim.Optimizer, "register_step_post_hook"):
            self.skipTest("this torch's scaler says so")
        model = mlp()
        optimizer = Fused(model.parameters(), lr=0.1)
        with one_site(self, model, optimizer) as sync:
            with self.assertRaisesRegex(ConfigError, "open the optimizer with fused=False"):
                optimizer.step(grad_scaler=object())
            self.assertEqual(sync.tokens, 0)
        optimizer.step(grad_scaler=object())

    def test_count(self):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with one_site(self, model, optimizer, tokens_per_step=None) as sync:
            calls = self.count(sync)
            with self.assertRaisesRegex(ConfigError, "How many|how many tokens"):
                take_step(model, optimizer)
            sync.count(3)
            sync.count(4)  # of another micro-batch
            take_step(model, optimizer)
            sync.count(5)
            take_step(model, optimizer)
            self.assertEqual(calls, [7, 5])

    def test_without_an_optimizer(self):
        model = mlp()
        with one_site(self, model) as sync:
            self.assertFalse(sync.step().applied)
            sync.step(9)
            self.assertEqual(sync.tokens, 10)


class HooksOfTorch2(Case):
    count = Hooks.count

    def test_steps(self):
        for kind in (Sgd, Nested):
            model = mlp()
            optimizer = kind(model.parameters(), lr=0.1)
            own = vars(optimizer).get("step")
            with one_site(self, model, optimizer) as sync:
                calls = self.count(sync)
                take_step(model, optimizer)
                optimizer.step(lambda: loss_of(model, 1))
                self.assertEqual(calls, [1, 1])
                self.assertIs(vars(optimizer).get("step"), own)
            self.assertFalse(optimizer.ahead or optimizer.behind)

    def test_a_step_that_raises(self):
        """The next one counts all the same."""
        model = mlp()
        optimizer = Nested(model.parameters(), lr=0.1)
        with one_site(self, model, optimizer) as sync:
            calls = self.count(sync)
            optimizer.fails = True
            with self.assertRaises(ArithmeticError):
                take_step(model, optimizer)
            optimizer.fails = False
            take_step(model, optimizer)
            take_step(model, optimizer)
            self.assertEqual(calls, [1, 1])

    def test_allreduce(self):
        """The optimizer that hooks are given is no closure."""
        def body(keywords):
            model = mlp()
            optimizer = Nested(model.parameters(), lr=0.1)
            with DiLoCo(model, optimizer, overlap="allreduce", bits=32, **keywords) as sync:
                while not sync.finished:
                    take_step(model, optimizer, seed=ord(keywords["site"]))
            return values(model)
        found = self.sites({"a": body, "b": body}, 8)
        for x, y in zip(found["a"], found["b"]):
            self.assertTrue(torch.equal(x, y))
        model = mlp()
        optimizer = Sgd(model.parameters(), lr=0.1)
        with self.assertRaisesRegex(ConfigError, "a closure computes gradients inside"), one_site(
                self, model, optimizer, overlap="allreduce"):
            optimizer.step(lambda: 0.0)

    def test_what_is_not_initialised(self):
        """It would have no hooks; nothing is joined."""
        class Wrapper(torch.optim.Optimizer):
            def __init__(self, inner):
                self.inner, self.param_groups = inner, inner.param_groups

            def register_step_post_hook(self, hook):
                return Handle(self.behind, hook)
        model = mlp()
        with self.assertRaisesRegex(ConfigError, "^optimizer: Wrapper is not initialised"), \
                one_site(self, model, Wrapper(Sgd(model.parameters(), lr=0.1))):
            pass


if __name__ == "__main__":
    main()
