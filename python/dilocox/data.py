# SPDX-License-Identifier: Apache-2.0
"""TokenFile: a .tokens file, as `dilocox tokenize` writes it, as a dataset of training windows."""
from __future__ import annotations

import mmap
import os
import struct

import torch

from . import ConfigError, DilocoxError
from ._c import Status

_HEADER = struct.Struct("<8s4I3Q32s")  # docs/formats.md, up to the reserved bytes
_HEADER_BYTES = 128
_CHECKED = 1 << 20  # ids that are looked at together
_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class TokenFile:
    """A map-style dataset: item w, 0 … len − 1, is (tokens, targets), int64 of [context] each,
    with targets[i] = tokens[i + 1]. Windows are those of `dilocox train`: its order of them comes
    from LeaseSampler.

    path: of the file, which is mapped, not read into memory. context: tokens per window, 1 or
    more. Checks the header's ranges and the file's size, and that each id is in the vocabulary;
    not the checksums, which `dilocox train` does. Can be used by DataLoader's workers, forked or
    spawned. ConfigError: context; DilocoxError: no token file, or a damaged one.

    context, tokens_per_window: as given. tokens: ids in the file. vocabulary: each id is less.
    data_hash: of the ids, by which sites compare their data. tokenizer, tokenizer_hash: the
    tokenizer's name, and of what determines its ids."""

    def __init__(self, path, context):
        if isinstance(context, bool) or not isinstance(context, int) or context < 1:
            raise ConfigError(f"context: {context!r} must be a whole number, at least 1")
        self.path = os.fspath(path)
        self.context = self.tokens_per_window = context
        self._open()
        for first in range(0, self.tokens, _CHECKED):
            ids = self._read(first, min(_CHECKED, self.tokens - first))
            if int(ids.max()) >= self.vocabulary:
                raise self._damaged(f"an id is not below the vocabulary, {self.vocabulary}")
        if len(self) < 1:
            raise ConfigError(f"'{self.path}' has {self.tokens} tokens; a context of {context} "
                              f"needs at least {context + 1}: use a longer text")

    def _damaged(self, why):
        return DilocoxError(f"'{self.path}' is no token file, or damaged: {why}; make it anew "
                            "with 'dilocox tokenize'", Status.DATA)

    def _open(self):
        try:
            with open(self.path, "rb") as file:
                # a private mapping that could be written, as torch.frombuffer asks for
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except ValueError:
            raise self._damaged("it is empty") from None
        except OSError as error:
            raise DilocoxError(f"'{self.path}': {error.strerror}; make token files with 'dilocox "
                               "tokenize'", Status.DATA) from None
        if len(self._map) < _HEADER_BYTES:
            raise self._damaged(f"it has {len(self._map)} bytes")
        (magic, version, header, self._width, self.vocabulary, self.tokens, self.tokenizer_hash,
         self.data_hash, name) = _HEADER.unpack_from(self._map)
        if magic != b"DLXTOKEN" or version != 1 or header != _HEADER_BYTES:
            raise self._damaged("its header is another one")
        if (self._width not in _DTYPES or not 1 <= self.vocabulary <= 256 ** self._width
                or self.tokens < 1):
            raise self._damaged(f"{self.tokens} ids of {self._width} bytes below "
                                f"{self.vocabulary}")
        if len(self._map) != _HEADER_BYTES + self.tokens * self._width:
            raise self._damaged(f"{len(self._map)} bytes instead of "
                                f"{_HEADER_BYTES + self.tokens * self._width}")
        self.tokenizer = name.rstrip(b"\0").decode("utf-8", "replace")

    def __getstate__(self):  # for workers that are spawned: they map it themselves
        return {"path": self.path, "context": self.context}

    def __setstate__(self, state):
        self.path, self.context = state["path"], state["context"]
        self.tokens_per_window = self.context
        self._open()

    def _read(self, first, count):
        """int64 [count]: ids first … first + count − 1."""
        ids = torch.frombuffer(self._map, dtype=_DTYPES[self._width], count=count,
                               offset=_HEADER_BYTES + first * self._width).to(torch.int64)
        return ids & (256 ** self._width - 1)  # torch 1.13 has no unsigned types of 2 and 4 bytes

    def __len__(self):
        return (self.tokens - 1) // self.context

    def __getitem__(self, window):
        if not 0 <= window < len(self):
            raise IndexError(f"window {window} of {len(self)}")
        ids = self._read(window * self.context, self.context + 1)
        return ids[:-1], ids[1:]
