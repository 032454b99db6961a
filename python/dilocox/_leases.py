# SPDX-License-Identifier: Apache-2.0
"""LeaseSampler: this site's share of a run's data, as indices; and which of those that a loader has
taken no step has trained on yet."""
from __future__ import annotations

import collections
import itertools
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Optional

from torch.utils.data import Sampler

from . import ConfigError, DilocoxError, Status, Sync, _c
from ._options import integer, whole

if TYPE_CHECKING:
    from .torch import DiLoCo

WORKERS_AHEAD = 16  # batches in each lease for loaders that take ahead, if nothing is said
AHEAD_MAX = 1000000  # the library's

# the library's, and what LeaseSampler knows: indices that it gave out, and how many of them no step
# has trained on yet
Statistics = collections.namedtuple(  # type: ignore[misc]
    "Statistics", (*_c.Statistics._fields, "windows_taken", "windows_untrained"))


class Leases:
    """Of one rank. All ranks of the site take the same positions, each its own of them.

    Steps are taken to train on positions in the order in which they were drawn. A run that goes on
    gives out again what was drawn before the last step and not trained on, for the library counts
    it as done; what was drawn since, the library gives again by itself."""

    def __init__(self, data: Any, batch: Any, ahead: Optional[int], rank: int, ranks: int,
                 state: Optional[Mapping[str, Any]]) -> None:
        if batch % ranks != 0:
            raise ConfigError(f"batch_size: {batch} must be a multiple of the site's {ranks} ranks")
        if ahead is None:
            ahead = min(WORKERS_AHEAD * batch, AHEAD_MAX)
        whole("windows_ahead", ahead, 0)
        self.batch, self.ahead, self.rank, self.ranks = batch, ahead, rank, ranks
        self.keywords = dict(windows=len(data), windows_per_step=batch, windows_ahead=ahead,
                             tokens_per_window=getattr(data, "tokens_per_window", 1),
                             data_hash=getattr(data, "data_hash", 0))
        self.taken = self.steps = self.passed = 0  # passed: steps, and those that were skipped
        self.untrained: "collections.deque[int]" = collections.deque()
        self.since = 0  # of them, drawn since the last step
        saved = [] if state is None else state.get("windows", [])
        try:
            self.again = collections.deque(integer("state", p, 0, 2 ** 64 - 1) for p in saved)
        except TypeError:
            raise ConfigError("state: its windows are no list") from None
        if len(self.again) % ranks != 0:
            raise ConfigError(f"state: its {len(self.again)} windows are not those of {ranks} "
                              "ranks")

    def take(self, sync: Sync) -> int:
        """The next index of this rank."""
        if self.again:
            positions = [self.again.popleft() for _ in range(self.ranks)]
        else:
            try:
                positions = sync.windows(self.ranks)
            except DilocoxError as error:
                if error.status != Status.STATE or not str(error).startswith("the lease of round"):
                    raise
                raise DilocoxError(
                    f"{error}; a loader has taken more ahead than windows_ahead={self.ahead} "
                    "allows: give num_workers x prefetch_factor x batch_size, of all ranks "
                    "together", error.status) from error
            self.since += self.ranks
        self.taken += self.ranks
        self.untrained.extend(positions)
        return sync.window(positions[self.rank])

    def check(self) -> None:
        """Ahead of a step, whose batch may be another than was said."""
        if self.taken == 0:
            raise ConfigError("data: this step trained on no index that was leased; give the "
                              "loader sampler=LeaseSampler(sync)")
        left, steps = len(self.untrained), self.passed + 1
        most = max(self.ahead, WORKERS_AHEAD * self.batch) + self.batch * (1 + steps // 2)
        if self.taken < steps * self.batch or left > most:
            raise ConfigError(
                f"batch_size: {self.batch}, and {self.taken} indices were drawn for "
                f"{steps} steps; give the items of one step, of all ranks and "
                "micro-batches together, and draw no smaller batch at the end of a pass")

    def stepped(self, skipped: bool) -> None:
        """Behind a step; one that was skipped used its batch, and nothing was trained on it."""
        for _ in range(min(self.batch, len(self.untrained))):
            self.untrained.popleft()
        self.passed += 1
        if not skipped:
            self.steps += 1
            self.since = 0

    def dropped(self) -> None:
        """A pass begins: nobody trains any more on what an earlier one left."""
        self.untrained.clear()
        self.since = 0

    def saved(self) -> list:
        """Positions that a run that goes on gives out first."""
        known = max(len(self.untrained) - self.since, 0)
        return [*itertools.islice(self.untrained, known), *self.again]

    @property
    def untrained_count(self) -> int:
        return max(self.taken - self.steps * self.batch, 0)


class LeaseSampler(Sampler):
    """The indices of this site's leases, for a DataLoader: of all indices that the sites of a run
    draw each one comes once per epoch of the run. On several ranks each gets its share; their
    loaders must be alike.

    sync: an open DiLoCo with data and batch_size. epoch_size: indices per pass, on each rank;
    None: until the run is finished. Workers are handed indices ahead: `windows_ahead` has to cover
    them, and the loop leaves on sync.finished. Iterate in the thread that steps. What a pass drew
    and no step trained on when the next one begins is not given again."""

    def __init__(self, sync: DiLoCo, *, epoch_size: Optional[int] = None) -> None:
        if not isinstance(getattr(sync, "_leases", None), Leases):
            raise ConfigError("LeaseSampler: give a DiLoCo that was opened with data and "
                              "batch_size")
        if epoch_size is not None:
            whole("epoch_size", epoch_size, 1)
        self.sync, self.epoch_size = sync, epoch_size

    def __iter__(self) -> Iterator[int]:
        given = 0
        leases: Any = self.sync._leases
        leases.dropped()
        while given != self.epoch_size and not self.sync.finished:
            yield leases.take(self.sync._sync)
            given += 1

    def __len__(self) -> int:
        if self.epoch_size is None:
            raise TypeError("a LeaseSampler without epoch_size ends with the run, and has no "
                            "length")
        return self.epoch_size
