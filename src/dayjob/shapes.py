"""What a function says of itself: its name, its types, whether it is async, whether it takes a `Run`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from types import CodeType, FunctionType
from typing import Any, get_type_hints
from weakref import WeakKeyDictionary


class Shape:
    """Facts about a function that do not change while it lives."""

    __slots__ = ("code", "is_async", "name", "returns", "takes_run")

    def __init__(self, fn: Callable[..., Any]) -> None:
        inner = _innermost(fn)
        self.name = str(getattr(inner, "__name__", type(inner).__name__)).strip("<>")
        self.is_async = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
            getattr(inner, "__call__", None)  # noqa: B004
        )
        self.returns = _hints(inner).get("return", Any)
        self.takes_run = _first_annotation(fn, inner) in ("Run", "dayjob.Run")
        code = getattr(inner, "__code__", None)
        self.code = _code_digest(code) if code is not None else b""


_shapes: WeakKeyDictionary[Any, Shape] = WeakKeyDictionary()
_of_code: WeakKeyDictionary[CodeType, tuple[FunctionType, Shape]] = WeakKeyDictionary()


def shape_of(fn: Callable[..., Any]) -> Shape:
    try:
        return _shapes[fn]
    except KeyError:
        shape = _shapes[fn] = _of_twin(fn) if type(fn) is FunctionType else Shape(fn)
        return shape
    except TypeError:  # no weak references to this one
        return Shape(fn)


def _of_twin(fn: FunctionType) -> Shape:
    """A function inside another is a new one at each call of it: all that it says of itself, it said before."""
    twin, shape = _of_code.get(fn.__code__, (None, None))
    if shape is None or twin is None or _says(twin) != _says(fn):
        shape = Shape(fn)
        _of_code[fn.__code__] = fn, shape
    return shape


def _says(fn: FunctionType) -> tuple[Any, ...]:
    return id(fn.__globals__), fn.__name__, fn.__annotations__, fn.__dict__.get("__wrapped__")


def _innermost(fn: Any) -> Any:
    while isinstance(fn, partial):
        fn = fn.func
    return fn


def _hints(fn: Any) -> dict[str, Any]:
    if not hasattr(fn, "__annotations__"):
        return {}
    try:
        return get_type_hints(fn, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that only a type checker sees
        return {}


def parameter_types(fn: Callable[..., Any]) -> list[Any]:
    """The declared types of a function's parameters, in order."""
    inner = _innermost(fn)
    hints = _hints(inner)
    try:
        return [hints.get(name, Any) for name in inspect.signature(fn).parameters]
    except (ValueError, TypeError):
        return []


def _first_annotation(fn: Any, inner: Any) -> str:
    """The first parameter's annotation as text: the class itself would be a layer above this one."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (ValueError, TypeError):
        return ""
    if not parameters:
        return ""
    annotation = parameters[0].annotation
    if isinstance(annotation, str):
        return annotation
    if getattr(annotation, "__module__", "").startswith("dayjob."):
        return str(annotation.__qualname__)
    return ""


def _code_digest(code: CodeType) -> bytes:
    """A hash of what the function does: not of its name, place or line numbers."""
    hash = blake2b(digest_size=16)
    hash.update(code.co_code)
    hash.update(repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        hash.update(_constant_digest(constant))
    return hash.digest()


def _constant_digest(constant: Any) -> bytes:
    if isinstance(constant, CodeType):
        return _code_digest(constant)
    if isinstance(constant, frozenset):  # shown in another order by each process
        return b"{%b}" % b",".join(sorted(map(_constant_digest, constant)))
    if isinstance(constant, tuple):
        return b"(%b)" % b",".join(map(_constant_digest, constant))
    return repr(constant).encode()
