# SPDX-License-Identifier: Apache-2.0
"""One site of a run, over buffers: what dilocox.torch, and a loop of one's own, stand on."""
from __future__ import annotations

import math
import os
import sys
from ctypes import (POINTER, addressof, byref, c_char, c_double, c_size_t, c_uint64, c_void_p,
                    memmove, sizeof, string_at)
from typing import (Any, Callable, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple,
                    Union)

from . import _c
from ._c import Statistics, Status, Step
from ._calls import SLICE_MS, Handle, logger
from ._coordinator import Hub, Path, check_hub
from ._errors import ConfigError, DilocoxError, NumericError
from ._names import in_keywords
from ._options import (encoded, from_environment, integer, listen_address, real, set_link,
                       set_options, word)

Buffer = Any  # writable, contiguous: array.array, numpy.ndarray, memoryview, …
COUNT_MAX = 2**48  # of tokens per step
_LOOKED_AT = 2**20  # bytes that are looked at together

# of a dtype: its number, bytes of a value, the formats of a buffer (array('H') for bf16 and f16)
_DTYPES = {"f32": (_c.Dtype.F32, 4, "f"), "bf16": (_c.Dtype.BF16, 2, "H"),
           "f16": (_c.Dtype.F16, 2, "He")}
_PART_BYTES = {_c.PartKind.F32: 4, _c.PartKind.I32: 4, _c.PartKind.I64: 8, _c.PartKind.U8: 1}
_NATIVE = "@=<" if sys.byteorder == "little" else "@=>!"


class Tensor(NamedTuple):
    """A tensor of rows × cols values.

    name: unique, not empty
    rows, cols: 1 and more; a vector has rows = 1; rows · cols is at most 2^32
    data: a writable contiguous buffer of as many values, or its address, which stays until close;
        None: the values are behind `fetch` and `store`
    dtype: "f32", "bf16" or "f16"; 16 bits in a buffer of 16-bit integers, f16 also of halves
    statistics: averaged and not trained, as of batch normalisation
    plain: never low rank, as for embeddings
    id: with several ranks, its place in the whole model: ascending, unique over the ranks"""

    name: str
    rows: int
    cols: int
    data: Union[Buffer, int, None] = None
    dtype: str = "f32"
    statistics: bool = False
    plain: bool = False
    id: Optional[int] = None


class Part(NamedTuple):
    """A part of a site's saved state: data[rows, cols] of a PartKind, as bytes."""

    name: str
    kind: int
    rows: int
    cols: int
    data: bytes


def _format(view: memoryview) -> str:
    return view.format.lstrip(_NATIVE)


def _borrow(what: str, data: Buffer, count: int, dtype: str = "f32") -> Any:
    """`data` as a ctypes array, which keeps its memory where it is."""
    _, value_bytes, formats = _DTYPES[dtype]
    try:
        view = memoryview(data)
    except TypeError:
        raise ConfigError(f"{what}: a {type(data).__name__} is no buffer; "
                          "dilocox.torch is for PyTorch's tensors") from None
    if len(_format(view)) != 1 or _format(view) not in formats:
        raise ConfigError(f"{what}: values of format '{view.format}' are not {dtype}; allowed: "
                          f"{' and '.join(formats)}")
    if view.readonly or not view.c_contiguous:
        raise ConfigError(f"{what}: the buffer is {'read-only' if view.readonly else 'strided'}; "
                          "allowed: writable, and contiguous in the order of C")
    if view.nbytes != count * value_bytes:
        raise ConfigError(
            f"{what}: the buffer has {view.nbytes // value_bytes} values, not {count}")
    return (c_char * view.nbytes).from_buffer(view)


def _tensor_of(name: str, data: Buffer) -> Tensor:
    """A buffer with its shape: [n] is a row, and [a, b, …] has a rows."""
    try:
        view = memoryview(data)
    except TypeError:
        raise ConfigError(f"tensor {name}: a {type(data).__name__} is no buffer; dilocox.torch is "
                          "for PyTorch's tensors") from None
    shape = view.shape or ()
    rows, *others = shape if len(shape) > 1 else (1, *shape)
    dtype = "f16" if _format(view) == "e" else "f32"
    return Tensor(name, rows, math.prod(others), data, dtype)


