# SPDX-License-Identifier: Apache-2.0
"""Puts the library that the package would load here beside its modules: $DILOCOX_LIBRARY, or what
`make build` made. The wheel is for this platform then; without a library it is for any, and needs
an installed libdilocox."""
import os
import re
import shutil

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from wheel.bdist_wheel import bdist_wheel

HERE = os.path.dirname(os.path.abspath(__file__))
LIBRARY = os.environ.get("DILOCOX_LIBRARY") or os.path.join(
    os.path.dirname(HERE), "build", "src", "libdilocox.so")


def version():
    with open(os.path.join(HERE, "dilocox", "_c.py"), encoding="utf-8") as text:
        return ".".join(re.search(r"^VERSION = \((\d+), (\d+), (\d+)\)", text.read(),
                                  re.MULTILINE).groups())


class WithLibrary(build_py):
    def run(self):
        super().run()
        if os.path.exists(LIBRARY):
            shutil.copy(LIBRARY, os.path.join(self.build_lib, "dilocox", "libdilocox.so"))

    def get_outputs(self, include_bytecode=1):
        library = os.path.join(self.build_lib, "dilocox", "libdilocox.so")
        return super().get_outputs(include_bytecode) + [library] * os.path.exists(LIBRARY)


class ForPlatform(Distribution):
    """Of this platform, if the library goes along."""

    def has_ext_modules(self):
        return os.path.exists(LIBRARY)


class Tagged(bdist_wheel):
    """For any Python 3, which loads the library by ctypes."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


setup(version=version(), distclass=ForPlatform,
      cmdclass={"build_py": WithLibrary, "bdist_wheel": Tagged})
