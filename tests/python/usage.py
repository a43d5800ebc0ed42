"""The API as a program uses it. Checked by mypy --strict, and run."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import wkv
from numpy.typing import NDArray


def main(path: str) -> None:
    model = wkv.Model.load(path, device="cpu", dtype="fp32", threads=1, progress=None)
    info: wkv.ModelInfo = model.info
    version: str = info.version
    limit: int | None = info.context_limit
    assert version
    assert limit is None

    state: wkv.State = model.new_state()
    logits: NDArray[np.float32] = model.forward([1, 2, 3], state)
    everything: NDArray[np.float32] = model.forward(np.array([1, 2]), state, logits="all")
    model.forward((1, 2), state, logits="none", progress=lambda done, total: None)
    rows: NDArray[np.float32] = model.forward_batch([[1], [2, 3]], [state, state.copy()])
    ragged: list[NDArray[np.float32]] = model.forward_batch(
        [[1], [2, 3]], state.fork(2), logits="all"
    )
    assert logits.shape == rows.shape[1:] == everything.shape[1:] == ragged[1].shape[1:]

    part: NDArray[np.float32] = state[state.keys()[0]]
    state[state.keys()[0]] = part * 0.5
    data: bytes = state.to_bytes()
    again: wkv.State = model.state_from_bytes(data)
    position: int = again.position
    assert position == state.position

    state.save(path + ".state")
    state = model.load_state(path + ".state")

    tokenizer: wkv.Tokenizer = wkv.Tokenizer.bytes()
    ids: list[int] = tokenizer.encode("some text")
    text: str = tokenizer.decode(ids)
    batch: list[list[int]] = tokenizer.encode_batch([text, text])
    assert batch == [ids, ids]
    logits = model.forward([token % info.n_vocab for token in ids], model.new_state())
    sampling = wkv.Sampling(temperature=1.0, top_p=0.85, seed=1)
    token: int = wkv.Sampler(sampling).sample(logits)
    prompt: list[int] = [token]
    answer: wkv.Generation = wkv.generate(
        model, tokenizer, prompt, max_tokens=20, sampling=sampling, stop=["\n\nUser:"], state=None
    )
    for piece in answer:
        shown: str = piece
        print(shown, end="")
    assert answer.reason in ("stop", "eos", "length")

    for device in wkv.devices():
        assert device.usable or device.reason
    names: list[str] = [isa.name for isa in wkv.isas() if isa.runnable]
    assert names
    try:
        wkv.inspect(Path("missing.pth"))
    except FileNotFoundError as error:
        number: int | None = error.errno
        print(number)
    with contextlib.suppress(wkv.Error, ValueError):
        model.forward([], state)


if __name__ == "__main__":
    main(sys.argv[1])
