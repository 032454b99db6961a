# SPDX-License-Identifier: Apache-2.0
"""The installed tree is enough: programs of others build from it, the command runs, the pages render."""
import glob
import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from harness import BUILD_ROOT, SANITIZED, SOURCE_ROOT, main

CC, CXX = (os.environ.get(name, program) for name, program in (("CC", "cc"), ("CXX", "c++")))
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined"] if SANITIZED else []


def one_field_shorter(header):
    """A header whose structs that grow lack their last field, as an older version's would; of the
    one with the options, on which dlx_sync_config ends, the last of them."""
    text = re.sub(r"/\*.*?\*/", " ", header, flags=re.DOTALL)
    for name, body in re.findall(
            r"typedef struct (dlx_tensor|dlx_step|dlx_statistics) {(.*?)} \1;", text, re.DOTALL):
        rest, last, _ = body.rsplit(";", 2)
        kept = last.rpartition(",")[0]  # of a member that declares several
        text = text.replace(body, rest + ";" + (kept + ";" if kept else ""))
    table = re.search(r"#define DLX_SYNC_OPTION_TABLE\(X\)(.*\\\n)+.*", text)
    if table is None:
        return text
    return text.replace(table[0], table[0][:table[0].rindex("X(")].rstrip(" \\\n"))


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True,
                          **options)


