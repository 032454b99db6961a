# SPDX-License-Identifier: Apache-2.0
"""The package by pip, with Debian's tools and no network, and by `meson install`."""
import glob
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile

from support import SOURCE_ROOT, Case, main

RUN = '''
import array, dilocox
with dilocox.Hub() as hub, dilocox.Coordinator(sites=1, tokens=4, hub=hub) as coordinator:
    coordinator.start()
    with dilocox.Sync({"w": array.array("f", [0])}, site="a", hub=hub, sync_every=1) as sync:
        while not sync.finished:
            sync.step(1)
print(dilocox.version(), dilocox.__file__, dilocox._library.path())
'''


class Packaging(Case):
    def setUp(self):
        super().setUp()
        self.environment = {name: value for name, value in os.environ.items()
                            if name not in ("PYTHONPATH", "DILOCOX_LIBRARY",
                                            "LD_LIBRARY_PATH")}

    def must(self, *command, **environment):
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.directory,
                              env={**self.environment, **environment}, timeout=300)
        self.assertEqual(done.returncode, 0, f"{command}\n{done.stdout}{done.stderr}")
        return done.stdout

    def files(self):
        return sorted(os.path.relpath(os.path.join(folder, name), self.path("tree"))
                      for folder, _, names in os.walk(self.path("tree")) for name in names)

    def copied(self):
        """The package's sources, in a tree without a build."""
        shutil.copytree(os.path.join(SOURCE_ROOT, "python"), self.path("tree/python"),
                        ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
        return self.path("tree/python")

    def test_pip(self):
        for module in ("venv", "setuptools", "wheel", "pip"):
            if importlib.util.find_spec(module) is None:
                self.skipTest(f"no python3-{module}")
        tree = self.copied()
        before = self.files()
        self.must(sys.executable, "-m", "venv", "--system-site-packages", "env")
        library = os.path.realpath(os.environ["DILOCOX_LIBRARY"])
        self.must("env/bin/pip", "install", "--no-build-isolation", "--no-index", tree,
                  DILOCOX_LIBRARY=library)
        said = self.must("env/bin/python", "-c", RUN).split()
        self.assertIn(self.path("env/lib"), said[1])
        self.assertEqual(os.path.dirname(said[1]), os.path.dirname(said[2]))
        version = self.must("env/bin/python", "-m", "dilocox", "version").split()[1]
        self.assertEqual(version, said[0])
        if shutil.which("git") is not None:  # what pip leaves beside the sources is ignored
            self.assertNotEqual(self.files(), before)
            shutil.copy(os.path.join(SOURCE_ROOT, ".gitignore"), self.path("tree"))
            self.must("git", "init", "--quiet", "tree")
            self.assertEqual(sorted(self.must("git", "-C", "tree", "ls-files", "--others",
                                              "--exclude-standard").splitlines()),
                             sorted([*before, ".gitignore"]))

    def test_tags(self):
        tree = self.copied()
        for library, ending, has in ((os.environ["DILOCOX_LIBRARY"], "_x86_64.whl", True),
                                     ("/nowhere", "-py3-none-any.whl", False)):
            self.must(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-index",
                      "--wheel-dir", "wheels", tree, DILOCOX_LIBRARY=library)
            found, = glob.glob(self.path("wheels/*.whl"))
            if os.uname().machine == "x86_64":
                self.assertTrue(found.endswith(ending), found)
            with zipfile.ZipFile(found) as wheel:
                names = wheel.namelist()
                self.assertEqual("dilocox/libdilocox.so" in names, has, names)
            self.assertIn("dilocox/py.typed", names)
            self.assertIn("dilocox/_sync.py", names)
            shutil.rmtree(self.path("wheels"))
            shutil.rmtree(os.path.join(tree, "build"))

    def test_meson_install(self):
        if shutil.which("meson") is None:
            self.skipTest("no meson")
        self.must("meson", "setup", "build", SOURCE_ROOT, "-Dpython=true")
        root = self.path("root")
        self.must("meson", "install", "-C", os.environ["BUILD_ROOT"], "--no-rebuild", "--destdir",
                  root)
        self.must("meson", "install", "-C", "build", "--no-rebuild", "--destdir", root, "--tags",
                  "python-runtime")
        package, = glob.glob(f"{root}/**/dilocox/__init__.py", recursive=True)
        self.assertEqual(glob.glob(f"{root}/**/__pycache__", recursive=True), [])
        place = os.path.dirname(os.path.dirname(package))
        said = self.must(sys.executable, "-B", "-c", RUN, PYTHONPATH=place).split()
        self.assertEqual(said[1:], [package, os.path.join(os.path.dirname(package),
                                                          "libdilocox.so")])


if __name__ == "__main__":
    main()
