"""Threads, Ctrl-C and progress."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import wkv


def test_two_threads_on_one_model(model: wkv.Model) -> None:
    prompts = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
    want = [model.forward(ids, model.new_state()) for ids in prompts]
    results: list[list[np.ndarray]] = [[] for _ in prompts]

    def work(i: int) -> None:
        for _ in range(50):
            results[i].append(model.forward(prompts[i], model.new_state()))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, got in zip(want, results, strict=True):
        assert len(got) == 50
        for one in got:
            np.testing.assert_array_equal(one, expected)


def test_threads_begin_at_one_initial_state(golden: Path) -> None:
    """A copy of a state is made without the GIL, and one at a time."""
    model = wkv.Model.load(golden / "v7" / "model", device="cpu", dtype="fp32")
    model.set_initial_state(model.new_state())
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(1000):
                model.new_state()
        except ValueError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_the_gil_is_free_and_a_state_in_use_raises(slow_model: wkv.Model) -> None:
    state = slow_model.new_state()
    stop = threading.Event()
    chunks = 0

    def cancel(done: int, total: int) -> None:
        nonlocal chunks
        chunks += 1
        if stop.is_set():
            raise InterruptedError("enough")

    caught: list[BaseException] = []

    def work() -> None:
        try:
            slow_model.forward([1] * 200_000, state, logits="none", progress=cancel)
        except InterruptedError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while chunks == 0 and thread.is_alive():
        time.sleep(0.005)
    # This thread runs meanwhile; with the lock held it would have a turn at most at every chunk.
    before, ticks = chunks, 0
    while chunks < before + 8 and thread.is_alive():
        ticks += 1
        time.sleep(0.001)
    assert thread.is_alive()
    assert ticks > 2 * 8
    for use in (
        lambda: slow_model.forward([1], state),
        lambda: state.copy(),
        lambda: state.to_bytes(),
        lambda: state["blocks.0.att.shift"],
        lambda: slow_model.forward_batch([[1], [2]], [slow_model.new_state(), state]),
    ):
        with pytest.raises(ValueError, match="in use"):
            use()
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert len(caught) == 1
    assert state.position == 0  # as it was
    slow_model.forward([1], state)
    assert state.position == 1


def test_progress_of_forward(slow_model: wkv.Model) -> None:
    seen: list[tuple[int, int]] = []
    state = slow_model.new_state()
    slow_model.forward([1] * 3000, state, logits="none", progress=lambda d, t: seen.append((d, t)))
    assert seen[-1] == (3000, 3000)
    assert all(total == 3000 for _, total in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_progress_of_load(golden: Path) -> None:
    seen: list[tuple[int, int]] = []
    wkv.Model.load(
        golden / "v7" / "model.pth", device="cpu", progress=lambda d, t: seen.append((d, t))
    )
    assert seen
    assert seen[-1][0] == seen[-1][1] > 0


def test_progress_bar(model: wkv.Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.forward([1] * 300, model.new_state(), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "reading" in captured.err
    model.forward([1] * 300, model.new_state())
    assert capsys.readouterr().err == ""


def test_an_exception_in_progress_cancels(slow_model: wkv.Model) -> None:
    class MineError(Exception):
        pass

    def fail(done: int, total: int) -> None:
        raise MineError(done, total)

    state = slow_model.new_state()
    slow_model.forward([5], state)
    before = state.to_bytes()
    with pytest.raises(MineError) as caught:
        slow_model.forward([1] * 100_000, state, progress=fail)
    assert caught.value.args[0] <= 1_000  # of its tokens, a chunk or so
    assert state.to_bytes() == before
    with pytest.raises(MineError):
        wkv.Model.synthetic("v7:2x64:64", progress=fail)


PREFILL = """
import sys, time, wkv
model = wkv.Model.synthetic("v7:4x512:512", device="cpu", threads=2)
state = model.new_state()
print("ready", flush=True)
try:
    model.forward([1] * 1_000_000, state, logits="none")
except KeyboardInterrupt:
    print("interrupted", state.position, flush=True)
logits = model.forward([1], state)
print("usable", logits.shape, flush=True)
"""


def test_ctrl_c_ends_a_long_prefill() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PREFILL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)  # all of it would take minutes
    assert out.splitlines() == ["interrupted 0", "usable (512,)"], err
    assert process.returncode == 0


def test_ctrl_c_in_a_thread_of_this_process(slow_model: wkv.Model) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    state = slow_model.new_state()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        slow_model.forward([1] * 200_000, state, logits="none")
    assert state.position == 0


def test_another_handler_of_ctrl_c_is_respected(slow_model: wkv.Model) -> None:
    hits: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: hits.append(number))
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    state = slow_model.new_state()
    slow_model.forward([1] * 4000, state, logits="none")
    timer.join()
    time.sleep(0.05)
    assert hits == [signal.SIGINT]
    assert state.position == 4000