class Install(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="dilocox-install-")
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.root = os.path.join(cls.folder, "root")
        done = run("meson", "install", "-C", BUILD_ROOT, "--no-rebuild", "--destdir", cls.root)
        if done.returncode != 0:
            raise AssertionError(done.stdout + done.stderr)
        # nothing else may be found: neither the build's files nor what is installed beside
        environment = {name: value for name, value in os.environ.items()
                       if name not in ("LD_LIBRARY_PATH", "C_INCLUDE_PATH", "LIBRARY_PATH")}
        cls.environment = {**environment, "PKG_CONFIG_SYSROOT_DIR": cls.root,
                           "PKG_CONFIG_LIBDIR": os.path.dirname(cls.installed("dilocox.pc"))}

    @classmethod
    def installed(cls, name):
        """The path of the one installed file of this name."""
        found = glob.glob(os.path.join(cls.root, "**", name), recursive=True)
        if len(found) != 1:
            raise AssertionError(f"{name}: installed as {found}")
        return found[0]

    def must(self, *command, **options):
        done = run(*command, env=self.environment, **options)
        self.assertEqual(done.returncode, 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def build_and_run(self, module, source, compiler, *flags):
        """What a program prints that is built with pkg-config's flags and these."""
        program = os.path.join(self.folder, os.path.basename(source) + ".out")
        module_flags = self.must("pkg-config", "--cflags", "--libs", module).split()
        self.must(compiler, *WARNINGS, *SANITIZERS, *flags, "-o", program,
                  os.path.join(SOURCE_ROOT, source), *module_flags, "-lm", "-pthread")
        libraries = os.path.dirname(self.installed("libdilocox.so"))
        self.environment["LD_LIBRARY_PATH"] = libraries
        try:
            linked = self.must("ldd", program)
            self.assertIn(libraries, linked)
            self.assertNotIn(BUILD_ROOT, linked)
            return self.must(program, timeout=60)
        finally:
            del self.environment["LD_LIBRARY_PATH"]

    def version(self):
        return self.must("pkg-config", "--modversion", "dilocox").strip()

    def test_a_loop_of_ones_own_builds_and_runs(self):
        self.assertIn("tokyo: loss", self.build_and_run("dilocox", "examples/own_loop.c", CC,
                                                        "-std=c11"))

    def test_a_stranger_in_c(self):
        said = self.build_and_run("dilocox", "tests/process/stranger.c", CC, "-std=c11")
        self.assertIn(f"dilocox {self.version()}, header {self.version()}", said)

    def test_an_old_program_runs(self):
        old = os.path.join(self.folder, "old")
        os.mkdir(old)
        for name in ("dilocox.h", "dilocox_options.h"):
            with open(self.installed(name), encoding="utf-8") as header, \
                    open(os.path.join(old, name), "w", encoding="utf-8") as shorter:
                shorter.write(one_field_shorter(header.read()))
        with open(os.path.join(SOURCE_ROOT, "tests/golden/abi.json"), encoding="utf-8") as text:
            structs = json.load(text)["structs"]
        sizes = [structs[name]["bytes"]
                 for name in ("dlx_sync_config", "dlx_tensor", "dlx_step", "dlx_statistics")]
        said = self.build_and_run("dilocox", "tests/process/old_program.c", CC, "-std=c11", "-I", old)
        for shorter, size in zip(said.split(), sizes, strict=True):
            self.assertLess(int(shorter), size)

    def test_a_stranger_in_cpp(self):
        if shutil.which(CXX) is None:
            self.skipTest("no C++ compiler")
        said = self.build_and_run("dilocox-train", "tests/process/stranger.cpp", CXX, "-std=c++17")
        self.assertIn(f"dilocox {self.version()}: config read", said)

    def test_modules_name_what_a_program_needs(self):
        self.assertEqual(self.must("pkg-config", "--print-requires", "dilocox-train").split(),
                         ["dilocox"])
        libraries = self.must("pkg-config", "--libs-only-l", "dilocox-train").split()
        self.assertEqual(libraries, ["-ldilocox_train", "-ldilocox"])
        self.assertEqual(self.must("pkg-config", "--libs-only-l", "dilocox").split(),
                         ["-ldilocox"])

    def test_the_command_finds_its_libraries(self):
        command = self.installed("dilocox")
        self.assertEqual(self.must(command, "--version"), f"dilocox {self.version()}\n")
        for program, needed in ((command, "libdilocox_train.so"), (command, "libdilocox.so"),
                                (self.installed("libdilocox_train.so"), "libdilocox.so")):
            linked = self.must("ldd", program)
            self.assertRegex(linked, rf"{needed}\S* => {re.escape(self.root)}/")
            self.assertNotIn(BUILD_ROOT, linked)

    def test_pages_render_without_warnings(self):
        renderer = (["man", "--warnings=w", "-E", "UTF-8", "-l"] if shutil.which("man") else
                    ["groff", "-man", "-ww", "-Tutf8"])
        if shutil.which(renderer[0]) is None:
            self.skipTest("neither man nor groff")
        for name in ("dilocox.1", "dilocox.yaml.5"):
            done = run(*renderer, self.installed(name),
                       env={**self.environment, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"})
            self.assertEqual((done.returncode, done.stderr), (0, ""), name)
            self.assertIn("NAME", done.stdout)

    def test_pages_are_complete(self):
        """Every subcommand, every option of each, every option of a run."""
        command = self.installed("dilocox")
        with open(self.installed("dilocox.1"), encoding="ascii") as text:
            page = text.read().replace("\\-", "-")
        names = re.findall(r"^ +dilocox (\w+)", self.must(command, "--help"), re.MULTILINE)
        self.assertIn("train", names)
        for name in names:
            help_text = self.must(command, name, "--help")
            self.assertIn(f".SS {help_text.splitlines()[0]}", page)
            section = page.split(f".SS dilocox {name} ")[1].split("\n.S")[0]
            for option in re.findall(r"^ +(--[a-z0-9-]+)", help_text, re.MULTILINE):
                self.assertTrue(option == "--help" or f".B {option}" in section,
                                f"{name}: {option}")
        with open(self.installed("dilocox.yaml.5"), encoding="ascii") as text:
            page = text.read()
        keys = re.findall(r"^ *([a-z_]+\.[a-z_.]+)=", self.must(command, "config", "--options"),
                          re.MULTILINE)
        self.assertEqual(re.findall(r'^\.BR (\S+) "', page, re.MULTILINE), keys)
        self.assertGreater(len(keys), 40)


if __name__ == "__main__":
    main()
