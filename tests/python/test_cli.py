"""The command wkv, as a user runs it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import wkv


def cli(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wkv", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.fixture(params=[isa.name for isa in wkv.isas() if isa.runnable])
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_version_and_help() -> None:
    assert cli("--version").stdout == f"wkv {wkv.__version__}\n"
    for command in ((), ("info",), ("convert",), ("generate",), ("chat",)):
        done = cli(*command, "--help")
        assert done.returncode == 0
        assert "usage: wkv" in done.stdout
    done = cli()
    assert done.returncode == 2
    assert "usage: wkv" in done.stdout


def test_cmake_dir() -> None:
    done = cli("--cmake-dir")
    assert (Path(done.stdout.strip()) / "wkv-config.cmake").is_file()


def test_info(golden: Path) -> None:
    path = str(golden / "v7" / "model")
    done = cli("info", path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "RWKV-7.0" in done.stdout
    info = json.loads(cli("info", path, "--json").stdout)
    assert info["n_layer"] == wkv.inspect(path).n_layer
    assert sum(info["dtypes"].values()) > 10
    assert "blocks.0.att.key.weight" in cli("info", path, "--tensors").stdout


def test_convert(golden: Path, tmp_path: Path) -> None:
    source = golden / "v4" / "model.pth"
    out = tmp_path / "a.safetensors"
    assert cli("convert", str(source), str(out)).returncode == 0
    model = wkv.Model.load(source, device="cpu", dtype="fp32")
    copy = wkv.Model.load(out, device="cpu", dtype="fp32")
    ids = [1, 2, 3]
    want = model.forward(ids, model.new_state())
    np.testing.assert_array_equal(copy.forward(ids, copy.new_state()), want)

    done = cli("convert", str(source), str(out))
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert cli("convert", str(source), str(out), "--dtype", "fp16", "--force").returncode == 0
    half = wkv.Model.load(out, device="cpu")
    assert half.dtype == "fp16"
    np.testing.assert_allclose(half.forward(ids, half.new_state()), want, atol=0.05)
    done = cli("convert", str(source), str(tmp_path / "b.pth"))
    assert done.returncode == 1
    assert ".safetensors" in done.stderr
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "missing"),
        ("convert", "missing", "b.safetensors"),
        ("generate", "missing", "--tokenizer", "bytes", "--prompt", "x"),
        ("info", os.devnull),
        ("info", "."),
    ],
    ids=str,
)
def test_errors_are_one_line(arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("wkv: error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_wrong_usage() -> None:
    for arguments in (("nonsense",), ("info",), ("generate", "x", "--max-tokens", "0")):
        done = cli(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_bench() -> None:
    done = cli("bench", "--help")
    assert done.returncode == 0
    assert "wkv_bench" in done.stdout


def test_a_reader_that_goes_away(golden: Path) -> None:
    command = f"{sys.executable} -m wkv info {golden / 'v7' / 'model'} --tensors"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")  # 0: all was written before the pipe closed


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random v7 model with 256 tokens, as a file."""
    pytest.importorskip("wkv.generate")
    safetensors = pytest.importorskip("safetensors.numpy")
    from wkv import _core

    file = _core.Checkpoint.open(Path(__file__).parent.parent / "golden" / "v7" / "model")
    tensors = {name: file.get(name) for name in file.names()}
    rng = np.random.default_rng(1)
    for name in ("emb.weight", "head.weight"):
        shape = (256, tensors[name].shape[1])
        tensors[name] = rng.normal(size=shape).astype(np.float32)
    # Token 0 would end the text by chance: no token is less likely.
    tensors["ln_out.weight"] *= 0.1
    tensors["head.weight"][0] = -10 * tensors["ln_out.bias"]
    path = tmp_path_factory.mktemp("model") / "bytes.safetensors"
    safetensors.save_file(tensors, path)
    return str(path)


def test_generate(bytes_model: str) -> None:
    base = (
        "generate",
        bytes_model,
        "--tokenizer",
        "bytes",
        "--device",
        "cpu",
        "--max-tokens",
        "20",
    )
    greedy = cli(*base, "--prompt", "ab", "--temperature", "0")
    assert greedy.returncode == 0, greedy.stderr
    assert greedy.stderr == ""
    assert greedy.stdout
    assert cli(*base, "--prompt", "ab", "--temperature", "0").stdout == greedy.stdout
    assert cli(*base, "--temperature", "0", stdin="ab").stdout == greedy.stdout
    seeded = [cli(*base, "--prompt", "ab", "--seed", "5").stdout for _ in range(2)]
    assert seeded[0] == seeded[1]
    assert cli(*base, "--prompt", "ab", "--seed", "6").stdout != seeded[0]
    echoed = cli(*base, "--prompt", "ab", "--temperature", "0", "--echo")
    assert echoed.stdout == "ab" + greedy.stdout


def test_the_tokenizer_of_another_model(bytes_model: str) -> None:
    done = cli("generate", bytes_model, "--device", "cpu", "--prompt", "Hello world")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "World of 65536 ids" in done.stderr
    assert "--tokenizer bytes" in done.stderr


