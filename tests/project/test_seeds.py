"""The table of features is complete: each has a place and a test."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_of_the_seeds_names_a_test() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "seeds.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith(("| feature", "| ---"))
    ]
    assert len(rows) > 40
    for row in rows:
        feature, place, test = row.strip("| ").split(" | ")
        assert feature
        assert "`" in place, row
        assert re.search(r"`tests/[\w./]+::test_\w+`", test), row
