"""Makes `reference` and `models` importable by tests and finds the optional shared data."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

# A shell starts background jobs with SIGINT ignored, and children inherit that; the tests of Ctrl-C
# need what a terminal has.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Larger data beside the checkout; WKV_SHARED names another place."""
    path = Path(os.environ.get("WKV_SHARED", TESTS.parent.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path} (set WKV_SHARED)")
    return path
