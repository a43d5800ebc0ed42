"""wkv.compat.rwkv: the same scripts with both packages, side by side."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wkv
from wkv import _core
from wkv.compat.rwkv.model import RWKV
from wkv.compat.rwkv.strategy import place, plan

torch = pytest.importorskip("torch")
real = pytest.mark.skipif(
    importlib.util.find_spec("rwkv") is None, reason="the rwkv package is not installed"
)

# What scripts do with a model, its state and its logits. Saves what they see.
SCRIPT = """
import copy, io, os, sys
import numpy as np
import torch
from rwkv.model import RWKV
from rwkv.utils import PIPELINE, PIPELINE_ARGS
path, out, vocabulary = sys.argv[1:]
v7 = os.environ.get("RWKV_V7_ON") == "1"
seen = {}
def see(name, x): seen[name] = x.detach().float().cpu().numpy().copy()
def see_state(name, state):
    for i, part in enumerate(state):
        see(f"{name}.{i}", part)
        seen[f"{name}.{i}.dtype"] = str(part.dtype)
model = RWKV(path, "cpu fp32") if v7 else RWKV(model=path, strategy="cpu fp32", verbose=False)
logits, state = model.forward([1, 2, 3, 4, 5], None)
see("prompt", logits); see_state("prompt.state", state)
branch = copy.deepcopy(state)
shallow = list(state)
again, same = model.forward([6], state)
seen["same"] = str(same is state)
see("one", again); see_state("one.state", same); see_state("shallow", shallow)
see_state("given", state)
state = same
rows, state = model.forward([7, 8, 9], state, full_output=True)
see("rows", rows)
row, state = model.forward([7], state, full_output=True)
see("row", row)
other, branch = model.forward([7, 8], branch)
see("branch", other)
for k in range(len(branch)):
    branch[k] = branch[k].clone()
branch[1] = branch[1] * 0.5
see("edited", model.forward([3], branch)[0])
buffer = io.BytesIO(); torch.save(state, buffer); buffer.seek(0)
loaded = torch.load(buffer)
see("loaded", model.forward([3, 4], loaded)[0])
seen["args"] = np.array([model.args.n_layer, model.args.n_embd])
seen["shapes"] = str([tuple(p.shape) for p in state])
seen["types"] = str([type(logits).__name__, type(state).__name__, str(logits.dtype)])
if v7:
    see_state("zero", model.generate_zero_state())
    see("bare", model.forward(5, None)[0])
    seen["sizes"] = np.array([model.n_embd, model.n_layer, model.n_head, model.head_size,
                              model.args.head_size, model.args.vocab_size])
    see("forward_one", model.forward_one(3, model.generate_zero_state())[0])
    see("forward_seq", model.forward_seq([3, 4], model.generate_zero_state(), True)[0])
    if os.environ.get("RWKV_DE_VERSION") != "1":
        given = model.forward([1, 2], None)[1]
        see("alt", model.forward_one_alt(model.z["emb.weight"][5], given)[0])
        see_state("alt.given", given)
else:
    seen["name"] = model.args.MODEL_NAME
    seen["time_state"] = str(model.args.time_state)
    seen["version"] = str(float(model.version))
    seen["strategy"] = str([(s.device, s.atype, s.wtype, s.stream) for s in model.strategy])
    seen["n_ffn"] = np.array([model.args.n_att, model.args.n_ffn])
    # How ChatRWKV's API_DEMO_CHAT.py and RWKV-Runner begin from a tuned state.
    if model.version >= 5:
        args = model.args
        tuned = [None] * args.n_layer * 3
        for i in range(args.n_layer):
            dd = model.strategy[i]
            dev, atype = dd.device, dd.atype
            n = args.n_att // args.n_head
            raw = torch.arange(args.n_head * n * n).reshape(args.n_head, n, n) % 7 / 7
            tuned[i * 3 + 0] = torch.zeros(
                args.n_embd, dtype=atype, requires_grad=False, device=dev).contiguous()
            tuned[i * 3 + 1] = raw.transpose(1, 2).to(
                dtype=torch.float, device=dev).requires_grad_(False).contiguous()
            tuned[i * 3 + 2] = torch.zeros(
                args.n_embd, dtype=atype, requires_grad=False, device=dev).contiguous()
        see("tuned", model.forward([1, 2], copy.deepcopy(tuned))[0])
