# SPDX-License-Identifier: Apache-2.0
"""What is called around an optimizer's steps: hooks where torch has them, a step of the instance's
own where it does not."""
from __future__ import annotations

import sys
import types
from typing import Any, Callable, Optional

from torch.optim import Optimizer

from . import ConfigError


def check_hookable(optimizer: Optimizer) -> None:
    """ConfigError for a wrapper of an optimizer that lacks what all optimizers have."""
    try:
        iter(optimizer.param_groups)
        if hasattr(optimizer, "register_step_post_hook"):
            optimizer.register_step_post_hook(lambda *_: None).remove()
    except AttributeError:
        raise ConfigError(f"optimizer: {type(optimizer).__name__} is not initialised; its __init__ "
                          "must call that of torch.optim.Optimizer") from None


class Hook:
    """Calls before(arguments, keywords) ahead of each step of an optimizer, and after() behind it;
    once, where a step calls that of its base class. What they raise, the step raises."""

    def __init__(self, optimizer: Any, before: Optional[Callable[..., None]],
                 after: Optional[Callable[[], None]]) -> None:
        self.optimizer, self.before, self.after = optimizer, before, after
        self.handles: list = []
        self.outer: Any = None  # the frame of the outermost step that is running
        if hasattr(optimizer, "register_step_post_hook"):
            self.handles = [optimizer.register_step_pre_hook(self._before),
                            optimizer.register_step_post_hook(self._after)]
        else:
            self._replace(optimizer)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Of torch 2, whose args begin with the optimizer. A step that raised has no hook behind
        it: whether the outer one still runs, the stack says."""
        step = sys._getframe(1)
        above = step.f_back if self.outer is not None else None
        while above is not None and above is not self.outer:
            above = above.f_back
        if above is not None:
            return
        self.outer = step
        if self.before is not None:
            self.before(args[1:], kwargs)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if sys._getframe(1) is self.outer:
            self.outer = None
            if self.after is not None:
                self.after()

    def _replace(self, optimizer: Any) -> None:
        """Of torch 1: schedulers wrap `step`, before or after this, and look for _with_counter."""
        old, own = optimizer.step, "step" in vars(optimizer)

        def step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            active = self.before is not None or self.after is not None
            if active and "grad_scaler" in kwargs:
                raise ConfigError("this torch's GradScaler does not say whether a fused optimizer "
                                  "skipped the step; open the optimizer with fused=False")
            if self.before is not None:
                self.before(args, kwargs)
            result = old(*args, **kwargs)
            if self.after is not None:
                self.after()
            return result

        if hasattr(old, "_with_counter"):
            step._with_counter = True  # type: ignore[attr-defined]
        self.old, self.own, self.step = old, own, types.MethodType(step, optimizer)
        optimizer.step = self.step

    def remove(self) -> None:
        """If a scheduler has wrapped the step since, it stays, and does nothing more."""
        for handle in self.handles:
            handle.remove()
        self.before = self.after = self.outer = None
        if not self.handles and self.optimizer.step is self.step:
            if self.own:
                self.optimizer.step = self.old
            else:
                del self.optimizer.step