class Sync(Handle):
    """One site of a run, or one rank of it.

    tensors: the parameters, as {name: buffer} or as Tensors; the same names and shapes in the same
        order on all sites. A buffer of f32 or f16; [n] is one row, [a, b, …] has a rows. They are
        read and written inside calls only
    site: its name: 1 to 63 of A–Z a–z 0–9 . _ -; None: $DILOCOX_SITE
    coordinator: "host:port"; None: $DILOCOX_COORDINATOR
    key, roster: paths of this site's key and of all public keys; None: $DILOCOX_KEY and
        $DILOCOX_ROSTER
    hub: a Hub instead of all of these addresses and keys
    listen: where other sites reach this one, "host" or "host:port", the first of a range of one
        port per site; None: the address that reaches the coordinator, and any free ports
    unencrypted: without keys, on loopback addresses only
    shared: settings that all sites must have alike; a site that differs is refused with the key
    windows, tokens_per_window, data_hash: of the training data, equal on all sites; 0 windows: the
        run leases none
    windows_per_step: that this site takes, 1 to 1000000; windows_ahead: that a loader takes early
    pace_max: the largest factor that `pace` will get, 1 to 100
    rank, ranks: of this site; each rank opens the tensors that it alone synchronises
    gather: for several ranks: returns all ranks' bytes, in order, for this rank's; they all call it
        at the same time, and it is called in `step` and `gradients`
    watch: called ten times a second while the constructor waits; what it raises ends that, such as
        that another rank of the site has ended
    fetch, store: for Tensors without data: called with the tensor's index, the first value, how
        many, and the address of so many f32, to write values there, or to take them from there
    staging: address and bytes of memory for that, which stays until close; None: the library's
    log: called with a line for a person; None: warnings of the logger "dilocox"
    state: what `state_parts` of a run that stopped gave, as {name: Part}; as_new: the state is
        another site's, and this one is new
    sync_every: H, inner steps per round
    overlap: what training does while a round's update travels: "carry", "eager", "delayed",
        "none", or "allreduce", the baseline, with `gradients` before each step
    low_rank: columns of the low-rank factors; 0: whole matrices. bits: 4, 8, 16, or 32. group:
        values that share a scale
    error_feedback: what was not sent is sent later
    adaptation: of low_rank and sync_every: "off", "paper", "link"
    outer_lr, outer_momentum: of the outer step; None: the overlap's
    exchange_steps: with "carry", apply so many steps after submission, so that a run repeats; 0: on
        arrival
    timeout: seconds without a message after which a peer is lost, 1 to 86400
    join_timeout: seconds to wait for the coordinator to answer, 1 to 86400
    seed: of the low-rank bases, equal on all sites
    options: the others of DLX_SYNC_OPTION_TABLE by their names in C, e.g. inner_steps_max

    The constructor joins the run and blocks until all sites have, and takes the first site's
    parameters if its own differ. `with` closes it; an exception that leaves the block is the reason
    that other sites get. Calls come from one thread at a time, but for those of "any thread", and
    from no callback; callbacks come inside calls, on their thread. Calls that block see signals:
    what a handler raises, such as KeyboardInterrupt, ends the call and this site's part in the run,
    after which the anchor is left, and close.

    Raises ConfigError, RefusedError, RunTimeoutError, PeerLostError, NumericError, DivergedError,
    or DilocoxError for the rest; `cause` is what a callback raised. After a failure the anchor is
    left, and close."""

    _reported = False
    _hub: Optional[Hub] = None
    _lent: Sequence[Any] = ()  # gradients that the library writes

    def __init__(self, tensors: Union[Mapping[str, Buffer], Iterable[Tensor]], *,
                 site: Optional[str] = None, coordinator: Optional[str] = None,
                 key: Optional[Path] = None, roster: Optional[Path] = None,
                 hub: Optional[Hub] = None, listen: Optional[str] = None,
                 unencrypted: bool = False, shared: Optional[Mapping[str, str]] = None,
                 windows: int = 0, tokens_per_window: int = 0, data_hash: int = 0,
                 windows_per_step: int = 1, windows_ahead: int = 0, pace_max: float = 1.0,
                 rank: int = 0, ranks: int = 1, gather: Optional[Callable[[bytes], bytes]] = None,
                 watch: Optional[Callable[[], object]] = None,
                 fetch: Optional[Callable[[int, int, int, int], object]] = None,
                 store: Optional[Callable[[int, int, int, int], object]] = None,
                 staging: Optional[Tuple[int, int]] = None,
                 log: Optional[Callable[[str], object]] = None,
                 state: Optional[Mapping[str, Part]] = None, as_new: bool = False,
                 sync_every: int = 16, overlap: str = "carry", low_rank: int = 64, bits: int = 4,
                 group: int = 64, error_feedback: bool = True, adaptation: str = "off",
                 outer_lr: Optional[float] = None, outer_momentum: Optional[float] = None,
                 exchange_steps: int = 0, timeout: float = 10.0, join_timeout: float = 600.0,
                 seed: int = 1, **options: Any) -> None:
        super().__init__()
        self._step = _c.dlx_step(size=sizeof(_c.dlx_step))
        self._final: Optional[Statistics] = None
        self._windows = integer("windows", windows, 0, 2**64 - 1)
        self._seed = integer("seed", seed, 0, 2**64 - 1)
        config = _c.dlx_sync_config()
        self._library.dlx_sync_config_default(byref(config), sizeof(config))
        set_options(config, _c.SYNC_OPTIONS, {
            "sync_every": sync_every, "overlap": overlap, "low_rank": low_rank, "bits": bits,
            "group": group, "error_feedback": error_feedback, "adaptation": adaptation,
            "outer_lr": outer_lr, "outer_momentum": outer_momentum,
            "exchange_steps": exchange_steps, "timeout": timeout, "join_timeout": join_timeout,
            "windows_ahead": windows_ahead, **options}, Sync.__init__.__kwdefaults__)
        config.windows, config.seed = self._windows, self._seed
        config.tokens_per_window = integer("tokens_per_window", tokens_per_window, 0, 2**64 - 1)
        config.data_hash = integer("data_hash", data_hash, 0, 2**64 - 1)
        config.windows_per_step = integer("windows_per_step", windows_per_step, 1, 1000000)
        config.pace_max = real("pace_max", pace_max, 1, 100)
        config.ranks = integer("ranks", ranks, 1, 1024)
        config.rank = integer("rank", rank, 0, ranks - 1)
        config.shared_text = _shared_text(shared or {})
        config.wait_ms = SLICE_MS
        self._set_callbacks(config, log or logger.warning, gather, fetch, store)
        if staging is not None:
            config.staging, config.staging_bytes = staging
        self._set_tensors(config, tensors)
        self._set_link(config, site, coordinator, key, roster, hub, listen, unencrypted)
        self._borrowed.append(config)
        self._watch = watch
        try:
            self._open(config, state, as_new)
        except BaseException:
            self._end(apart=True)
            raise

    # ---- open ------------------------------------------------------------------------------------

    def _set_callbacks(self, config: _c.dlx_sync_config, log: Callable[[str], object],
                       gather: Any, fetch: Any, store: Any) -> None:
        config.log = self._callbacks.without(_c.dlx_log, lambda line: log(in_keywords(line)))
        if gather is not None:
            ranks = config.ranks

            def gathered(dst: int, own: int, own_bytes: int) -> None:
                joined = bytes(gather(string_at(own, own_bytes)))
                if len(joined) != ranks * own_bytes:
                    raise ConfigError(f"gather: it returned {len(joined)} bytes, not {own_bytes} "
                                      f"of each of {ranks} ranks")
                memmove(dst, joined, len(joined))
            config.gather = self._callbacks.with_status(_c.dlx_gather, gathered)
        if fetch is not None:
            config.fetch = self._callbacks.with_status(_c.dlx_fetch, fetch)
        if store is not None:
            config.store = self._callbacks.with_status(_c.dlx_store, store)

    def _set_tensors(self, config: _c.dlx_sync_config,
                     tensors: Union[Mapping[str, Buffer], Iterable[Tensor]]) -> None:
        if isinstance(tensors, Mapping):
            tensors = [_tensor_of(name, data) for name, data in tensors.items()]
        self._tensors = list(tensors)
        self._array = (_c.dlx_tensor * len(self._tensors))()
        for index, (dst, one) in enumerate(zip(self._array, self._tensors)):
            what = f"tensor {one.name}"
            dst.name = encoded("name", one.name)
            dst.rows = integer(f"{what}: rows", one.rows, 1, 2**32)
            dst.cols = integer(f"{what}: cols", one.cols, 1, 2**32 // one.rows)
            dst.dtype = _DTYPES[word(f"{what}: dtype", one.dtype, _DTYPES)][0]
            dst.kind = _c.Kind.STATISTICS if one.statistics else _c.Kind.TRAINED
            dst.plain = one.plain
            dst.id = integer(f"{what}: id", index if one.id is None else one.id, 0, 2**32 - 1)
            if one.data is None:
                dst.memory = _c.Memory.CALLER
            elif isinstance(one.data, int):
                dst.data = one.data
            else:
                held = _borrow(what, one.data, one.rows * one.cols, one.dtype)
                self._borrowed.append(held)
                dst.data = addressof(held)
        config.tensor_bytes = sizeof(_c.dlx_tensor)

    def _set_link(self, config: _c.dlx_sync_config, site: Optional[str],
                  coordinator: Optional[str], key: Any, roster: Any, hub: Optional[Hub],
                  listen: Optional[str], unencrypted: bool) -> None:
        site = from_environment(site, "DILOCOX_SITE")
        if site is None:
            raise ConfigError("site: no name; give site, or set DILOCOX_SITE")
        config.site = encoded("site", site)
        if listen is not None:
            config.link.listen_host, config.link.listen_port = listen_address("listen", listen)
        if hub is not None:
            if coordinator is not None:
                raise ConfigError("hub and coordinator exclude each other: give one of them")
            config.link.hub = check_hub(hub)._join()
            self._hub = hub
            return
        coordinator = from_environment(coordinator, "DILOCOX_COORDINATOR")
        if coordinator is None:
            raise ConfigError("coordinator: no address; give coordinator (or a hub), or set "
                              "DILOCOX_COORDINATOR, as 'python3 -m dilocox launch' does")
        set_link(config.link, coordinator, from_environment(key, "DILOCOX_KEY"),
                 from_environment(roster, "DILOCOX_ROSTER"), unencrypted,
                 ", or set DILOCOX_KEY and DILOCOX_ROSTER")

    def _open(self, config: _c.dlx_sync_config, state: Optional[Mapping[str, Part]],
              as_new: bool) -> None:
        out, given = byref(self._pointer), (byref(config), self._array, len(self._array))
        if state is None:
            self._call(lambda error: self._library.dlx_sync_open(out, *given, error),
                       self._wait_to_join)
        else:
            kept = state
            resume = self._library.dlx_sync_resume_as_new if as_new else \
                self._library.dlx_sync_resume
            restore = self._callbacks.with_status(
                _c.dlx_restore, lambda part: _restore(part.contents, kept))
            self._call(lambda error: resume(out, *given, restore, None, error),
                       self._wait_to_join)
        self._step.finished = self._library.dlx_sync_is_finished(self._pointer)
        self._step.round = self.statistics().rounds + 1
        self._tokens_target = self._library.dlx_sync_tokens_target(self._pointer)
        self._run_id = self._library.dlx_sync_run_id(self._pointer)

    # ---- what Handle asks for --------------------------------------------------------------------

    def _wait(self, error: Any) -> int:
        return self._library.dlx_sync_wait(self._pointer, None, error)

    def _wait_to_join(self, error: Any) -> int:
        if self._watch is not None and self._callbacks.raised is None:
            self._callbacks.run(self._watch)
        return self._wait(error)

    def _interrupt(self) -> None:
        with self._any_thread:
            if self._pointer:
                self._library.dlx_sync_interrupt(self._pointer)

    def _free(self, pointer: c_void_p) -> None:
        if self._pending:
            self._library.dlx_sync_interrupt(pointer)
        self._library.dlx_sync_close(byref(pointer))
        if self._hub is not None:
            self._hub._leave()

    def _refresh(self) -> None:
        if self._pointer:
            self._tokens = self._library.dlx_sync_tokens(self._pointer)
            self._site_index = self._library.dlx_sync_site_index(self._pointer)
            self._site_count = self._library.dlx_sync_site_count(self._pointer)

    def _abandon(self, until_s: float) -> None:
        if not self._closed and os.getpid() == self._process:
            try:
                if self._owes_report():
                    self._report(b"", until_s)
                else:
                    self.fail(None)
            except DilocoxError:
                pass  # the run's end is lost to this site
        super()._abandon(until_s)

    # ---- training --------------------------------------------------------------------------------

    def step(self, tokens: int) -> Step:
        """Call after every inner step, which trained on so many tokens (0 to 2^48; of the site, so
        all its ranks give the same). Parameters may be replaced. Blocks if the overlap waits, and
        with several ranks until all of them call it. After `finished` one more step raises."""
        step, count = self._step, integer("tokens", tokens, 0, COUNT_MAX)
        into, step.applied = byref(step), False
        try:
            self._call(lambda error: self._library.dlx_sync_step(self._pointer, count, into, error),
                       lambda error: self._library.dlx_sync_wait(self._pointer, into, error))
        except NumericError as why:
            names = [tensor.name for tensor, given in zip(self._tensors, self._array)
                     if given.data and not _is_finite(given)]
            if not names:
                raise
            more = ", …" if len(names) > 3 else ""
            raise NumericError(f"{why}; here it is {', '.join(names[:3])}{more}", why.status,
                               why.site, why.round) from None
        return Step(step.submitted, step.applied, step.finished, step.exchange_steps,
                    step.inner_steps, step.step_in_round, step.round, step.waited_s)

    @property
    def has_applied(self) -> bool:
        """Whether the last `step` replaced parameters, also if it raised."""
        return self._step.applied

    def gradients(self, pointers: Sequence[Union[int, Buffer]], tokens: int) -> float:
        """Overlap "allreduce" only, before the inner optimiser's step: replaces gradients, a buffer
        of f32 or an address per tensor, by their mean over all sites, weighted by tokens. Blocks
        until all sites call it; returns for how many seconds. If it raises, they are unchanged, but
        for an exception of a signal's handler: then their memory must stay until close."""
        addresses, held = self._addresses("gradients", pointers)
        count, waited_s = integer("tokens", tokens, 0, COUNT_MAX), c_double()
        step = _c.dlx_step(size=sizeof(_c.dlx_step))  # with the time, if the call waits on
        self._lent = self._lent, held  # a handler's exception may leave the call pending
        self._call(lambda error: self._library.dlx_sync_gradients(
                       self._pointer, addresses, count, byref(waited_s), error),
                   lambda error: self._library.dlx_sync_wait(self._pointer, byref(step), error))
        self._lent = ()
        return max(waited_s.value, step.waited_s)

    def windows(self, count: int) -> List[int]:
        """The next positions of this round's lease, on the global order of training windows;
        `window` turns one into a window. All ranks of a site take the same. Raises if the lease has
        fewer left, and takes none."""
        positions = (c_uint64 * integer("count", count, 0, 2**32 - 1))()
        self._call(lambda error: self._library.dlx_sync_windows(
            self._pointer, positions, len(positions), error))
        return list(positions)

    def window(self, position: int) -> int:
        """The window, 0 … windows − 1, at a position: in each epoch each window once, in an order
        that depends on seed and epoch. Any thread."""
        return self._library.dlx_window(integer("position", position, 0, 2**64 - 1),
                                        self._windows, self._seed)

    def pace(self, factor: float) -> None:
        """Rounds that begin from now on last factor times H steps, at least 0.01, at most pace_max.
        All sites give the same factor at the same tokens."""
        factor = real("factor", factor, 0, math.inf)
        self._call(lambda error: self._library.dlx_sync_pace(self._pointer, factor) or Status.OK)

    # ---- where the site stands -------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the run's tokens are committed; the parameters are the final anchor then."""
        self._check(closed=True)
        return self._step.finished

    @property
    def round(self) -> int:
        """The present one, from 1."""
        self._check(closed=True)
        return self._step.round

    @property
    def tokens(self) -> int:
        """What schedules should follow: the run's committed tokens, and what it has trained on
        since, by this site's."""
        self._check(closed=True)
        return self._tokens

    @property
    def tokens_target(self) -> int:
        """The coordinator's: the run ends there."""
        self._check(closed=True)
        return self._tokens_target

    @property
    def progress(self) -> float:
        """tokens / tokens_target, 0 to 1."""
        return min(1.0, self.tokens / self.tokens_target)

    @property
    def site_index(self) -> int:
        """0 … site_count − 1, by name, of the sites of the last round that was applied."""
        self._check(closed=True)
        return self._site_index

    @property
    def site_count(self) -> int:
        self._check(closed=True)
        return self._site_count

    @property
    def run_id(self) -> int:
        """A random number that all sites of the run have."""
        self._check(closed=True)
        return self._run_id

    def _statistics(self) -> Statistics:
        values = _c.dlx_statistics(size=sizeof(_c.dlx_statistics))
        self._library.dlx_sync_statistics(self._pointer, byref(values), None)
        return Statistics(*(getattr(values, name) for name in Statistics._fields))

    def _keep(self) -> None:
        if self._pointer:
            self._final = self._statistics()

    def statistics(self) -> Statistics:
        """Of this rank, since it was opened. Any thread; after close, too."""
        with self._any_thread:
            self._check(closed=self._final is not None)
            return self._final or self._statistics()

    # ---- anchor, state ---------------------------------------------------------------------------

    def _addresses(self, what: str, given: Sequence[Union[int, Buffer]]) -> Tuple[Any, List[Any]]:
        """An array of addresses of f32, one per tensor, and what keeps them valid."""
        if len(given) != len(self._tensors):
            raise ConfigError(f"{what}: {len(given)} buffers for {len(self._tensors)} tensors")
        held = [one if isinstance(one, int) else
                _borrow(f"{what} of tensor {tensor.name}", one, tensor.rows * tensor.cols)
                for one, tensor in zip(given, self._tensors)]
        addresses = [one if isinstance(one, int) else addressof(one) for one in held]
        return (c_void_p * len(held))(*addresses), held

    def anchor(self, dst: Sequence[Union[int, Buffer]]) -> None:
        """dst[i], a buffer of f32 or an address ← tensor i of the anchor: the parameters that all
        sites have in common. With "allreduce" they are this site's. Works after a failure too."""
        addresses, held = self._addresses("dst", dst)
        self._call(lambda error: self._library.dlx_sync_anchor(self._pointer, addresses, error))

    def take_anchor(self) -> int:
        """Parameters ← anchor, without the progress since: for saving a run that ended early.
        Returns the rounds that are committed in it. Works after a failure too."""
        rounds = c_uint64()
        self._call(lambda error: self._library.dlx_sync_take_anchor(
            self._pointer, byref(rounds), error))
        return rounds.value

    def anchor_hashes(self) -> List[int]:
        """A hash of each tensor's anchor: the same on all sites. Works after a failure too."""
        hashes = (c_uint64 * len(self._tensors))()
        self._call(lambda error: self._library.dlx_sync_anchor_hashes(
            self._pointer, hashes, error))
        return list(hashes)

    def state_parts(self) -> List[Part]:
        """All that this site needs to go on from where it stands, but for the caller's own
        (parameters, the inner optimiser's state); `state` takes it. DilocoxError: with
        Status.AGAIN, an exchange is under way: call after a later step; with Status.STATE, the run
        is finished."""
        parts, count = POINTER(_c.dlx_part)(), c_size_t()
        found: List[Part] = []

        def save(error: Any) -> int:
            status = self._library.dlx_sync_save(self._pointer, _c.dlx_hold(0), None, byref(parts),
                                                 byref(count), error)
            if status == Status.OK:  # the memory is the library's until its next call
                found.extend(_part(parts[i]) for i in range(count.value))
            return status
        self._call(save, waits=False)
        return found

    # ---- the end ---------------------------------------------------------------------------------

    def _owes_report(self) -> bool:
        """Whether others wait for it: it is finished, and well."""
        with self._any_thread:
            return bool(self._pointer and self._step.finished and not self._reported and
                        self._library.dlx_sync_failure(self._pointer, None) == Status.OK)

    def _report(self, text: bytes, until_s: float = math.inf) -> None:
        self._call(lambda error: self._library.dlx_sync_report(self._pointer, text, error),
                   until_s=until_s)
        self._reported = True

    def report(self, text: str) -> None:
        """After `finished`: tells the coordinator that this site is through, with a report of at
        most 65535 bytes, and blocks until all sites are. Once, on every rank; the text of rank 0 is
        the site's. `close` does it with "" if it was not called."""
        self._report(encoded("text", text))

    def interrupt(self) -> None:
        """Makes calls raise DilocoxError with Status.INTERRUPTED, now and later; one that waits
        does so within 0.1 s. Any thread, callbacks, and handlers of signals; after close it does
        nothing."""
        if os.getpid() == self._process:
            self._interrupt()

    def fail(self, reason: Optional[str]) -> None:
        """The run has failed here: the next step raises PeerLostError with this reason, which
        `close` gives to the other sites, cut to 400 bytes. The first failure counts. Any thread;
        after close it does nothing."""
        with self._any_thread:
            if self._pointer and os.getpid() == self._process:
                self._library.dlx_sync_fail(
                    self._pointer, None if reason is None else encoded("reason", reason))

    def close(self) -> None:
        """Leaves the run: for the others it fails, unless it is finished. Blocks, if it is finished
        and well, until all sites have reported, and up to 2 s for the last messages to leave this
        machine."""
        if self._closed or os.getpid() != self._process:
            return
        try:
            if self._owes_report():
                self._report(b"")
        except DilocoxError as why:
            logger.info("%s", why)
        finally:
            self._end(apart=True)

    def __enter__(self) -> "Sync":
        return self

    def __exit__(self, kind: Any, raised: Any, _: object) -> None:
        if kind is not None:
            self.fail(f"{kind.__name__}: {raised}".replace("\0", "").rstrip(": "))
        self.close()


def _is_finite(tensor: _c.dlx_tensor) -> bool:
    """By the bytes with the exponents' upper bits, of which few values have the largest."""
    value_bytes = 4 if tensor.dtype == _c.Dtype.F32 else 2
    last = value_bytes - 1 if sys.byteorder == "little" else 0
    exponent = 0x7C00 if tensor.dtype == _c.Dtype.F16 else 0x7F80
    large = [byte for byte in range(256) if byte & (exponent >> 8) == exponent >> 8]
    end = tensor.data + tensor.rows * tensor.cols * value_bytes
    for first in range(tensor.data, end, _LOOKED_AT):
        raw = string_at(first, min(_LOOKED_AT, end - first))
        upper = raw[last::value_bytes]
        if not any(byte in upper for byte in large):
            continue
        values = memoryview(raw).cast("f" if value_bytes == 4 else "H")
        if not (all(map(math.isfinite, values)) if value_bytes == 4 else
                all(bits & exponent != exponent for bits in values)):
            return False
    return True


def _shared_text(shared: Mapping[str, str]) -> Optional[bytes]:
    if not isinstance(shared, Mapping):
        raise ConfigError(f"shared: give a dict of texts, not {type(shared).__name__}")
    for key, value in shared.items():
        if "\n" in f"{key}{value}" or ":" in key:
            raise ConfigError(f"shared: {key!r} or its value has a line's end, or the key a colon")
    lines = "".join(f"{key}: {value}\n" for key, value in shared.items())
    return encoded("shared", lines) if shared else None


def _part(part: _c.dlx_part) -> Part:
    values = part.rows * part.cols
    return Part(part.name.decode(), part.kind, part.rows, part.cols,
                string_at(part.data, values * _PART_BYTES[part.kind]))


def _restore(dst: _c.dlx_part, state: Mapping[str, Part]) -> None:
    name = dst.name.decode()
    if name not in state:
        raise ConfigError(f"state: it has no part '{name}'")
    part = Part(*state[name])
    if (part.kind, part.rows, part.cols) != (dst.kind, dst.rows, dst.cols):
        raise ConfigError(f"state: part '{name}' is {part.rows} × {part.cols} of kind {part.kind}, "
                          f"not {dst.rows} × {dst.cols} of kind {dst.kind}")
    size = dst.rows * dst.cols * _PART_BYTES[dst.kind]
    if len(part.data) != size:
        raise ConfigError(f"state: part '{name}' has {len(part.data)} bytes, not {size}")
    memmove(dst.data, bytes(part.data), size)
