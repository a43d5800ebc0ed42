"""Fixtures of the Python tests: small models that lie in the repository or are made up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


# Importing torch takes seconds, so programs that need it begin as copies of a process that has it.
# Jobs are lines of JSON: what to run, its arguments and environment, and where its outputs go.
FORKING = """
import gc, json, os, signal, sys, warnings
import numpy, torch
gc.freeze()  # what a copy does not collect when it ends, it does not copy
print(flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, path in enumerate(job["outputs"], start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(job["environment"])
        sys.argv = ["-c", *job["arguments"]]
        warnings.simplefilter("ignore")
        signal.alarm(300)
        exec(compile(job["code"], "<string>", "exec"), {"__name__": "__main__"})
        break  # ends as any program does
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def run_with_torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Runs a program that imports torch: run_with_torch(code, *arguments, **environment).

    What it printed; AssertionError with its errors if it failed or took five minutes. Of the
    environment it sees no variable of the `rwkv` package but those given.
    """
    folder = tmp_path_factory.mktemp("programs")
    outputs = [str(folder / "stdout"), str(folder / "stderr")]
    base = {k: v for k, v in os.environ.items() if not k.startswith("RWKV_")}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    ready = process.stdout.readline()

    def run(code: str, *arguments: str, **environment: str) -> str:
        assert ready, "torch cannot be imported"
        assert process.stdin is not None
        assert process.stdout is not None
        job: dict[str, Any] = {
            "code": code,
            "arguments": arguments,
            "environment": base | {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"} | environment,
            "outputs": outputs,
        }
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        status = process.stdout.readline().strip()
        printed, errors = (Path(path).read_text() for path in outputs)
        assert status == "0", printed + errors
        return printed

    yield run
    process.communicate()
