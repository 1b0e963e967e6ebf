"""What compilers are told of functions that they should not look into.

`torch.compiler` has decorators for it, but applying one imports the compiler, which takes longer
than all else in `import fastequi`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._compile import _disable_dynamo

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_in_graphs(function: Function) -> Function:
    """Called once while a graph is made, its result a constant there; as
    `torch.compiler.assume_constant_result`."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def outside_of_graphs(function: Function) -> Function:
    """Runs as it is where a compiled function calls it; as `torch.compiler.disable`, which other
    callers do not import the compiler for."""
    outside = _disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # in frames that the compiler passed over `is_compiling` says no, and it tries those below
        known = torch.compiler.is_compiling() or "torch._dynamo" in sys.modules
        return (outside if known else function)(*args, **kwargs)

    return call  # type: ignore[return-value]
