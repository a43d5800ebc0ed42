"""Initial states that were trained: files of ``blocks.N.att.time_state``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import _core
from .errors import ModelFormatError

if TYPE_CHECKING:
    from .model import Model
    from .state import State

__all__ = ["load_tuned_state"]


def load_tuned_state(model: Model, path: str | os.PathLike[str]) -> State:
    """The state that a state-tuning file describes.

    Such files hold ``[H, N, N]`` for each block, values by keys whatever the version. That is how
    v7 computes; v5 and v6 want the transpose.

    Args:
        model: A v5, v6 or v7 model.
        path: A ``.pth`` or ``.safetensors`` file.

    Returns:
        A state at position 0.

    Raises:
        ModelFormatError: The file does not fit the model; the message lists every difference.
        FileNotFoundError: No such file.
    """
    file = _core.Checkpoint.open(path)
    state = model.new_state()
    info = model.info
    shape = (info.n_head, info.head_size, info.head_size)
    wrong = []
    if info.n_head == 0:
        wrong.append(f"a v{info.version} model has no heads to tune")
    tensors = {name: file.shape(name) for name in file.names() if name.endswith("att.time_state")}
    wanted = [f"blocks.{i}.att.time_state" for i in range(info.n_layer)]
    for name in wanted:
        if name not in tensors:
            wrong.append(f"'{name}' is missing")
        elif tensors[name] != shape:
            wrong.append(f"'{name}' has shape {tensors[name]}, want {shape}")
    wrong += [f"'{name}' belongs to no block" for name in tensors if name not in wanted]
    if wrong:
        raise ModelFormatError(f"[tuned state] {os.fspath(path)}: {'; '.join(wrong)}")
    transpose = int(float(info.version)) in (5, 6)
    for i, name in enumerate(wanted):
        values = file.get(name)
        state[f"blocks.{i}.att.wkv"] = values.swapaxes(1, 2) if transpose else values
    return state
