"""Stand-ins for other packages, so that existing programs run unchanged on wkv.

:func:`install` makes ``import rwkv`` find :mod:`wkv.compat.rwkv`. docs/compat.md says what is
alike, what differs and why.
"""

from __future__ import annotations

import importlib
import sys

__all__ = ["install"]

_MODULES = ("", ".model", ".utils", ".rwkv_tokenizer")


def install() -> None:
    """Registers the stand-in as the module ``rwkv``. Call it before anything imports ``rwkv``.

    Raises:
        RuntimeError: The real package has been imported already.
    """
    present = sys.modules.get("rwkv")
    ours = importlib.import_module("wkv.compat.rwkv")
    if present is not None and present is not ours:
        raise RuntimeError(
            f"[compat] 'rwkv' is imported already, from {getattr(present, '__file__', '?')}; "
            "call wkv.compat.install() first"
        )
    for name in _MODULES:
        sys.modules[f"rwkv{name}"] = importlib.import_module(f"wkv.compat.rwkv{name}")
