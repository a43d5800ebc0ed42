"""``rwkv.rwkv_tokenizer``: the World tokenizer, native."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wkv.tokenizer import Tokenizer

__all__ = ["TRIE_TOKENIZER"]


class TRIE_TOKENIZER:  # noqa: N801 - the name is fixed
    """The World tokenizer with the package's methods."""

    def __init__(self, file_name: str | None = None) -> None:
        """Uses a vocabulary file, or the built-in World vocabulary.

        Args:
            file_name: A file of lines ``id literal length``. A missing file of the well-known name
                ``rwkv_vocab_v20230424.txt`` means the built-in vocabulary.
        """
        from wkv.tokenizer import Tokenizer

        if file_name is None or _is_builtin(file_name):
            self._tokenizer = Tokenizer.world()
        else:
            self._tokenizer = Tokenizer.from_file(file_name)

    def encodeBytes(self, src: bytes) -> list[int]:  # noqa: N802
        """Ids of bytes."""
        return list(self._tokenizer.encode(src))

    def decodeBytes(self, tokens: Sequence[int]) -> bytes:  # noqa: N802
        """Bytes of ids.

        Raises:
            KeyError: An id without bytes, such as 0.
        """
        table = self.idx2token
        return b"".join([table[int(token)] for token in tokens])

    def encode(self, src: str) -> list[int]:
        """Ids of a text."""
        return list(self._tokenizer.encode(src))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text; ``"\\ufffd"`` alone if the bytes are no UTF-8 or an id has none."""
        try:
            return self.decodeBytes(tokens).decode("utf-8")
        except (KeyError, UnicodeDecodeError):
            return "\ufffd"

    def printTokens(self, tokens: Sequence[int]) -> None:  # noqa: N802
        """Prints each token and its id."""
        for token in tokens:
            piece: bytes | str = self.idx2token[token]
            with contextlib.suppress(UnicodeDecodeError):
                piece = piece.decode("utf-8") if isinstance(piece, bytes) else piece
            print(f"{piece!r}{token}", end=" ")
        print()

    @cached_property
    def idx2token(self) -> Mapping[int, bytes]:
        """Bytes of each id that has some."""
        return _Table(self._tokenizer)

    @cached_property
    def token2idx(self) -> dict[bytes, int]:
        """The id of each token."""
        return {piece: token for token, piece in self.idx2token.items()}


class _Table(Mapping[int, bytes]):
    """A view of the native vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __getitem__(self, token: int) -> bytes:
        piece = self._tokenizer.token_bytes(token)
        if not piece:
            raise KeyError(token)
        return piece

    def __iter__(self) -> Iterator[int]:
        return (i for i in range(self._tokenizer.vocab_size) if self._tokenizer.token_bytes(i))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _is_builtin(file_name: str) -> bool:
    name = os.path.basename(file_name)
    return name == "rwkv_vocab_v20230424.txt" and not os.path.exists(file_name)