def test_the_readme_shows_what_the_small_model_writes(shared: Path, isa: str) -> None:
    """The command of the README, letter by letter, on every instruction set."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    shown = re.search(r"```\n\$ wkv (generate tiny-.*)\n((?:.*\n)*?)```", readme)
    assert shown is not None
    command, *arguments = shlex.split(shown[1])
    model = shared / "tiny" / arguments[0]
    if not model.exists():
        pytest.skip(f"no {model}")
    done = cli(command, str(model), *arguments[1:], WKV_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout + "\n" == shown[2]


def test_generate_saves_its_state(bytes_model: str, tmp_path: Path) -> None:
    path = str(tmp_path / "a.state")
    base = ("generate", bytes_model, "--tokenizer", "bytes", "--device", "cpu", "--max-tokens", "5")
    assert cli(*base, "--prompt", "ab", "--save-state", path).returncode == 0
    assert cli(*base, "--prompt", "c", "--state", path).returncode == 0


def test_bars_on_a_terminal_only(bytes_model: str) -> None:
    """Standard error is a terminal here, standard output a pipe that holds the text alone."""
    base = (sys.executable, "-m", "wkv", "generate", bytes_model, "--tokenizer", "bytes")
    command = (*base, "--device", "cpu", "--max-tokens", "5", "--temperature", "0")
    prompt = "ab" * 2500
    plain = subprocess.run([*command, "--prompt", prompt], capture_output=True, timeout=60)
    assert plain.stderr == b""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # 24 lines, 80 columns
    with subprocess.Popen(
        [*command, "--prompt", prompt], stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(ours, 4096):
                shown += data
        os.close(ours)
        assert process.stdout is not None
        assert process.stdout.read() == plain.stdout
    assert process.returncode == 0
    assert b"loading" in shown
    assert b"reading" in shown
    assert b"\n" not in shown  # the bars are gone at the end


def test_ctrl_c(bytes_model: str) -> None:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "wkv", "generate", bytes_model, "--tokenizer", "bytes",
            "--device", "cpu", "--max-tokens", "10000000", "--prompt", "a",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err


def test_chat(bytes_model: str, tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    lines = (
        f"hello\n/save {path}\n/retry\n/reset\n/retry\n/load {path}\nmore\n/load x\n/help\n/quit\n"
    )
    done = cli(
        "chat", bytes_model, "--tokenizer", "bytes", "--device", "cpu", "--max-tokens", "12",
        "--seed", "3", stdin=lines,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("(saved)", "(forgotten)", "(there is nothing to answer)", "(loaded)", "/reset"):
        assert words in done.stdout
    assert "No such file" in done.stdout
    assert path.exists()
    model = wkv.Model.load(bytes_model, device="cpu")
    tokens = model.load_state(path).tokens
    assert tokens is not None
    assert bytes(tokens).startswith(b"User: hello\n\nAssistant:")


def run_in_shell(
    line: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of bash, in which `wkv` stands for the command."""
    wkv_command = f'wkv() {{ {shlex.quote(sys.executable)} -m wkv "$@"; }};'
    return subprocess.run(
        ["bash", "-c", f"{wkv_command} {line}", "bash", *arguments],
        capture_output=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_prompts_are_bytes(bytes_model: str, tmp_path: Path) -> None:
    """Whatever the encoding: an argument, a file and standard input are read as they are."""
    file = tmp_path / "prompt"
    file.write_bytes(b"a\xff\r\n")
    options = '"$1" --tokenizer bytes --device cpu --max-tokens 4 --temperature 0 --echo'
    for source in (
        "wkv generate --prompt $'a\\xff\\r\\n' " + options,
        'wkv generate --prompt-file "$2" ' + options,
        'wkv generate < "$2" ' + options,
    ):
        done = run_in_shell(source, bytes_model, str(file))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(b"a\xff\r\n")


def test_characters_that_the_output_lacks(bytes_model: str) -> None:
    done = run_in_shell(
        'wkv generate "$1" --tokenizer bytes --device cpu --prompt a --max-tokens 60 --seed 1 '
        "--temperature 3 --top-p 1",
        bytes_model,
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout  # U+FFFD, for one


def test_closed_standard_streams(bytes_model: str) -> None:
    done = run_in_shell('wkv info "$1" >&-', bytes_model)
    assert done.returncode == 1
    assert done.stderr == b"wkv: error: standard output is closed\n"
    assert run_in_shell('wkv info "$1" <&- 2>&-', bytes_model).returncode == 0
    done = run_in_shell('wkv generate "$1" --tokenizer bytes <&-', bytes_model)
    assert done.returncode == 1
    assert b"the prompt is empty" in done.stderr


@pytest.mark.parametrize("option", ["--threads", "--top-k", "--seed"])
def test_numbers_beyond_every_integer(bytes_model: str, option: str) -> None:
    done = cli("generate", bytes_model, "--tokenizer", "bytes", "--prompt", "a", option, "9" * 30)
    assert done.returncode == 1
    assert done.stderr.startswith("wkv: error: ")
    assert done.stderr.count("\n") == 1


def test_chat_of_broken_text(bytes_model: str) -> None:
    """A message that is no UTF-8 is answered; the largest seed has a next one."""
    done = run_in_shell(
        "printf 'h\\xff\\nmore\\n' | wkv chat \"$1\" --tokenizer bytes --device cpu --max-tokens 4 "
        "--seed 18446744073709551615",
        bytes_model,
    )
    assert done.returncode == 0, done.stderr


def test_ctrl_c_in_a_conversation(bytes_model: str) -> None:
    """On a terminal it ends the answer, be it a message's or /retry's, not the conversation."""
    ours, theirs = pty.openpty()
    seen = b""

    def read_until(words: bytes, least: int = 0) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while words not in seen or len(seen) < least:
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 4096)

    command = [
        sys.executable, "-m", "wkv", "chat", bytes_model, "--tokenizer", "bytes",
        "--device", "cpu", "--max-tokens", "100000000",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        os.close(theirs)
        read_until(b"User: ")
        for line in (b"hello\n", b"/retry\n"):
            seen = b""
            os.write(ours, line)
            read_until(line.strip(), least=400)  # the answer is running
            process.send_signal(signal.SIGINT)
            read_until(b"(interrupted)")
            seen = seen[seen.index(b"(interrupted)") :]
            read_until(b"User: ")
        os.write(ours, b"/quit\n")
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
    os.close(ours)
