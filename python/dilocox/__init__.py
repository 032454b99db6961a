# SPDX-License-Identifier: Apache-2.0
"""dilocox: trains one model on sites that are joined by slow links.

`dilocox.torch` is for PyTorch. Here is what that stands on, which needs neither PyTorch nor numpy:
`Sync` is one site, over any writable buffers; `Coordinator` is what they meet at. docs/pytorch.md
and dilocox.h say more."""
from ._c import PartKind, Statistics, Status, Step
from ._coordinator import Coordinator, Hub, keygen
from ._errors import (ConfigError, DilocoxError, DivergedError, NumericError, PeerLostError,
                      RefusedError, RunTimeoutError)
from ._library import version
from ._sync import Part, Sync, Tensor

__all__ = ["ConfigError", "Coordinator", "DilocoxError", "DivergedError", "Hub", "NumericError",
           "Part", "PartKind", "PeerLostError", "RefusedError", "RunTimeoutError", "Statistics",
           "Status", "Step", "Sync", "Tensor", "keygen", "version"]
