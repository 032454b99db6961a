# SPDX-License-Identifier: Apache-2.0
"""Snapshots as other programs see them: a reader that is not ours, and `dilocox inspect` on whole and damaged ones."""
import ctypes
import ctypes.util
import json
import os
import shutil
import struct
import subprocess

import numpy

from harness import Case, main

WRITER = os.environ["WRITE_SNAPSHOT"]
DTYPES = {"F32": "<f4", "I32": "<i4", "I64": "<i8", "U8": "u1"}
LAYERS = 3
META = {"run_id": "0123456789abcdef", "site": "site-1", "round": 12, "tokens": 34567, "more": {"x": [1.5, None]}}


def expected(rank):
    """What write_snapshot.c writes."""
    parts = {"bytes": (17 * numpy.arange(13) + rank).astype("u1").reshape(1, 13),
             "words": (-numpy.arange(5) * 1000003 + rank).astype("i4").reshape(1, 5),
             "counters": ((1 << numpy.arange(50, 54)) - rank).astype("i8").reshape(2, 2),
             "nothing": numpy.zeros((0, 3), "f4")}
    for layer in range(LAYERS):
        parts[f"layers.{10 * layer}.θ"] = (numpy.arange(21) * 0.5 - (100 * layer + rank)).astype("f4").reshape(3, 7)
    return parts


def tensors(path):
    """All tensors of a safetensors file, by its specification; their bytes are aligned, and cover the file."""
    with open(path, "rb") as file:
        content = file.read()
    (header_bytes,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8:8 + header_bytes])
    assert header.pop("__metadata__") == {"format": "pt"}
    data, found, covered = content[8 + header_bytes:], {}, 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = numpy.dtype(DTYPES[entry["dtype"]])
        assert (8 + header_bytes + begin) % dtype.itemsize == 0, name
        covered += end - begin
        found[name] = (numpy.frombuffer(data[begin:end], dtype).reshape(entry["shape"]), data[begin:end])
    assert covered == len(data)
    return found


def xxh3(data):
    """By libxxhash, and not by our own code."""
    library = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
    library.XXH3_64bits.restype = ctypes.c_uint64
    return f"{library.XXH3_64bits(data, ctypes.c_size_t(len(data))):016x}"


class Snapshots(Case):
    def setUp(self):
        super().setUp()
        self.snapshots = self.path("snapshots")

    def write_snapshot(self, step, ranks=2, keep=9, meta=None):
        subprocess.run([WRITER, self.snapshots, str(step), str(ranks), str(keep), json.dumps(META if meta is None else meta)],
                       check=True)
        return os.path.join(self.snapshots, f"step-{step:012d}")

    def flip(self, path, at):
        with open(path, "r+b") as file:
            file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))

    def damaged(self, pattern, path):
        said = self.refused(pattern, "inspect", path, code=1)
        self.assertNotIn("all checksums match", said.text("stdout"))
        return said


class Format(Snapshots):
    def test_files(self):
        whole = self.write_snapshot(12345, ranks=3)
        self.assertEqual(sorted(os.listdir(whole)), ["manifest.json", *(f"rank-000{r}.safetensors" for r in range(3))])
        with open(os.path.join(whole, "manifest.json"), "rb") as text:
            content = text.read()
        manifest = json.loads(content)
        self.assertEqual({key: manifest[key] for key in ("format", "version", "step", "ranks", "meta")},
                         {"format": "dilocox snapshot", "version": 1, "step": 12345, "ranks": 3, "meta": META})
        self.assertEqual(manifest["xxh3"], xxh3(content.replace(manifest["xxh3"].encode(), b"0" * 16, 1)))
        for rank, file in enumerate(manifest["files"]):
            path = os.path.join(whole, f"rank-{rank:04d}.safetensors")
            self.assertEqual((file["name"], file["bytes"]), (os.path.basename(path), os.path.getsize(path)))
            want, got = expected(rank), tensors(path)
            self.assertEqual(list(file["parts"]), list(want))  # in the order of writing
            self.assertEqual(set(got), set(want))
            for name, array in want.items():
                numpy.testing.assert_array_equal(got[name][0], array, name)
                self.assertEqual(got[name][0].dtype, array.dtype)
                entry = file["parts"][name]
                self.assertEqual((entry["shape"], entry["xxh3"]), (list(array.shape), xxh3(got[name][1])))
                self.assertEqual(DTYPES[entry["dtype"]].lstrip("<"), array.dtype.str.lstrip("<|"))


