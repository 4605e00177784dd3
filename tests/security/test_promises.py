"""docs/security.md promises nothing without a test."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_each_promise_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in page.partition("## Promises")[2].partition("\nA test of")[0].splitlines() if "`" in line]
    assert len(rows) >= 15
    for row in rows:
        named = re.findall(r"`([^`]*\.py)?(?:::(test_\w+))?`", row.rsplit("|", 2)[1])
        file = None
        assert any(path or test for path, test in named), row
        for path, test in named:
            file = path.replace("…", "tests/security") if path else file
            if file is None:
                continue
            source = (ROOT / file).read_text(encoding="utf-8")
            assert not test or re.search(rf"\b{test}\b", source), f"{file} has no {test}"
