"""Text to token ids and back."""

from __future__ import annotations

import codecs
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import _core
from .arguments import thread_count
from .errors import ModelFormatError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TextStream", "Tokenizer"]

Bytes = bytes  # Tokenizer.bytes is a method


class TextStream(ABC):
    """Decodes tokens one at a time, without ever showing half a character."""

    @abstractmethod
    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""

    @abstractmethod
    def flush(self) -> str:
        """What is left at the end, incomplete characters as U+FFFD."""

    @property
    @abstractmethod
    def pending(self) -> bool:
        """Whether part of a character waits for its rest."""


class Tokenizer(ABC):
    """Turns text into token ids and back. Immutable; every method may be called from any thread.

    Made by :meth:`world`, :meth:`bytes`, :meth:`abc` or :meth:`from_file`.
    """

    @staticmethod
    def world() -> Tokenizer:
        """The tokenizer of the World models: 65536 ids, greedy longest match over bytes, native.

        Every text encodes, invalid UTF-8 included, and decodes to itself. "<|endoftext|>" in a text
        is ordinary characters: id 0, the end of text, is fed by hand.

        Raises:
            UnsupportedError: The package was built without the vocabulary; the message tells what
                to do.
        """
        return _World(_core.WorldTokenizer.builtin())

    @staticmethod
    def bytes() -> Tokenizer:
        """One id per byte of UTF-8, 256 in all, for models trained so."""
        return _ByteLevel()

    @staticmethod
    def abc() -> Tokenizer:
        """ABC music notation: the id is the character's code; 0 pads, 2 begins, 3 ends."""
        return _Abc()

    @staticmethod
    def from_file(
        path: str | os.PathLike[str], *, unknown: str | None = None, eos_id: int | None = None
    ) -> Tokenizer:
        """A tokenizer in a file. Its content tells which kind it is:

        * ``tokenizer.json`` of Hugging Face, such as ``20B_tokenizer.json`` or the MIDI models':
          needs the package ``tokenizers`` (``pip install wkv[hf]``);
        * a vocabulary in the World's format, lines ``id literal length``;
        * ``vocab.json`` of character-level models (v1 to v4): ``{"0": "\\n", ...}``, usually
          UTF-16.

        Args:
            path: The file.
            unknown: Character-level only: the character that stands for those the vocabulary
                lacks. Default: they are an error.
            eos_id: The id that ends a text, if the kind's own is not right.

        Raises:
            OSError: The file cannot be read.
            ModelFormatError: It is none of the three, or damaged.
            UnsupportedError: The package ``tokenizers`` is missing.
        """
        with open(path, "rb") as file:
            head = file.read(4096)
        tokenizer: Tokenizer
        utf16 = head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        if utf16 or head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{":
            data = _load_json(path)
            if "model" in data:
                tokenizer = _HuggingFace(path, data)
            else:
                tokenizer = _Characters(path, data, unknown)
        else:
            tokenizer = _World(_core.WorldTokenizer.from_file(path))
        if eos_id is not None:
            tokenizer._eos_id = eos_id
        return tokenizer

    _eos_id: int | None = 0

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text: 0 in the World, None if there is none."""
        return self._eos_id

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, the unused ones of the World included."""

    @abstractmethod
    def encode(self, text: str | Bytes) -> list[int]:
        """The ids of a text; ``bytes`` are taken as they are, or as UTF-8.

        Raises:
            ValueError: The text has something that the vocabulary lacks (never in the World), or
                is a str with half of a surrogate pair, which has no UTF-8.
            TypeError: Neither str nor bytes.
        """

    def encode_array(self, text: str | Bytes) -> NDArray[np.int32]:
        """:meth:`encode` as an int32 array, without a Python object per id."""
        import numpy as np

        return np.array(self.encode(text), dtype=np.int32)

    def encode_batch(
        self, texts: Sequence[str | Bytes], threads: int | None = None
    ) -> list[list[int]]:
        """The ids of each text.

        Args:
            texts: Any number of them.
            threads: Native tokenizers use so many. Default: the cores this process may use.
        """
        return [self.encode(text) for text in _texts(texts)]

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of ids.

        Args:
            ids: Any ids; those without text add none.
            errors: What to do about invalid UTF-8, as for ``bytes.decode``. With the default,
                ``"replace"``, everything decodes.
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> Bytes:
        """The bytes of ids (UTF-8 where tokens are text)."""

    def token_bytes(self, token: int) -> Bytes:
        """The bytes of one id; empty if it has none."""
        return self.decode_bytes([token])

    def stream(self) -> TextStream:
        """A decoder for tokens that come one at a time."""
        return _ByteStream(self)

    def __repr__(self) -> str:
        return f"<wkv.Tokenizer {type(self).__name__.strip('_')} of {self.vocab_size} ids>"


class _ByteStream(TextStream):
    """For tokenizers whose text is the tokens' bytes, one after another."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)

    @property
    def pending(self) -> bool:
        return self._decoder.getstate()[0] != b""


class _World(Tokenizer):
    def __init__(self, native: _core.WorldTokenizer) -> None:
        self._native = native

    @property
    def vocab_size(self) -> int:
        return self._native.size

    def encode(self, text: str | Bytes) -> list[int]:
        return self._native.encode(text, 1)

    def encode_array(self, text: str | Bytes) -> NDArray[np.int32]:
        return self._native.encode_array(text, 0)

    def encode_batch(
        self, texts: Sequence[str | Bytes], threads: int | None = None
    ) -> list[list[int]]:
        return self._native.encode_batch(_texts(texts), thread_count("tokenizer", threads))

    def decode_bytes(self, ids: Iterable[int]) -> Bytes:
        listed: Any = ids if hasattr(ids, "__len__") else list(ids)
        if len(listed) == 0:
            return b""
        try:
            return self._native.decode(listed)
        except ValueError:  # ids beyond 32 bits have no bytes either
            return self._native.decode([token if 0 <= token < 2**31 else 0 for token in listed])

    def token_bytes(self, token: int) -> Bytes:
        return self._native.token_bytes(token) if 0 <= token < 2**31 else b""


class _ByteLevel(Tokenizer):
    @property
    def vocab_size(self) -> int:
        return 256

    def encode(self, text: str | Bytes) -> list[int]:
        return list(_utf8(text))

    def encode_array(self, text: str | Bytes) -> NDArray[np.int32]:
        import numpy as np

        return np.frombuffer(_utf8(text), dtype=np.uint8).astype(np.int32)

    def decode_bytes(self, ids: Iterable[int]) -> Bytes:
        return Bytes(token for token in ids if 0 <= token < 256)


class _Characters(Tokenizer):
    """One id per character, from a table."""

    _eos_id = None  # id 0 is a character, usually the newline

    def __init__(
        self, path: str | os.PathLike[str], table: dict[str, Any], unknown: str | None
    ) -> None:
        self._characters: dict[int, str] = {}
        for key, character in table.items():
            if not (key.isascii() and key.isdigit() and isinstance(character, str) and character):
                raise ModelFormatError(
                    f"[tokenizer] {os.fspath(path)}: neither a tokenizer.json nor a table of "
                    f'characters {{"0": "\\n", ...}}: it has {key!r}: {character!r:.40}'
                )
            if len(character) != 1:
                raise UnsupportedError(
                    f"[tokenizer] {os.fspath(path)}: id {key} is {character!r}: vocabularies of "
                    "words are not supported, only of characters"
                )
            self._characters[int(key)] = character
        self._ids = {character: token for token, character in self._characters.items()}
        if len(self._ids) != len(table) or not table:
            raise ModelFormatError(
                f"[tokenizer] {os.fspath(path)}: {len(table)} ids, but {len(self._ids)} characters"
            )
        if unknown is not None and unknown not in self._ids:
            raise ValueError(
                f"[tokenizer] {os.fspath(path)}: the character for unknown ones, {unknown!r}, is "
                "not in the vocabulary"
            )
        self._unknown = None if unknown is None else self._ids[unknown]

    @property
    def vocab_size(self) -> int:
        return max(self._characters) + 1

    def encode(self, text: str | Bytes) -> list[int]:
        text = _text(text)
        if self._unknown is not None:
            return [self._ids.get(character, self._unknown) for character in text]
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise ValueError(
                f"[tokenizer] the vocabulary of {len(self._ids)} characters lacks {error}; "
                "from_file(path, unknown=...) names one to stand for such"
            ) from None

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        return "".join([self._characters.get(token, "") for token in ids])

    def decode_bytes(self, ids: Iterable[int]) -> Bytes:
        return self.decode(ids).encode("utf-8", "surrogatepass")

    def stream(self) -> TextStream:
        return _CharacterStream(self)


class _CharacterStream(TextStream):
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def push(self, token: int) -> str:
        return self._tokenizer.decode([token])

    def flush(self) -> str:
        return ""

    @property
    def pending(self) -> bool:
        return False


class _Abc(Tokenizer):
    _eos_id = 3
    _SPECIAL = frozenset({0, 2, 3})

    @property
    def vocab_size(self) -> int:
        return 128

    def encode(self, text: str | Bytes) -> list[int]:
        ids = list(_utf8(text))
        for offset, token in enumerate(ids):
            if token >= 128 or token in self._SPECIAL:
                raise ValueError(
                    f"[tokenizer] ABC notation is ASCII text, but byte {offset} is {token}"
                )
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> Bytes:
        return Bytes(token for token in ids if 0 <= token < 128 and token not in self._SPECIAL)


class _HuggingFace(Tokenizer):
    """A tokenizer.json, run by the package ``tokenizers``."""

    # Names of the token that ends a text, as published models have them.
    _END_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")

    def __init__(self, path: str | os.PathLike[str], data: dict[str, Any]) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise UnsupportedError(
                f"[tokenizer] {os.fspath(path)} is a tokenizer.json, which needs the package "
                f"`tokenizers`: pip install tokenizers ({error})"
            ) from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # the package raises plain Exception
            raise ModelFormatError(f"[tokenizer] {os.fspath(path)}: {error}") from error
        found = [self._tokenizer.token_to_id(name) for name in self._END_NAMES]
        self._eos_id = next((token for token in found if token is not None), 0)
        self._special = {token["id"] for token in data.get("added_tokens", []) if token["special"]}
        decoder = data.get("decoder") or {}
        # Tokens of byte-level BPE are bytes spelled as characters; others are text.
        self._bytes_of = _byte_alphabet() if decoder.get("type") == "ByteLevel" else None

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str | Bytes) -> list[int]:
        ids: list[int] = self._tokenizer.encode(_text(text), add_special_tokens=False).ids
        return ids

    def encode_batch(
        self, texts: Sequence[str | Bytes], threads: int | None = None
    ) -> list[list[int]]:
        thread_count("tokenizer", threads)  # the package has its own number
        batch = self._tokenizer.encode_batch_fast(
            [_text(text) for text in _texts(texts)], add_special_tokens=False
        )
        return [encoding.ids for encoding in batch]

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        if self._bytes_of is not None:
            return super().decode(ids, errors)
        known = [token for token in map(int, ids) if 0 <= token < 2**32]
        return str(self._tokenizer.decode(known, skip_special_tokens=True))

    def decode_bytes(self, ids: Iterable[int]) -> Bytes:
        if self._bytes_of is not None:
            return b"".join([self.token_bytes(int(token)) for token in ids])
        return self.decode(ids).encode("utf-8")

    def token_bytes(self, token: int) -> Bytes:
        if self._bytes_of is None:
            return self.decode([token]).encode("utf-8")
        if token in self._special or not 0 <= token < 2**32:
            return b""
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        try:
            return Bytes([self._bytes_of[character] for character in piece])
        except KeyError:  # an added token is spelled out
            return str(piece).encode("utf-8")

    def stream(self) -> TextStream:
        return _ByteStream(self) if self._bytes_of is not None else _WindowStream(self)


class _WindowStream(TextStream):
    """For tokenizers that put something between tokens: decodes a few of the last tokens with and
    without the new ones, and gives the difference."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # shown, as context of the next
        self._new: list[int] = []

    def _difference(self) -> str:
        before = self._tokenizer.decode(self._window)
        return self._tokenizer.decode(self._window + self._new)[len(before) :]

    def push(self, token: int) -> str:
        self._new.append(token)
        text = self._difference()
        if text.endswith("\ufffd"):
            return ""
        if text:  # tokens without text must not push those with text out of the window
            self._window, self._new = self._new, []
        return text

    def flush(self) -> str:
        text = self._difference()
        self._window, self._new = self._new, []
        return text

    @property
    def pending(self) -> bool:
        return bool(self._new)


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE spells bytes: printable ones stand for themselves, the
    others, in order, for the code points from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


def _load_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    with open(path, "rb") as file:
        raw = file.read()
    encoding = "utf-16" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        data = json.loads(raw.decode(encoding))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelFormatError(f"[tokenizer] {os.fspath(path)} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelFormatError(f"[tokenizer] {os.fspath(path)} holds no JSON object")
    return data


def _utf8(text: str | Bytes) -> Bytes:
    return text.encode("utf-8") if isinstance(text, str) else _bytes(text)


def _text(text: str | Bytes) -> str:
    return text if isinstance(text, str) else _bytes(text).decode("utf-8")


def _texts(texts: Sequence[str | Bytes]) -> Sequence[str | Bytes]:
    if isinstance(texts, (str, Bytes)):
        raise TypeError("[encode_batch] several texts are wanted, in a list; this is one")
    return texts


def _bytes(text: Bytes) -> Bytes:
    """A copy of a bytes-like object. (Of an int, bytes() would make as many zeros.)"""
    try:
        return Bytes(memoryview(text))
    except TypeError:
        raise TypeError(
            f"[encode] the text must be str or bytes, got {type(text).__name__}"
        ) from None
