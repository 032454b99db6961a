# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a model a run synchronises, under which names, and how their values are read and
written, whatever their layout, dtype and device."""
from __future__ import annotations

import collections
import ctypes
import hashlib

import torch
from torch import nn

from . import ConfigError, Part, PartKind

# dtypes that the library has; f64 passes through f32
DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16",
          torch.float64: "f32"}
# of names: DDP's, torch.compile's, FSDP 1's, activation checkpointing's
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
PIECE = 1 << 20  # values that are looked at together
DEVICE_PIECE = 1 << 16  # on a device, where looking takes memory


def _optional(load):
    """What this torch lacks, or can't import, is None."""
    try:
        return load()
    except Exception:  # Debian's 1.13 raises ValueError under Python 3.11
        return None


def _load_dtensor():
    from torch.distributed.tensor import DTensor
    return DTensor


def _load_fsdp():
    from torch.distributed.fsdp import FullyShardedDataParallel
    return FullyShardedDataParallel


DTensor = _optional(_load_dtensor)
FSDP = _optional(_load_fsdp)


class Value:
    """One tensor of the run. `given` is the caller's; `part` says that it is a rank's rows of a
    larger one. Its values must stay where they are while the run is open; those of a buffer are
    looked up anew at each use, since modules may replace them."""

    __slots__ = ("name", "given", "module", "attribute", "statistics", "part", "plain", "kept",
                 "shape", "address", "memory", "touch", "owner")

    def __init__(self, name, given, module=None, attribute=None, statistics=False, part=False):
        self.name, self.given, self.module, self.attribute = name, given, module, attribute
        self.statistics, self.part, self.plain, self.owner = statistics, part, False, 0
        self.kept = local(given)  # keeps the storage alive, even if the parameter leaves it
        self.shape = tuple(self.kept.shape)
        self.address = self.kept.data_ptr()
        direct = (not statistics and self.kept.device.type == "cpu" and self.kept.is_contiguous()
                  and self.kept.dtype != torch.float64)
        self.memory = self.address if direct else None
        # written as nothing, it raises the version that autograd compares
        self.touch = self.kept.view(-1)[:0] if direct else None

    @property
    def rows(self):
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def cols(self):
        return self.kept.numel() // self.rows

    def now(self):
        """Where the values are at present."""
        if not self.statistics or self.module is None:
            return self.kept
        value = local(getattr(self.module, self.attribute))
        if tuple(value.shape) != self.shape:
            raise ConfigError(f"buffer '{self.name}' has the shape {show(value.shape)} now, and "
                              f"{show(self.shape)} when the run was joined; keep its shape")
        return value

    def is_finite(self):
        tensor = self.now()
        most = PIECE if tensor.device.type == "cpu" else DEVICE_PIECE
        return all(bool(torch.isfinite(view).all()) for first in range(0, tensor.numel(), most)
                   for view, _ in pieces(tensor, first, min(most, tensor.numel() - first)))

    def check_stays(self):
        """Raises if the model holds another tensor, or other memory, than at open."""
        replaced = (self.module is not None and not self.statistics
                    and getattr(self.module, self.attribute) is not self.given)
        if replaced or not self.statistics and local(self.given).data_ptr() != self.address:
            raise ConfigError(
                f"parameter '{self.name}' {'was replaced' if replaced else 'has moved'} since the "
                "run was joined; call .to(), load weights and set .data before DiLoCo is opened")


def show(shape):
    return " x ".join(str(n) for n in shape) if len(shape) > 0 else "scalar"


def is_dtensor(tensor):
    return DTensor is not None and isinstance(tensor, DTensor)


def local(tensor):
    """This rank's values, outside autograd."""
    if is_dtensor(tensor):
        with torch.no_grad():
            tensor = tensor.to_local()
    return tensor.detach()


def pieces(tensor, first, count):
    """(view, offset) of elements first … first + count − 1 in order of index: few views, each of
    the elements at offset … of the range."""
    if count == 0:
        return
    if first == 0 and count == tensor.numel():
        yield tensor, 0
    elif tensor.is_contiguous():
        yield tensor.view(-1)[first:first + count], 0
    elif tensor.dim() == 1:
        yield tensor[first:first + count], 0
    else:
        inner, done = tensor[0].numel(), 0
        row, at = divmod(first, inner)
        if at > 0:  # the end of a row
            n = min(inner - at, count)
            yield from pieces(tensor[row], at, n)
            row, done = row + 1, n
        whole = (count - done) // inner
        if whole > 0:
            yield tensor[row:row + whole], done
            row, done = row + whole, done + whole * inner
        for view, offset in pieces(tensor[row], 0, count - done) if done < count else ():
            yield view, done + offset


def read(flat, tensor, first):
    """flat[count] ← elements of tensor from `first` on."""
    for view, offset in pieces(tensor, first, flat.numel()):
        flat[offset:offset + view.numel()].view(view.shape).copy_(view)


