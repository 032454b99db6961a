# SPDX-License-Identifier: Apache-2.0
"""DiLoCo for PyTorch: a `with` around an unchanged training loop makes it one site of a run, and
LeaseSampler gives it its share of the data. docs/pytorch.md has every keyword."""
from __future__ import annotations

import contextlib
import inspect
import logging
import os
import time
import weakref
from typing import (Any, Callable, Dict, Iterable, Iterator, Mapping, Optional, Sequence, Sized,
                    Tuple, Union)

import torch
from torch import nn
from torch.optim import Optimizer

from . import ConfigError, Coordinator, DilocoxError, Hub, NumericError, Status, Step, Sync, Tensor
from . import _ranks, _results, _tensors
from ._c import SYNC_OPTIONS
from ._hooks import Hook, check_hookable
from ._leases import Leases, LeaseSampler, Statistics
from ._names import KEYWORDS
from ._options import from_environment, unknown_keyword, whole

__all__ = ["Coordinator", "DiLoCo", "Hub", "LeaseSampler"]

# All of torch that the package uses, and all of it is documented there; a test compares. Those
# behind "?" are used where they exist.
TORCH = """
torch.Tensor torch.__version__ torch.bfloat16 torch.empty torch.float16
torch.float32 torch.float64 torch.frombuffer torch.int16 torch.int32 torch.int64 torch.isfinite
torch.no_grad torch.strided torch.tensor torch.uint8 torch.zeros torch.zeros_like
nn.Module nn.parameter.UninitializedBuffer nn.parameter.UninitializedParameter
dist.all_gather dist.broadcast dist.destroy_process_group dist.get_process_group_ranks
dist.get_rank dist.get_world_size dist.group.WORLD dist.is_available dist.is_initialized
dist.new_group
torch.optim.Optimizer torch.utils.data.Sampler
torch.distributed.tensor.DTensor? torch.distributed.fsdp.FullyShardedDataParallel?
Optimizer.register_step_pre_hook? Optimizer.register_step_post_hook?
"""

SAVE_POLL_S = 0.02
ANCHOR_TRIES = 50  # of 0.1 s, for ranks that receive a commit at different times

logger = logging.getLogger("dilocox")
_hooked: "weakref.WeakSet[Optimizer]" = weakref.WeakSet()


def _check_version(version: str) -> None:
    parts = version.split(".")
    if tuple(int(p) for p in parts[:2]) < (1, 13):
        raise ImportError(f"dilocox.torch needs torch 1.13 or later, and this is {version}")


_check_version(torch.__version__)