weights = model.z if v7 else model.w
seen["names"] = str(sorted(weights))
for name in weights:
    see("weight." + name, weights[name])
    seen["weight.type." + name] = str(weights[name].dtype)
try:
    model.forward([], None)
except IndexError:
    seen["empty"] = "IndexError"
pipeline = PIPELINE(model, vocabulary)
for n, settings in enumerate((
        dict(temperature=0), dict(), dict(temperature=1.2, top_p=0.7, top_k=20, token_ban=[0]),
        dict(alpha_frequency=0.5, alpha_presence=0.5, alpha_decay=0.9, chunk_len=2))):
    np.random.seed(n)
    pieces = []
    text = pipeline.generate("the 10 prompts", token_count=40, args=PIPELINE_ARGS(**settings),
                             callback=pieces.append)
    seen[f"text.{n}"] = repr([text, pieces])
np.savez(out, **seen)
"""
RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
OURS = "import wkv.compat; wkv.compat.install()\n"


@pytest.fixture(scope="session")
def pth(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The path, without its suffix, of a golden model as .pth.

    fp32, because the package rounds the normed embedding to the type of the file.
    """
    folder = tmp_path_factory.mktemp("pth")

    def make(name: str) -> str:
        path = folder / f"{name}.pth"
        if not path.exists():
            file = _core.Checkpoint.open(golden / name / "model.safetensors")
            torch.save({n: torch.from_numpy(file.get(n)) for n in file.names()}, path)
        return str(path.with_suffix(""))

    return make


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer.json of 64 characters, as many ids as the golden models have."""
    tokenizers = pytest.importorskip("tokenizers")
    characters = " \t\n" + "".join(map(chr, range(ord("0"), ord("0") + 61)))
    model = tokenizers.models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="a")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


@real
@pytest.mark.parametrize(
    "folder",
    ["v4", "v5_0", "v5_0_faaaa", "v5_1", "v5_1_multihead", "v5_2", "v6", "v6_time_state", "v7",
     "v7a_deepembed"],
)  # fmt: skip
def test_scripts_see_the_same(
    run_with_torch: Callable[..., str],
    pth: Callable[[str], str],
    vocabulary: str,
    tmp_path: Path,
    folder: str,
) -> None:
    variables = {"RWKV_V7_ON": "1"} if folder.startswith("v7") else {}
    if folder == "v7a_deepembed":
        variables["RWKV_DE_VERSION"] = "1"
    path = pth(folder)
    run_with_torch(SCRIPT, path, str(tmp_path / "theirs.npz"), vocabulary, **variables)
    output = run_with_torch(
        OURS + SCRIPT, path, str(tmp_path / "ours.npz"), vocabulary, **variables
    )
    assert output == ""
    theirs: dict[str, Any] = dict(np.load(tmp_path / "theirs.npz"))
    ours: dict[str, Any] = dict(np.load(tmp_path / "ours.npz"))
    assert ours.keys() == theirs.keys()
    for name, want in theirs.items():
        got = ours[name]
        assert got.shape == want.shape, name
        if want.dtype.kind == "f":
            scale = max(1.0, float(np.abs(want[np.abs(want) < 1e29]).max(initial=0)))
            assert np.abs(got - want).max(initial=0) <= 1e-4 * scale, name
        else:
            assert np.array_equal(got, want), name


def test_all_versions_in_one_process(golden: Path) -> None:
    for folder, version in {"v4": 4, "v5_0": 5, "v5_1": 5.1, "v5_2": 5.2, "v6": 6, "v7": 7}.items():
        model = RWKV(str(golden / folder / "model"), "cpu fp32", verbose=True)
        assert model.version == version
        expected = np.load(golden / folder / "logits.npy")
        prompt = json.loads((golden / folder / "tokens.json").read_text())["prompt"]
        rows, state = model.forward(prompt, None, full_output=True)
        assert isinstance(rows, torch.Tensor)
        assert rows.dtype == torch.float32
        assert np.abs(rows.numpy() - expected).max() <= 5e-5
        assert len(state) == model.args.n_layer * (5 if version == 4 else 3)


def test_kinds_of_tokens(golden: Path) -> None:
    model = RWKV(str(golden / "v7" / "model"), "cpu fp32")
    want = model.forward([1, 2, 3])[0]
    for tokens in ((1, 2, 3), np.array([1, 2, 3]), torch.tensor([1, 2, 3]), range(1, 4)):
        assert torch.equal(model.forward(tokens, None)[0], want)
    assert torch.equal(model.forward(5)[0], model.forward([5])[0])
    assert torch.equal(model.forward(np.int64(5))[0], model.forward([5])[0])
    assert torch.equal(model.forward([-1])[0], model.forward([model.args.vocab_size - 1])[0])
    with pytest.raises(IndexError, match="vocabulary"):
        model.forward([10**6])
    with pytest.raises(IndexError, match="at least one"):
        model.forward([])
    with pytest.raises(ValueError, match="entries"):
        model.forward([1], [torch.zeros(3)])


def test_half_precision_states(golden: Path) -> None:
    model = RWKV(str(golden / "v7" / "model"), "cpu bf16")
    logits, state = model.forward([1, 2, 3], None)
    assert [part.dtype for part in state[:3]] == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert logits.dtype == torch.float32
    logits, state = model.forward([4], state)
    assert torch.isfinite(logits).all()


def test_i8_is_the_packages_own_format(golden: Path) -> None:
    folder = golden / "v4"
    model = RWKV(str(folder / "model"), "cpu fp32i8")
    tokens = json.loads((folder / "tokens.json").read_text())
    ids = tokens["prompt"] + tokens["continuation"]
    rows, _ = model.forward(ids, None, full_output=True)
    expected = np.load(folder / "int8_mm8.npz")["logits"]  # of the package's `cpu fp32i8`
    assert np.abs(rows.numpy() - expected).max() <= 1e-5


def test_strategies(golden: Path) -> None:
    recorded = json.loads((golden / "strategy_plans.json").read_text())
    for entry in recorded["plans"]:
        if entry.get("error"):
            kind = entry["error"].split(":")[0]
            with pytest.raises(ValueError if kind == "ValueError" else ZeroDivisionError):
                plan(entry["strategy"], recorded["n_layer"])
        else:
            layers = plan(entry["strategy"], recorded["n_layer"])
            assert [str(layer) for layer in layers] == entry["layers"], entry["strategy"]
            assert plan(entry["strategy"] + "\n", recorded["n_layer"]) == layers
    for wrong in ("cpu fp32\n\n", "\ncpu fp32", "cpu fp32\n -> cpu fp32"):
        with pytest.raises(ValueError, match="no stage"):
            plan(wrong, 24)


def test_what_is_placed_otherwise_is_said(golden: Path) -> None:
    path = str(golden / "v4" / "model")
    with pytest.warns(UserWarning, match="i4 and i3 mean nothing"):
        RWKV(path, "cpu fp32i4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RWKV(path, "cpu fp32 *1 -> cpu fp32")
        model = RWKV(path, "cpu fp32 *1 -> cpu bf16").model
        n = model.info.n_layer
        assert model.device == f"cpu fp32 *1 -> cpu bf16 *{n}"
    for strategy in ("mps fp32", "dml fp16"):
        with pytest.raises(wkv.UnsupportedError, match=strategy[:3]):
            RWKV(path, strategy)
    for strategy, device, dtype in [
        ("cuda:1 fp16i8", "cuda:1", "mm8"),
        ("cuda:1 fp16i8 *2 -> cpu fp32", "cuda:1 mm8 *2 -> cpu fp32 *3", "auto"),
        ("cuda fp16 *1+", "cuda fp16 *1 -> cuda fp16 *4 stream", "auto"),
        ("cpu bf16 *1+", "cpu", "bf16"),
    ]:
        placement = place(strategy, plan(strategy, 4))
        assert (placement.device, placement.dtype) == (device, dtype)
        assert placement.notes == (
            ("the embedding goes with the first layer, not to the CPU",)
            if "cuda" in strategy
            else ()
        )
    with pytest.raises(FileNotFoundError):
        RWKV("missing", "cpu fp32")


def test_a_conversion_is_a_checkpoint_of_ours(golden: Path, tmp_path: Path) -> None:
    path = str(golden / "v4" / "model")
    with pytest.warns(UserWarning, match="cannot read it"):
        model = RWKV(path, "cpu fp16", convert_and_save_and_exit=str(tmp_path / "converted"))
    again = RWKV(str(tmp_path / "converted"), "cpu fp16")
    assert torch.equal(again.forward([1, 2])[0], model.forward([1, 2])[0])


def test_environment_variables_are_accepted(
    run_with_torch: Callable[..., str], golden: Path
) -> None:
    names = ["V7_ON", "JIT_ON", "CUDA_ON", "DML_ON", "DE_VERSION", "RESCALE_LAYER"]
    code = OURS + (
        "import sys; from rwkv.model import RWKV; m = RWKV(sys.argv[1], 'cpu fp32'); "
        "print(m.version, m.RESCALE_LAYER)"
    )
    for folder, version in (("v4", "4"), ("v7", "7.0")):
        for value in "01":
            variables = {f"RWKV_{name}": value for name in names}
            printed = run_with_torch(code, str(golden / folder / "model"), **variables)
            assert printed == f"{version} 0\n"


def test_weights_are_read_only(golden: Path) -> None:
    model = RWKV(str(golden / "v7" / "model"), "cpu bf16")
    assert not hasattr(model, "w")
    assert model.z["head.weight"].dtype == torch.bfloat16
    assert model.z["emb.weight"] is model.z["emb.weight"]
    with pytest.raises(TypeError):
        model.z["head.weight"] = torch.zeros(3)
    with pytest.raises(KeyError):
        model.z["nonsense"]
    older = RWKV(str(golden / "v4" / "model"), "cpu fp32")
    assert not hasattr(older, "z")
    assert len(older.w) == len(list(older.w))


def test_what_the_package_never_ran_is_refused(golden: Path) -> None:
    for folder in ("v1", "v2", "v4_ffnPre_head_qk"):
        with pytest.raises(wkv.UnsupportedError, match=r"use wkv\.Model"):
            RWKV(str(golden / folder / "model"), "cpu fp32")
    assert RWKV(str(golden / "v4a_tiny_att" / "model"), "cpu fp32").forward([1])[0].dim() == 1


def test_numpy_without_torch(run_python: RunPython, golden: Path, vocabulary: str) -> None:
    code = """
