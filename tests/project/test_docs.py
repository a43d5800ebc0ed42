"""Paths, links and tests that the documentation names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "third_party/README.md"])
FOLDERS = r"\.ci|bench|cmake|cpp|cuda|docs|examples|python|tests|third_party|tools"
NAMED = [
    (page.relative_to(ROOT).as_posix(), name)
    for page in PAGES
    for name in sorted(set(re.findall(rf"`((?:{FOLDERS})/[\w./:*]*)`", page.read_text())))
    if "/vN." not in name  # CONTRIBUTING.md, of a version to come
]
LINKS = [
    (page.relative_to(ROOT).as_posix(), link)
    for page in PAGES
    for link in sorted(set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())))
]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


@pytest.mark.parametrize(("page", "name"), NAMED, ids=lambda x: x)
def test_named_things_exist(page: str, name: str) -> None:
    path, _, test = name.partition("::")
    assert list(ROOT.glob(path.removesuffix("/"))), f"{page} names {path}"
    if test:
        assert f"def {test}(" in (ROOT / path).read_text(), f"{page} names {name}"


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda x: x)
def test_links_lead_somewhere(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"


def test_the_house_has_every_file_that_its_page_names() -> None:
    """Short names as well: `runtime/devices.cpp`, `ops/ops.h`, `rows*.inl`."""
    names = set(re.findall(r"`([\w./*-]+\.(?:cpp|hpp|h|inl|py|md|\*))`", ARCHITECTURE))
    system = {"immintrin.h", "stdint.h", "stddef.h"}
    assert len(names) > 20
    for name in sorted(names - system):
        assert list(ROOT.glob(name)) or list(ROOT.glob(f"[!b.]*/**/{name}")), name


def test_the_tree_is_the_tree() -> None:
    """The block below "## The tree" lists folders that exist, and all of the root's."""
    block = re.search(r"## The tree\n\n```\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert block is not None
    listed = re.findall(r"\S+/(?=\s)", "\n".join(line[:21] for line in block[1].splitlines()))
    assert not [folder for folder in listed if not (ROOT / folder).is_dir()]
    roots = {folder.split("/")[0] for folder in listed}
    assert roots == set(FOLDERS.split("|")) - {r"\.ci"}
