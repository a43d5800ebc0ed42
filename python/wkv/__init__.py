"""RWKV language models, native: every version from the file people have, on any x86 CPU.

    import wkv

    model = wkv.Model.load("RWKV-x070-World-0.4B.pth")
    state = model.new_state()
    logits = model.forward([1, 2, 3], state)      # numpy float32 [V]; advances the state

Errors are described in :mod:`wkv.errors`.
"""

from __future__ import annotations

try:
    from ._core import __version__
except ImportError as error:
    raise ImportError(
        f"the native core of wkv does not load ({error}); was it built? `pip install .` does so"
    ) from error

from .dtypes import convert
from .errors import (
    ContextLengthError,
    DeviceError,
    Error,
    ModelFormatError,
    UnsupportedError,
)
from .generate import Generation, generate
from .info import Device, Isa, ModelInfo, devices, inspect, isas
from .model import Model
from .prefix_cache import PrefixCache
from .sampling import Sampler, Sampling
from .state import State
from .tokenizer import Tokenizer

__all__ = [
    "ContextLengthError",
    "Device",
    "DeviceError",
    "Error",
    "Generation",
    "Isa",
    "Model",
    "ModelFormatError",
    "ModelInfo",
    "PrefixCache",
    "Sampler",
    "Sampling",
    "State",
    "Tokenizer",
    "UnsupportedError",
    "__version__",
    "convert",
    "devices",
    "generate",
    "inspect",
    "isas",
]
