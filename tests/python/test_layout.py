# SPDX-License-Identifier: Apache-2.0
"""The generated bindings: as scripts/bindings.py writes them now, with the offsets, sizes and
numbers that a compiler gives (golden/abi.json), every function of the header, and the defaults that
the library has. And the package's keywords, each with its C field and its key."""
import ctypes
import inspect
import json
import os
import re
import subprocess
import sys
import unittest

import dilocox
from dilocox import _c, _library, _options
from support import SOURCE_ROOT, Case, main


def read(*parts):
    with open(os.path.join(SOURCE_ROOT, *parts), encoding="utf-8") as text:
        return text.read()


def camel(name):
    return "".join(word.capitalize() for word in name.split("_")[1:])


class Layout(Case):
    def test_generated_anew_it_is_the_same(self):
        subprocess.run([sys.executable, os.path.join(SOURCE_ROOT, "scripts", "bindings.py"),
                        self.path("_c.py")], check=True)
        with open(self.path("_c.py"), encoding="utf-8") as text:
            self.assertEqual(text.read(), read("python", "dilocox", "_c.py"),
                             "run scripts/bindings.py")

    def test_offsets_sizes_and_numbers(self):
        golden = json.loads(read("tests", "golden", "abi.json"))
        header = read("include", "dilocox.h")
        structs = re.findall(r"^typedef struct (dlx_\w+) {", header, re.MULTILINE)
        enums = re.findall(r"^typedef enum (dlx_\w+) {", header, re.MULTILINE)
        fields = numbers = 0
        for name in structs:
            mine, theirs = getattr(_c, name), golden["structs"][name]
            self.assertEqual(ctypes.sizeof(mine), theirs["bytes"], name)
            self.assertEqual({field: [getattr(mine, field).offset, getattr(mine, field).size]
                              for field, _ in mine._fields_ if not field.startswith("_")},
                             theirs["fields"], name)
            fields += len(theirs["fields"])
        for name in enums:
            mine, theirs = getattr(_c, camel(name)), golden["enums"][name]
            self.assertEqual([one.value for one in mine], list(theirs.values()), name)
            for one, long_name in zip(mine, theirs):
                self.assertTrue(long_name.endswith(f"_{one.name}"), long_name)
                numbers += 1
        print(f"{fields} fields of {len(structs)} structs, {numbers} enumerators")
        self.assertGreater(fields, 140)
        self.assertGreater(numbers, 30)

    def test_every_function(self):
        declared = re.findall(r"^DLX_API [^;(]*?(dlx_\w+)\(", read("include", "dilocox.h"),
                              re.MULTILINE)
        self.assertEqual(sorted(_c.FUNCTIONS), sorted(declared))
        for name in declared:
            self.assertTrue(hasattr(_library.library(), name), name)

    def test_a_misspelt_field_is_an_error(self):
        with self.assertRaises(AttributeError):
            _c.dlx_sync_config().inner_stepz = 3

    def test_defaults_are_the_library_s(self):
        for kind, table in (("sync", _c.SYNC_OPTIONS), ("coordinator", _c.COORDINATOR_OPTIONS)):
            config = getattr(_c, f"dlx_{kind}_config")()
            getattr(_library.library(), f"dlx_{kind}_config_default")(
                ctypes.byref(config), ctypes.sizeof(config))
            for field, option in table.items():
                self.assertEqual(getattr(config, field), option.default, field)

    def test_version(self):
        version = re.search(r"version: '([\d.]+)'", read("meson.build"))[1]
        self.assertEqual(dilocox.version(), version)
        self.assertEqual(".".join(map(str, _c.VERSION)), version)


class Keywords(unittest.TestCase):
    def test_keyword_field_and_key(self):
        """Each has the others, and the same default."""
        keys = subprocess.run([os.environ["DILOCOX"], "config", "--options"], check=True,
                              capture_output=True, text=True).stdout
        keys = set(re.findall(r"^ *([a-z_]+\.[a-z_.]+)=", keys, re.MULTILINE))
        self.assertGreater(len(keys), 40)
        given = {name: one.default for name, one in
                 inspect.signature(dilocox.Sync.__init__).parameters.items()}
        for field, option in _c.SYNC_OPTIONS.items():
            if not option.key:  # the trainer has no such thing
                continue
            self.assertIn(option.key, keys, field)
            keyword = _options.KEYWORDS.get(field, field)
            if keyword not in given:
                continue  # by its C name, among `options`
            config = _c.dlx_sync_config()
            _options.set_options(config, _c.SYNC_OPTIONS, {keyword: given[keyword]}, ())
            self.assertEqual(getattr(config, field), option.default, keyword)
        fields = {_options.FIELDS.get(name, name) for name in given}
        self.assertGreater(len(fields.intersection(_c.SYNC_OPTIONS)), 11)

    def test_coordinator(self):
        given = {name: one.default for name, one in
                 inspect.signature(dilocox.Coordinator.__init__).parameters.items()}
        for keyword in ("timeout", "join_timeout"):
            field = _options.FIELDS[keyword]
            self.assertEqual(1000 * given[keyword], _c.COORDINATOR_OPTIONS[field].default)


if __name__ == "__main__":
    main()
