# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C under DiLoCo, in every place where a loop may be; forks; loaders with workers at the end
of a program. MOMENTS=200 tries as many moments as one likes to wait for."""
import array
import os
import random
import signal
import socket
import subprocess
import sys
import threading

import torch_support
from support import DEADLINE_S, main, seconds_of_ctrl_c
from torch_support import Case, loss_of, mlp, torch, with_workers
from torch import nn
from torch.utils.data import DataLoader, Dataset

import dilocox
from dilocox import DilocoxError, PeerLostError
from dilocox import torch as dilocox_torch
from dilocox._ranks import Ranks
from dilocox._wires import Wires
from dilocox.torch import DiLoCo, LeaseSampler

MOMENTS = int(os.environ.get("MOMENTS", "24"))
SLOWER = float(os.environ.get("SLOWER", "1"))


class ThreadRanks(Ranks):
    """Ranks that are threads of this process: messages without a process group."""

    def __init__(self, rank, size, room):
        self.rank, self.size, self.room = rank, size, room
        self.wires = Wires(rank, size, self._spread)

    def _spread(self, own):
        self.room["own"][self.rank] = own
        self.room["barrier"].wait(DEADLINE_S)
        parts = list(self.room["own"])
        self.room["barrier"].wait(DEADLINE_S)
        return parts


class CtrlC(Case):
    def model(self, rank):
        """Part of it is by address, part behind fetch and store, and each rank has its own."""
        model = mlp(rank, 64)
        strided = model[0].weight.detach().t().contiguous().t()
        model[0].weight = nn.Parameter(strided)
        return [(f"{n}[rows {rank}:{rank + 1}]", p) for n, p in model.named_parameters()], model

    def train(self, name, run, rank, room):
        pairs, model = self.model(rank)
        ranks = ThreadRanks(rank, room["size"], room) if room["size"] > 1 else None
        with room["lock"]:  # which find() gives to this thread
            room["found"][threading.get_ident()] = ranks
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        try:
            with DiLoCo(pairs, optimizer, site=name, hub=run.hub, tokens_per_step=1, sync_every=2,
                        overlap="none") as sync:
                while not sync.finished:
                    optimizer.zero_grad()
                    loss_of(model, 1).backward()
                    optimizer.step()
        finally:
            if ranks is not None:
                ranks.wires.close()

    def once(self, ranks, delay_s):
        """Seconds from the signal to the KeyboardInterrupt, with everything closed."""
        run = self.run_of(2, 10 ** 9, sites_min=0)
        found, lock = {}, threading.Lock()
        dilocox_torch._ranks.find = lambda _: found[threading.get_ident()]
        rooms = {name: dict(size=ranks, own=[b""] * ranks, barrier=threading.Barrier(ranks),
                            found=found, lock=lock) for name in "ab"}
        for name, rank in [(name, rank) for name in "ab" for rank in range(ranks)][1:]:
            run.site(f"{name}{rank}", self.train, name, run, rank, rooms[name])
        took_s = seconds_of_ctrl_c(self, delay_s, self.train, "a", run, 0, rooms["a"])
        rooms["a"]["barrier"].abort()
        run.close()
        run.join()
        return took_s

    def test_random_moments(self):
        lost, moments = [], random.Random(7)
        sys.unraisablehook, before = lost.append, sys.unraisablehook
        self.addCleanup(setattr, sys, "unraisablehook", before)
        self.addCleanup(setattr, dilocox_torch._ranks, "find", dilocox_torch._ranks.find)
        for ranks in (1, 2):
            took_s = [self.once(ranks, moments.uniform(0, 0.5)) for _ in range(MOMENTS // 2)]
            print(f"{MOMENTS // 2} moments, {ranks} ranks: worst {max(took_s):.2f} s")
            self.assertLess(max(took_s), SLOWER)
        self.assertEqual(lost, [])
        self.assertIs(signal.getsignal(signal.SIGINT), signal.default_int_handler)


class Watch(Case):
    """What a rank sees of the others while it waits to join."""

    def test_a_rank_that_ends_is_named(self):
        room = {"own": [b""] * 3, "barrier": threading.Barrier(3)}
        ranks = [None] * 3

        def begin(r):
            ranks[r] = ThreadRanks(r, 3, room)
        threads = [threading.Thread(target=begin, args=(r,)) for r in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        zero, one, two = (each.wires for each in ranks)
        self.addCleanup(zero.close)
        self.addCleanup(one.close)
        one._send(0, 0, b"its part, ahead of the others")
        for wires in (zero, one, two):
            wires.watch()  # raises nothing
        two.close()
        for wires in (zero, one):
            with self.assertRaisesRegex(PeerLostError, "rank 2 of this site has ended"):
                wires.watch()
        zero.close()
        with self.assertRaisesRegex(PeerLostError, "rank 0 of this site has ended"):
            one.watch()

    def test_it_ends_a_constructor_that_waits(self):
        """For a site that never comes."""
        run, seen = self.run_of(2, 1000), []

        def watch():
            seen.append(None)
            if len(seen) == 2:
                raise PeerLostError("rank 1 of this site has ended")
        with self.assertRaisesRegex(PeerLostError, "rank 1 of this site has ended"):
            dilocox.Sync({"w": array.array("f", [0.0] * 16)}, site="a", hub=run.hub,
                         watch=watch, join_timeout=60)
        self.assertEqual(len(seen), 2)


class CollectiveCalls(Case):
    def test_ctrl_c(self):
        """Seen while the other ranks do not come; the group is then left to itself."""
        class Work:
            looks = 0

            def is_completed(self):
                self.looks += 1
                if self.looks == 3:
                    signal.raise_signal(signal.SIGINT)
                return False
        ranks = Ranks.__new__(Ranks)
        with self.assertRaises(KeyboardInterrupt):
            ranks._finish(Work())
        self.assertIsNotNone(ranks.busy)
        ranks.group = object()
        ranks.close()

    def test_another_program_answers(self):
        """At a name that leads elsewhere."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            def serve():
                with other.accept()[0] as peer:
                    peer.sendall(peer.recv(64)[:16])  # even what it was told
            thread = threading.Thread(target=serve)
            thread.start()
            wires = Wires.__new__(Wires)
            wires.rank, wires.peers, wires.token, wires.answer = 1, {}, b"t" * 16, b"a" * 16
            with self.assertRaisesRegex(OSError, "another program answers"):
                wires._connect(["127.0.0.1"], other.getsockname()[1])
            thread.join(DEADLINE_S)
        self.assertEqual(wires.peers, {})


