"""Fixtures of the Python tests: small models that lie in the repository or are made up."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wkv

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """tests/golden: a checkpoint of every version."""
    return GOLDEN


@pytest.fixture(scope="session")
def model() -> wkv.Model:
    """A v7 model of 2 layers and 80 channels or so, fp32."""
    return wkv.Model.load(GOLDEN / "v7" / "model.safetensors", device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def v4() -> wkv.Model:
    """A v4 model, fp32."""
    return wkv.Model.load(GOLDEN / "v4" / "model.pth", device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def slow_model() -> wkv.Model:
    """Large enough that 100,000 tokens take minutes."""
    return wkv.Model.synthetic("v7:4x512:512", device="cpu", threads=1)


@pytest.fixture(autouse=True)
def _default_signals() -> Iterator[None]:
    """A test that replaces the handler of Ctrl-C puts it back."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_python() -> RunPython:
    """Runs a program in a fresh interpreter: run_python(code, *arguments)."""

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
