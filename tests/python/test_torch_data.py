# SPDX-License-Identifier: Apache-2.0
"""LeaseSampler under DataLoader: which indices come, whatever the workers; TokenFile."""
import os
import pickle
import struct

import torch_support
from support import main
from torch_support import Case, mlp, torch, with_workers
from torch.utils.data import DataLoader, Dataset

from dilocox import ConfigError, DilocoxError, Status, _leases
from dilocox.data import TokenFile
from dilocox.torch import DiLoCo, LeaseSampler


class Numbers(Dataset):
    """Item i is i, and the process that made it."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index, os.getpid()


class Leases(Case):
    def draw(self, sites, tokens, batch, count=50, epoch_size=None, windows_ahead=None,
             inner_steps_max=0, **loader):
        """The indices that each site trained on, and what it says of them."""
        data = Numbers(count)

        def body(keywords):
            trained, workers = [], set()
            del keywords["tokens_per_step"]
            with DiLoCo(mlp(), data=data, batch_size=batch, windows_ahead=windows_ahead,
                        sync_every=4, overlap="none", inner_steps_max=inner_steps_max,
                        **keywords) as sync:
                sampler = LeaseSampler(sync, epoch_size=epoch_size)
                batches = DataLoader(data, batch, sampler=sampler, **loader)
                while not sync.finished:
                    for indices, process in batches:
                        trained += indices.tolist()
                        workers |= set(process.tolist())
                        sync.step()
                        if sync.finished:
                            break
                found = sync.statistics()
            return trained, workers, found
        return self.sites({name: body for name in sites}, tokens)

    @with_workers
    def test_each_index_once(self):
        """As many as there are, among two sites, are a permutation of all."""
        for loader in (dict(), dict(num_workers=2),
                       dict(num_workers=2, prefetch_factor=4, persistent_workers=True)):
            for epoch_size in (None, 6):
                with self.subTest(epoch_size=epoch_size, **loader):
                    found = self.draw("ab", 48, 3, count=480, epoch_size=epoch_size, **loader)
                    trained = found["a"][0] + found["b"][0]
                    self.assertEqual(len(trained), 48)
                    self.assertEqual(len(set(trained)), 48)
                    workers = found["a"][1] | found["b"][1]
                    self.assertEqual(os.getpid() in workers, "num_workers" not in loader)

    def test_the_order_is_the_trainers(self):
        """Of one site, with leases that leave nothing: dlx_window of position 0, 1, 2, …, over the
        epoch's end."""
        found = self.draw("a", 60, 3, count=25, windows_ahead=0, inner_steps_max=4)["a"][0]
        from dilocox._library import library
        order = [library().dlx_window(position, 25, 1) for position in range(60)]
        self.assertEqual(found, order)
        self.assertEqual(sorted(order[:25]), list(range(25)))
        self.assertNotEqual(order[:25], order[25:50])

    @with_workers
    def test_what_is_taken_and_not_trained(self):
        found = self.draw("a", 24, 3, num_workers=2, prefetch_factor=2)["a"][2]
        self.assertEqual(found.windows_taken - found.windows_untrained, 24)
        self.assertGreater(found.windows_untrained, 0)
        found = self.draw("a", 24, 3)["a"][2]
        self.assertEqual((found.windows_taken, found.windows_untrained), (24, 0))

    @with_workers
    def test_an_exhausted_lease_names_windows_ahead(self):
        with self.assertRaisesRegex(DilocoxError, "windows_ahead=0 allows: give num_workers x"):
            self.draw("a", 1000, 3, windows_ahead=0, num_workers=2, prefetch_factor=50)

    def test_a_batch_that_is_not_batch_size(self):
        for size, text in ((2, "^batch_size: 3, and 2 indices were drawn for 1 steps"),
                           (6, "^batch_size: 3, and .* indices were drawn")):
            data, run = Numbers(1000), self.run_of(1, 900)
            with self.assertRaisesRegex(ConfigError, text), DiLoCo(
                    mlp(), site="a", hub=run.hub, data=data, batch_size=3, windows_ahead=100,
                    sync_every=4, overlap="none") as sync:
                for _ in DataLoader(data, size, sampler=LeaseSampler(sync)):
                    sync.step()

    def test_what_leases_need(self):
        def leases(batch, ranks=1, state=None):
            return _leases.Leases(range(9), batch, None, 0, ranks, state)
        self.assertEqual(leases(70000).ahead, 1000000)
        for make, text in ((lambda: leases(3, 2), "^batch_size: 3 must be a multiple of .* 2 "),
                           (lambda: leases(4, 2, {"windows": [1]}), "^state: its 1 windows"),
                           (lambda: leases(4, 1, {"windows": [-1]}), "^state: -1 is out of range"),
                           (lambda: leases(4, 1, {"windows": 7}), "^state: its windows are no")):
            with self.assertRaisesRegex(ConfigError, text):
                make()

    def test_other_failures_do_not_blame_the_loader(self):
        class Core:
            def windows(self, count):
                raise DilocoxError("the run is over", Status.STATE)
        with self.assertRaisesRegex(DilocoxError, "^the run is over$"):
            _leases.Leases(range(9), 1, None, 0, 1, None).take(Core())

    def test_samples_are_counted(self):
        """A data set without tokens_per_window counts what it has."""
        found = self.draw("a", 24, 3)["a"]
        self.assertEqual(found[2].committed_tokens, 24)


