"""``model.w`` (v4 to v6) and ``model.z`` (v7): the weights as the package keeps them, to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wkv import _core

from .arrays import as_state_array, dtype_of

__all__ = ["Weights"]

Floats = NDArray[np.float32]
_LINEAR = ("key.weight", "value.weight", "receptance.weight", "output.weight", "head.weight")


class Weights(Mapping[str, Any]):
    """The package's names, shapes and values, each made from the checkpoint when it is asked for.

    Linear weights are transposed, the first norm is folded into the embedding, decays are ready to
    use; docs/compat.md tells what is not done. Read-only: the model computes with its own copy.
    """

    def __init__(self, path: str, version: float, n_head: int, dtype: Callable[[str], Any]) -> None:
        """Opens the checkpoint.

        Args:
            path: Of the checkpoint.
            version: As ``RWKV.version``.
            n_head: Heads.
            dtype: Of activations, by the package's name of a tensor.
        """
        self._file = _core.Checkpoint.open(path)
        self._version = int(version)
        self._scalar_decay = version in (5, 5.1)  # one number per head
        self._n_head = n_head
        self._dtype = dtype
        self._made: dict[str, Any] = {}
        # v5's time_faaaa, the bonus itself, goes under the name of its logarithm, time_first.
        self._stored = {
            name if self._version == 7 else name.replace(".time_faaaa", ".time_first"): name
            for name in self._file.names()
        }
        if self._version < 7:
            for name in ("blocks.0.ln0.weight", "blocks.0.ln0.bias"):
                self._stored.pop(name, None)
        else:
            self._stored |= {f"blocks.0.att.v{i}": "" for i in range(3)}  # ignored, hence empty

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def _make(self, name: str) -> Any:
        stored = self._stored[name]
        if not stored:
            return as_state_array(np.empty(0, np.float32), self._type(name))
        values: Floats = self._file.get(stored).astype(np.float32)
        if name == "emb.weight":
            values = self._embedding(values)
        elif any(part in name for part in _LINEAR) or (self._version < 7 and "gate.weight" in name):
            values = values.T
        if self._version == 7:
            values = values.squeeze()
            if name.endswith("att.r_k"):
                values = values.ravel()
            elif name.endswith("ffn.s_emb.weight"):
                values = values + self._deep_embedding(name)
        elif ".time_" in name:
            values = self._time(name, stored, values.squeeze())
        return as_state_array(np.ascontiguousarray(values), self._type(name))

    def _embedding(self, rows: Floats) -> Floats:
        if "blocks.0.ln0.weight" not in self._file:  # folded in before
            return rows
        mean = rows.mean(axis=1, keepdims=True)
        rows = rows - mean
        rows /= np.sqrt(np.mean(rows * rows, axis=1, keepdims=True) + 1e-5)
        scale, shift = (self._file.get(f"blocks.0.ln0.{kind}") for kind in ("weight", "bias"))
        result: Floats = (rows * scale + shift).astype(np.float32)
        return result

    def _deep_embedding(self, name: str) -> Floats:
        normed = self._embedding(self._file.get("emb.weight").astype(np.float32))
        factor = self._file.get(name.replace("s_emb.", "s_emb_x.")).astype(np.float32)
        result: Floats = normed @ factor.T
        return result

    def _time(self, name: str, stored: str, values: Floats) -> Floats:
        """Decays and bonuses as the recurrence uses them."""
        per_channel = (self._n_head, 1, 1) if self._scalar_decay else (self._n_head, -1, 1)
        if name.endswith(".time_decay"):
            if self._version == 4:
                return -np.exp(values)
            if self._version == 5:
                values = np.exp(-np.exp(values))
            return values.reshape(per_channel)
        if name.endswith(".time_first") and self._version > 4:
            if stored == name:
                values = np.exp(values)
            return values.reshape(per_channel)
        return values

    def _type(self, name: str) -> Any:
        exact = name.endswith((".time_decay", ".time_first")) or ".ln_x." in name
        return dtype_of("float32") if exact and self._version < 7 else self._dtype(name)
