# SPDX-License-Identifier: Apache-2.0
"""What options are called: the keyword, the C field, and the trainer's key, which the library's
messages have."""
from __future__ import annotations

import re
from typing import Dict

from . import _c

# keywords with names of their own; every other option has the name of its C field
FIELDS = {"sync_every": "inner_steps", "low_rank": "factor_rank",
          "outer_lr": "outer_learning_rate", "timeout": "timeout_ms", "join_timeout": "join_ms"}
KEYWORDS = {field: keyword for keyword, field in FIELDS.items()}

_here: Dict[str, str] = {option.key: KEYWORDS.get(field, field)
         for table in (_c.SYNC_OPTIONS, _c.COORDINATOR_OPTIONS)
         for field, option in table.items() if option.key}
_here.update({"--resume": "state=", "wan.coordinator": "coordinator", "wan.key": "key", "wan.roster": "roster",
              "train.learning_rate": "the learning rate", "train.tokens": "the run's tokens"})
_keys = re.compile(r"(?<![\w.-])(?:" + "|".join(map(re.escape, _here)) + r")(?![\w.]*\w)")


def in_keywords(message: str) -> str:
    """A message of the library, with keywords where it has the trainer's keys."""
    return _keys.sub(lambda found: _here[found[0]], message)
