"""Where the native files of this installation lie."""

from __future__ import annotations

from pathlib import Path

from . import _core


def _root() -> Path:
    # Not this file's folder: an editable install keeps the sources elsewhere.
    return Path(_core.__file__).resolve().parent


def cmake_dir() -> str:
    """The folder for ``-Dwkv_DIR=``; holds ``wkv-config.cmake``."""
    return str(_root() / "lib" / "cmake" / "wkv")


def include_dir() -> str:
    """The folder that holds ``wkv/wkv.hpp``."""
    return str(_root() / "include")


def bench_path() -> str | None:
    """The benchmark binary, or None if it was not built."""
    path = _root() / "bin" / "wkv_bench"
    return str(path) if path.is_file() else None
