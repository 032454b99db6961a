# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that a compiler does not check: who may include whom, what leaves the
libraries, how files begin, how code and prose are set."""
import collections
import glob
import os
import re
import shutil
import subprocess
import unittest

SOURCE_ROOT = os.environ["SOURCE_ROOT"]
BUILD_ROOT = os.environ["BUILD_ROOT"]

# from the ground up: a room may include the floors below its own, and no other room of its own
FLOORS = {"base": 0, "options": 1, "wire": 1, "store": 1, "kernels": 1, "cluster": 1, "codec": 2,
          "data": 2, "link": 3, "member": 3, "outer": 3, "model": 3, "sync": 4,
          "checkpoint": 4, "pipeline": 4, "api": 5, "train": 6, "trainer": 7}
PUBLIC = {"dilocox.h", "dilocox_options.h", "dilocox_train.h"}
# what the command line has beside them, for its flags and for what a terminal shows
FOR_CLI = {"options/options.h", "base/limits.h", "base/text.h"}
# what a room of the libraries may include from outside, beyond the C library
OUTSIDE = {
    "base": {"xxhash.h"}, "options": {"yaml.h"}, "wire": {"xxhash.h"}, "data": {"xxhash.h"},
    "store": {"sqlite3.h"},
    "link": {"zmq.h", "mpi.h"}, "cluster": {"mpi.h"}, "pipeline": {"mpi.h"},
    "kernels": {"oneapi/dnnl/dnnl.h", "cblas.h", "immintrin.h", "omp.h"},
    "codec": {"immintrin.h", "xmmintrin.h"}, "checkpoint": {"jansson.h"}, "train": {"jansson.h"},
}
FOLDERS = ("src", "cli", "examples", "include", "tests", "bench")
LINES_MAX = 800
COLUMNS_MAX = 100
# what a sanitizer adds to every object
SANITIZER = ("__asan", "__odr_asan", "__ubsan", "__tsan")


def sources(*folders):
    return sorted(path for folder in folders for pattern in ("*.c", "*.h")
                  for path in glob.glob(os.path.join(SOURCE_ROOT, folder, "**", pattern),
                                        recursive=True))


def short(path):
    return os.path.relpath(path, SOURCE_ROOT)


def read(path):
    with open(path, encoding="utf-8") as text:
        return text.read()


def includes(path):
    """(is it in quotes, what) of a file."""
    found = re.findall(r'^\s*#\s*include\s*(["<])([^">]+)[">]', read(path), re.MULTILINE)
    return [(mark == '"', what) for mark, what in found]


STANDARD = {"assert.h", "ctype.h", "errno.h", "fenv.h", "inttypes.h", "limits.h", "locale.h",
            "math.h", "setjmp.h", "signal.h", "stdarg.h", "stdatomic.h", "stdbool.h", "stddef.h",
            "stdint.h", "stdio.h", "stdlib.h", "string.h", "time.h", "arpa/inet.h", "dlfcn.h",
            "dirent.h", "fcntl.h", "ifaddrs.h", "libgen.h", "net/if.h", "netdb.h", "poll.h",
            "pthread.h", "sched.h", "strings.h", "termios.h", "unistd.h"}


def is_system(what):
    """Of the C library and the kernel."""
    return what in STANDARD or what.startswith(("sys/", "netinet/", "linux/"))


def is_allowed(room, quoted, what):
    """Whether a file of this room of src/ may include this."""
    if what in PUBLIC or not quoted:
        return what in PUBLIC or is_system(what) or what in OUTSIDE.get(room, set())
    other = what.split("/")[0]
    return other == room or other in FLOORS and FLOORS[other] < FLOORS[room]


def extern_names():
    """(archive, object, name) of each name that an object of the rooms defines for others."""
    archives = sorted(glob.glob(os.path.join(BUILD_ROOT, "src", "*", "*.a")))
    if not archives:
        raise AssertionError(f"no archives below {BUILD_ROOT}/src")
    listed = subprocess.run(["nm", "-A", "--defined-only", "--extern-only", *archives],
                            check=True, capture_output=True, text=True).stdout
    found = re.findall(r"^(.+\.a):(.+):[0-9a-f]+ \S (\S+)$", listed, re.MULTILINE)
    return [names for names in found if not names[2].startswith(SANITIZER)]


def defined_twice(names):
    """Names that two objects define; one object in two archives is one."""
    objects = collections.defaultdict(set)
    for _, file, name in names:
        objects[name].add(file)
    return {name: sorted(files) for name, files in objects.items() if len(files) > 1}


def long_lines(text):
    """(line number, columns) of lines of code that are too long."""
    return [(number, len(line)) for number, line in enumerate(text.split("\n"), 1)
            if len(line) > COLUMNS_MAX]


def long_prose(text):
    """The same of Markdown, but for tables, code and the targets of links."""
    found, fenced = [], False
    for number, line in enumerate(text.split("\n"), 1):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        if fence or fenced or line.startswith(("|", "    ")):
            continue
        length = len(re.sub(r"\]\([^)]*\)|https?://\S+", "]()", line))
        if length > COLUMNS_MAX:
            found.append((number, length))
    return found


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
            broken += [f"{short(path)} includes {what}" for quoted, what in includes(path)
                       if not is_allowed(room, quoted, what)]
        self.broken(broken)

    def test_what_is_not_allowed(self):
        """The test above can fail."""
        for room, what in (("base", "wire/bytes.h"), ("wire", "kernels/kernels.h"),
                           ("model", "link/link.h"), ("api", "train/x.h"),
                           ("checkpoint", "sync/sync.h"), ("outer", "member/site.h"),
                           ("codec", "error.h")):
            self.assertFalse(is_allowed(room, True, what), f"{room}: {what}")
        for room, what in (("link", "jansson.h"), ("codec", "cblas.h"), ("sync", "zmq.h"),
                           ("api", "base/error.h")):
            self.assertFalse(is_allowed(room, False, what), f"{room}: <{what}>")
        self.assertTrue(is_allowed("sync", True, "link/link.h"))

    def test_cli_and_examples_use_the_public_headers(self):
        broken = []
        for path in sources("cli", "examples"):
            for quoted, what in includes(path):
                own = quoted and os.path.exists(os.path.join(os.path.dirname(path), what))
                public = not quoted and what in PUBLIC | {"jansson.h"}
                shared = quoted and what in FOR_CLI and short(path).startswith("cli")
                if not (own or is_system(what) or public or shared):
                    broken.append(f"{short(path)} includes {what}")
        self.broken(broken)

    def test_public_headers_compile_alone(self):
        flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I",
                 os.path.join(SOURCE_ROOT, "include"), "-"]
        compilers = [(["cc", "-std=c11", "-x", "c"], True),
                     (["c++", "-std=c++11", "-x", "c++"], False)]
        for header in sorted(PUBLIC):
            for compiler, is_c in compilers:
                if shutil.which(compiler[0]) is None:
                    self.assertFalse(is_c, "no C compiler")
                    continue
                with self.subTest(header=header, compiler=compiler[0]):
                    # one of macros alone declares nothing
                    source = f"#include <{header}>\nextern int declared;\n"
                    done = subprocess.run([*compiler, *flags], input=source,
                                          capture_output=True, text=True)
                    self.assertEqual(done.returncode, 0, done.stderr)

    def test_libraries_export_the_interface_alone(self):
        for name, header in (("libdilocox", "dilocox.h"), ("libdilocox_train", "dilocox_train.h")):
            library = os.path.join(BUILD_ROOT, "src", name + ".so")
            listed = subprocess.run(["nm", "-D", "--defined-only", library], check=True,
                                    capture_output=True, text=True).stdout
            exported = {line.split()[-1].split("@")[0] for line in listed.splitlines()}
            exported = {symbol for symbol in exported if not symbol.startswith(SANITIZER)}
            declared = set(re.findall(r"^DLX_API [^;(]*?(dlx_\w+)\(",
                                      read(os.path.join(SOURCE_ROOT, "include", header)),
                                      re.MULTILINE))
            self.assertGreater(len(declared), 8)
            self.assertEqual(exported, declared, name)

    def test_libdilocox_stands_alone(self):
        """No oneDNN, OpenBLAS, MPI or JSON below a training loop of one's own."""
        for program in ("src/libdilocox.so", "examples/own_loop"):
            needed = subprocess.run(["ldd", os.path.join(BUILD_ROOT, program)], check=True,
                                    capture_output=True, text=True).stdout
            self.assertIn("libzmq", needed)
            self.assertNotRegex(needed, r"dnnl|blas|mpi|jansson|yaml|dilocox_train|gomp")

    def test_files_begin_with_a_sentence(self):
        """The licence, then what lives there: at the file's own top or at its header's."""
        broken = []

        def opening(path):
            licence, _, rest = re.sub(r"^#!.*\n", "", read(path)).partition("\n")
            if "SPDX-License-Identifier: Apache-2.0" not in licence:
                broken.append(f"{short(path)} begins without its licence")
            return rest.lstrip()

        without = "begins without a sentence that says what lives there"
        for path in sources(*FOLDERS):
            header = path[:-2] + ".h"
            if not any(os.path.exists(p) and opening(p).startswith("/*") for p in (path, header)):
                broken.append(f"{short(path)} {without}")
        for path in glob.glob(os.path.join(SOURCE_ROOT, "**", "*.py"), recursive=True):
            if not short(path).startswith("build") and not re.match(r'"""|#', opening(path)):
                broken.append(f"{short(path)} {without}")
        self.broken(broken)

    def test_files_are_short(self):
        self.broken([f"{short(path)} has {lines} lines; the limit is {LINES_MAX}"
                     for path in sources(*FOLDERS)
                     if (lines := len(read(path).splitlines())) > LINES_MAX])

    def test_internal_names(self):
        """Between files dlxi_, outside dlx_: what an object defines for others begins so."""
        self.broken([f"{os.path.basename(archive)} defines {name}"
                     for archive, _, name in extern_names()
                     if not name.startswith(("dlxi_", "dlx_"))])

    def test_one_definition_per_name(self):
        """A name that others can call has one meaning, also in archives never linked together."""
        names = extern_names()
        self.assertGreater(len(names), 100)
        self.broken([f"{name} is defined in {' and in '.join(files)}"
                     for name, files in sorted(defined_twice(names).items())])

    def test_what_is_defined_twice(self):
        """The test above can fail."""
        names = [("a.a", "x.o", "dlxi_open"), ("b.a", "x.o", "dlxi_open")]
        self.assertEqual(defined_twice(names), {})
        self.assertEqual(defined_twice([*names, ("b.a", "y.o", "dlxi_open")]),
                         {"dlxi_open": ["x.o", "y.o"]})

    def test_code_is_formatted(self):
        if shutil.which("clang-format") is None:
            self.skipTest("no clang-format")
        done = subprocess.run(["clang-format", "--dry-run", "-Werror", *sources(*FOLDERS)],
                              cwd=SOURCE_ROOT, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, "run 'make format'\n" + done.stderr[:4000])

    def short_lines(self, paths, find):
        self.assertGreater(len(paths), 5)
        self.broken([f"{short(path)}:{number} has {columns} columns; the limit is {COLUMNS_MAX}"
                     for path in paths for number, columns in find(read(path))])

    def test_lines_of_code_are_short(self):
        """Comments and strings too, which clang-format leaves as they are."""
        self.short_lines(sources(*FOLDERS), long_lines)

    def test_lines_of_prose_are_short(self):
        pages = [path for folder in ("", "docs")
                 for path in glob.glob(os.path.join(SOURCE_ROOT, folder, "*.md"))]
        self.short_lines(sorted(pages), long_prose)

    def test_what_is_a_long_line(self):
        """The two tests above can fail."""
        fits, long = "Δ" * COLUMNS_MAX, "Δ" * (COLUMNS_MAX + 1)
        self.assertEqual(long_lines(f"{fits}\n{long}\n"), [(2, 101)])
        self.assertEqual(long_prose(f"{fits}\n- {fits}\n{long}"), [(2, 102), (3, 101)])
        link = f"{fits[:90]} [a](https://example.com/a/page)"
        self.assertEqual(long_prose(f"| {fits} |\n    {fits}\n```\n{long}\n```\n{link}"), [])
        self.assertEqual(long_prose(f"```\n{long}\n```\n{long}"), [(4, 101)])


if __name__ == "__main__":
    unittest.main(verbosity=2)
