# SPDX-License-Identifier: Apache-2.0
"""Token files by hand, after docs/formats.md: of other tokenizers than dilocox has."""
import ctypes
import struct

xxhash = ctypes.CDLL("libxxhash.so.0")
xxhash.XXH3_64bits.restype = ctypes.c_uint64


def hash_of(data):
    return xxhash.XXH3_64bits(bytes(data), ctypes.c_size_t(len(data)))


def token_file(ids, vocabulary=256, tokenizer="byte", tokenizer_hash=None, token_bytes=1):
    """The bytes of a file."""
    payload = b"".join(i.to_bytes(token_bytes, "little") for i in ids)
    if tokenizer_hash is None:
        tokenizer_hash = hash_of(f"dilocox tokenizer {tokenizer}, version 1".encode())
    header = struct.pack("<8sIIIIQQQ32s40x", b"DLXTOKEN", 1, 128, token_bytes, vocabulary, len(ids), tokenizer_hash,
                         hash_of(payload), tokenizer.encode())
    return header + struct.pack("<Q", hash_of(header)) + payload
