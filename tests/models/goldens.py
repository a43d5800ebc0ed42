"""Golden data of the official code (tests/golden) in the names and orientation of wkv's states."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from reference import Array
from reference.files import read_safetensors

ROOT = Path(__file__).parent.parent / "golden"


@dataclass(frozen=True)
class Golden:
    """One folder: a model, tokens, and what the official code says."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @cached_property
    def weights(self) -> dict[str, Array]:
        return read_safetensors(self.model)

    @cached_property
    def prompt(self) -> list[int]:
        return list(json.loads((self.path / "tokens.json").read_text())["prompt"])

    @cached_property
    def continuation(self) -> list[int]:
        return list(json.loads((self.path / "tokens.json").read_text())["continuation"])

    @cached_property
    def logits(self) -> Array:
        """[40, V], after every token of the prompt."""
        return np.load(self.path / "logits.npy")

    @cached_property
    def logits_cont(self) -> Array:
        """[12, V], after every token of the continuation."""
        return np.load(self.path / "logits_cont.npy")

    @cached_property
    def state(self) -> dict[str, Array]:
        """Parts after the prompt, by our names; histories cut to the tokens read."""
        if not (self.path / "state.npz").exists():
            return {}
        with np.load(self.path / "state.npz") as z:
            arrays = dict(z)
        if "kv" in arrays:
            return _v1_parts(arrays)
        return _v2_v3_parts(arrays) if "arr_0" not in arrays else _list_parts(arrays)


def _v1_parts(z: dict[str, Array]) -> dict[str, Array]:
    out = {"head_k.rows": z["hk"]}
    for i in range(len(z["kv"])):
        p = f"blocks.{i}."
        out |= {p + "attn.shift": z["xa"][i], p + "mlp.shift": z["xf"][i]}
        out |= {p + "attn.sum_k": z["sum_k"][i], p + "attn.kv": z["kv"][i]}
    return out


def _v2_v3_parts(z: dict[str, Array]) -> dict[str, Array]:
    out = {}
    for name, a in z.items():
        if name == "hk":
            out["head_k.rows"] = a
        else:
            what, part, layer = name.split(".")  # "xx.att.0"
            out[f"blocks.{layer}.{part}.{'shift' if what == 'xx' else what}"] = a
    return out


def _list_parts(z: dict[str, Array]) -> dict[str, Array]:
    """The rwkv package's list: 5 arrays per layer in v4, 3 from v5 on."""
    v4 = z["arr_1"].ndim == 1
    per_layer = (
        ["att.shift", "att.aa", "att.bb", "att.pp", "ffn.shift"]
        if v4
        else ["att.shift", "att.wkv", "ffn.shift"]
    )
    n = len(per_layer)
    return {f"blocks.{j // n}.{per_layer[j % n]}": z[f"arr_{j}"] for j in range(len(z))}


GOLDENS = [Golden(d.name) for d in sorted(ROOT.iterdir()) if (d / "logits.npy").exists()]
