# SPDX-License-Identifier: Apache-2.0
"""docs/pytorch.md and the examples: code blocks run, tables have every keyword with its default,
gpt.py is gpt_plain.py but for five lines; and what of torch is used is public, and listed."""
import ast
import difflib
import inspect
import os
import re
import sys

import torch_support
from support import SOURCE_ROOT, Case, main

from dilocox import torch as dilocox_torch
from dilocox.torch import DiLoCo
from test_torch_data import write_token_file

PRELUDE = '''
import itertools
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
batches = itertools.cycle([(torch.randn(8, 6), torch.randn(8, 3)) for _ in range(16)])
dataset = torch.utils.data.TensorDataset(torch.randn(256, 6), torch.randn(256, 3))

def loss_of(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()

'''


def read(*path):
    with open(os.path.join(SOURCE_ROOT, *path), encoding="utf-8") as text:
        return text.read()


class Page(Case):
    def launch(self, sites, tokens, *command):
        return self.python("-m", "dilocox", "launch", "--sites", str(sites), "--tokens",
                           str(tokens), "--", sys.executable, *command).stdout

    def test_code_blocks_run(self):
        blocks = re.findall(r"^```python\n(.*?)^```$", read("docs/pytorch.md"), re.M | re.S)
        self.assertGreater(len(blocks), 4)
        for number, block in enumerate(b for b in blocks
                                            if torch_support.FORKS or "num_workers" not in b):
            with self.subTest(block=block):
                script = self.write(f"block{number}.py", PRELUDE + block)
                tokens = 400 if "batch_size" in block else 50 * 4096
                self.launch(1, tokens, script)
                if "checkpoint-" in block:  # again, from the checkpoint that it made
                    self.assertTrue(os.path.exists(self.path("checkpoint-site-1.pt")))
                    self.launch(1, tokens, script)

    def test_every_keyword_is_explained(self):
        rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| `([^`]*)` \|", read("docs/pytorch.md"), re.M)
        explained = {name: value for names, value in rows for name in re.findall(r"`(\w+)`", names)}
        keywords = {name: repr(p.default) for name, p in
                    inspect.signature(DiLoCo.__init__).parameters.items()
                    if p.kind == p.KEYWORD_ONLY}
        self.assertEqual(explained, keywords)

    def test_every_member_is_explained(self):
        page = read("docs/pytorch.md")
        for name in dir(DiLoCo):
            if not name.startswith("_"):
                self.assertRegex(page, rf"`{name}[`(]", name)


class Examples(Case):
    def lines(self, name):
        """Without comments, docstring and white space."""
        text = read("examples/torch", name)
        self.assertLessEqual(len(text.splitlines()), 150)
        body = text.split('"""', 2)[2]
        return [re.sub(r"\s+", "", line) for line in body.splitlines() if line.strip()]

    def test_five_lines_apart(self):
        plain, ours = self.lines("gpt_plain.py"), self.lines("gpt.py")
        changed = [line for line in difflib.ndiff(plain, ours) if line[0] in "+-"]
        added = sum(line[0] == "+" for line in changed)
        self.assertLessEqual(max(added, len(changed) - added), 5, changed)

    def test_gpt(self):
        text = b"In the beginning was the Word, and the Word was with God. " * 40
        for part in ("train", "validation"):
            write_token_file(self.path(f"x.{part}.tokens"), text)
        small = ["--data", self.path("x"), "--batch", "2", "--context", "16", "--layers", "1",
                 "--width", "16"]
        gpt = os.path.join(SOURCE_ROOT, "examples/torch/gpt.py")
        said = self.python("-m", "dilocox", "launch", "--sites", "2", "--tokens", "2000", "--",
                           sys.executable, gpt, *small).stdout
        losses = re.findall(r"site-\d: validation loss ([\d.]+)", said)
        self.assertEqual(len(losses), 2, said)
        self.assertEqual(losses[0], losses[1])
        said = self.python(gpt.replace("gpt.py", "gpt_plain.py"), "--steps", "30", *small).stdout
        self.assertRegex(said, "validation loss [0-9.]+")


class Symbols(Case):
    """Of torch only what is documented there: no name that begins with an underscore."""

    def used(self, name):
        """Dotted names that begin at torch, dist or nn, and imports from torch."""
        text = read("python/dilocox", name)
        found = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "torch":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            parts = []
            while isinstance(node, ast.Attribute):
                parts.append(node.attr)
                node = node.value
            if parts and isinstance(node, ast.Name) and node.id in ("torch", "dist", "nn"):
                found.add(".".join([node.id, *reversed(parts)]))
        return {name for name in found if not any(
            other.startswith(name + ".") for other in found)} - {"torch.nn"}

    def test_what_is_used_is_listed(self):
        listed = set(dilocox_torch.TORCH.replace("?", "").split())
        used = set()
        for name in ("torch.py", "data.py", "_hooks.py", "_leases.py", "_tensors.py", "_ranks.py",
                     "_wires.py"):
            used |= self.used(name)
        self.assertEqual(used - listed, set())
        self.assertEqual({s for s in listed - used if not s.startswith("Optimizer.")}, set())
        self.assertEqual([s for s in listed if re.search(r"(^|\.)_[a-z]", s)], [])


if __name__ == "__main__":
    main()
