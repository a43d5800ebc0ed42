"""Every failure is one exception of the right class that says what is wrong."""

from __future__ import annotations

import errno
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import wkv
from wkv import errors


def test_classes() -> None:
    assert issubclass(wkv.ModelFormatError, (wkv.Error, ValueError))
    for name, builtin in {
        "ModelFormatError": ValueError,
        "UnsupportedError": RuntimeError,
        "ContextLengthError": ValueError,
        "DeviceError": RuntimeError,
    }.items():
        error = getattr(wkv, name)
        assert issubclass(error, wkv.Error)
        assert issubclass(error, builtin)
        assert pickle.loads(pickle.dumps(error("text"))).args == ("text",)
        assert getattr(errors, name) is error


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing") as caught:
        wkv.Model.load(tmp_path / "missing.pth")
    assert caught.value.errno == 2
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match="directory"):
        wkv.Model.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        wkv.inspect(tmp_path / "missing")
    with pytest.raises(TypeError):
        wkv.Model.load(3)  # type: ignore[arg-type]


def test_files_that_are_no_model(tmp_path: Path, golden: Path) -> None:
    for name, data in {
        "empty.pth": b"",
        "text.pth": b"hello, I am no model",
        "zeros.safetensors": bytes(4096),
        "cut.pth": (golden / "v7" / "model.pth").read_bytes()[:1000],
        "cut.safetensors": (golden / "v7" / "model.safetensors").read_bytes()[:-1],
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(wkv.ModelFormatError, match=name):
            wkv.Model.load(path)
        with pytest.raises(wkv.ModelFormatError, match=name):
            wkv.inspect(path)


def test_all_that_is_wrong_in_one_error(tmp_path: Path, golden: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    from wkv import _core

    file = _core.Checkpoint.open(golden / "v6" / "model.safetensors")
    tensors = {name: file.get(name) for name in file.names()}
    del tensors["blocks.1.att.key.weight"]
    del tensors["ln_out.bias"]
    tensors["blocks.0.ffn.value.weight"] = tensors["blocks.0.ffn.value.weight"][:-1].copy()
    path = tmp_path / "bad.safetensors"
    safetensors.save_file(tensors, path)
    with pytest.raises(wkv.ModelFormatError) as caught:
        wkv.Model.load(path)
    message = str(caught.value)
    for name in ("blocks.1.att.key.weight", "ln_out.bias", "blocks.0.ffn.value.weight"):
        assert name in message


def test_unsupported(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = golden / "v7" / "model.safetensors"
    with pytest.raises(ValueError, match="fp99"):
        wkv.Model.load(path, dtype="fp99")  # type: ignore[arg-type]
    with pytest.raises((ValueError, wkv.UnsupportedError), match="abacus"):
        wkv.Model.load(path, device="abacus")
    if not any(d.usable for d in wkv.devices() if d.name.startswith("cuda")):
        with pytest.raises(wkv.UnsupportedError, match="cuda"):
            wkv.Model.load(path, device="cuda")
    monkeypatch.setenv("WKV_ISA", "sse42")
    with pytest.raises((ValueError, wkv.UnsupportedError), match="sse42"):
        wkv.Model.load(path, device="cpu")


def test_isas_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    isas = {isa.name: isa for isa in wkv.isas()}
    assert isas["generic"].runnable
    assert sum(isa.active for isa in isas.values()) == 1
    monkeypatch.setenv("WKV_ISA", "generic")
    assert {isa.name for isa in wkv.isas() if isa.active} == {"generic"}
    devices = {device.name: device for device in wkv.devices()}
    assert devices["cpu"].usable
    assert all(device.usable or device.reason for device in devices.values())


def test_an_unreadable_file() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        os.chmod(folder, 0o755)
        path = Path(folder) / "a.pth"
        path.write_bytes(b"x")
        path.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(PermissionError, match=r"a\.pth") as caught:
                wkv.Model.load(path)
        finally:
            if root:
                os.seteuid(0)
        assert caught.value.errno == errno.EACCES


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    """Linux takes any bytes as the name of a file; messages show those that are no characters."""
    path = os.fsencode(tmp_path) + b"/caf\xe9.pth"
    with pytest.raises(FileNotFoundError, match=r"caf\\xe9"):
        wkv.Model.load(os.fsdecode(path))
    with open(path, "wb") as file:
        file.write(b"no model")
    with pytest.raises(wkv.ModelFormatError, match=r"caf\\xe9"):
        wkv.Model.load(os.fsdecode(path))


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"path": None}, TypeError, "the path must be a str or a Path, got None"),
        ({"path": "a\0b"}, ValueError, "zero byte"),
        ({"device": None}, TypeError, "device must be a str, got None"),
        ({"device": 0}, TypeError, "device must be a str, got 0"),
        ({"threads": "2"}, TypeError, "threads must be an integer, got '2'"),
        ({"threads": 1.5}, TypeError, "threads must be an integer, got 1.5"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"threads": 2**40}, ValueError, "threads must be at most"),
        ({"version": 7}, TypeError, "version must be a str, got 7"),
    ],
)
def test_arguments_of_load(
    golden: Path, arguments: dict[str, object], kind: type[Exception], words: str
) -> None:
    given: dict[str, object] = {"path": golden / "v7" / "model.pth", **arguments}
    with pytest.raises(kind) as caught:
        wkv.Model.load(**given)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("state", [None, 5, [], "state"], ids=str)
def test_no_state(model: wkv.Model, state: object) -> None:
    """The `rwkv` package takes None for a new state, and lists."""
    for call in (
        lambda: model.forward([1], state),  # type: ignore[arg-type]
        lambda: model.forward_batch([[1]], [state]),  # type: ignore[list-item]
        lambda: model.hidden([[1]], [state]),  # type: ignore[list-item]
        lambda: model.forward_vectors([[0.0] * model.info.n_embd], state),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"model\.new_state\(\), got"):
            call()
