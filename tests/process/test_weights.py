# SPDX-License-Identifier: Apache-2.0
"""Weights from elsewhere, and what is written with them: the model that config.json describes is the
one that runs, or it is refused; a model's text is bytes, of its tokenizer's tokens only."""
import json
import os
import pty
import shutil
import struct
import subprocess

from harness import DILOCOX, Case, main
from token_file import token_file


class Weights(Case):
    """A small trained model, whose files the tests change."""

    MODEL = {}

    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config(model={"rope_theta": 500000, **self.MODEL})
        self.launched = self.call("launch", self.file, "--sites", 1, "--set", "wan.link=mem")
        self.weights = self.path("run", "weights")

    def fields(self):
        with open(os.path.join(self.weights, "config.json")) as text:
            return json.load(text)

    def variant(self, name, change, mark=b""):
        """A copy whose config.json is changed."""
        copy = self.path(name)
        shutil.copytree(self.weights, copy)
        fields = self.fields()
        change(fields)
        self.write(f"{name}/config.json", mark + json.dumps(fields).encode())
        return copy

    def evaluate(self, weights, code=0):
        return self.call("eval", weights, "--data", self.path("data.validation.tokens"), "--tokens", 1500, code=code)

    def loss(self, weights):
        done = self.evaluate(weights)
        self.assertEqual(done.text("stderr"), "")
        return done.text("stdout")


