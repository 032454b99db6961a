# SPDX-License-Identifier: Apache-2.0
"""On a CUDA machine: values go through pinned memory and come back equal to the bit, without device
memory; torch 2's step hooks; GradScaler with a fused optimizer; FSDP 2 on two ranks."""

import torch_support
from support import main, skip
from torch_support import Case, mlp, one_site, torch, values

if not torch.cuda.is_available():
    skip(f"no CUDA device, or a torch without CUDA ({torch.__version__})")

import torch.distributed as dist
import torch.multiprocessing
from torch import nn

import dilocox
from dilocox.torch import DiLoCo

EXACT = dict(bits=32, low_rank=0, sync_every=4)


def rank_of_fsdp(rank, store, endpoint, found):
    """One of two ranks whose parameters are sharded by rows; both may share a GPU on gloo."""
    from torch.distributed.fsdp import fully_shard
    torch.cuda.set_device(rank % torch.cuda.device_count())
    several = torch.cuda.device_count() > 1
    dist.init_process_group("nccl" if several else "gloo", init_method=f"file://{store}",
                            rank=rank, world_size=2)
    model = fully_shard(mlp(width=64).cuda())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with DiLoCo(model, optimizer, site="a", coordinator=endpoint, unencrypted=True,
                tokens_per_step=1, **EXACT) as sync:
        while not sync.finished:
            x = torch.randn(8, 6, device="cuda")
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            if sync.tokens == 10:  # a forward pass alone leaves parameters gathered
                x, held = torch.ones(4, 6, device="cuda"), [p.to_local().clone() for p in
                                                            model.parameters()]
                with torch.no_grad():
                    before = model(x)
                    with sync.evaluate():
                        model(x)
                    assert torch.equal(model(x), before)
                model.reshard()
                assert all(torch.equal(p.to_local(), h) for p, h in zip(model.parameters(), held))
        found.put((rank, sorted(sync.anchor_hashes())))
    dist.destroy_process_group()


class Cuda(Case):
    def walk(self, device, dtype, overlap):
        """Parameters that change by the same numbers, on one site."""
        run, model = self.run_of(1, 40), mlp().to(dtype).to(device)
        table, norms = torch.Generator().manual_seed(1), []
        more = dict(exchange_steps=2) if overlap == "carry" else {}
        with DiLoCo(model, site="a", hub=run.hub, tokens_per_step=1, overlap=overlap,
                    inner_steps_max=4, **EXACT, **more) as sync:
            while not sync.finished:
                with torch.no_grad():
                    for p in model.parameters():
                        step = torch.randint(-8, 9, p.shape, generator=table) / 64
                        p.add_(step.to(p))
                sync.step()
                norms.append(sync.statistics().update_norm)
            return sync.anchor_hashes(), norms, [t.cpu().tolist() for t in values(model)]

    def test_equal_to_the_host(self):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for overlap in ("none", "delayed", "eager", "carry"):
                with self.subTest(dtype=dtype, overlap=overlap):
                    self.assertEqual(self.walk("cuda", dtype, overlap),
                                     self.walk("cpu", dtype, overlap))

    def test_device_memory(self):
        for dtype in (torch.float32, torch.bfloat16):
            model = nn.Linear(4096, 4096, device="cuda", dtype=dtype)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.max_memory_allocated()
            with one_site(self, model, tokens=8) as sync:
                while not sync.finished:
                    sync.step()
            self.assertLessEqual(torch.cuda.max_memory_allocated() - before, 1 << 20)
            self.assertIsNone(sync._pinned)
            self.assertEqual(sync._bounce, {})

    def test_hooks(self):
        model = mlp().cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        self.assertTrue(hasattr(optimizer, "register_step_post_hook"))
        before = optimizer.step
        with one_site(self, model, optimizer) as sync:
            self.assertEqual(optimizer.step, before)
            model(torch.ones(4, 6, device="cuda")).sum().backward()
            optimizer.step()
            self.assertEqual(sync.tokens, 1)
        optimizer.step()

    def test_allreduce(self):
        model = mlp().cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        with one_site(self, model, optimizer, overlap="allreduce", tokens=3) as sync:
            while not sync.finished:
                optimizer.zero_grad()
                model(torch.ones(4, 6, device="cuda")).sum().backward()
                optimizer.step()
        self.assertEqual(len(optimizer.state), 4)

    def test_scaler(self):
        model = mlp().cuda()
        for fused in (False, True):
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
            scaler = torch.cuda.amp.GradScaler()
            with one_site(self, model, optimizer) as sync:
                for bad in (True, False, True, False):
                    optimizer.zero_grad()
                    scaler.scale(model(torch.ones(4, 6, device="cuda")).sum()).backward()
                    if bad:
                        model[0].weight.grad[0, 0] = float("inf")
                    scaler.step(optimizer)
                    scaler.update()
                self.assertEqual(sync.tokens, 2)

    def test_sharded_ranks(self):
        try:
            from torch.distributed.fsdp import fully_shard  # noqa: F401
        except ImportError:
            self.skipTest("this torch has no FSDP 2")
        with dilocox.Coordinator(sites=1, tokens=40, unencrypted=True) as coordinator:
            coordinator.start()
            found = torch.multiprocessing.get_context("spawn").SimpleQueue()
            torch.multiprocessing.spawn(
                rank_of_fsdp, (self.path("store"), coordinator.endpoint, found), nprocs=2)
            first, second = found.get(), found.get()
        self.assertEqual(first[1], second[1])
        self.assertEqual(len(first[1]), 8)
        self.assertTrue(all("[rows " in name for name in first[1]))


if __name__ == "__main__":
    main()
