# SPDX-License-Identifier: Apache-2.0
"""What a run has written."""
import json
import os


def events(path):
    """The complete lines of a metrics.jsonl that is being written, or that is not there yet."""
    if not os.path.exists(path):
        return []
    with open(path) as lines:
        text = lines.read()
    return [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines()]
