"""What compilers are told of functions that they should not look into.

`torch.compiler` has decorators for it, but applying one imports the compiler, which takes longer
than all else in `import fastequi`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch._compile import _disable_dynamo

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_in_graphs(function: Function) -> Function:
    """Called once while a graph is made, its result a constant there; as
    `torch.compiler.assume_constant_result`."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def outside_of_graphs(function: Function) -> Function:
    """Runs as it is where a compiled function calls it; as `torch.compiler.disable`."""
    return _disable_dynamo(function)  # type: ignore[return-value]
