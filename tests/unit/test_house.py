# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that a compiler does not check: who may include whom, what leaves the libraries, how files begin."""
import glob
import os
import re
import shutil
import subprocess
import tempfile
import unittest

SOURCE_ROOT = os.environ["SOURCE_ROOT"]
BUILD_ROOT = os.environ["BUILD_ROOT"]

# from the ground up: a room knows the floors below its own, and nobody on its own
FLOORS = {"base": 0, "options": 1, "wire": 1, "kernels": 1, "cluster": 1, "codec": 2, "data": 2, "link": 3, "member": 3, "outer": 3,
          "model": 3, "sync": 4, "checkpoint": 4, "pipeline": 4, "api": 5, "train": 6, "trainer": 7}
PUBLIC = {"dilocox.h", "dilocox_train.h"}
# what a room of the libraries may take from outside, beyond the C library
OUTSIDE = {
    "base": {"xxhash.h"}, "options": {"yaml.h"}, "wire": {"xxhash.h"}, "data": {"xxhash.h"}, "link": {"zmq.h", "mpi.h"}, "cluster": {"mpi.h"}, "pipeline": {"mpi.h"},
    "kernels": {"oneapi/dnnl/dnnl.h", "cblas.h", "immintrin.h", "omp.h"}, "codec": {"immintrin.h", "xmmintrin.h"},
    "checkpoint": {"jansson.h"}, "train": {"jansson.h"},
}
LINES_MAX = 800


def sources(*folders):
    return sorted(path for folder in folders for pattern in ("*.c", "*.h")
                  for path in glob.glob(os.path.join(SOURCE_ROOT, folder, "**", pattern), recursive=True))


def short(path):
    return os.path.relpath(path, SOURCE_ROOT)


def read(path):
    with open(path, encoding="utf-8") as text:
        return text.read()


def includes(path):
    """(is it in quotes, what) of a file."""
    found = re.findall(r'^\s*#\s*include\s*(["<])([^">]+)[">]', read(path), re.MULTILINE)
    return [(mark == '"', what) for mark, what in found]


STANDARD = {"assert.h", "ctype.h", "errno.h", "fenv.h", "inttypes.h", "limits.h", "locale.h", "math.h", "setjmp.h", "signal.h",
            "stdarg.h", "stdatomic.h", "stdbool.h", "stddef.h", "stdint.h", "stdio.h", "stdlib.h", "string.h", "time.h",
            "arpa/inet.h", "dlfcn.h", "dirent.h", "fcntl.h", "ifaddrs.h", "libgen.h", "net/if.h", "netdb.h", "poll.h", "pthread.h",
            "sched.h", "strings.h", "termios.h", "unistd.h"}


def is_system(what):
    """Of the C library and the kernel."""
    return what in STANDARD or what.startswith(("sys/", "netinet/", "linux/"))


def is_allowed(room, quoted, what):
    """Whether a file of this room of src/ may include this."""
    if what in PUBLIC or not quoted:
        return what in PUBLIC or is_system(what) or what in OUTSIDE.get(room, set())
    other = what.split("/")[0]
    return other == room or other in FLOORS and FLOORS[other] < FLOORS[room]


