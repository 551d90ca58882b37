"""What a function says of itself."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import dayjob
from dayjob import Run
from dayjob.shapes import shape_of


def plain(x: int) -> str: ...
async def later(x: int) -> list[int]: ...
async def scoped(run: Run, x: int) -> None: ...
async def scoped_too(run: dayjob.Run) -> None: ...
async def not_scoped(x: int, run: Run) -> None: ...
def bare(x): ...  # type: ignore[no-untyped-def]
def unknown(x: Nowhere) -> Nowhere: ...  # type: ignore[name-defined]  # noqa: F821


class Service:
    async def method(self, run: Run) -> int: ...
    def __call__(self, x: int) -> float: ...


class Later:
    async def __call__(self, x: int) -> float: ...


def test_names_and_kinds() -> None:
    assert (shape_of(plain).name, shape_of(plain).is_async, shape_of(plain).returns) == ("plain", False, str)
    assert (shape_of(later).is_async, shape_of(later).returns) == (True, list[int])
    assert shape_of(lambda: 1).name == "lambda"
    assert shape_of(partial(later, 1)).name == "later"
    assert shape_of(partial(later, 1)).is_async
    assert shape_of(Service()).name == "Service"
    assert not shape_of(Service()).is_async
    assert shape_of(Later()).is_async


def test_what_is_not_annotated_or_not_known_may_be_anything() -> None:
    assert shape_of(bare).returns is Any
    assert shape_of(unknown).returns is Any
    assert shape_of(len).name == "len"
    assert shape_of(len).code == b""


def test_a_function_takes_a_run_if_its_first_parameter_says_so() -> None:
    assert shape_of(scoped).takes_run
    assert shape_of(scoped_too).takes_run
    assert shape_of(Service().method).takes_run
    assert not shape_of(not_scoped).takes_run
    assert not shape_of(bare).takes_run
    assert shape_of(partial(not_scoped, 1)).takes_run
    assert not shape_of(partial(scoped, None)).takes_run
    exec("def evaluated(run: Run): ...", namespace := {"Run": Run})
    assert shape_of(namespace["evaluated"]).takes_run


def compiled(source: str, line: int = 0) -> bytes:
    namespace: dict[str, Any] = {}
    exec("\n" * line + source, namespace)
    return shape_of(namespace["f"]).code


def test_code_is_what_a_function_does_and_not_where_it_stands() -> None:
    code = compiled("def f(x):\n    return x + 1")
    assert compiled("def f(x):\n    # why\n    return (x +\n 1)", line=7) == code
    assert compiled("def f(x):\n    return x + 2") != code
    assert compiled("def f(x):\n    return x - 1") != code
    assert compiled("def f(x):\n    return (lambda y: y + 1)(x)") != compiled(
        "def f(x):\n    return (lambda y: y + 2)(x)"
    )
    assert compiled("def f(x):\n    return a(x)") != compiled("def f(x):\n    return b(x)")


def test_code_is_the_same_in_every_process() -> None:
    """Sets of constants are shown in another order by each process."""
    source = (
        "from dayjob.shapes import shape_of\n"
        "def f(x):\n    return x in {'one', 'two', 'three', ('four', 5)} or (lambda: x in {'six', 'seven', b'8'})\n"
        "print(shape_of(f).code.hex())"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-c", source], env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True,
            text=True, check=True, cwd=Path(dayjob.__file__).parent.parent,
        ).stdout
        for seed in ("1", "2", "3", "4")
    }  # fmt: skip
    assert len(shown) == 1


def test_a_shape_is_worked_out_once() -> None:
    assert shape_of(plain) is shape_of(plain)