class Config(Weights):
    def test_theta_in_each_of_its_places(self):
        def only(**fields):
            def change(config):
                del config["rope_theta"], config["rope_parameters"]
                config.update(fields)
            return change

        written = self.fields()
        self.assertEqual(written["rope_theta"], 500000)
        self.assertEqual(written["rope_parameters"], {"rope_type": "default", "rope_theta": 500000})
        expected = self.loss(self.weights)
        for number, change in enumerate([
                only(rope_theta=500000), only(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
                only(rope_scaling={"rope_type": "default", "rope_theta": 5e5}),
                only(rope_theta=5e5, rope_scaling={"type": "default"}, tie_word_embeddings=None, dtype="bfloat16")]):
            self.assertEqual(self.loss(self.variant(f"same-{number}", change)), expected)
        self.assertNotEqual(self.loss(self.variant("other", only())), expected)  # theta counts
        self.assertEqual(self.loss(self.variant("marked", only(rope_theta=500000), mark=b"\xef\xbb\xbf")), expected)

    def test_refused_by_name(self):
        for name, value in (("rope_parameters", {"rope_type": "llama3", "rope_theta": 5e5}), ("mlp_bias", True),
                            ("rope_parameters", {"rope_theta": 1e4}), ("partial_rotary_factor", 0.5), ("sliding_window", 4),
                            ("quantization_config", {"quant_method": "fp8"}), ("layer_types", ["sliding_attention"])):
            copy = self.variant("refused", lambda fields: fields.update({name: value}))
            for call in (("eval", copy, "--data", self.path("data.validation.tokens")), ("generate", copy, "--prompt", "x")):
                self.refused(rf"^dilocox: .*refused/config\.json: field '.*{name}", *call, code=1)
            shutil.rmtree(copy)

    def test_unknown_fields_are_named(self):
        copy = self.variant("unknown", lambda fields: fields.update(new_attention=3, another=[]))
        warning = r"^dilocox: warning: .*unknown/config\.json: unknown to dilocox and not used: 'new_attention', 'another'; "
        done = self.evaluate(copy)
        self.assertRegex(done.text("stderr"), warning)
        self.assertEqual(done.text("stdout"), self.loss(self.weights))
        self.assertRegex(self.call("generate", copy, "--prompt", "x").text("stderr"), warning)

    def test_tied_beside_another_head(self):
        copy = self.variant("tied", lambda fields: fields.update(tie_word_embeddings=True))
        self.assertRegex(self.evaluate(copy).text("stderr"), r"^dilocox: warning: .*tied/model\.safetensors: tensor "
                         r"'lm_head\.weight' is not used: .*differs from 'model\.embed_tokens\.weight'; ")

    def test_values_that_are_not_finite(self):
        path = os.path.join(self.weights, "model.safetensors")
        with open(path, "rb") as file:
            content = file.read()
        self.write(path, content[:-4096] + b"\xff" * 4096)
        self.refused(r"^dilocox: the loss is not finite$", "eval", self.weights, "--data",
                     self.path("data.validation.tokens"), code=1)
        self.refused(r"^dilocox: the scores of the model's tokens are not finite$", "generate", self.weights, code=1)

    def test_header_padded_with_zero_bytes(self):
        path = os.path.join(self.weights, "model.safetensors")
        with open(path, "rb") as file:
            content = file.read()
        length = struct.unpack("<Q", content[:8])[0]
        header = content[8:8 + length] + b"\0" * 40
        self.write(path, struct.pack("<Q", len(header)) + header + content[8 + length:])
        self.refused(r"^dilocox: .*model\.safetensors: the last 40 of its header's \d+ bytes are NUL padding; ",
                     "generate", self.weights, "--prompt", "x", code=1)


class Text(Weights):
    """The model knows 320 tokens, of which the tokenizer knows the first 256; it draws any of them."""

    MODEL = {"vocabulary": 320}
    ANY = ("--temperature", 100, "--top-k", 0)

    def generate(self, *more, **options):
        return subprocess.run([DILOCOX, "generate", self.weights, *map(str, more)], check=True, timeout=120,
                              stdin=subprocess.DEVNULL, **options)

    def test_only_tokens_of_the_tokenizer(self):
        self.assertIn("\na sample\n", self.launched.text("stdout"))
        self.assertNotIn("no sample", self.launched.text("stdout"))
        for seed in range(4):
            self.generate("--prompt", "x", "--tokens", 600, "--seed", seed, *self.ANY, stdout=subprocess.DEVNULL)

    def test_no_sample_says_why(self):
        """Data of a tokenizer with 100 ids, which is not the one that samples are decoded with."""
        few = token_file([i * i % 100 for i in range(4000)], vocabulary=100, tokenizer="hundred")
        self.write("few.tokens", few)
        file = self.config("few.yaml", model={"vocabulary": 100}, run={"dir": self.path("few")}, train={"tokens": 1},
                           data={"train": self.path("few.tokens"), "validation": self.path("few.tokens")})
        run = self.call("launch", file, "--sites", 1, "--set", "wan.link=mem")
        self.assertRegex(run.text("stdout"), r"\nno sample: .*/few/weights: its vocabulary, 100, is smaller than the "
                         r"tokenizer's, 256\n")

    def test_any_byte_is_written(self):
        text = self.generate("--prompt", "x\n", "--tokens", 2000, *self.ANY, stdout=subprocess.PIPE).stdout
        self.assertEqual(len(text), 2 + 2000 + 1)
        self.assertEqual(text[:2] + text[-1:], b"x\n\n")
        self.assertGreater(text.count(0), 0)
        self.assertGreater(len(set(text)), 200)

    def test_a_terminal_gets_no_control_bytes(self):
        own, terminal = pty.openpty()
        with subprocess.Popen([DILOCOX, "generate", self.weights, "--prompt", "\x1b[2Jhé\xc2\x9b", "--tokens", "2000",
                               *map(str, self.ANY)], stdin=subprocess.DEVNULL, stdout=terminal) as process:
            os.close(terminal)
            shown = b""
            try:
                while piece := os.read(own, 4096):
                    shown += piece
            except OSError:  # its other end is closed
                pass
            self.assertEqual(process.wait(), 0)
        os.close(own)
        text = shown.decode()  # valid UTF-8
        self.assertTrue(text.startswith("?[2Jhé"), text[:20])
        controls = {c for c in text if (ord(c) < 32 or 127 <= ord(c) < 160) and c not in "\r\n"}
        self.assertEqual(controls, set())
        self.assertGreater(text.count("?"), 100)


if __name__ == "__main__":
    main()
