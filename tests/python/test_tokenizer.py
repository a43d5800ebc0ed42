"""Tokenizers: the authors' ids, any bytes, any ids, files of every kind, vocabularies at build."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wkv
from hypothesis import given, settings
from hypothesis import strategies as st
from wkv import Tokenizer
from wkv.tokenizer import TextStream

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/tokenizer_world.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def world() -> Tokenizer:
    return Tokenizer.world()


def raw(item: dict[str, Any]) -> bytes:
    return item["text"].encode() if "text" in item else bytes.fromhex(item["hex"])


def test_world_ids_are_the_authors(world: Tokenizer) -> None:
    assert len(GOLDEN["items"]) == 211
    for item in GOLDEN["items"]:
        data = raw(item)
        assert world.encode(data) == item["world"]
        assert world.decode_bytes(item["world"]) == data
        if "text" in item:
            assert world.encode(item["text"]) == item["world"]
            assert world.decode(item["world"]) == item["text"]
        elif item["world_decode"] != "\ufffd":  # upstream gives up on the whole text
            assert world.decode(item["world"]) == item["world_decode"]
    batch = world.encode_batch([raw(item) for item in GOLDEN["items"]])
    assert batch == [item["world"] for item in GOLDEN["items"]]


def test_world_vocabulary(world: Tokenizer) -> None:
    vocab = GOLDEN["vocab"]
    tokens = [world.token_bytes(token) for token in range(65536)]
    with_bytes = [token for token, data in enumerate(tokens) if data]
    assert (with_bytes[0], with_bytes[-1]) == (vocab["min_id"], vocab["max_id"])
    assert len(with_bytes) == vocab["entries"]
    assert max(map(len, tokens)) == vocab["max_token_bytes"]
    assert tokens[1:257] == [bytes([byte]) for byte in range(256)]
    assert world.vocab_size == 65536
    assert world.eos_id == 0
    # Each token is its own longest match.
    assert [world.encode(tokens[token]) for token in with_bytes] == [[t] for t in with_bytes]


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode()))
def test_any_bytes_come_back(data: bytes) -> None:
    world = Tokenizer.world()
    ids = world.encode(data)
    assert world.decode_bytes(ids) == data
    assert world.decode(ids) == data.decode("utf-8", "replace")
    assert world.encode_array(data).tolist() == ids
    for token in ids:  # greedy: nothing longer from here is a token
        size = len(world.token_bytes(token))
        for end in range(size + 1, min(len(data), 128) + 1):
            assert len(world.encode(data[:end])) > 1
        data = data[size:]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(-(2**70), 2**70) | st.integers(-10, 70000), max_size=30))
def test_any_ids_decode(ids: list[int]) -> None:
    for tokenizer in (Tokenizer.world(), Tokenizer.bytes(), Tokenizer.abc()):
        text = tokenizer.decode(ids)
        assert text == tokenizer.decode_bytes(ids).decode("utf-8", "replace")
        assert b"".join(map(tokenizer.token_bytes, ids)) == tokenizer.decode_bytes(ids)


def test_kinds_of_arguments(world: Tokenizer) -> None:
    ids = world.encode("Hello, world!")
    for text in (b"Hello, world!", bytearray(b"Hello, world!"), memoryview(b"Hello, world!")):
        assert world.encode(text) == ids  # type: ignore[arg-type]
    for same in (tuple(ids), np.array(ids), np.array(ids, dtype=np.uint16), iter(ids)):
        assert world.decode(same) == "Hello, world!"
    array = world.encode_array("Hello, world!")
    assert array.dtype == np.int32
    assert array.flags.writeable
    assert world.decode([]) == world.decode(np.array([], dtype=np.int64)) == ""
    assert world.decode([0, 65530, -1]) == ""
    assert world.encode("") == []
    for bad in (None, 5, ["a"]):
        with pytest.raises(TypeError, match="str or bytes"):
            world.encode(bad)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        world.encode("\ud800")
    with pytest.raises(UnicodeDecodeError):
        world.decode([129], errors="strict")


def test_batches(world: Tokenizer) -> None:
    texts: list[str | bytes] = [("word " * i)[i % 3 :] for i in range(300)]
    texts[7] = b"\xff\xfe"
    want = [world.encode(text) for text in texts]
    for threads in (None, 1, 3):
        assert world.encode_batch(texts, threads) == want
    assert world.encode_batch([]) == []
    with pytest.raises(ValueError, match="threads"):
        world.encode_batch(texts, 0)
    with pytest.raises(TypeError, match="str or bytes"):
        world.encode_batch(["a", 5])  # type: ignore[list-item]
    for tokenizer in (world, wkv.Tokenizer.bytes()):
        with pytest.raises(TypeError, match="in a list"):
            tokenizer.encode_batch("abc")


@pytest.mark.slow
def test_a_hundred_megabytes(world: Tokenizer) -> None:
    text = (ROOT / "tests/golden/tokenizer_world.json").read_bytes()
    data = text * (100_000_000 // len(text) + 1)
    array = world.encode_array(data)
    assert world.decode_bytes(array) == data


def test_encoding_runs_beside_python(world: Tokenizer) -> None:
    data = b"some text to encode " * 400_000
    done = threading.Event()

    def work() -> None:
        world.encode_array(data)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    steps = 0
    while not done.is_set():
        steps += 1
    thread.join()
    assert steps > 100


def pushed(stream: TextStream, ids: list[int]) -> list[str]:
    return [stream.push(token) for token in ids]


def test_streams_hold_back_incomplete_characters(world: Tokenizer) -> None:
    for tokenizer in (world, Tokenizer.bytes()):
        text = "a\u00e9\u4e2d\U0001f600!"
        stream = tokenizer.stream()
        pieces = pushed(stream, tokenizer.encode(text))
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
        assert not stream.pending
        assert stream.flush() == ""
    stream = Tokenizer.bytes().stream()
    assert pushed(stream, [0x61, 0xE4, 0xB8]) == ["a", "", ""]
    assert stream.pending
    assert stream.flush() == "\ufffd"
    assert not stream.pending
    # A byte that cannot go on ends the wait.
    assert pushed(Tokenizer.bytes().stream(), [0xE4, 0x61]) == ["", "\ufffda"]


def test_bytes() -> None:
    tokenizer = Tokenizer.bytes()
    assert tokenizer.encode("a\u00e9") == [97, 0xC3, 0xA9]
    assert tokenizer.encode_array(b"\xff\x00").tolist() == [255, 0]
    assert tokenizer.decode([97, 0xC3, 0xA9, 256, -1]) == "a\u00e9"
    assert tokenizer.vocab_size == 256
    assert tokenizer.encode_batch(["a", "b"]) == [[97], [98]]


def test_abc() -> None:
    tokenizer = Tokenizer.abc()
    tune = "X:1\nK:D\n|: DEF AGE :|"
    assert tokenizer.decode([2, *tokenizer.encode(tune), 3, 0]) == tune
    assert tokenizer.eos_id == 3
    with pytest.raises(ValueError, match="ASCII"):
        tokenizer.encode("\u00e9")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8", "utf-8-sig"])
def test_character_vocabularies(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "vocab.json"
    table = json.dumps({"0": "\n", "1": " ", "2": "a", "3": "\u4e2d"}, ensure_ascii=False)
    bom = b"\xff\xfe" if encoding == "utf-16-le" else b""
    path.write_bytes(bom + table.encode(encoding))
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.encode("\u4e2d a\n") == [3, 1, 2, 0]
    assert tokenizer.decode([3, 1, 2, 0, 4, -1]) == "\u4e2d a\n"
    assert tokenizer.token_bytes(3) == "\u4e2d".encode()
    assert tokenizer.vocab_size == 4
    assert tokenizer.eos_id is None
    assert pushed(tokenizer.stream(), [3, 0]) == ["\u4e2d", "\n"]
    with pytest.raises(ValueError, match="lacks 'b'"):
        tokenizer.encode("ab")
    assert Tokenizer.from_file(path, unknown=" ").encode("ab") == [2, 1]
    with pytest.raises(ValueError, match="'x'"):
        Tokenizer.from_file(path, unknown="x")
    assert Tokenizer.from_file(path, eos_id=2).eos_id == 2


def test_vocabulary_files(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"1 'a' 1\r\n2 'ab' 2\r\n3 b'\\xff' 1\r\n")
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.encode(b"aba\xff") == [2, 1, 3]
    assert tokenizer.vocab_size == 4
    with pytest.raises(ValueError, match="byte 98"):
        tokenizer.encode("b")
    path.write_bytes(b"1 'a' 1\n2 __import__('os') 2\n")
    with pytest.raises(wkv.ModelFormatError, match=r"vocab.txt:2: not a Python str or bytes"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b'{"a": "b"}', b'{"0": 1}', b'{"0": "a", "1": "a"}', b"\xff\xfe{", b"hello",
     b'{"model": {}}', b'{"0": ' + b"[" * 100_000],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    if b"model" in content:
        pytest.importorskip("tokenizers")
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(wkv.ModelFormatError, match="file"):
        Tokenizer.from_file(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_file(tmp_path / "none.json")
    path = tmp_path / "words.json"
    path.write_text('{"0": "the"}')
    with pytest.raises(wkv.UnsupportedError, match="words"):
        Tokenizer.from_file(path)


@pytest.fixture(scope="module")
def byte_level_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer.json like GPT-NeoX's: byte-level BPE, runs of blanks as added tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat \u00e9\u4e2d"] * 10, trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=False) for n in (4, 3, 2)])
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_hugging_face_byte_level(byte_level_bpe: Path) -> None:
    import tokenizers

    tokenizer = Tokenizer.from_file(byte_level_bpe)
    native = tokenizers.Tokenizer.from_file(str(byte_level_bpe))
    assert tokenizer.eos_id == 0
    assert tokenizer.vocab_size == native.get_vocab_size()
    for text in ("the cat", "   x    y", "\u4e2d\u00e9\U0001f600", "a<|endoftext|>b", "\x00\x7f\n"):
        ids = tokenizer.encode(text)
        assert ids == native.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == native.decode(ids) == text.replace("<|endoftext|>", "")
        assert tokenizer.encode_batch([text, "the"]) == [ids, tokenizer.encode("the")]
        stream = tokenizer.stream()
        assert "".join(pushed(stream, ids)) + stream.flush() == tokenizer.decode(ids)
    assert tokenizer.decode([0, 1, 10**6, -5, 2**40]) == ""
    # A character in several tokens: its bytes are those of the text.
    ids = tokenizer.encode("\U0001f600")
    assert len(ids) > 1
    assert b"".join(map(tokenizer.token_bytes, ids)) == "\U0001f600".encode()


def test_hugging_face_words(tmp_path: Path) -> None:
    """As the MIDI models have them: words, joined by blanks."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import models, normalizers, pre_tokenizers

    words = {"<pad>": 0, "<start>": 1, "<end>": 2, "p:3c": 3, "t10": 4}
    native = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    native.normalizer = normalizers.Lowercase()
    native.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path / "tokenizer-midi.json"
    native.save(str(path))
    tokenizer = Tokenizer.from_file(path)
    ids = tokenizer.encode("<start> P:3C t10 t10 <end>")
    assert ids == [1, 3, 4, 4, 2]
    assert tokenizer.decode(ids) == "<start> p:3c t10 t10 <end>"
    assert pushed(tokenizer.stream(), ids) == ["<start>", " p:3c", " t10", " t10", " <end>"]
    assert tokenizer.eos_id == 0


