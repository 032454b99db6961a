# SPDX-License-Identifier: Apache-2.0
"""The binary interface against golden/abi.json: offset and size of every field of every public
struct, and the number of every enumerator, as a compiler prints them.

A change on purpose: `python3 tests/unit/test_abi.py --write` replaces the file, and says what breaks
old programs. What does needs another soversion in src/meson.build; what does not is at the end of a
struct that begins with `size`, or of an enum."""
import copy
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import unittest

SOURCE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
INCLUDE = os.path.join(SOURCE_ROOT, "include")
GOLDEN = os.path.join(SOURCE_ROOT, "tests", "golden", "abi.json")
CC = os.environ.get("CC", "cc").split()
# grows by dlx_sync_config.tensor_bytes
GROWS_WITHOUT_SIZE = {"dlx_tensor"}


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def fields(body):
    """The names that the members of a struct declare."""
    names = []
    for member in filter(str.strip, body.split(";")):
        function = re.search(r"\(\s*\*\s*(\w+)\s*\)\s*\(", member)
        names += [function[1]] if function else [
            re.search(r"(\w+)\s*(\[[^]]*\]\s*)*$", one)[1] for one in member.split(",")]
    return names


def declared():
    """{struct: its fields}, {enum: its enumerators}."""
    text = run(*CC, "-std=c11", "-E", "-P", "-I", INCLUDE, "-x", "c", "-",
               input="#include <dilocox_train.h>\n")
    found = re.findall(r"typedef\s+(struct|enum)\s+(dlx_\w+)\s*{([^}]*)}\s*dlx_\w+\s*;", text)
    return ({name: fields(body) for kind, name, body in found if kind == "struct"},
            {name: re.findall(r"(DLX_\w+)[^,]*", body) for kind, name, body in found
             if kind == "enum"})


def layout():
    structs, enums = declared()
    lines = ["#include <dilocox_train.h>", "#include <stdio.h>", "int main(void) {"]
    for name, members in structs.items():
        lines.append(f'printf("{name} . 0 %zu\\n", sizeof({name}));')
        lines += [f'printf("{name} {member} %zu %zu\\n", offsetof({name}, {member}), '
                  f"sizeof((({name} *)0)->{member}));" for member in members]
    for name, numbers in enums.items():
        lines += [f'printf("{name} {number} %d\\n", (int){number});' for number in numbers]
    with tempfile.TemporaryDirectory() as directory:
        program = os.path.join(directory, "layout")
        run(*CC, "-std=c11", "-I", INCLUDE, "-o", program, "-x", "c", "-",
            input="\n".join([*lines, "return 0; }"]))
        rows = [line.split() for line in run(program).splitlines()]
    found = {"enums": {name: {} for name in enums}, "structs": {name: {} for name in structs}}
    for name, member, *numbers in rows:
        if name in enums:
            found["enums"][name][member] = int(numbers[0])
        elif member == ".":
            found["structs"][name] = {"bytes": int(numbers[1]), "fields": {}}
        else:
            found["structs"][name]["fields"][member] = [int(n) for n in numbers]
    return found


def breaks(old, new):
    """What of `new` does not run programs that were compiled with `old`."""
    found = []
    for name, numbers in old["enums"].items():
        found += [f"{one} is no longer {number}" for one, number in numbers.items()
                  if new["enums"].get(name, {}).get(one) != number]
    for name, was in old["structs"].items():
        now = new["structs"].get(name, {"bytes": 0, "fields": {}})
        found += [f"{name}.{field} is no longer {size} bytes at {at}"
                  for field, (at, size) in was["fields"].items()
                  if now["fields"].get(field) != [at, size]]
        found += [f"{name}.{field} lies within the {name} of old programs"
                  for field, (at, _) in now["fields"].items()
                  if field not in was["fields"] and at < was["bytes"]]
        grows = "size" in was["fields"] or name in GROWS_WITHOUT_SIZE
        if now["bytes"] < was["bytes"] or (now["bytes"] > was["bytes"] and not grows):
            found.append(f"{name} has {now['bytes']} bytes, not {was['bytes']}")
    return found


def golden():
    with open(GOLDEN, encoding="utf-8") as text:
        return json.load(text)


@unittest.skipIf(struct.calcsize("P") != 8, "the file is of machines with addresses of 64 bits")
class Abi(unittest.TestCase):
    maxDiff = None

    def test_layout_is_the_golden_one(self):
        now, written = layout(), golden()
        self.assertEqual(breaks(written, now), [], "old programs break")
        self.assertEqual(now, written, f"on purpose? then {__doc__.split('purpose: ')[1]}")

    def test_everything_is_listed(self):
        """What the headers declare, counted in another way."""
        text = ""
        for header in ("dilocox.h", "dilocox_options.h", "dilocox_train.h"):
            with open(os.path.join(INCLUDE, header), encoding="utf-8") as source:
                text += source.read()
        structs, enums = declared()
        self.assertEqual(sorted(structs), sorted(re.findall(r"struct (dlx_\w+) {", text)))
        self.assertEqual(sorted(enums), sorted(re.findall(r"enum (dlx_\w+) {", text)))
        self.assertEqual(fields("int a, *b; char c[4][2]; void (*d)(int e, int f); _Alignas(8) g h"),
                         ["a", "b", "c", "d", "h"])

    def test_what_breaks(self):
        """The first test can fail, and growth at the end is none."""
        old = golden()
        self.assertEqual(breaks(old, old), [])

        def change(edit):
            new = copy.deepcopy(old)
            edit(new["structs"], new["enums"])
            return breaks(old, new)

        def field_added(structs, name, at, grown):
            structs[name]["fields"]["added"] = [at, 8]
            structs[name]["bytes"] += grown

        step = old["structs"]["dlx_step"]["bytes"]
        tensor = old["structs"]["dlx_tensor"]["bytes"]
        error = old["structs"]["dlx_error"]["bytes"]
        self.assertEqual(change(lambda s, e: field_added(s, "dlx_step", step, 8)), [])
        self.assertEqual(change(lambda s, e: field_added(s, "dlx_tensor", tensor, 8)), [])
        self.assertEqual(change(lambda s, e: e["dlx_dtype"].update(DLX_F8=3)), [])
        self.assertEqual(change(lambda s, e: field_added(s, "dlx_error", error, 8)),
                         [f"dlx_error has {error + 8} bytes, not {error}"])
        self.assertEqual(change(lambda s, e: field_added(s, "dlx_tensor", tensor - 4, 0)),
                         ["dlx_tensor.added lies within the dlx_tensor of old programs"])
        self.assertEqual(change(lambda s, e: e["dlx_dtype"].update(DLX_F16=3)),
                         ["DLX_F16 is no longer 2"])
        self.assertEqual(change(lambda s, e: s["dlx_step"]["fields"].update(applied=[16, 1])),
                         ["dlx_step.applied is no longer 1 bytes at 9"])
        self.assertNotEqual(change(lambda s, e: s.pop("dlx_event")), [])


if __name__ == "__main__":
    if "--write" in sys.argv:
        new = layout()
        for line in breaks(golden(), new) if os.path.exists(GOLDEN) else []:
            print("old programs break:", line)
        text = re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", json.dumps(new, indent=1))
        with open(GOLDEN, "w", encoding="utf-8") as out:
            out.write(text + "\n")
        sys.exit()
    unittest.main(verbosity=2)