def write_token_file(path, ids, width=1, vocabulary=256, **changes):
    """As docs/formats.md has it; the checksums are not read here."""
    header = dict(magic=b"DLXTOKEN", version=1, header=128, width=width, vocabulary=vocabulary,
                  count=len(ids), tokenizer_hash=7, checksum=0x123456789, name=b"byte")
    header.update(changes)
    payload = b"".join(i.to_bytes(width, "little") for i in ids)
    with open(path, "wb") as out:
        out.write(struct.pack("<8s4I3Q32s", *header.values()).ljust(128, b"\0") + payload)
    return path


class TokenFiles(Case):
    def test_windows(self):
        for width, vocabulary in ((1, 256), (2, 60000), (4, 3000000000)):
            ids = [(i * 37 + vocabulary - 5) % vocabulary for i in range(50)]
            data = TokenFile(write_token_file(self.path("x.tokens"), ids, width, vocabulary), 8)
            self.assertEqual(len(data), 6)
            for w in range(6):
                tokens, targets = data[w]
                self.assertEqual(tokens.tolist(), ids[8 * w:8 * w + 8])
                self.assertEqual(targets.tolist(), ids[8 * w + 1:8 * w + 9])
                self.assertEqual(tokens.dtype, torch.int64)
            for outside in (-1, 6):
                with self.assertRaises(IndexError):
                    data[outside]
            self.assertEqual((data.vocabulary, data.tokens, data.tokenizer, data.data_hash),
                             (vocabulary, 50, "byte", 0x123456789))
            again = pickle.loads(pickle.dumps(data))
            self.assertEqual(again[5][0].tolist(), data[5][0].tolist())
            self.assertEqual((len(again), again.tokens_per_window), (6, 8))

    def test_what_is_none(self):
        path = self.path("x.tokens")
        cases = [
            (dict(magic=b"DLXTOKEM"), "its header is another one"),
            (dict(version=2), "its header is another one"),
            (dict(header=64), "its header is another one"),
            (dict(width=3), "16 ids of 3 bytes"),
            (dict(vocabulary=257), "below 257"),
            (dict(vocabulary=0), "below 0"),
            (dict(count=0), "0 ids"),
            (dict(count=17), "144 bytes instead of 145"),
            (dict(count=2 ** 64 - 1), "bytes instead of"),
            (dict(vocabulary=15), "an id is not below the vocabulary, 15"),
        ]
        for changes, text in cases:
            with self.subTest(text=text), self.assertRaisesRegex(DilocoxError, text) as caught:
                given = dict(ids=range(16))
                if "width" in changes:
                    write_token_file(path, **given)
                    with open(path, "r+b") as file:
                        file.seek(16)
                        file.write(struct.pack("<I", changes["width"]))
                else:
                    write_token_file(path, **given, **changes)
                TokenFile(path, 4)
            self.assertEqual(caught.exception.status, Status.DATA)
        for raw, text in ((b"", "it is empty"), (b"DLXTOKEN", "it has 8 bytes")):
            with open(path, "wb") as out:
                out.write(raw)
            with self.assertRaisesRegex(DilocoxError, text):
                TokenFile(path, 4)
        with self.assertRaisesRegex(DilocoxError, "No such file"):
            TokenFile(self.path("none"), 4)
        with self.assertRaisesRegex(DilocoxError, "directory|Is a directory"):
            TokenFile(self.directory, 4)
        write_token_file(path, range(16))
        for context in (0, -1, 1.5, True):
            with self.assertRaisesRegex(DilocoxError, "^context: "):
                TokenFile(path, context)
        with self.assertRaisesRegex(DilocoxError, "a context of 16 needs at least 17"):
            TokenFile(path, 16)


if __name__ == "__main__":
    main()
