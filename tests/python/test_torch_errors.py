# SPDX-License-Identifier: Apache-2.0
"""What bad input to dilocox.torch gets: one sentence that names it, before anything is joined."""
import os

import torch_support
from support import main
from torch_support import Case, mlp, one_site, torch
from torch import nn

from dilocox import ConfigError
from dilocox import torch as dilocox_torch
from dilocox.torch import DiLoCo, LeaseSampler


def sgd(model, **more):
    return torch.optim.SGD(model.parameters(), lr=0.1, **more)


def frozen():
    model = mlp()
    for p in model.parameters():
        p.requires_grad_(False)
    return model


def with_parameter(parameter):
    model = mlp()
    model.register_parameter("odd", parameter)
    return model


def with_nan():
    model = mlp()
    with torch.no_grad():
        model[2].bias[1] = float("nan")
    return model


def overlapping():
    flat = torch.zeros(20)
    return nn.ParameterList([nn.Parameter(flat[:12]), nn.Parameter(flat[8:])])


def tied_and_turned():
    flat = torch.zeros(3, 4)
    return nn.ParameterList([nn.Parameter(flat), nn.Parameter(flat.t())])


class Sharded(torch.Tensor):
    """As DTensor before torch 2.5."""

    def to_local(self):
        return self


def lazy():
    return nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))


MODELS = [  # (a model, what the message has)
    (lambda: frozen(), "the model has no trainable parameter"),
    (lambda: nn.ReLU(), "no trainable parameter"),
    (lambda: [], "no trainable parameter"),
    (lambda: with_parameter(nn.Parameter(torch.zeros(2, dtype=torch.complex64))),
     "parameter 'odd' has the dtype torch.complex64; allowed: float32, bfloat16"),
    (lambda: with_parameter(nn.Parameter(torch.zeros(2, 2).to_sparse())),
     "parameter 'odd' has the layout torch.sparse_coo"),
    (lambda: with_parameter(nn.Parameter(torch.zeros(2, device="meta"))),
     "parameter 'odd' is on the meta device"),
    (lambda: [("whole", torch.zeros(2, dtype=torch.int64))],
     "tensor 'whole' has the dtype torch.int64"),
    (lambda: [("q", torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8))],
     "tensor 'q' is quantised"),
    (lambda: with_nan(), "parameter '2.bias' has values that are not finite"),
    (lambda: overlapping(), "parameters '0' and '1' overlap in memory"),
    (lambda: tied_and_turned(), "parameters '0' and '1' share memory, but not shape"),
    (lambda: [("a", torch.zeros(2)), ("a", torch.zeros(3))], "two tensors are called 'a'"),
    (lambda: [torch.zeros(2)], "pairs of a name and a tensor, not Tensor"),
    (lambda: with_parameter(nn.Parameter(torch.zeros(1, 3).expand(2, 3))),
     "parameter 'odd' has values that are one in memory, as expand"),
    (lambda: lazy(), "parameter '1.weight' has no shape yet; call the model once"),
    (lambda: 3, "pairs of a name and a tensor, not int"),
]

