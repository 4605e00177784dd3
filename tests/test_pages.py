"""README and docs/ name what is there: links, files, settings; every room of the code stands in the architecture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lorasweep.config.explain import keys

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("docs/*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
PAGES = [*PAGES, ROOT / "deploy" / "README.md"]
MADE_UP = ("NAME", "ROOM", "sweeps/mine.yaml", "deploy/.env")  # a reader's own


def code_of(page: Path) -> list[str]:
    """What stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        place = page.parent / path if path else page
        assert place.exists(), f"{page.name} links to {target}"
        heads = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
        assert not anchor or anchor in anchors, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    for code in code_of(page):
        for path in re.findall(r"(?<![\w./-])(?:src|tests|docs|conf|sweeps|deploy|benchmarks)/[\w./-]+", code):
            if not any(word in code for word in (*MADE_UP, "*")):
                assert (ROOT / path.rstrip(".")).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_are_named_exist(page: Path) -> None:
    known = set(keys())
    sections = {key.partition(".")[0] for key in known}
    names = {key.rpartition(".")[2] for key in known}
    for code in code_of(page):
        if re.fullmatch(r"\w+_column", code):
            assert code in names, f"{page.name} names the setting {code}"
        for key in re.findall(r"(?<![\w./:-])[a-z_]+(?:\.[a-z_0-9]+)+(?==|$|,| )", code):
            is_file = re.fullmatch(r"\w+\.(tsv|csv|json|jsonl|yaml|html)", key)
            is_section = any(one.startswith(f"{key}.") for one in known)
            if key.partition(".")[0] in sections and not is_file and not is_section:
                assert key in known, f"{page.name} names the setting {key}"


def test_every_room_stands_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in (ROOT / "src" / "lorasweep").iterdir():
        if (room.suffix == ".py" or (room / "__init__.py").exists()) and not room.name.startswith("__"):
            assert f"`{room.name}`" in page or f"`{room.name}/`" in page, f"docs/architecture.md leaves out {room.name}"


def test_each_make_target_has_a_recipe() -> None:
    """A target that is only in .PHONY ends well and does nothing."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(phony.split()) == set(re.findall(r"^([a-z][a-z-]*):.*## ", text, re.MULTILINE))