class Asks(Dataset):
    """An item that uses the run's object, which is the main process's."""
    sync = None

    def __len__(self):
        return 8

    def __getitem__(self, index):
        try:
            return str(self.sync.tokens)
        except DilocoxError as error:
            return str(error)


DYING = '''
import os, sys, threading
import torch
from torch.utils.data import DataLoader, TensorDataset
import dilocox
from dilocox.torch import DiLoCo, LeaseSampler
torch.set_num_threads(1)
data = TensorDataset(torch.randn(4096, 6))
hub = dilocox.Hub()
coordinator = dilocox.Coordinator(sites=1, tokens=10**9, hub=hub)
coordinator.start()
model = torch.nn.Linear(6, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
sync = DiLoCo(model, optimizer, site="a", hub=hub, data=data, batch_size=4)
for step, (x,) in enumerate(DataLoader(data, 4, sampler=LeaseSampler(sync), num_workers=2)):
    if step == int(sys.argv[1]):
        coordinator.interrupt()
    model(x).sum().backward()
    optimizer.step()
'''


class Processes(Case):
    @with_workers
    def test_workers_of_a_loader(self):
        """A child of the process that opened it is told so, and leaves the run alone."""
        data, run = Asks(), self.run_of(1, 1000)
        with DiLoCo(mlp(), site="a", hub=run.hub, data=data, batch_size=1) as sync:
            Asks.sync = sync
            answers = [a[0] for a in DataLoader(data, sampler=range(4), num_workers=2)]
            Asks.sync = None
            self.assertEqual(len(answers), 4)
            for answer in answers:
                self.assertRegex(answer, f"is of process {os.getpid()}, and process \\d+")
            next(iter(LeaseSampler(sync)))
            sync.step(1)

    def test_a_fork_leaves_the_block(self):
        """The run goes on in the process that opened it."""
        run = self.run_of(1, 1000)
        with DiLoCo(mlp(), site="a", hub=run.hub, tokens_per_step=1,
                    run_dir=self.path("run")) as sync:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    sync.close()
                    sync.__exit__(None, None, None)
                    sync.__exit__(ValueError, ValueError("x"), None)
                    code = int(sync._closed)
                finally:
                    os._exit(code)
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            sync.step()
            self.assertFalse(os.path.exists(self.path("run/a/summary.json")))

    @with_workers
    def test_a_run_that_dies_under_workers(self):
        """The program ends by itself, with the reason, whatever its workers do."""
        for step in range(max(MOMENTS // 8, 1)):
            done = subprocess.run([sys.executable, "-c", DYING, str(3 * step)], timeout=DEADLINE_S,
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertRegex(done.stderr, "dilocox.*Error: ")
            self.assertNotIn("Exception ignored", done.stderr)

    def test_ctrl_c_in_a_script(self):
        """At a terminal: the process ends by the signal, and leaves no other."""
        script = '''
import os, sys, torch, dilocox
from dilocox.torch import DiLoCo
hub = dilocox.Hub()
coordinator = dilocox.Coordinator(sites=2, tokens=10, hub=hub)
coordinator.start()
print("ready", flush=True)
with DiLoCo(torch.nn.Linear(2, 2), site="a", hub=hub, tokens_per_step=1):
    pass
'''
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), "ready\n")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=DEADLINE_S)[1]
        self.assertEqual(process.returncode, -signal.SIGINT, said)
        self.assertNotIn("Exception ignored", said)


if __name__ == "__main__":
    main()
