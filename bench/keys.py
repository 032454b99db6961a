# SPDX-License-Identifier: Apache-2.0
"""Keys for the processes of a run."""
import os
import subprocess


def make_keys(dilocox, directory, names):
    """Writes directory/NAME.key for each, and the roster, whose path it returns."""
    roster = os.path.join(directory, "roster.txt")
    with open(roster, "w") as out:
        for name in names:
            made = subprocess.run([dilocox, "keygen", os.path.join(directory, name + ".key")], check=True, capture_output=True, text=True)
            out.write(f"{name} {made.stdout.strip()}\n")
    return roster
