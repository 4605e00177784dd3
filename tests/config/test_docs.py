"""docs/config.md says what the schema says."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorasweep.config import docs
from lorasweep.config.explain import keys
from lorasweep.config.home import Home

HOME = Home.find()
PAGE = HOME.shipped / "docs" / "config.md"


@pytest.mark.skipif(not PAGE.exists(), reason="docs/ is no part of a wheel")
def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == docs.render(HOME), "run `python -m lorasweep.config.docs`"


def test_every_setting_and_option_is_on_the_page() -> None:
    page = docs.render(HOME)
    for key in keys():
        assert page.count(f"| `{key}` |") == 1
    for file in (HOME.shipped / "conf").glob("*/*.yaml"):
        assert f"`{file.parent.name}={file.stem}`" in page


def test_options_carry_the_comment_of_their_file() -> None:
    page = docs.render(HOME)
    assert "Any checkpoint of yours" in page
    assert "QLoRA: the frozen base in 4-bit NormalFloat" in page


def test_a_row_shows_bounds_choices_and_default() -> None:
    page = docs.render(HOME)
    (row,) = [line for line in page.splitlines() if line.startswith("| `adapter.dropout` |")]
    assert "number, ≥ 0, < 1" in row
    assert "`0.0`" in row
    assert "`maximize` or `minimize`" in page


def test_users_options_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "secret.yaml").write_text("path: x\n")
    assert docs.render(Home(tmp_path, HOME.shipped)) == docs.render(HOME)


def test_main_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "config.md"
    assert docs.main([str(path)]) == 0
    assert path.read_text(encoding="utf-8") == docs.render(HOME)
    assert capsys.readouterr().out.strip() == str(path)
