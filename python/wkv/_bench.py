"""The console script ``wkv_bench``: becomes the native binary of that name."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from .paths import bench_path


def main(arguments: list[str] | None = None) -> NoReturn:
    """Replaces this process by ``wkv_bench`` with the given arguments (default: our own)."""
    path = bench_path()
    if path is None:
        sys.exit("wkv_bench: this installation has no benchmark binary (WKV_BUILD_BENCH was OFF)")
    os.execv(path, ["wkv_bench", *(sys.argv[1:] if arguments is None else arguments)])
