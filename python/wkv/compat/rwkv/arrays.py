"""Arrays for the caller: torch tensors if torch is installed, numpy arrays if not."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_state_array", "dtype_of", "from_numpy", "to_numpy", "torch"]

#: The module torch, or None. A program for the ``rwkv`` package has imported it anyway.
torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None


def dtype_of(name: str) -> Any:
    """``"float16"`` as a dtype of torch, or of numpy (which lacks bfloat16: float32 then)."""
    if torch is not None:
        return getattr(torch, name)
    return np.dtype("float32" if name == "bfloat16" else name)


def from_numpy(values: NDArray[np.float32]) -> Any:
    """A tensor that shares the memory of ``values``, or ``values``."""
    return values if torch is None else torch.from_numpy(values)


def as_state_array(values: NDArray[np.float32], dtype: Any) -> Any:
    """An entry of a state list: own memory, the given dtype."""
    if torch is not None:
        return torch.from_numpy(values).to(dtype)
    return values.astype(dtype, copy=False)


def to_numpy(values: Any) -> NDArray[np.float32]:
    """float32 numpy, whatever the entry is (a tensor on any device, an array, nested lists)."""
    if torch is not None and isinstance(values, torch.Tensor):
        values = values.detach().to(device="cpu", dtype=torch.float32).numpy()
    return np.ascontiguousarray(values, dtype=np.float32)
