"""The memory of one stream of tokens, as a value."""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .arguments import text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from . import _core

__all__ = ["State", "StorageName"]

#: Types of the numbers in a saved state: docs/states.md has their sizes and errors.
StorageName: TypeAlias = Literal["fp32", "fp16", "int8"]

# A state file is the native blob; recorded tokens follow it as int32, their number (uint64), their
# CRC-32 (the blob's own checksum does not cover them) and this mark, so that a file without tokens
# is exactly State.to_bytes().
_TOKENS_MARK = b"WKVTOKNS"
_TOKENS_TAIL = struct.Struct("<QI8s")


def with_tokens(blob: bytes, tokens: Iterable[int] | None) -> bytes:
    """The blob, with the tokens behind it if there are any to keep."""
    if tokens is None:
        return blob
    ids = list(tokens)
    packed = struct.pack(f"<{len(ids)}i", *ids)
    tail = _TOKENS_TAIL.pack(len(ids), zlib.crc32(packed), _TOKENS_MARK)
    return b"".join([blob, packed, tail])


def split_tokens(data: bytes) -> tuple[bytes, list[int] | None]:
    """The inverse of :func:`with_tokens`."""
    if not data.endswith(_TOKENS_MARK) or len(data) < _TOKENS_TAIL.size:
        return data, None
    end = len(data) - _TOKENS_TAIL.size
    count, checksum, _ = _TOKENS_TAIL.unpack_from(data, end)
    start = end - 4 * count
    if start < 0:
        raise ValueError(
            f"[state] the file says {count} tokens follow, but has only {len(data)} bytes"
        )
    if zlib.crc32(memoryview(data)[start:end]) != checksum:
        raise ValueError("[state] the checksum of the tokens does not match: the file is damaged")
    return data[:start], list(struct.unpack_from(f"<{count}i", data, start))


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file whole or not at all: a crash at any moment leaves the old one.

    Raises:
        OSError: The file cannot be written; it names ``path``.
    """
    target = Path(os.path.realpath(path))  # a rename onto a link would replace the link
    temporary = target.parent / f".wkv-{secrets.token_hex(8)}.tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        handle = os.open(temporary, flags, 0o666)  # less the umask, as open() has it
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from None


class State:
    """Everything a model knows of the tokens it has read.

    Made by :meth:`Model.new_state`, :meth:`Model.load_state` or :meth:`copy`. A value of fixed
    size: copying it branches the conversation, saving it keeps it. ``forward`` advances the state
    that it is given. One call may use a state at a time; a second raises ``ValueError``.

    States can be copied with :mod:`copy` and pickled. A state that comes out of a pickle does not
    know its model yet: the first ``forward`` with it binds it, until then its parts are unreadable.
    """

    __slots__ = ("_blob", "_names", "_native", "_position", "_tokens")

    _native: _core.State | None  # None until a state out of a pickle meets its model
    _tokens: list[int] | None  # what was read, if that is recorded
    _blob: bytes  # these three describe a state without a model
    _position: int
    _names: list[str]

    def __init__(self, *_: object) -> None:
        raise TypeError("states come from Model.new_state(), load_state() or State.copy()")

    @classmethod
    def _wrap(cls, native: _core.State, tokens: list[int] | None = None) -> State:
        self = object.__new__(cls)
        self._native = native
        self._tokens = tokens
        return self

    @classmethod
    def _detached(
        cls, blob: bytes, position: int, names: list[str], tokens: list[int] | None
    ) -> State:
        self = object.__new__(cls)
        self._native = None
        self._blob = blob
        self._position = position
        self._names = names
        self._tokens = tokens
        return self

    def _bound(self) -> _core.State:
        if self._native is None:
            raise ValueError(
                "[state] this state came out of a pickle and has no model yet: "
                "call model.state_from_bytes(state.to_bytes()), or forward with it"
            )
        return self._native

    def _bind(self, model: _core.Model) -> _core.State:
        """The native state; one from a pickle becomes a state of `model`."""
        if self._native is None:
            self._native = model.state_from_bytes(self._blob)
            self._blob = b""
        return self._native

    @property
    def position(self) -> int:
        """Tokens read so far."""
        return self._position if self._native is None else self._native.position

    @property
    def tokens(self) -> list[int] | None:
        """The tokens that made this state, if it records them (``new_state(record=True)``)."""
        return None if self._tokens is None else list(self._tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of memory the numbers take on the model's device."""
        return len(self._blob) if self._native is None else self._native.size_bytes

    def keys(self) -> list[str]:
        """Names of the parts, such as ``"blocks.3.att.wkv"``, in the order of the layers."""
        if self._native is None:
            return list(self._names)
        return [name for name, _ in self._native.parts()]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a part.

        Raises:
            KeyError: There is no such part.
        """
        for part, shape in self._bound().parts():
            if part == name:
                return shape
        raise KeyError(name)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """A copy of a part, float32, in the orientation of the official code.

        Raises:
            KeyError: There is no such part.
        """
        return self._bound().get(text("state", "the name of a part", name))

    def __setitem__(self, name: str, value: ArrayLike) -> None:
        """Overwrites a part; the value must have its shape.

        Raises:
            KeyError: There is no such part.
            ValueError: The shape is another, or a call is using the state.
        """
        self._bound().set(text("state", "the name of a part", name), value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def copy(self) -> State:
        """An independent state with the same content (one memcpy)."""
        tokens = None if self._tokens is None else list(self._tokens)
        if self._native is None:
            return State._detached(self._blob, self._position, self._names, tokens)
        return State._wrap(self._native.copy(), tokens)

    def assign(self, other: State) -> None:
        """Takes over the content of another state of the same model, tokens included."""
        self._native = other._bound().copy()
        self._tokens = None if other._tokens is None else list(other._tokens)

    def fork(self, n: int) -> list[State]:
        """``n`` independent copies, e.g. to sample several continuations of one prompt."""
        return [self.copy() for _ in range(n)]

    def to_bytes(self, dtype: StorageName = "fp32") -> bytes:
        """The state as bytes: magic, fingerprint of the model, position, little-endian numbers.

        The same on every device. Read back by :meth:`Model.state_from_bytes`.

        Args:
            dtype: ``"fp32"`` is exact. ``"fp16"`` takes half of the bytes; ``"int8"`` keeps rows of
                matrices in 8 bits with a scale each (v5 and later: a quarter of the bytes) and
                vectors in fp16. Exponents and sums of exponentials (v4's pp, v1 to v3) stay fp32.

        Raises:
            ValueError: Another dtype; infinity or NaN in what is to be rounded; or a state out of
                a pickle, which has no model yet, as other than fp32.
        """
        if self._native is None and dtype == "fp32":
            return self._blob
        return self._bound().to_bytes(dtype)

    def save(self, path: str | os.PathLike[str], dtype: StorageName = "fp32") -> None:
        """Writes the state, and its tokens if it records them, to a file.

        The file appears whole or not at all. Read back by :meth:`Model.load_state`.

        Args:
            path: The file.
            dtype: As for :meth:`to_bytes`.

        Raises:
            OSError: The file cannot be written.
            ValueError: As for :meth:`to_bytes`.
        """
        write_atomic(path, with_tokens(self.to_bytes(dtype), self._tokens))

    def __copy__(self) -> State:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return (State._detached, (self.to_bytes(), self.position, self.keys(), self.tokens))

    def __repr__(self) -> str:
        return f"<wkv.State position={self.position} parts={len(self.keys())}>"
