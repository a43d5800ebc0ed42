"""What goes wrong, by name.

Every class here is a :class:`Error` and also the built-in class that fits, so ``except ValueError``
works as expected. Other failures use built-in classes alone: ``ValueError`` for bad arguments,
``FileNotFoundError``/``OSError`` for files, ``MemoryError``, and ``KeyboardInterrupt`` for Ctrl-C.
"""

from __future__ import annotations

__all__ = [
    "ContextLengthError",
    "DeviceError",
    "Error",
    "ModelFormatError",
    "UnsupportedError",
]


class Error(Exception):
    """Base class of the errors that are particular to this library."""


class ModelFormatError(Error, ValueError):
    """A malformed file, or no RWKV checkpoint. The message lists everything that is wrong."""


class UnsupportedError(Error, RuntimeError):
    """A dtype, instruction set, device or model variant that is not available here."""


class ContextLengthError(Error, ValueError):
    """More tokens than a model with a bounded context (v1 to v3) can take; nothing was consumed."""


class DeviceError(Error, RuntimeError):
    """The device failed. The model is dead; load it again."""