KEYWORDS = [  # (keywords, what the message has)
    (dict(sync_every=0), "^sync_every: 0 is out of range"),
    (dict(bits=5), "^bits: 5 is not allowed"),
    (dict(overlap="late"), "^overlap: 'late' is unknown"),
    (dict(bufers="local"), "'bufers' is no keyword; the nearest one is 'buffers'"),
    (dict(sync_evry=3), "'sync_evry' is no keyword; the nearest one is 'sync_every'"),
    (dict(inner_steps=3), "'inner_steps' is no keyword; the nearest one is 'sync_every'"),
    (dict(buffers="mean"), "^buffers: 'mean' must be 'average' or 'local'"),
    (dict(tokens_per_step=0), "^tokens_per_step: 0 must be a whole number, at least 1"),
    (dict(tokens_per_step=-1), "^tokens_per_step: -1 must be"),
    (dict(tokens_per_step=1.5), "^tokens_per_step: 1.5 must be"),
    (dict(tokens_per_step=True), "^tokens_per_step: True must be"),
    (dict(data=range(9)), "^data and batch_size: give both, or neither"),
    (dict(batch_size=4), "^data and batch_size: give both, or neither"),
    (dict(data=range(9), batch_size=0), "^batch_size: 0 must be"),
    (dict(data=[], batch_size=1), "^data: give a data set with a length of at least 1"),
    (dict(data=iter([1]), batch_size=1), "^data: give a data set with a length"),
    (dict(data=range(9), batch_size=1, windows_ahead=-1), "^windows_ahead: -1 must be"),
    (dict(windows_ahead=3), "^windows_ahead: it sizes the leases of data"),
    (dict(coordinator="127.0.0.1:1"), "^hub and coordinator exclude each other"),
    (dict(hub=None), "^coordinator: no address"),
    (dict(hub=None, coordinator="nowhere"), "^key: no path"),
    (dict(hub=None, coordinator="127.0.0.1:1", unencrypted=True, site="a b"), "^site: 'a b'"),
    (dict(site=None), "^site: no name"),
    (dict(run_dir="/dev/null/run"), "^run_dir: '/dev/null/run' can't be used: '/dev/null'"),
    (dict(run_dir=".", site="weights"), "^site: 'weights' is not allowed with run_dir"),
    (dict(state={"model": 1}), "^state: give the \"sync\" entry"),
    (dict(state=3), "^state: give what state_dict\\(\\) returned, not int"),
    (dict(timeout=0), "^timeout: 0"),
    (dict(timeout="x"), "^timeout: 'x' is no number"),
    (dict(site=3, run_dir="."), "^site: 3 is no text"),
    (dict(run_dir=3), "^run_dir: 3 is no path"),
    (dict(plain=3), "^plain: 3 can't be called"),
    (dict(after_apply="x"), "^after_apply: 'x' can't be called"),
    (dict(shared=["a"]), "^shared: give a dict of texts, not list"),
    (dict(process_group=3), "^process_group: give a group of torch.distributed"),
]


