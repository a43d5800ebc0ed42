"""Types of weights: one for the model, or a plan by the names of tensors; files of either."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, TypeAlias

from . import _core
from .arguments import file_path
from .progress import Progress, reporter

__all__ = ["DTypeName", "DTypePlan", "convert"]

DTypeName: TypeAlias = Literal["auto", "fp32", "fp16", "bf16", "int8", "int4", "mm8"]
#: A type for all weights; a plan as text, ``"int4,blocks.0.*=int8"``; or as a mapping,
#: ``{"default": "int4", "blocks.0.*": "int8"}``. ``*`` stands for any characters; of several
#: patterns that match a tensor's name the last one counts.
DTypePlan: TypeAlias = "DTypeName | str | Mapping[str, str]"


def plan_text(plan: DTypePlan) -> str:
    """The plan as the library reads it.

    Raises:
        TypeError: Neither a text nor a mapping of texts.
        ValueError: A pattern with a character that a plan's text has a use for.
    """
    if isinstance(plan, str):
        return plan
    if not isinstance(plan, Mapping):
        raise TypeError(f"[dtype] a plan is a text or a mapping, got {type(plan).__name__}")
    parts = [str(plan.get("default", "auto"))]
    for pattern, name in plan.items():
        if not isinstance(pattern, str) or not isinstance(name, str):
            raise TypeError(f"[dtype] {pattern!r}: {name!r} is no pair of texts")
        if set(pattern) & set(",="):
            raise ValueError(f"[dtype] the pattern {pattern!r} holds a comma or an equals sign")
        if pattern != "default":
            parts.append(f"{pattern}={name}")
    return ",".join(parts)


def convert(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    dtype: DTypePlan = "auto",
    progress: Progress = None,
) -> None:
    """Writes a checkpoint as ``.safetensors``, whole or not at all.

    A quantised file holds the codes that loading with the same ``dtype`` would make, as ordinary
    tensors (docs/weights.md), and opens without work. Memory: one tensor and its result.

    Args:
        path: The checkpoint, of any kind that :meth:`Model.load` reads.
        output: The file to write; an older one is replaced when the new one is complete.
        dtype: As for :meth:`Model.load`. ``"auto"`` keeps the stored types; vectors are never
            narrowed.
        progress: ``True`` for a bar, or a callable that gets ``(done, total)`` bytes.

    Raises:
        FileNotFoundError: No such file.
        ModelFormatError: No RWKV checkpoint, or weights that cannot be quantised.
        UnsupportedError: A value beyond fp16.
        ValueError: The plan has an unknown type, or a pattern that matches no tensor.
        OSError: The output cannot be written.
        MemoryError: It does not fit.
    """
    source, target = file_path("convert", path), file_path("convert", output)
    with reporter(progress, "converting", "B") as callback:
        _core.convert(source, target, plan_text(dtype), callback)