class DiLoCo:
    """One site of a run, as long as it is open: with DiLoCo(model, optimizer, ...) as sync. After
    each step of the optimizer (the last one, of several) it does what the round asks for.

    Blocks while it waits for the other sites. All calls come from the thread that opened it;
    Ctrl-C ends each within a second. On a site of several ranks every rank makes the same calls.
    Keywords: docs/pytorch.md. ConfigError: an argument is not usable; nothing was changed.
    RefusedError, PeerLostError, RunTimeoutError, NumericError, DivergedError, DilocoxError: the
    run could not begin, or failed."""

    def __init__(
            self, model: Union[nn.Module, Iterable[Tuple[str, torch.Tensor]]],
            optimizer: Union[Optimizer, Sequence[Optimizer], None] = None, *,
            site: Optional[str] = None, coordinator: Optional[str] = None,
            key: Optional[str] = None, roster: Optional[str] = None,
            hub: Optional[Hub] = None, listen: Optional[str] = None, unencrypted: bool = False,
            data: Optional[Sized] = None, batch_size: Optional[int] = None,
            tokens_per_step: Optional[int] = None, windows_ahead: Optional[int] = None,
            sync_every: int = 16, overlap: str = "carry", low_rank: int = 64, bits: int = 4,
            group: int = 64, error_feedback: bool = True, adaptation: str = "off",
            outer_lr: Optional[float] = None, outer_momentum: Optional[float] = None,
            exchange_steps: int = 0, buffers: str = "average",
            plain: Optional[Callable[[str, torch.Tensor], bool]] = None,
            process_group: Any = None, shared: Optional[Mapping[str, str]] = None,
            after_apply: Optional[Callable[[], None]] = None, timeout: float = 10.0,
            seed: int = 1, run_dir: Optional[str] = None, progress: Optional[bool] = None,
            state: Optional[Mapping[str, Any]] = None, **options: Any) -> None:
        settings = dict(sync_every=sync_every, overlap=overlap, low_rank=low_rank, bits=bits,
                        group=group, error_feedback=error_feedback, adaptation=adaptation,
                        outer_lr=outer_lr, outer_momentum=outer_momentum,
                        exchange_steps=exchange_steps, timeout=timeout, seed=seed, **options)
        self._process = os.getpid()
        self._sync: Any = None
        self._last_step: Optional[Step] = None
        self._flying = state is not None  # an exchange is under way, or may be
        self._pinned: Any = None  # a tensor: staging, if values are on a GPU
        self._bounce: Dict[Any, torch.Tensor] = {}
        self._lent: Any = None  # gradients, while the library has their addresses
        self._hooks: list = []
        self._optimizers: list = []
        self._model = model if isinstance(model, nn.Module) else None
        self._closed = self._evaluating = self._reported = False
        self._counted: Optional[int] = None
        self._site = site if site is not None else os.environ.get("DILOCOX_SITE")
        self._overlap, self._after_apply = overlap, after_apply
        self._leases: Optional[Leases] = None
        self._steps, self._before = 0, 0  # of this process, and of those that it goes on from
        self._sleep_s = 0.0
        self._ranks: Any = None
        self._results: Any = None
        self._merged: Any = None
        if hub is None:
            coordinator = from_environment(coordinator, "DILOCOX_COORDINATOR")
        try:
            self._ranks = _ranks.find(process_group)
            problem = None
            try:
                self._optimizers = self._list(optimizer)
                _check_keywords(options)
                _check_kinds(self._site, plain, after_apply, shared, run_dir)
                resumed = self._state_keywords(state)
                self._check(data, batch_size, tokens_per_step, windows_ahead, buffers)
                if data is not None:
                    self._leases = Leases(data, batch_size, windows_ahead, *self._place(),
                                          None if resumed.get("as_new") else state)
                self._check_run_dir(run_dir)
                self._values, frozen = _tensors.collect(
                    model, buffers == "average" and overlap != "allreduce", plain, self._say)
                self._check_optimizers(model)
            except ConfigError as error:
                if self._ranks is None:
                    raise
                problem = str(error)
            if self._ranks is not None:
                self._ranks.together(problem)
            self._begin_results(run_dir, progress)
            ids = self._agree({
                **settings, "site": self._site, "coordinator": coordinator, "buffers": buffers,
                "batch_size": batch_size, "tokens_per_step": self._tokens_per_step,
                "windows_ahead": windows_ahead, "run_dir": run_dir,
                "state": "None" if state is None else "given"})
            self._own = [(v, i) for v, i in zip(self._values, ids)
                         if v.part or self._ranks is None or v.owner == self._ranks.rank]
            stay = [v for v in self._values
                    if not v.statistics and not _tensors.is_dtensor(v.given)]
            self._given, self._addresses = [v.given for v in stay], [v.address for v in stay]
            self._places = [(v.module, v.attribute, v.given) for v in self._values
                            if v.module is not None and not v.statistics]
            self._touched = [v.touch for v in self._values if v.touch is not None]
            lines = _tensors.lines_of(self._values, frozen)
            described = _tensors.describe(
                [lines] if self._ranks is None else self._ranks.gather_json(lines))
            self._sync = Sync(
                self._tensors(), site=self._site, coordinator=coordinator, key=key, roster=roster,
                hub=hub, listen=listen, unencrypted=unencrypted,
                shared={**_alike(settings), **(shared or {}), **described}, fetch=self._fetch, store=self._store,
                staging=self._staging(), log=self._say, **resumed, **self._rank_keywords(),
                **(self._leases.keywords if self._leases is not None else {}), **settings)
            self._joined(state)
        except BaseException:
            self._leave()
            raise

    # ---- opening

    @staticmethod
    def _list(optimizer: Any) -> list:
        if optimizer is None:
            return []
        several = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
        for one in several:
            if not isinstance(one, Optimizer):
                raise ConfigError("optimizer: give a torch.optim.Optimizer, or a list of them, not "
                                  f"{type(one).__name__}")
            check_hookable(one)
        return several

    def _place(self) -> Tuple[int, int]:
        """This rank, and how many there are."""
        return (0, 1) if self._ranks is None else (self._ranks.rank, self._ranks.size)

    def _check(self, data: Any, batch_size: Any, tokens_per_step: Any, windows_ahead: Any,
               buffers: Any) -> None:
        """Sets what a step's tokens are."""
        self._tokens_per_step = tokens_per_step
        if buffers not in ("average", "local"):
            raise ConfigError(f"buffers: {buffers!r} must be 'average' or 'local'")
        if tokens_per_step is not None:
            whole("tokens_per_step", tokens_per_step, 1)
        if batch_size is not None:
            whole("batch_size", batch_size, 1)
        if (data is None) != (batch_size is None):
            raise ConfigError("data and batch_size: give both, or neither")
        if data is None and windows_ahead is not None:
            raise ConfigError("windows_ahead: it sizes the leases of data; give data and "
                              "batch_size, too")
        if data is not None:
            if not isinstance(data, Sized) or len(data) < 1:
                raise ConfigError("data: give a data set with a length of at least 1; one without "
                                  "indices needs no leases (docs/pytorch.md, 'Data')")
            if tokens_per_step is None:
                self._tokens_per_step = batch_size * getattr(data, "tokens_per_window", 1)

    def _check_run_dir(self, run_dir: Any) -> None:
        if run_dir is not None:
            if not self._site:
                raise ConfigError("site: run_dir needs this site's name; set site or DILOCOX_SITE")
            _results.check_directory(run_dir, self._site)

    def _check_optimizers(self, model: Any) -> None:
        if not self._optimizers:
            if self._overlap == "allreduce":
                raise ConfigError("overlap 'allreduce' averages gradients before the optimizer's "
                                  "step: give the optimizer")
            return
        if self._overlap == "allreduce" and len(self._optimizers) > 1:
            raise ConfigError(f"overlap 'allreduce' averages gradients once a step, and there are "
                              f"{len(self._optimizers)} optimizers; give one with several groups, "
                              "or choose another overlap")
        known = {id(p) for p in model.parameters()} if isinstance(model, nn.Module) else set()
        known |= {id(v.given) for v in self._values}
        held = set()
        for which, optimizer in enumerate(self._optimizers):
            if optimizer in _hooked:
                raise ConfigError("optimizer: another DiLoCo is open on it; close that one first")
            for g, entries in enumerate(optimizer.param_groups):
                for i, parameter in enumerate(entries["params"]):
                    held.add(id(parameter))
                    if id(parameter) not in known:
                        raise ConfigError(
                            f"optimizer {which}: parameter {i} of group {g} "
                            f"({_tensors.show(parameter.shape)}) is not in the model; give the "
                            "tensors that it steps as (name, tensor) pairs")
        without = [v.name for v in self._values if not v.statistics and id(v.given) not in held]
        if without:
            self._say("no optimizer has these parameters, which are synchronised all the same: "
                      + _tensors.some(without))

    def _begin_results(self, run_dir: Any, progress: Any) -> None:
        rank, ranks = self._place()
        precision = {str(v.kept.dtype).split(".")[-1] for v in self._values if not v.statistics}
        self._merges = run_dir is not None and self._ranks is not None
        self._results = _results.Results(
            run_dir if rank == 0 else None, progress if rank == 0 else False,
            site=self._site or "", overlap=self._overlap, before=self._before,
            ranks=ranks,
            precision="f32" if precision == {"float32"} else ", ".join(sorted(precision)))

    def _agree(self, settings: Dict[str, Any]) -> list:
        """The ids of the tensors, after the ranks of the site have found that they agree."""
        if self._ranks is None:
            return list(range(len(self._values)))
        self._ranks.wires.say = self._say
        if isinstance(settings["timeout"], (int, float)):
            self._ranks.wires.timeout_s = settings["timeout"]
        tables = self._ranks.gather_json({k: repr(v) for k, v in settings.items()})
        for r, table in enumerate(tables):
            for name, value in tables[0].items():
                if table.get(name) != value:
                    raise ConfigError(f"{name}: {value} on rank 0, {table.get(name)} on rank {r}; "
                                      "the ranks of a site have the same settings")
        return self._ranks.divide(self._values)

    def _rank_keywords(self) -> Dict[str, Any]:
        if self._ranks is None:
            return {}
        return dict(rank=self._ranks.rank, ranks=self._ranks.size, gather=self._ranks.gather,
                    watch=self._ranks.wires.watch)

    def _tensors(self) -> list:
        return [Tensor(v.name, v.rows, v.cols, v.memory, dtype=_tensors.DTYPES[v.kept.dtype],
                       statistics=v.statistics, plain=v.plain, id=i) for v, i in self._own]

    def _staging(self) -> Optional[Tuple[int, int]]:
        """Pinned memory, if values are on a GPU: copies are then made at the link's speed."""
        most = max((v.kept.numel() for v, _ in self._own if v.kept.is_cuda), default=0)
        if most == 0:
            return None
        self._pinned = torch.empty(min(most, 1 << 24), dtype=torch.float32, pin_memory=True)
        return self._pinned.data_ptr(), self._pinned.numel() * 4

    def _joined(self, state: Any) -> None:
        self._share()
        self._results.begin(self._sync.site_count, self._sync.run_id, state is not None)
        self._last_s = time.monotonic()
        if not self._optimizers:
            return
        if self._overlap == "allreduce":
            self._hooks.append(Hook(self._optimizers[0], self._average, None))
        self._hooks.append(Hook(self._optimizers[-1], None, self._stepped))
        _hooked.update(self._optimizers)

    # ---- values behind callbacks

    def _flat(self, address: int, count: int) -> torch.Tensor:
        """The library's chunk, on the host."""
        if self._pinned is not None and address == self._pinned.data_ptr():
            return self._pinned[:count]
        return _tensors.at_address(address, count)

    def _bounced(self, tensor: torch.Tensor, count: int) -> Optional[torch.Tensor]:
        """Pinned memory of the tensor's own dtype: a copy that converts takes device memory."""
        if not tensor.is_cuda or tensor.dtype == torch.float32:
            return None
        held = self._bounce.get(tensor.dtype)
        if held is None or held.numel() < count:
            held = torch.empty(self._pinned.numel(), dtype=tensor.dtype, pin_memory=True)
            self._bounce[tensor.dtype] = held
        return held[:count]

    def _fetch(self, index: int, first: int, count: int, address: int) -> None:
        tensor = self._own[index][0].now()
        flat, between = self._flat(address, count), self._bounced(tensor, count)
        with torch.no_grad():
            if between is None:
                _tensors.read(flat, tensor, first)
            else:
                _tensors.read(between, tensor, first)
                flat.copy_(between)

    def _store(self, index: int, first: int, count: int, address: int) -> None:
        tensor = self._own[index][0].now()
        flat, between = self._flat(address, count), self._bounced(tensor, count)
        with torch.no_grad():
            if between is not None:
                flat = between.copy_(flat)
            _tensors.write(tensor, first, flat)

    def _share(self, ranks: bool = True) -> None:
        """Parameters were written: autograd, the other ranks and the caller are told."""
        with torch.no_grad():
            for nothing in self._touched:
                nothing.zero_()
            if ranks and self._ranks is not None:
                self._ranks.share(self._values, lambda value: value.now())
        if self._after_apply is not None:
            self._after_apply()

    # ---- steps

    def _check_stays(self) -> None:
        """Before anything is written. Looking into modules takes longer than addresses: it is done
        where parameters may be read or written."""
        last = self._last_step
        between = (last is not None and not self._flying
                   and last.step_in_round + 1 < last.inner_steps)
        if [p.data_ptr() for p in self._given] == self._addresses and (
                between or all(getattr(module, name) is p for module, name, p in self._places)):
            return
        for value in self._values:
            value.check_stays()

    def _tokens_now(self) -> int:
        tokens = self._counted if self._counted is not None else self._tokens_per_step
        if tokens is None:
            raise ConfigError("how many tokens did this step train on? Give tokens_per_step, or "
                              "data and batch_size, or call count() before each step")
        return tokens

    @staticmethod
    def _is_skipped(optimizer: Optimizer) -> bool:
        """GradScaler has called a fused optimizer, which did nothing."""
        found_inf = getattr(optimizer, "found_inf", None)
        return found_inf is not None and float(found_inf) != 0

    def _stepped(self) -> None:
        """Behind the last optimizer's step."""
        if not self._is_skipped(self._optimizers[-1]):
            self._advance(self._tokens_now())
            return
        self._counted = None
        if self._leases is not None:
            self._leases.stepped(skipped=True)

    def _advance(self, tokens: int) -> Step:
        if self._evaluating:
            raise DilocoxError("a step inside evaluate(): the model holds the anchor there",
                               Status.STATE)
        self._check_stays()
        if self._leases is not None:
            self._leases.check()
        shown = self._results.wanted or self._merges
        begun_s = time.monotonic() if shown else 0.0
        try:
            step = self._sync.step(tokens)
        except BaseException as error:
            if self._sync.has_applied:  # and failed then
                self._share(ranks=False)
            if isinstance(error, NumericError):
                raise self._named(error) from None
            raise
        self._last_step, self._counted = step, None
        self._flying = (step.submitted and self._overlap != "none"
                        or self._flying and not step.applied)
        self._steps += 1
        if self._leases is not None:
            self._leases.stepped(skipped=False)
        if step.applied:
            self._share()
        if shown:
            self._show(step, tokens, begun_s)
        return step

    def _named(self, error: NumericError) -> NumericError:
        """With the tensors that are not finite here, if they are behind callbacks."""
        names = [v.name for v in self._values if v.memory is None and not v.is_finite()]
        text = f"{error}; here it is {_tensors.some(names)}" if names else str(error)
        return NumericError(text, error.status, error.site, error.round)

    def _average(self, args: Any, kwargs: Any) -> None:
        """Overlap allreduce, ahead of the first optimizer's step."""
        if args or kwargs.get("closure") is not None:
            raise ConfigError("overlap 'allreduce': a closure computes gradients inside the step, "
                              "too late to average them; choose another overlap")
        if self._is_skipped(self._optimizers[0]):
            return
        self._check_stays()
        if self._leases is not None:
            self._leases.check()
        trained = [v for v in self._values if not v.statistics]
        with torch.no_grad():
            for value in trained if self._ranks is not None else ():
                if value.given.grad is None:
                    value.given.grad = torch.zeros_like(value.given)
            pointers, direct, copies = [], [], []
            for value, _ in self._own:
                grad = value.given.grad
                if grad is not None and grad.layout != torch.strided:
                    raise ConfigError(
                        f"parameter '{value.name}' has a sparse gradient, and overlap 'allreduce' "
                        "averages dense ones; open the layer with sparse=False")
                grad = None if grad is None else _tensors.local(grad)
                if (grad is not None and grad.device.type == "cpu" and grad.is_contiguous()
                        and grad.dtype == torch.float32):
                    pointers.append(grad.data_ptr())
                    direct.append(grad)
                    continue
                flat = torch.zeros(value.kept.numel(), dtype=torch.float32)
                if grad is not None:
                    _tensors.read(flat, grad, 0)
                pointers.append(flat.data_ptr())
                copies.append((value, grad, flat))
            begun_s = time.monotonic()
            self._lent = self._lent, direct, copies  # a signal may end the wait before the library
            self._sync.gradients(pointers, self._tokens_now())
            self._lent = None
            self._sleep_s += time.monotonic() - begun_s
            for value, grad, flat in copies:
                if grad is not None:
                    _tensors.write(grad, 0, flat)
                elif bool(flat.any()):  # another site had one
                    value.given.grad = flat.view(value.shape).to(value.kept)
            if self._ranks is not None:
                self._ranks.share(trained, lambda value: _tensors.local(value.given.grad))

    def _site_statistics(self, step: Step) -> Any:
        """Of all ranks of the site, as of the last round."""
        own = self._sync.statistics()
        if not self._merges:
            return own
        if step.submitted or step.applied or self._merged is None:
            self._merged = _results.Merged(self._ranks.gather_json(own._asdict()))
        return self._merged

    def _show(self, step: Step, tokens: int, begun_s: float) -> None:
        now_s = time.monotonic()
        wait_s = now_s - begun_s + self._sleep_s
        whole_s, self._last_s, self._sleep_s = now_s - self._last_s, now_s, 0.0
        statistics = self._site_statistics(step)
        if not self._results.wanted:
            return
        groups = self._optimizers[0].param_groups if self._optimizers else []
        self._results.step(step, tokens, max(whole_s - wait_s, 0.0), wait_s, self._sync.tokens,
                           self._sync.tokens_target, float(groups[0]["lr"]) if groups else None,
                           statistics)

    def step(self, tokens: Optional[int] = None) -> Step:
        """After each inner step of a loop that gave no optimizer. tokens: that it trained on, of
        the whole site; None: tokens_per_step. Parameters may be replaced. Blocks if the overlap
        waits. Returns what the step did."""
        if self._optimizers:
            raise ConfigError("step() is for loops without an optimizer; this one's is called "
                              "behind each step of the optimizer given")
        return self._advance(tokens if tokens is not None else self._tokens_now())

    def count(self, tokens: int) -> None:
        """The next step trains on these tokens; calls before one step add up."""
        whole("tokens", tokens, 0)
        self._counted = (self._counted or 0) + tokens

    # ---- where the run stands

    @property
    def finished(self) -> bool:
        """The run's tokens are trained, and the parameters are the final anchor: leave the
        loop."""
        return self._sync.finished

    @property
    def round(self) -> int:
        """The present one, from 1."""
        return self._sync.round

    @property
    def tokens(self) -> int:
        """Of the run, all sites together, estimated between commits."""
        return self._sync.tokens

    @property
    def tokens_target(self) -> int:
        """The run ends when as many are committed."""
        return self._sync.tokens_target

    @property
    def progress(self) -> float:
        """0 to 1: what schedules follow, the same with any number of sites."""
        return self._sync.progress

    @property
    def site_index(self) -> int:
        """0 … site_count − 1, by name, among the sites of the last round."""
        return self._sync.site_index

    @property
    def site_count(self) -> int:
        return self._sync.site_count

    def statistics(self) -> Statistics:
        """Of this rank, since it was opened."""
        found, leases = self._sync.statistics(), self._leases
        windows = (0, 0) if leases is None else (leases.taken, leases.untrained_count)
        return Statistics._make((*found, *windows))

    # ---- the anchor

    def _anchor(self) -> Dict[Any, torch.Tensor]:
        """f32 on the host, by value; the same round on all ranks."""
        flat = {v: torch.empty(v.kept.numel(), dtype=torch.float32) for v in self._values}
        for _ in range(ANCHOR_TRIES):
            before = self._sync.statistics().rounds
            self._sync.anchor([flat[v].data_ptr() for v, _ in self._own])
            if self._ranks is None:
                break
            # a commit may have come before the anchor was read, or after
            found = self._ranks.gather_json([before, self._sync.statistics().rounds])
            if len({rounds for pair in found for rounds in pair}) == 1:
                with torch.no_grad():
                    self._ranks.share(self._values, lambda value: flat[value])
                break
            time.sleep(0.1)
        else:
            raise DilocoxError("the site's ranks know different rounds", Status.DIVERGED)
        return {v: t.view(v.shape) for v, t in flat.items()}

    def anchor(self) -> Dict[str, torch.Tensor]:
        """Copies of what all sites agree on, by name, f32 on the host. The parameters stay. After
        a failure, too; on several ranks all of them call it, and each gets the parts that it
        has."""
        return {v.name: t for v, t in self._anchor().items()}

    def anchor_hashes(self) -> Dict[str, int]:
        """By name; equal on all sites that know the same rounds. On several ranks all of them call
        it."""
        own = {v.name: h for (v, _), h in zip(self._own, self._sync.anchor_hashes())}
        if self._ranks is None:
            return own
        return {k: h for table in self._ranks.gather_json(own) for k, h in table.items()}

    @contextlib.contextmanager
    def evaluate(self) -> Iterator[None]:
        """Within it the model holds the anchor: to evaluate, or to save it for others. Afterwards
        it holds what it held before. Takes a copy of the model on the host and one on its
        device."""
        if self._evaluating or self.finished:
            yield
            return
        anchor = self._anchor()
        before = {v: v.now().clone() for v in self._values}
        self._evaluating = True
        try:
            self._hold(anchor)
            del anchor
            yield
        finally:
            self._evaluating = False
            self._hold(before)

    def _hold(self, tensors: Dict[Any, torch.Tensor]) -> None:
        """Parameters ← tensors. FSDP 2 may keep gathered parameters after a forward pass."""
        with torch.no_grad():
            for value, tensor in tensors.items():
                value.now().copy_(tensor)
        for module in self._model.modules() if self._model is not None else ():
            if callable(getattr(module, "reshard", None)):
                module.reshard()  # type: ignore[operator]
        if self._after_apply is not None:
            self._after_apply()

    # ---- going on later

    def state_dict(self) -> Dict[str, Any]:
        """What this rank needs beside the model's and the optimizer's state_dict to go on, as
        copies. Waits for an exchange that is under way."""
        while True:
            try:
                parts = self._sync.state_parts()
                break
            except DilocoxError as error:
                if error.status != Status.AGAIN:
                    raise
            time.sleep(SAVE_POLL_S)
        rank, _ = self._place()
        return {"site": self._site, "rank": rank, "steps": self._before + self._steps,
                "windows": self._leases.saved() if self._leases is not None else [],
                "parts": {part.name: _tensors.of_part(part) for part in parts}}

    def _state_keywords(self, state: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
        if state is None:
            return {}
        if not isinstance(state, Mapping):
            raise ConfigError(f"state: give what state_dict() returned, not {type(state).__name__}")
        try:
            parts = {name: _tensors.part_of(name, t) for name, t in state["parts"].items()}
            site, rank, self._before = state["site"], state["rank"], int(state["steps"])
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration):
            raise ConfigError("state: give the \"sync\" entry of a checkpoint, what state_dict() "
                              "returned") from None
        own, _ = self._place()
        if rank != own:
            raise ConfigError(f"state: it is of rank {rank}, and this is rank {own}")
        return {"state": parts, "as_new": site != self._site}

    # ---- the end

    def pace(self, factor: float) -> None:
        """Rounds that begin from now on last factor · sync_every steps; pace_max, a keyword,
        bounds it. All sites give the same factor at the same tokens."""
        self._sync.pace(factor)

    def report(self, text: str) -> None:
        """This site is through. Once, after `finished`; waits for the other sites. close() does it
        otherwise."""
        self._sync.report(text)
        self._reported = True

    def interrupt(self) -> None:
        """The present or next call that waits raises within 0.1 s. Any thread, any handler."""
        self._sync.interrupt()

    def close(self) -> None:
        """Leaves the run: if it is finished, after all sites are through; otherwise it goes on
        without this site, or fails. Afterwards the optimizer's step is its own again."""
        if self._closed or os.getpid() != self._process:
            return
        try:
            if not self.finished:
                self._say("this site leaves the run before its end")
            if self._results.run_dir is not None or self._merges:
                self._summarize("done" if self.finished else "interrupted")
        except DilocoxError as error:  # the run's end is lost to this site
            self._say(str(error))
        finally:
            self._leave()

    def _summarize(self, outcome: str) -> None:
        if outcome != "done" and self._merges:
            return  # the other ranks may be lost
        own = self._sync.statistics()
        if self._merges:
            own = _results.Merged(self._ranks.gather_json(own._asdict()))
        hashes = self.anchor_hashes()
        text = ""
        if self._results.run_dir is not None:
            summary = self._results.summarize(outcome, own)
            self._results.write_summary(summary, hashes)
            text = _results.compact(summary)
        if outcome == "done" and not self._reported:
            self.report(text)

    def _leave(self) -> None:
        self._closed = True
        for hook in reversed(self._hooks):
            hook.remove()
        for optimizer in self._optimizers if self._hooks else ():
            _hooked.discard(optimizer)
        self._hooks = []
        try:
            if self._sync is not None:
                self._sync.close()
            self._pinned, self._bounce, self._lent = None, {}, None
        finally:
            if self._results is not None:
                self._results.close()
            if self._ranks is not None:
                self._ranks.close()

    def __enter__(self) -> "DiLoCo":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if os.getpid() != self._process:
            return
        if kind is None:
            self.close()
            return
        try:
            if not self._closed and not self.finished:
                text = f"{kind.__name__}: {error}".replace("\0", "").rstrip(": ")
                self._sync.fail(text)
                self._say(f"this site ends: {text}")
            if not self._closed and self._results.run_dir is not None and not self._merges:
                ended = "interrupted" if kind is KeyboardInterrupt else "failed"
                self._summarize("done" if self.finished else ended)
        except Exception as second:  # the first one says more
            logger.warning("while closing: %s", second)
        finally:
            self._leave()

    def _say(self, text: str) -> None:
        shown = self._results is not None and self._results.shows
        logger.log(logging.INFO if shown else logging.WARNING, "%s", text)
        if self._results is not None:
            self._results.say(text)


