"""The package itself: import, stubs, types, files beside it."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import wkv
from wkv import _core, paths

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
HERE = Path(__file__).parent
STUB = Path(wkv.__file__).parent / "_core.pyi"


def test_import_is_quick_and_quiet(run_python: RunPython) -> None:
    """What takes long to import is imported by the first call that needs it."""
    done = run_python("import sys, wkv; print(*sys.modules)")
    assert done.stderr == ""
    slow = {"numpy", "torch", "tqdm", "tokenizers", "safetensors"}
    assert slow.isdisjoint(done.stdout.split())
    assert run_python("import wkv").stdout == ""


def test_version() -> None:
    assert wkv.__version__ == importlib.metadata.version("wkv") == _core.__version__


def test_public_names() -> None:
    for name in wkv.__all__:
        assert getattr(wkv, name) is not None
    assert set(wkv.__all__) <= set(dir(wkv))


def test_every_public_thing_is_documented() -> None:
    for name in wkv.__all__:
        thing = getattr(wkv, name)
        if not callable(thing):
            continue
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing):
            for attribute, value in vars(thing).items():
                if attribute.startswith("_") or not (
                    callable(value) or isinstance(value, (property, classmethod, staticmethod))
                ):
                    continue
                assert inspect.getdoc(getattr(thing, attribute)), f"{name}.{attribute}"


def members(node: ast.Module | ast.ClassDef) -> set[str]:
    names = set()
    for item in node.body:
        if isinstance(item, (ast.FunctionDef, ast.ClassDef)):
            names.add(item.name)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            names.add(item.target.id)
    return {name for name in names if name.startswith("__contains") or not name.startswith("_")}


def public(thing: object) -> set[str]:
    own = vars(thing)
    return {n for n in own if n == "__contains__" or not n.startswith("_")}


def test_the_stub_matches_the_module() -> None:
    tree = ast.parse(STUB.read_text())
    assert members(tree) == public(_core)
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        bound = getattr(_core, node.name)
        assert members(node) == public(bound), node.name
        for method in node.body:
            if not isinstance(method, ast.FunctionDef) or method.decorator_list:
                continue
            document = getattr(bound, method.name).__doc__ or ""
            for argument in method.args.args[1:]:
                if not method.name.startswith("__"):
                    assert f"{argument.arg}:" in document, f"{node.name}.{method.name}"


def test_typed() -> None:
    assert (Path(wkv.__file__).parent / "py.typed").exists()
    pytest.importorskip("mypy")
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", str(HERE / "usage.py")],
        capture_output=True,
        text=True,
        cwd=HERE,
    )
    assert result.returncode == 0, result.stdout


def test_usage_runs(golden: Path, tmp_path: Path, run_python: RunPython) -> None:
    code = (HERE / "usage.py").read_text()
    path = shutil.copy(golden / "v7" / "model.pth", tmp_path)
    result = run_python(code, str(path))
    assert result.returncode == 0, result.stderr


def test_paths() -> None:
    config = Path(paths.cmake_dir())
    assert (config / "wkv-config.cmake").is_file()
    assert (Path(paths.include_dir()) / "wkv" / "wkv.hpp").is_file()
    bench = paths.bench_path()
    assert bench is not None
    assert Path(bench).stat().st_mode & 0o111


def test_nothing_needs_torch(run_python: RunPython) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import wkv; "
        "m = wkv.Model.synthetic('v7:1x64:64', device='cpu'); "
        "print(m.forward([1], m.new_state()).shape)"
    )
    result = run_python(code)
    assert result.stdout == "(64,)\n", result.stderr
