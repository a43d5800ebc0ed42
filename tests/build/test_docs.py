"""Paths and tests that the documentation names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = [
    (page.name, name)
    for page in sorted((ROOT / "docs").glob("*.md"))
    for name in sorted(set(re.findall(r"`((?:cpp|cuda|python|tests)/[\w./:]+)`", page.read_text())))
]


@pytest.mark.parametrize(("page", "name"), NAMED, ids=lambda x: x)
def test_named_things_exist(page: str, name: str) -> None:
    path, _, test = name.partition("::")
    assert (ROOT / path).exists(), f"docs/{page} names {path}"
    if test:
        assert f"def {test}(" in (ROOT / path).read_text(), f"docs/{page} names {name}"