class House(unittest.TestCase):
    maxDiff = None

    def broken(self, rules):
        self.assertEqual(rules, [], "\n" + "\n".join(rules))

    def test_rooms_include_downwards(self):
        broken = []
        rooms = {short(path).split(os.sep)[1] for path in sources("src")}
        self.assertEqual(rooms, set(FLOORS), "a room without a floor, or a floor without a room")
        for path in sources("src"):
            room = short(path).split(os.sep)[1]
            broken += [f"{short(path)} includes {what}" for quoted, what in includes(path) if not is_allowed(room, quoted, what)]
        self.broken(broken)

    def test_what_is_not_allowed(self):
        """The test above can fail."""
        for room, what in (("base", "wire/bytes.h"), ("wire", "kernels/kernels.h"), ("model", "link/link.h"), ("api", "train/x.h"),
                           ("checkpoint", "sync/sync.h"), ("outer", "member/site.h"), ("codec", "error.h")):
            self.assertFalse(is_allowed(room, True, what), f"{room}: {what}")
        for room, what in (("link", "jansson.h"), ("codec", "cblas.h"), ("sync", "zmq.h"), ("api", "base/error.h")):
            self.assertFalse(is_allowed(room, False, what), f"{room}: <{what}>")
        self.assertTrue(is_allowed("sync", True, "link/link.h"))

    def test_cli_and_examples_use_the_public_headers(self):
        """The command line also has the options engine and the limits of a run, for its flags."""
        broken = []
        flags = {"options/options.h", "base/limits.h"}
        for path in sources("cli", "examples"):
            for quoted, what in includes(path):
                own = quoted and os.path.exists(os.path.join(os.path.dirname(path), what))
                if not (own or is_system(what) or not quoted and what in PUBLIC | {"jansson.h"}
                        or quoted and what in flags and short(path).startswith("cli")):
                    broken.append(f"{short(path)} includes {what}")
        self.broken(broken)

    def test_public_headers_compile_alone(self):
        compilers = [(["cc", "-std=c11", "-x", "c"], True), (["c++", "-std=c++11", "-x", "c++"], False)]
        for header in sorted(PUBLIC):
            for compiler, is_c in compilers:
                if shutil.which(compiler[0]) is None:
                    self.assertFalse(is_c, "no C compiler")
                    continue
                with self.subTest(header=header, compiler=compiler[0]):
                    done = subprocess.run([*compiler, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I",
                                           os.path.join(SOURCE_ROOT, "include"), "-"], input=f"#include <{header}>\n",
                                          capture_output=True, text=True)
                    self.assertEqual(done.returncode, 0, done.stderr)

    def test_libraries_export_the_interface_alone(self):
        for name, header in (("libdilocox", "dilocox.h"), ("libdilocox_train", "dilocox_train.h")):
            library = os.path.join(BUILD_ROOT, "src", name + ".so")
            listed = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
            exported = {line.split()[-1].split("@")[0] for line in listed.splitlines()}
            exported = {symbol for symbol in exported if not symbol.startswith(("__asan", "__odr_asan", "__ubsan", "__tsan"))}
            declared = set(re.findall(r"^DLX_API [^;(]*?(dlx_\w+)\(", read(os.path.join(SOURCE_ROOT, "include", header)), re.MULTILINE))
            self.assertGreater(len(declared), 8)
            self.assertEqual(exported, declared, name)

    def test_libdilocox_stands_alone(self):
        """No oneDNN, OpenBLAS, MPI or JSON below a training loop of one's own."""
        for program in (os.path.join(BUILD_ROOT, "src", "libdilocox.so"), os.path.join(BUILD_ROOT, "examples", "own_loop")):
            needed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
            self.assertIn("libzmq", needed)
            self.assertNotRegex(needed, r"dnnl|blas|mpi|jansson|yaml|dilocox_train|gomp")

    def test_files_begin_with_a_sentence(self):
        """The licence, then what lives there: at its own top, or at that of the header of the same name."""
        broken = []

        def opening(path):
            licence, _, rest = re.sub(r"^#!.*\n", "", read(path)).partition("\n")
            if "SPDX-License-Identifier: Apache-2.0" not in licence:
                broken.append(f"{short(path)} begins without its licence")
            return rest.lstrip()

        for path in sources("src", "cli", "examples", "include", "tests", "bench"):
            header = path[:-2] + ".h"
            if not any(os.path.exists(p) and opening(p).startswith("/*") for p in (path, header)):
                broken.append(f"{short(path)} begins without a sentence that says what lives there")
        for path in glob.glob(os.path.join(SOURCE_ROOT, "**", "*.py"), recursive=True):
            if not short(path).startswith("build") and not re.match(r'"""|#', opening(path)):
                broken.append(f"{short(path)} begins without a sentence that says what lives there")
        self.broken(broken)

    def test_files_are_short(self):
        self.broken([f"{short(path)} has {lines} lines; the limit is {LINES_MAX}"
                     for path in sources("src", "cli", "examples", "include", "tests", "bench")
                     if (lines := len(read(path).splitlines())) > LINES_MAX])

    def test_internal_names(self):
        """Between files dlxi_, outside dlx_: what the rooms' objects define for others begins with one of the two."""
        broken = []
        for archive in glob.glob(os.path.join(BUILD_ROOT, "src", "*", "*.a")):
            listed = subprocess.run(["nm", "--defined-only", "--extern-only", archive], capture_output=True, text=True).stdout
            for line in listed.splitlines():
                parts = line.split()
                if len(parts) == 3 and not parts[2].startswith(("dlxi_", "dlx_", "__odr_asan", "__asan", "__ubsan", "__tsan")):
                    broken.append(f"{os.path.basename(archive)} defines {parts[2]}")
        self.broken(broken)


if __name__ == "__main__":
    unittest.main(verbosity=2)