def write(tensor, first, flat):
    """The way back. Call it under no_grad; versions of autograd go up."""
    for view, offset in pieces(tensor, first, flat.numel()):
        view.copy_(flat[offset:offset + view.numel()].view(view.shape))


def at_address(address, count):
    """f32 [count] of the library's memory, for the time of a callback."""
    memory = (ctypes.c_float * count).from_address(address)
    return torch.frombuffer(memory, dtype=torch.float32)


def bytes_of(tensor):
    """Of a contiguous tensor on the host."""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def hash_of(tensors):
    """16 hexadecimal digits of the tensors' bytes, read some at a time."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        for first in range(0, tensor.numel(), PIECE):
            n = min(PIECE, tensor.numel() - first)
            for view, _ in pieces(tensor, first, n):
                digest.update(bytes_of(view.cpu().contiguous()))
    return digest.hexdigest()


_PART_DTYPES = {PartKind.F32: torch.float32, PartKind.I32: torch.int32, PartKind.I64: torch.int64,
                PartKind.U8: torch.uint8}


def of_part(part):
    """A part of the saved state as a tensor of its own."""
    dtype = _PART_DTYPES[part.kind]
    if not part.data:
        return torch.empty((part.rows, part.cols), dtype=dtype)
    return torch.frombuffer(bytearray(part.data), dtype=dtype).view(part.rows, part.cols)


def part_of(name, tensor):
    """The way back. StopIteration: no part has this dtype."""
    tensor = tensor.detach().cpu().contiguous()
    kind = next(k for k, dtype in _PART_DTYPES.items() if dtype == tensor.dtype)
    rows, cols = tensor.shape
    return Part(name, kind, rows, cols, bytes_of(tensor))


# ---- what a model has ----------------------------------------------------------------------------

def _check_known(what, tensor):
    """Raises for what has no values here, or none that public functions give."""
    if isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
        raise ConfigError(f"{what} has no shape yet; call the model once before DiLoCo is opened")
    if DTensor is None and hasattr(tensor, "to_local"):
        raise ConfigError(f"{what} is a {type(tensor).__name__}, for which torch "
                          f"{torch.__version__} has no public type; take torch 2.5 or later")


def _check_kind(what, tensor):
    """Raises for values that the run could not read."""
    _check_known(what, tensor)
    if tensor.is_meta:
        problem = "is on the meta device, without values; materialise the model"
    elif tensor.layout != torch.strided:
        problem = f"has the layout {tensor.layout}; only dense tensors can be synchronised"
    elif tensor.is_quantized:
        problem = "is quantised; give the floating-point parameters that are trained"
    elif tensor.dtype not in DTYPES:
        problem = f"has the dtype {tensor.dtype}; allowed: float32, bfloat16, float16, float64"
    elif any(n > 1 and stride == 0 for n, stride in zip(tensor.shape, tensor.stride())):
        problem = "has values that are one in memory, as expand() makes them; give it a clone()"
    else:
        return
    raise ConfigError(f"{what} {problem}")


def _clean(names):
    """Names without wrappers; whole ones where that would make two alike."""
    short = [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names]
    count = collections.Counter(short)
    return [s if s and count[s] == 1 else name for s, name in zip(short, names)]


def _owners(model, kind):
    """name → (module, attribute) of parameters or buffers."""
    found = {}
    for prefix, module in model.named_modules():
        for attribute, _ in getattr(module, "named_" + kind)(recurse=False):
            found[f"{prefix}.{attribute}" if prefix else attribute] = (module, attribute)
    return found


def _is_part(name, tensor, flat):
    if is_dtensor(tensor):
        sharded = [p for p in tensor.placements if not p.is_replicate()]
        if len(tensor.placements) != 1 or sharded and not sharded[0].is_shard(dim=0):
            raise ConfigError(f"parameter '{name}' is placed as {tensor.placements}; a site's "
                              "ranks may hold copies, or be sharded by rows (FSDP 2) on a mesh of "
                              "one dimension")
        return bool(sharded)
    return flat or name.endswith("]") and "[rows " in name


def _of_model(model, say):
    """(trained, frozen, buffers) of a module."""
    flat = FSDP is not None and any(isinstance(m, FSDP) for m in model.modules())
    if flat:
        say("FSDP 1 has flat parameters: they are exchanged as vectors, never low rank")
    named = list(model.named_parameters())
    owners = _owners(model, "parameters")
    trained, frozen, buffers = [], [], []
    for name, (raw, tensor) in zip(_clean([n for n, _ in named]), named):
        if not tensor.requires_grad:
            _check_known(f"parameter '{name}'", tensor)
            if not tensor.is_meta and tensor.layout == torch.strided and not tensor.is_quantized:
                frozen.append((name, local(tensor)))
            continue
        _check_kind(f"parameter '{name}'", tensor)
        trained.append(Value(name, tensor, *owners[raw], part=_is_part(name, tensor, flat)))
    named = [(name, b) for name, b in model.named_buffers() if b.is_floating_point()]
    owners = _owners(model, "buffers")
    # what is not saved is no result of training; FSDP 1 would gather the whole model for the list
    saved = set(_clean(list(model.state_dict(keep_vars=True)))) if named and not flat else None
    for name, (raw, tensor) in zip(_clean([n for n, _ in named]), named):
        if saved is not None and name not in saved:
            continue
        _check_kind(f"buffer '{name}'", tensor)
        buffers.append(Value(name, tensor, *owners[raw], statistics=True))
    return trained, frozen, buffers


def _of_pairs(pairs):
    trained = []
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
                and isinstance(pair[1], torch.Tensor)):
            raise ConfigError("model: give a torch.nn.Module, or pairs of a name and a tensor, not "
                              f"{type(pair).__name__}")
        name, tensor = pair
        _check_kind(f"tensor '{name}'", tensor)
        trained.append(Value(name, tensor, part=_is_part(name, tensor, False)))
    return trained


def _without_ties(trained):
    """One of those that are the same values; raises for those that overlap in another way."""
    kept, seen = [], {}
    for value in trained:
        if value.kept.numel() == 0:
            continue
        place = (value.kept.device, value.address)
        other = seen.setdefault(place, value)
        if other is value:
            kept.append(value)
        elif (value.shape, value.kept.stride(), value.kept.dtype) != (
                other.shape, other.kept.stride(), other.kept.dtype):
            raise ConfigError(f"parameters '{other.name}' and '{value.name}' share memory, but not "
                              "shape and layout; tie them as one parameter")
    flat = sorted((v for v in kept if v.kept.is_contiguous()),
                  key=lambda v: (str(v.kept.device), v.address))
    for a, b in zip(flat, flat[1:]):
        end = a.address + a.kept.numel() * a.kept.element_size()
        if a.kept.device == b.kept.device and end > b.address:
            raise ConfigError(f"parameters '{a.name}' and '{b.name}' overlap in memory")
    return kept


def collect(model, average_buffers, plain, say):
    """(values, frozen) of a model or of pairs: what is exchanged, and what must only be equal."""
    frozen, buffers = [], []
    if isinstance(model, nn.Module):
        trained, frozen, buffers = _of_model(model, say)
    else:
        try:
            trained = _of_pairs(model)
        except TypeError:
            raise ConfigError("model: give a torch.nn.Module, or pairs of a name and a tensor, not "
                              f"{type(model).__name__}") from None
    trained = _without_ties(trained)
    if not trained:
        raise ConfigError("the model has no trainable parameter: set requires_grad on some")
    for value in trained:
        if not value.is_finite():
            raise ConfigError(f"parameter '{value.name}' has values that are not finite")
        value.plain = plain is not None and bool(plain(value.name, value.given))
    if not average_buffers:
        buffers = []
    infinite = [b.name for b in buffers if b.kept.numel() > 0 and not b.is_finite()]
    if infinite:
        say(f"buffers with values that are not finite stay local: {some(infinite)}")
    buffers = [b for b in buffers if b.kept.numel() > 0 and b.name not in infinite]
    wide = [v.name for v in trained + buffers if v.kept.dtype == torch.float64]
    if wide:
        say(f"float64 passes through float32 in each exchange: {some(wide)}")
    names = collections.Counter(v.name for v in trained + buffers)
    double = next((name for name, count in names.items() if count > 1), None)
    if double is not None:
        raise ConfigError(f"two tensors are called '{double}'; give each a name of its own")
    return trained + buffers, frozen


def some(names, most=5):
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def lines_of(values, frozen):
    """What all sites must have alike of the tensors of this rank, by keys."""
    lines = {f"tensor {key(v.name)}": show(v.shape) + (" statistics" if v.statistics else "")
             for v in values}
    lines.update({f"frozen {key(name)}": f"{show(t.shape)} {t.dtype} hash {hash_of([t])}"
                  for name, t in frozen})
    return lines


def describe(tables, most_bytes=48000):
    """The lines of all ranks as settings: one per tensor while they fit, else a hash."""
    found = {}
    for table in tables:
        for name, line in table.items():
            found.setdefault(name, {})[line] = True
    lines = {name: ", ".join(ranks) for name, ranks in found.items()}
    text = "".join(f"{k}: {v}\n" for k, v in lines.items())
    if len(text.encode()) <= most_bytes:
        return lines
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    frozen = sum(name.startswith("frozen ") for name in lines)
    return {"tensors": f"{len(lines) - frozen}, frozen {frozen}, hash of names and values {digest}"}


def key(name):
    """Of a setting, which can't have colons and ends of lines; another one for each name."""
    return name.replace("%", "%25").replace(":", "%3A").replace("\n", "%0A")
