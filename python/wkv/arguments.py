"""Checks of arguments, where the native side would answer a wrong type with its whole signature."""

from __future__ import annotations

import operator
import os
from typing import Any


def text(place: str, name: str, value: Any) -> str:
    """The value, a str.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, str):
        raise TypeError(f"[{place}] {name} must be a str, got {value!r}")
    return value


def integer(
    place: str, name: str, value: Any, least: int | None = None, most: int | None = None
) -> int:
    """The value as an int, in ``[least, most]`` if these are given; numpy's integers will do.

    Raises:
        TypeError: It is no integer.
        ValueError: It is out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"[{place}] {name} must be an integer, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"[{place}] {name} must be at least {least}, got {number}")
    if most is not None and number > most:
        raise ValueError(f"[{place}] {name} must be at most {most}, got {number}")
    return number


def thread_count(place: str, threads: int | None) -> int:
    """Threads as the native side counts them: 0 for its own choice."""
    return 0 if threads is None else integer(place, "threads", threads, 1, 2**31 - 1)


def file_path(place: str, path: str | os.PathLike[str]) -> str:
    """The path of a file.

    Raises:
        TypeError: It is no path.
        ValueError: It holds a zero byte.
    """
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"[{place}] the path must be a str or a Path, got {path!r}") from None
    if "\0" in name:
        raise ValueError(f"[{place}] the path {name!r} holds a zero byte")
    return name