import sys
sys.modules["torch"] = None
import copy
import numpy as np
import wkv.compat
wkv.compat.install()
from rwkv.model import RWKV
model = RWKV(sys.argv[1], "cpu fp32")
logits, state = model.forward([1, 2, 3], None)
assert type(logits) is np.ndarray and logits.dtype == np.float32
assert all(type(part) is np.ndarray for part in state)
twin = copy.deepcopy(state)
a, _ = model.forward([4], state)
b, _ = model.forward([4], twin)
assert np.array_equal(a, b)
assert type(model.w["emb.weight"]) is np.ndarray
from rwkv.utils import PIPELINE, PIPELINE_ARGS
pipeline = PIPELINE(model, sys.argv[2])
np.random.seed(1)
assert len(pipeline.generate("the 10", token_count=5, args=PIPELINE_ARGS(top_k=9))) == 5
greedy = pipeline.generate("the 10", token_count=1, args=PIPELINE_ARGS(temperature=0))
logits = model.forward(pipeline.encode("the 10"))[0]
assert greedy == pipeline.decode([int(logits.argmax())])
logits[0] -= 1e10  # as ChatRWKV's programs do
print("fine")
"""
    done = run_python(code, str(golden / "v6" / "model"), vocabulary)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


def test_install_refuses_to_come_late(run_python: RunPython) -> None:
    code = """
import sys, types
sys.modules["rwkv"] = types.ModuleType("rwkv")
import wkv.compat
try:
    wkv.compat.install()
except RuntimeError as error:
    print("first" in str(error))
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