def test_20b(shared: Path) -> None:
    found = sorted(shared.rglob("20B_tokenizer.json"))
    if not found:
        pytest.skip("no 20B_tokenizer.json in the shared data")
    pytest.importorskip("tokenizers")
    tokenizer = Tokenizer.from_file(found[0])
    assert tokenizer.vocab_size == 50277
    for item in GOLDEN["items"]:
        if "text" in item and "neox20b" in item:
            assert tokenizer.encode(item["text"]) == item["neox20b"]
            want = item.get("neox20b_decode", item["text"])
            assert tokenizer.decode(item["neox20b"]) == want


def test_without_the_package_tokenizers(
    byte_level_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "tokenizers":
            raise ImportError("No module named 'tokenizers'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(wkv.UnsupportedError, match="pip install tokenizers"):
        Tokenizer.from_file(byte_level_bpe)


class TestMakeWorldVocab:
    """tools/make_world_vocab.py, by which the build makes the native table."""

    TOOL = ROOT / "tools/make_world_vocab.py"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.TOOL), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    @pytest.fixture
    def vocab(self) -> Path:
        located = self.run("--locate").stdout.strip()
        if not located:
            pytest.skip("no installed distribution has the World vocabulary")
        return Path(located)

    def test_line_ends_do_not_matter(self, vocab: Path, tmp_path: Path) -> None:
        data = vocab.read_bytes().replace(b"\r\n", b"\n")
        outputs = []
        for name, content in (("lf", data), ("crlf", data.replace(b"\n", b"\r\n"))):
            (tmp_path / name).write_bytes(content)
            output = tmp_path / f"{name}.cpp"
            result = self.run("--vocab", str(tmp_path / name), "-o", str(output))
            assert result.returncode == 0, result.stderr
            outputs.append(output.read_text(encoding="ascii"))
        assert outputs[0] == outputs[1]
        assert len(outputs[0]) < 1_000_000

    def test_the_file_gives_the_same_tokenizer(self, vocab: Path, world: Tokenizer) -> None:
        other = Tokenizer.from_file(vocab)
        assert other.vocab_size == 65536
        assert [other.token_bytes(i) for i in range(65536)] == [
            world.token_bytes(i) for i in range(65536)
        ]

    def test_another_content_is_refused(self, vocab: Path, tmp_path: Path) -> None:
        changed = tmp_path / "changed.txt"
        changed.write_bytes(vocab.read_bytes().replace(b"hello", b"hallo", 1))
        result = self.run("--vocab", str(changed), "-o", str(tmp_path / "x.cpp"))
        assert result.returncode == 1
        assert "SHA-256" in result.stderr
        assert not (tmp_path / "x.cpp").exists()

    def test_no_such_file(self, tmp_path: Path) -> None:
        result = self.run("--vocab", str(tmp_path / "none"), "-o", str(tmp_path / "x.cpp"))
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("text", [None, 5, ["a"]], ids=str)
def test_no_text(text: object) -> None:
    for tokenizer in (wkv.Tokenizer.world(), wkv.Tokenizer.bytes(), wkv.Tokenizer.abc()):
        with pytest.raises(TypeError, match="must be str or bytes, got"):
            tokenizer.encode(text)  # type: ignore[arg-type]


def test_half_of_a_surrogate_pair() -> None:
    """A str such as json.loads() makes of broken input has no UTF-8: an error, never other text."""
    for tokenizer in (wkv.Tokenizer.world(), wkv.Tokenizer.bytes(), wkv.Tokenizer.abc()):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            tokenizer.encode("a\ud800")