def _alike(settings: Mapping[str, Any]) -> Dict[str, str]:
    """Those that all sites have alike, so that a difference is named."""
    same = {KEYWORDS.get(f, f) for f, option in SYNC_OPTIONS.items() if option.same} | {"seed"}
    return {name: "auto" if value is None else str(value) for name, value in settings.items()
            if name in same}


def _check_kinds(site: Any, plain: Any, after_apply: Any, shared: Any, run_dir: Any) -> None:
    if site is not None and not isinstance(site, str):
        raise ConfigError(f"site: {site!r} is no text")
    for name, value in (("plain", plain), ("after_apply", after_apply)):
        if value is not None and not callable(value):
            raise ConfigError(f"{name}: {value!r} can't be called; give a function")
    if shared is not None and not isinstance(shared, Mapping):
        raise ConfigError(f"shared: give a dict of texts, not {type(shared).__name__}")
    if run_dir is not None and not isinstance(run_dir, (str, os.PathLike)):
        raise ConfigError(f"run_dir: {run_dir!r} is no path")


def _check_keywords(options: Mapping[str, Any]) -> None:
    known = set(inspect.signature(DiLoCo.__init__).parameters) - {"self", "options"}
    known |= {KEYWORDS.get(field, field) for field in SYNC_OPTIONS} | {"pace_max"}
    for name in options:
        if name not in known:
            raise unknown_keyword(name, known)
