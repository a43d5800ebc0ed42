"""Facts about models, processors and devices."""

from __future__ import annotations

import os
from dataclasses import dataclass

from . import _core
from .arguments import file_path

__all__ = ["Device", "Isa", "ModelInfo", "devices", "inspect", "isas"]


@dataclass(frozen=True)
class ModelInfo:
    """What a checkpoint is.

    Attributes:
        version: ``"4"``, ``"5.0"``, ``"5.1"``, ``"5.2"``, ``"6.0"``, ``"7.0"``, ...
        n_layer: Blocks.
        n_embd: Channels, C.
        n_head: Heads, H; 0 where the version has none (v2 to v4).
        head_size: Channels of one head, N; 0 likewise.
        n_vocab: Rows of the embedding, V.
        dim_ffn: Channels inside the channel mix, F.
        n_params: Weights in the file.
        context_limit: Most tokens a state can take; ``None`` for a true RNN (v4 and later).
    """

    version: str
    n_layer: int
    n_embd: int
    n_head: int
    head_size: int
    n_vocab: int
    dim_ffn: int
    n_params: int
    context_limit: int | None


@dataclass(frozen=True)
class Isa:
    """One tier of CPU kernels in this build.

    Attributes:
        name: ``"generic"``, ``"avx2"``, ``"avx512"``, ``"avx512_bf16"``, ``"amx"``
        runnable: This processor can run it.
        active: A model loaded now would use it (the environment variable ``WKV_ISA`` forces one).
    """

    name: str
    runnable: bool
    active: bool


@dataclass(frozen=True)
class Device:
    """A place where models run.

    Attributes:
        name: What ``Model.load(device=...)`` takes: ``"cpu"``, ``"cuda:0"``.
        description: The hardware.
        usable: A model can be loaded there.
        reason: Why not, if it is not.
    """

    name: str
    description: str
    usable: bool
    reason: str


def isas() -> list[Isa]:
    """The tiers of CPU kernels, slowest first."""
    return [Isa(*isa) for isa in _core.isas()]


def devices() -> list[Device]:
    """The devices of this machine, usable or not, each with the reason."""
    return [Device(*device) for device in _core.devices()]


def inspect(path: str | os.PathLike[str]) -> ModelInfo:
    """The version and the sizes of a checkpoint, from names and shapes; reads no weights.

    Args:
        path: A ``.pth`` or ``.safetensors`` file; the suffix may be left out.

    Raises:
        FileNotFoundError: No such file.
        ModelFormatError: The file is malformed or no RWKV checkpoint.
        UnsupportedError: A variant that is known but not run.
    """
    return ModelInfo(**_core.Checkpoint.open(file_path("inspect", path)).info())