class Refused(Case):
    def setUp(self):
        super().setUp()
        for name in ("SITE", "COORDINATOR", "KEY", "ROSTER"):
            os.environ.pop("DILOCOX_" + name, None)
        self.hub = self.run_of(1, 10).hub

    def refused(self, text, model, optimizer=None, **keywords):
        given = {**dict(site="a", hub=self.hub, tokens_per_step=1), **keywords}
        with self.assertRaisesRegex(ConfigError, text) as caught:
            DiLoCo(model, optimizer, **given)
        self.assertNotIn("\n", str(caught.exception))

    def test_models(self):
        for model, text in MODELS:
            with self.subTest(text=text):
                self.refused(text, model())

    def test_keywords(self):
        for keywords, text in KEYWORDS:
            with self.subTest(text=text):
                self.refused(text, mlp(), **keywords)

    def test_optimizers(self):
        model = mlp()
        self.refused("^optimizer: give a torch.optim.Optimizer, .* not Sequential", model, model)
        self.refused(r"optimizer 0: parameter 0 of group 0 \(12 x 6\) is not in the model", mlp(),
                     sgd(model))
        self.refused("optimizer 1: parameter 0 of group 1", model,
                     [sgd(model), torch.optim.SGD([{"params": [model[0].bias]},
                                                   {"params": [torch.zeros(3)]}], lr=1)])
        self.refused("give the optimizer", model, overlap="allreduce")
        self.refused("^overlap 'allreduce' averages gradients once a step, and there are 2", model,
                     [sgd(model[0]), sgd(model[2])], overlap="allreduce")

        class Wrapper(torch.optim.Optimizer):
            def __init__(self, inner):
                self.inner = inner
        self.refused("^optimizer: Wrapper is not initialised", model, Wrapper(sgd(model)))
        optimizer = sgd(model)
        with one_site(self, model, optimizer):
            self.refused("another DiLoCo is open on it", model, optimizer)

    def test_a_refusal_leaves_the_optimizer_alone(self):
        model = mlp()
        optimizer = sgd(model)
        before = vars(optimizer).get("step")
        self.refused("^bits", model, optimizer, bits=5)
        self.assertIs(vars(optimizer).get("step"), before)
        with one_site(self, model, optimizer):
            pass

    def test_parameters_without_an_optimizer(self):
        """A line, no error: they may be stepped by hand."""
        model = mlp()
        with self.assertLogs("dilocox") as logs, one_site(
                self, model, torch.optim.SGD(model[0].parameters(), lr=1)):
            pass
        self.assertTrue(any("no optimizer has these parameters" in line and "2.weight" in line
                            for line in logs.output))

    def test_calls(self):
        model = mlp()
        with one_site(self, model, sgd(model), data=range(9), batch_size=3) as sync:
            for call, text in ((lambda: sync.step(), "for loops without an optimizer"),
                               (lambda: sync.count(-1), "^tokens: -1 must be"),
                               (lambda: sync.count(1.0), "^tokens: 1.0 must be"),
                               (lambda: sync.pace("x"), "^factor: 'x' is no number"),
                               (lambda: LeaseSampler(model), "^LeaseSampler: give a DiLoCo"),
                               (lambda: LeaseSampler(sync, epoch_size=0), "^epoch_size: 0 must")):
                with self.assertRaisesRegex(ConfigError, text):
                    call()
            with self.assertRaisesRegex(TypeError, "without epoch_size"):
                len(LeaseSampler(sync))
        with one_site(self, model) as sync:
            with self.assertRaisesRegex(ConfigError, "^LeaseSampler"):
                LeaseSampler(sync)
            for tokens in (-1, 1.5, True, "1"):
                with self.assertRaisesRegex(ConfigError, "^tokens"):
                    sync.step(tokens)

    def test_closures_under_allreduce(self):
        model = mlp()
        optimizer = torch.optim.LBFGS(model.parameters())
        with self.assertRaisesRegex(ConfigError, "a closure computes gradients inside"), one_site(
                self, model, optimizer, overlap="allreduce"):
            optimizer.step(lambda: 0.0)

    def test_sparse_gradients_under_allreduce(self):
        model = nn.Embedding(4, 3, sparse=True)
        optimizer = sgd(model)
        with self.assertRaisesRegex(ConfigError, "'weight' has a sparse gradient"), one_site(
                self, model, optimizer, overlap="allreduce"):
            model(torch.tensor([1, 2])).sum().backward()
            optimizer.step()

    def test_sharded_tensors_without_a_public_type(self):
        from dilocox import _tensors
        self.addCleanup(setattr, _tensors, "DTensor", _tensors.DTensor)
        _tensors.DTensor = None
        tensor = torch.zeros(2).as_subclass(Sharded)
        self.refused("^tensor 'w' is a Sharded, for which torch .* has no public type",
                     [("w", tensor)])

    def test_a_process_outside_the_group(self):
        from dilocox import _ranks
        for name in ("get_rank", "get_world_size"):
            self.addCleanup(setattr, _ranks.dist, name, getattr(_ranks.dist, name))
            setattr(_ranks.dist, name, lambda _: -1)
        self.refused("^process_group: this process is not in it", mlp(), process_group=object())

    def test_old_versions(self):
        for version in ("1.12.1", "0.4.1", "1.9.0+cpu"):
            with self.assertRaisesRegex(ImportError, "needs torch 1.13 or later"):
                dilocox_torch._check_version(version)
        for version in ("1.13.0a0", "1.13.1", "2.0.0+cu118", "2.11.0.dev20260101", "10.0.0"):
            dilocox_torch._check_version(version)


if __name__ == "__main__":
    main()
