"""States of token prefixes that were read before, so that they are not read again."""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from . import _core
from .model import Model
from .state import State, StorageName, write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CacheStats", "PrefixCache"]

_HEADER_BYTES = 40  # of a state blob, up to its position: version, fingerprint, size
_Key = tuple[int, str]  # number of tokens, digest of the state before them and of them


@dataclass(frozen=True)
class _Origin:
    """Where streams begin: what ``Model.set_initial_state`` was given, or the checkpoint's own."""

    initial: _core.State | None
    position: int
    digest: bytes


@dataclass(frozen=True)
class CacheStats:
    """What a cache did.

    Attributes:
        hits: Look-ups that found a prefix.
        misses: Look-ups that found none.
        tokens_saved: Tokens that did not have to be read.
        states: States in memory now.
        nbytes: Memory they take.
    """

    hits: int
    misses: int
    tokens_saved: int
    states: int
    nbytes: int


class PrefixCache:
    """From the tokens of a text to the state after the longest part of it that is known.

    A state has a fixed size, so that a document of any length costs as much as one word; reading
    it once serves every question about it. States are copied on the way in and out. Thread-safe.
    """

    def __init__(
        self,
        model: Model,
        max_bytes: int = 1 << 30,
        directory: str | os.PathLike[str] | None = None,
        dtype: StorageName = "fp32",
    ) -> None:
        """Makes an empty cache, or opens one on disk.

        Args:
            model: Whose states these are.
            max_bytes: Memory for states; beyond it the least recently used ones are dropped.
            directory: Where states are kept as well, without limit. Several models and processes
                may share one.
            dtype: How states are kept, in memory and on disk: ``"fp32"`` as they are, in the
                device's memory; ``"fp16"`` or ``"int8"`` in a half or a quarter of it, on the
                host, rounded as :meth:`State.to_bytes` says.

        Raises:
            ValueError: Another dtype.
        """
        if dtype not in get_args(StorageName):
            raise ValueError(f"[cache] dtype must be one of {get_args(StorageName)}, got {dtype!r}")
        self._model = model
        self._max_bytes = max_bytes
        self._dtype: StorageName = dtype
        self._states: OrderedDict[_Key, State | bytes] = OrderedDict()
        self._nbytes = 0
        self._lengths: dict[int, int] = {}  # how many states have so many tokens
        self._disk: set[_Key] = set()
        self._hits = self._misses = self._saved = 0
        self._lock = threading.Lock()
        self._origin: _Origin | None = None
        self._directory: Path | None = None
        if directory is not None:
            header = model.new_state().to_bytes()[:_HEADER_BYTES]
            self._directory = Path(directory) / hashlib.blake2b(header, digest_size=8).hexdigest()
            self._directory.mkdir(parents=True, exist_ok=True)
            for file in self._directory.glob("*-*.state"):
                length, _, digest = file.stem.partition("-")
                if length.isdecimal():
                    self._disk.add((int(length), digest))
                    self._count(int(length), 1)

    def put(self, ids: Sequence[int], state: State) -> None:
        """Keeps a copy of the state that has read exactly ``ids`` since :meth:`Model.new_state`.

        Raises:
            ValueError: The state has read another number of tokens.
        """
        origin = self._beginning()
        if state.position != origin.position + len(ids):
            raise ValueError(
                f"[cache] the state has read {state.position - origin.position} tokens, "
                f"not these {len(ids)}"
            )
        key = (len(ids), _digests(origin, ids, [len(ids)])[0])
        kept = self._pack(state)
        if self._directory is not None:
            write_atomic(self._file(key), kept if isinstance(kept, bytes) else kept.to_bytes())
        with self._lock:
            if self._directory is not None and key not in self._disk:
                self._disk.add(key)
                self._count(key[0], 1)
            self._insert(key, kept)

    def get(self, ids: Sequence[int]) -> tuple[State, int]:
        """The state after the longest known prefix of ``ids``, and the length of that prefix.

        A fresh state and 0 if none is known. The state is the caller's own.
        """
        origin = self._beginning()
        with self._lock:
            lengths = sorted(n for n in self._lengths if n <= len(ids))
        digests = _digests(origin, ids, lengths)
        for length, digest in zip(reversed(lengths), reversed(digests), strict=True):
            state = self._find((length, digest))
            if state is not None:
                with self._lock:
                    self._hits += 1
                    self._saved += length
                return state, length
        with self._lock:
            self._misses += 1
        return self._model.new_state(), 0

    def forward(self, ids: Sequence[int]) -> tuple[NDArray[np.float32], State]:
        """Reads ``ids`` from the beginning, as far as that is not known yet, and keeps the state.

        Args:
            ids: Token ids of the whole text, at least one.

        Returns:
            Logits of the last token ``[V]``, and the state. Logits are not part of a state, so at
            least one token is always read.
        """
        ids = list(ids)
        state, known = self.get(ids[:-1])
        logits = self._model.forward(ids[known:], state)
        self.put(ids, state)
        return logits, state

    def clear(self) -> None:
        """Drops the states in memory; those on disk stay."""
        with self._lock:
            for length, _ in self._states:
                self._count(length, -1)
            self._states.clear()
            self._nbytes = 0

    def __len__(self) -> int:
        return len(self._states)

    @property
    def stats(self) -> CacheStats:
        """What it did so far."""
        with self._lock:
            return CacheStats(
                self._hits, self._misses, self._saved, len(self._states), self._nbytes
            )

    def _beginning(self) -> _Origin:
        """Digested once for each initial state: one of 30 MB takes some 50 ms."""
        initial = self._model._initial
        with self._lock:
            if self._origin is None or self._origin.initial is not initial:
                state = self._model.new_state()
                digest = hashlib.blake2b(state.to_bytes(), digest_size=16).digest()
                self._origin = _Origin(initial, state.position, digest)
            return self._origin

    def _file(self, key: _Key) -> Path:
        assert self._directory is not None
        return self._directory / f"{key[0]}-{key[1]}.state"

    def _pack(self, state: State) -> State | bytes:
        return state.copy() if self._dtype == "fp32" else state.to_bytes(self._dtype)

    def _find(self, key: _Key) -> State | None:
        with self._lock:
            kept = self._states.get(key)
            if kept is not None:
                self._states.move_to_end(key)
            elif key not in self._disk:
                return None
            if isinstance(kept, State):
                return kept.copy()  # within the lock: a state is copied by one thread at a time
        if kept is not None:
            return self._model.state_from_bytes(kept)
        try:
            state = self._model.load_state(self._file(key))
        except (OSError, ValueError):  # removed or damaged meanwhile: as if it had not been there
            with self._lock:
                if key in self._disk:
                    self._disk.discard(key)
                    self._count(key[0], -1)
            return None
        kept = self._pack(state)
        with self._lock:
            self._insert(key, kept)
        return state

    def _insert(self, key: _Key, kept: State | bytes) -> None:
        old = self._states.pop(key, None)
        if old is not None:
            self._nbytes -= _nbytes(old)
        else:
            self._count(key[0], 1)
        self._states[key] = kept
        self._nbytes += _nbytes(kept)
        while self._nbytes > self._max_bytes and self._states:
            (length, _), dropped = self._states.popitem(last=False)
            self._nbytes -= _nbytes(dropped)
            self._count(length, -1)

    def _count(self, length: int, by: int) -> None:
        count = self._lengths.get(length, 0) + by
        if count > 0:
            self._lengths[length] = count
        else:
            self._lengths.pop(length, None)


def _nbytes(kept: State | bytes) -> int:
    return len(kept) if isinstance(kept, bytes) else kept.nbytes


def _digests(origin: _Origin, ids: Sequence[int], lengths: Sequence[int]) -> list[str]:
    """Digests of the prefixes of the given ascending lengths, in one pass over the ids."""
    data = memoryview(array("i", ids)).cast("B")
    hasher = hashlib.blake2b(origin.digest, digest_size=16)
    result = []
    done = 0
    for length in lengths:
        hasher.update(data[4 * done : 4 * length])
        done = length
        result.append(hasher.hexdigest())
    return result
