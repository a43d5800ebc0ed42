"""Strategy strings such as ``"cuda fp16i8 *10 -> cuda fp16 *0+ -> cpu fp32 *1"``.

A string assigns the L blocks of a model, and the output layer as one more, to stages:

    strategy = stage ("->" stage)*          stage = device " " dtype [" *" n ["+"]]
    device   = cuda | cuda:K | cpu | mps | dml
    dtype    = fp32 | fp16 | bf16, and i8 | i4 | i3 for the weights (only i8 means anything)

``*n`` takes n layers, ``*n+`` keeps n and streams whatever no other stage takes. Stages without a
number share what is left when nothing is streamed.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

from wkv.errors import UnsupportedError
from wkv.model import DTypeName

__all__ = ["Layer", "Placement", "place", "plan"]

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_NAMES: dict[str, DTypeName] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_STAGE = re.compile(
    r"(?P<device>cuda(?::\d+)?|cpu|mps|dml) (?P<float>fp16|fp32|bf16)(?P<int>i8|i4|i3)?"
    r"(?: \*(?P<count>\d+)(?P<stream>\+?))?"
)


@dataclass(frozen=True)
class Layer:
    """Where a layer would lie in the ``rwkv`` package.

    Attributes:
        device: ``"cuda:0"``, ``"cpu"``, ...
        atype: Of activations: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        wtype: Of matrices: as ``atype``, or ``"uint8"``.
        stream: The matrices stay in host memory and are copied at every use.
    """

    device: str
    atype: str
    wtype: str
    stream: bool

    def __str__(self) -> str:
        return f"{self.device} {self.atype}/{self.wtype}{'-stream' if self.stream else ''}"


@dataclass(frozen=True)
class Placement:
    """Where wkv puts the model.

    Attributes:
        device: For ``Model.load``: one device, or stages with a dtype and a number of layers each.
        dtype: Likewise; ``"auto"`` if the stages say it.
        notes: What the string asked for and does not get.
    """

    device: str
    dtype: DTypeName
    notes: tuple[str, ...]


@dataclass
class _Stage:
    device: str
    atype: str
    wtype: str
    count: int | None
    stream: bool


def _stages(strategy: str) -> list[_Stage]:
    stages = []
    # The package's regular expression ends in "$", which allows a line end: lines of a file do.
    for text in strategy.removesuffix("\n").split("->"):
        match = _STAGE.fullmatch(text.strip(" "))
        if match is None:
            raise ValueError(
                f"[strategy] '{text.strip()}' in '{strategy}' is no stage; a stage is "
                "'DEVICE DTYPE' or 'DEVICE DTYPE *N' or 'DEVICE DTYPE *N+' with single spaces, "
                "such as 'cuda fp16i8 *10'"
            )
        atype = _DTYPES[match["float"]]
        stages.append(
            _Stage(
                device=match["device"],
                atype=atype,
                wtype="uint8" if match["int"] == "i8" else atype,
                count=None if match["count"] is None else int(match["count"]),
                stream=bool(match["stream"]),
            )
        )
    return stages


def plan(strategy: str, n_layer: int) -> list[Layer]:
    """The placement of ``n_layer`` blocks and the output layer, by the rules of the package.

    Args:
        strategy: The string.
        n_layer: Blocks of the model.

    Returns:
        ``n_layer + 1`` layers.

    Raises:
        ValueError: The string is malformed.
        ZeroDivisionError: A stage of ``*0`` beside one without a number, as in the package.
    """
    stages = _stages(strategy)
    total = n_layer + 1
    counts = [0] * len(stages)
    free = 0
    taken = 0
    streaming: int | None = None
    for i, stage in enumerate(stages):
        if stage.count is None:
            free += 1
            continue
        counts[i] = stage.count
        if stage.stream:
            streaming = i
        taken += stage.count
        if taken >= total:  # later stages, streaming or not, get nothing
            counts[i] -= taken - total
            break
    left = max(total - taken, 0)
    streamed = 0
    if streaming is not None:
        streamed = left
        counts[streaming] += left
    elif left > 0:
        if free > 0:
            for i, count in enumerate(counts):
                if count == 0:
                    # Divides by zero where a literal *0 uses up the share of a free stage.
                    counts[i] = left // free
                    left -= counts[i]
                    free -= 1
        counts[-1] += left
    layers: list[Layer] = []
    for i, (stage, count) in enumerate(zip(stages, counts, strict=True)):
        for n in range(count):
            stream = i == streaming and n >= count - streamed
            layers.append(Layer(stage.device, stage.atype, stage.wtype, stream))
    return layers


def place(strategy: str, layers: list[Layer]) -> Placement:
    """The same for ``Model.load``.

    Raises:
        UnsupportedError: A layer's device is ``mps`` or ``dml``.
    """
    stages: list[tuple[str, DTypeName, bool]] = []
    counts: list[int] = []
    for layer in layers:
        if layer.device in ("mps", "dml"):
            raise UnsupportedError(
                f"[strategy] '{strategy}' asks for the device '{layer.device}'; "
                "wkv runs on 'cpu' and 'cuda'"
            )
        dtype: DTypeName = "mm8" if layer.wtype == "uint8" else _NAMES[layer.atype]
        # On a CPU every matrix is in host memory.
        stage = (layer.device, dtype, layer.stream and layer.device != "cpu")
        if stages and stages[-1] == stage:
            counts[-1] += 1
        else:
            stages.append(stage)
            counts.append(1)
    notes = []
    if re.search(r"i[43]\b", strategy):
        notes.append("i4 and i3 mean nothing, as in the rwkv package")
    if layers[0].device != "cpu":
        notes.append("the embedding goes with the first layer, not to the CPU")
    if len(stages) == 1 and not stages[0][2]:
        return Placement(stages[0][0], stages[0][1], tuple(notes))
    text = " -> ".join(
        f"{device} {dtype} *{n}{' stream' if stream else ''}"
        for (device, dtype, stream), n in zip(stages, counts, strict=True)
    )
    return Placement(text, "auto", tuple(notes))


def warn(strategy: str, placement: Placement) -> None:
    """Says once per string what is placed otherwise than asked."""
    if placement.notes:
        warnings.warn(
            f"[strategy] '{strategy}': {'; '.join(placement.notes)}", UserWarning, stacklevel=3
        )