class Inspect(Snapshots):
    def test_whole(self):
        whole = self.write_snapshot(12345, ranks=2)
        said = self.call("inspect", whole)
        for line in (r"step +12345", r"run +0123456789abcdef", r"site +site-1", r"round +12", r"tokens +34567", r"ranks +2",
                     r"parts +14, 634 B", r"  bytes +2 of U8 +1 x 13, 26 B", r"  words +2 of I32 +1 x 5, 40 B",
                     r"  counters +2 of I64 +2 x 2, 64 B", r"  nothing +2 of F32 +0 x 3, 0 B",
                     r"  layers\.\*\.θ +6 of F32 +3 x 7, 504 B", r"state +whole: all checksums match"):
            self.assertRegex(said.text("stdout"), rf"(?m)^{line}$")
        self.assertEqual(said.text("stderr"), "")
        self.assertEqual(self.call("inspect", whole + "/").text("stdout"), said.text("stdout"))
        os.rename(whole, self.path("copy"))  # by any name
        self.assertEqual(self.call("inspect", "copy").text("stdout"), said.text("stdout"))

    def test_one_rank_and_another_meta(self):
        said = self.call("inspect", self.write_snapshot(0, ranks=1, meta={"site": "a\u001b[31mb", "round": 1.5})).text("stdout")
        self.assertRegex(said, r"(?m)^site +a\?\[31mb$")
        self.assertRegex(said, r"(?m)^  bytes +U8 +1 x 13, 13 B$")
        self.assertNotRegex(said, r"(?m)^(run|round|tokens) ")

    def test_damaged(self):
        whole, kept = self.write_snapshot(7), self.path("kept")
        shutil.copytree(whole, kept)

        def restored(name):
            shutil.rmtree(whole)
            shutil.copytree(kept, whole)
            return os.path.join(whole, name)

        name = r"^dilocox: .*/step-000000000007/rank-0001\.safetensors: "
        self.flip(restored("rank-0001.safetensors"), -1)  # the elements of one byte are the last ones
        self.damaged(name + r"part 'bytes' is damaged: its checksum does not match; copy the file again, or use another snapshot$",
                     whole)
        self.flip(restored("rank-0001.safetensors"), 3)
        self.damaged(name + "a header of ", whole)
        path = restored("rank-0001.safetensors")
        os.truncate(path, os.path.getsize(path) - 20)
        self.damaged(name + "tensor '.*': bytes .* are outside the file's .*cut short", whole)
        os.remove(restored("rank-0001.safetensors"))
        self.damaged(name + "this file, which the manifest lists, is missing$", whole)
        shutil.copy(restored("rank-0000.safetensors"), restored("rank-0001.safetensors"))
        self.damaged(name + r"part '.*' is damaged: ", whole)  # the same shapes, another rank's
        os.truncate(restored("manifest.json"), 500)
        self.damaged(r"^dilocox: .*/manifest\.json:\d+: not JSON: ", whole)
        self.flip(restored("manifest.json"), -9)
        self.damaged(r"^dilocox: .*/manifest\.json(: is damaged: its checksum does not match|:\d+: not JSON: )", whole)
        os.remove(restored("manifest.json"))
        self.damaged(r"^dilocox: .*/manifest\.json: no such file; this is not a snapshot, or not all of it$", whole)
        restored("")
        self.call("inspect", whole)

    def test_a_directory(self):
        for step in (1, 20, 300):
            self.write_snapshot(step)
        said = self.call("inspect", self.snapshots).text("stdout")
        self.assertEqual(said.splitlines(), [f"step-{step:012d}  whole: round 12, 2 ranks, 634 B" for step in (300, 20, 1)])
        self.flip(os.path.join(self.snapshots, "step-000000000020", "rank-0000.safetensors"), -1)
        os.mkdir(os.path.join(self.snapshots, "step-000000000400.part"))
        os.mkdir(os.path.join(self.snapshots, "other"))
        said = self.refused(r"^dilocox: .*/snapshots: 1 of 3 snapshots are damaged$", "inspect", self.snapshots, code=1)
        lines = said.text("stdout").splitlines()
        self.assertEqual([line.split("  ")[0] for line in lines],
                         [f"step-{name}" for name in ("000000000400.part", "000000000300", "000000000020", "000000000001")])
        self.assertIn("  unfinished: ", lines[0])
        self.assertRegex(lines[2], r"  damaged: .*/rank-0000\.safetensors: part 'bytes' is damaged: ")

    def test_wrong_use(self):
        os.mkdir(self.path("empty"))
        self.write("file", "x")
        self.refused("^dilocox: empty: neither a snapshot, for it has no manifest.json, nor a directory of snapshots", "inspect", "empty")
        self.refused(r"^dilocox: none: no such directory; give a snapshot, step-\*, or the directory of a site's snapshots$",
                     "inspect", "none")
        self.refused("^dilocox: SNAPSHOT: the path is empty; ", "inspect", "")
        self.refused("^dilocox: file: not a directory; ", "inspect", "file")
        self.refused("^dilocox: inspect: an argument is missing", "inspect")


if __name__ == "__main__":
    main()
