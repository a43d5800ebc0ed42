"""safetensors files from and to numpy, with bf16, without any library under test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reference.common import Array, Weights

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "U8": "u1"}
_NAMES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


def round_to(a: Array, dtype: str) -> Array:
    """The nearest values of "fp32", "fp16" or "bf16" (ties to even), as float32."""
    x = np.asarray(a, np.float32)
    if dtype == "fp16":
        return x.astype(np.float16).astype(np.float32)
    return (_bf16_bits(x).astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else x


def _bf16_bits(x: Array) -> Array:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.int64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def read_safetensors(path: Path) -> dict[str, Array]:
    """Tensor name -> array; bf16 comes as float32."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    out = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        raw = np.frombuffer(data[8 + size + begin : 8 + size + end], _DTYPES[info["dtype"]])
        if info["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        out[name] = raw.reshape(info["shape"])
    return out


def write_safetensors(
    path: Path,
    weights: Weights,
    dtype: str | Mapping[str, str] = "fp32",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes tensors as "fp32", "fp16" or "bf16": one for all, or by name (fp32 if absent)."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    blobs, offset = [], 0
    for name, a in weights.items():
        stored = _NAMES[dtype if isinstance(dtype, str) else dtype.get(name, "fp32")]
        x = np.ascontiguousarray(a, np.float32)
        blob = (_bf16_bits(x) if stored == "BF16" else x.astype(_DTYPES[stored])).tobytes()
        header[name] = {
            "dtype": stored,
            "shape": list(np.shape(a)),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
    return path
