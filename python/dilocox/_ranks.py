# SPDX-License-Identifier: Apache-2.0
"""The ranks of one site, as torch.distributed has them: which rank owns which tensor, and the way
of values from owners to the others. They use a gloo group of their own, never the one of the
training."""
from __future__ import annotations

import ctypes
import datetime
import json
import time

import torch
import torch.distributed as dist

from . import ConfigError, PeerLostError
from ._tensors import read, show, write
from ._wires import PATIENCE_S, Wires

BOUNCE = 1 << 20  # values that are shared at a time
POLL_MAX_S = 0.005  # between looks at a collective call, in which Ctrl-C would wait


def find(process_group):
    """The ranks of the site, or None if it is one process."""
    if process_group is None and not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if process_group is None else process_group
    try:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError("process_group: give a group of torch.distributed, after "
                          f"init_process_group, not {type(process_group).__name__}") from error
    if rank < 0:
        raise ConfigError("process_group: this process is not in it; open DiLoCo in the processes "
                          "of the group alone")
    return Ranks(group) if size > 1 else None


class Ranks:
    group = None  # for values, and for messages until there are wires
    busy = None  # a collective call that was left

    def __init__(self, group):
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.numbers = dist.get_process_group_ranks(group)  # in the world
        timeout = datetime.timedelta(seconds=PATIENCE_S)
        whole = len(self.numbers) == dist.get_world_size()
        try:
            self.group = dist.new_group(None if whole else self.numbers, backend="gloo",
                                        timeout=timeout,
                                        **({} if whole else {"use_local_synchronization": True}))
        except TypeError:  # before torch 2.1 all processes of the world would have to take part
            raise ConfigError("process_group: this torch can't make a group of part of the world "
                              "without the others; give each site a torch.distributed of its "
                              "own") from None
        try:
            self.wires = Wires(self.rank, self.size, self._spread)
        except BaseException:
            self.close()
            raise

    def close(self):
        """A group that is still at work would wait for the others in its end, that of the program
        too: it is kept for ever."""
        if hasattr(self, "wires"):
            self.wires.close()
        group, self.group = self.group, None
        if group is None or not dist.is_initialized():
            return
        if self.busy is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
            return
        try:
            dist.destroy_process_group(group)
        except (AssertionError, KeyError, RuntimeError, ValueError):
            pass  # the caller has ended all groups before, and begun anew

    # ---- messages

    def _finish(self, work):
        """Waits for a collective call; signals are seen meanwhile."""
        self.busy, pause_s = work, 0.00002
        while not work.is_completed():
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_MAX_S)
        self.busy = None
        work.wait()

    def _spread(self, own):
        """bytes of all ranks, by the group itself."""
        mine = torch.tensor([len(own)])
        lengths = [torch.zeros_like(mine) for _ in range(self.size)]
        self._finish(dist.all_gather(lengths, mine, group=self.group, async_op=True))
        most = max(int(n) for n in lengths)
        mine = torch.tensor(list(own.ljust(most + 1)), dtype=torch.uint8)
        parts = [torch.zeros_like(mine) for _ in range(self.size)]
        self._finish(dist.all_gather(parts, mine, group=self.group, async_op=True))
        return [bytes(part.tolist())[:int(n)] for part, n in zip(parts, lengths)]

    def gather(self, own):
        """bytes of all ranks, joined in their order. Blocks; PeerLostError: a rank has ended."""
        return b"".join(self.wires.exchange(own))

    def gather_json(self, own):
        """A value of each rank."""
        return [json.loads(part) for part in self.wires.exchange(json.dumps(own).encode())]

    def together(self, error):
        """Raises on all ranks if one has an error: a text, or None."""
        for r, text in enumerate(self.gather_json(error)):
            if text is not None:
                raise ConfigError(f"rank {r}: {text}")

    # ---- tensors

    def divide(self, values):
        """Sets the owner of each tensor and names what is a rank's part of a larger one. Returns
        the ids of all of them, for those that this rank owns or has."""
        tables = self.gather_json([[v.name, list(v.shape), v.part] for v in values])
        shapes = [{name: (shape, part) for name, shape, part in table} for table in tables]
        order = list(dict.fromkeys(row[0] for table in tables for row in table))
        load, owners = [0] * self.size, {}
        for name in sorted(order, key=lambda n: -_size(shapes, n)):
            of = [s.get(name) for s in shapes]
            if any(entry is not None and entry[1] for entry in of):
                for r in range(self.size):
                    load[r] += _count(of[r][0]) if of[r] is not None else 0
                continue
            different = next((r for r in range(self.size) if of[r] != of[0]), None)
            if different is not None:
                a, b = ("no such tensor" if e is None else show(e[0]) for e in
                        (of[0], of[different]))
                raise ConfigError(f"tensor '{name}': {a} on rank 0, {b} on rank {different}; ranks "
                                  "hold copies of one model, or parts that are called 'name[rows "
                                  "a:b]'")
            owners[name] = load.index(min(load))
            load[owners[name]] += _count(of[0][0])
        ids = {name: i * self.size for i, name in enumerate(order)}
        result = []
        for value in values:
            value.owner = owners.get(value.name, self.rank)
            result.append(ids[value.name] + (self.rank if value.part else 0))
            if value.part and "[rows " not in value.name:
                first = sum(s[value.name][0][0] for s in shapes[:self.rank] if value.name in s)
                value.name += f"[rows {first}:{first + value.shape[0]}]"
        return result

    def share(self, values, tensor_of):
        """Of replicated tensors: tensor_of(value) ← its owner's, on all ranks. Blocks."""
        for owner, dtype, batch in _batches([v for v in values if not v.part], tensor_of):
            flat = torch.empty(sum(n for _, _, n in batch), dtype=dtype)
            at = 0
            for tensor, first, n in batch if owner == self.rank else ():
                read(flat[at:at + n], tensor, first)
                at += n
            try:
                self._finish(dist.broadcast(flat, self.numbers[owner], group=self.group,
                                            async_op=True))
            except RuntimeError as error:
                raise PeerLostError("a rank of this site has ended, while values of rank "
                                    f"{owner} were shared") from error
            for tensor, first, n in batch if owner != self.rank else ():
                write(tensor, first, flat[at:at + n])
                at += n


def _count(shape):
    count = 1
    for n in shape:
        count *= n
    return count


def _size(shapes, name):
    return next(_count(s[name][0]) for s in shapes if name in s)


def _batches(values, tensor_of):
    """(owner, dtype, [(tensor, first, count)]) of at most BOUNCE values each."""
    batch, room, last = [], BOUNCE, None
    for value in sorted(values, key=lambda v: v.owner):
        tensor = tensor_of(value)
        wide = tensor.dtype == torch.float64  # gloo has no bfloat16
        kind, first = (value.owner, torch.float64 if wide else torch.float32), 0
        while first < tensor.numel():
            if batch and (kind != last or room == 0):
                yield (*last, batch)
                batch, room = [], BOUNCE
            n = min(room, tensor.numel() - first)
            batch.append((tensor, first, n))
            first, room, last = first + n, room - n, kind
    if batch:
        yield (*last, batch)
