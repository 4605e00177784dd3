"""The page as a browser would read it: whole, escaped, without a network; and the PNG files beside it."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lorasweep import reporting
from lorasweep.config.home import Folders
from lorasweep.errors import StorageError
from lorasweep.reporting.material import Material
from lorasweep.search.study import SweepStudy
from made_sweep import build

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Read(HTMLParser):
    """Elements by name with their attributes, and the text of scripts by id."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._script = str(dict(attrs).get("id")) if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def ids(self, tag: str) -> list[str]:
        return [str(attributes["id"]) for name, attributes in self.elements if name == tag and "id" in attributes]

    @property
    def figures(self) -> dict[str, dict]:
        return dict(json.loads(self.scripts["figures"]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepStudy, Folders]:
    folders = Folders(tmp_path_factory.mktemp("made"))
    return build(folders, 60), folders


@pytest.fixture(scope="module")
def page(made: tuple[SweepStudy, Folders]) -> Read:
    return Read(reporting.render(*made))


@pytest.mark.slow
def test_every_picture_has_its_place_and_every_place_its_picture(page: Read) -> None:
    curves = [f"curve-{name}-{whose}" for name in ("train-loss", "eval-loss", "eval-accuracy", "eval-roc_auc")
              for whose in ("all", "finalists")]  # fmt: skip
    wanted = {"objective", "rungs", "importances", "parallel", *curves, *(f"slice-0{place}" for place in range(4))}
    assert set(page.figures) >= wanted
    assert page.ids("figure") == list(page.figures)
    assert page.ids("section") == ["summary", "leaderboard", "curves", "space", "models", "cost"]
    for figure in page.figures.values():
        assert figure["data"] and all(trace["type"] for trace in figure["data"])


def test_several_objectives_are_all_shown(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    page = Read(reporting.render(build(folders, 40, several=True), folders))
    assert set(page.figures) >= {"objective", "objective-1", "importances", "importances-1", "trade-off-1"}
    labels = [dimension["label"] for dimension in page.figures["parallel"]["data"][0]["dimensions"]]
    assert labels[-2:] == ["eval/accuracy", "trainable_params"]
    names = [trace["name"] for trace in page.figures["trade-off-1"]["data"]]
    assert names == ["beaten", "on the Pareto front"]


def test_the_page_needs_no_network(page: Read) -> None:
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "data", "action"} & attributes.keys(), tag
        assert str(attributes.get("href", "#")).startswith("#"), attributes
    policy = next(str(a["content"]) for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "http" not in policy


def test_text_of_users_is_text(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    study = build(folders, 12, curves=False)
    with closing(sqlite3.connect(folders.study_db)) as database, database:  # in a value, a swept key, a reason
        found = database.execute(
            "select trial_id, value_json from trial_user_attributes where key = 'record'"
        ).fetchall()
        for trial_id, text in found:
            record = json.loads(json.loads(text))
            record["params"] |= {"data.label_column": EVIL, f"model.{EVIL}": 1.5 + trial_id}
            record["reason"] = EVIL
            where = "where key = 'record' and trial_id = ?"
            changed = json.dumps(json.dumps(record))
            database.execute(f"update trial_user_attributes set value_json = ? {where}", (changed, trial_id))
    material = Material.read(study, folders)
    sections = reporting.compile_sections(material)
    text = reporting._page(study, sections)
    assert "<script>alert" not in text and "<img" not in text
    page = Read(text)
    assert [a.get("id") for tag, a in page.elements if tag == "script"] == ["figures", "plotly", None]
    drawn = json.dumps(page.figures)
    assert "<" not in re.sub(r"<br>|<extra></extra>", "", drawn), "plotly reads names as markup"
    reporting.write_pictures([picture for section in sections for picture in section.pictures], tmp_path / "drawn")


@pytest.mark.usefixtures("real_pictures")
@pytest.mark.slow
def test_pngs_of_all_pictures(made: tuple[SweepStudy, Folders], page: Read, tmp_path: Path) -> None:
    from PIL import Image

    pictures = [picture for section in reporting.compile_sections(Material.read(*made)) for picture in section.pictures]
    stale = tmp_path / "drawn" / "old.png"
    stale.parent.mkdir()
    stale.write_bytes(b"")
    reporting.write_pictures(pictures, tmp_path / "drawn")
    files = {path.stem: path for path in (tmp_path / "drawn").iterdir()}
    assert set(files) == set(page.figures)
    for path in files.values():
        with Image.open(path) as image:
            assert image.size == (792, 462)
            assert len(image.convert("L").getcolors() or []) > 8, f"{path.name} is empty"


def test_a_place_that_cannot_be_written_is_told(made: tuple[SweepStudy, Folders], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="give --out FILE"):
        reporting.attach(*made, out=tmp_path / "file" / "report.html")


def test_a_sweep_without_a_result_has_a_page(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    text = reporting.render(build(folders, 0), folders)
    assert "<h2>Leaderboard</h2>" in text and "best eval/accuracy" in text


def test_the_models_table_says_before_and_after(made: tuple[SweepStudy, Folders]) -> None:
    from lorasweep.reporting import tables

    text = tables.models(Material.read(*made))
    heads = re.findall(r"<th>(.*?)</th>", text)
    assert heads[:7] == ["model", "trial", "quantization", "adapter", "trainable", "total", "trainable %"]
    assert heads[7:9] == ["eval/accuracy before", "after"]
    first = re.findall(r"<td[^>]*>(.*?)</td>", text)[: len(heads)]
    best = Material.read(*made).board.best
    assert best is not None
    rank = best["params"]["adapter.r"]
    assert first[0] == "tiny_encoder" and first[3].startswith(f"lora r={rank} alpha=16 on all-linear")
    assert first[7:9] == ["0.5000", f"{best['value']:.4f}"]


@pytest.mark.slow
@pytest.mark.parametrize("trials", [4_500, pytest.param(10_000, marks=pytest.mark.torture)])
def test_thousands_of_trials_make_a_page_of_bounded_size(trials: int, tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    study = build(folders, trials, curves=False)
    best = Material.read(study, folders).ranked[0]
    text = reporting.render(study, folders)
    assert len(text) < 4_000_000
    page = Read(text)
    points = page.figures["objective"]["data"]
    assert sum(len(trace["x"]) for trace in points) < 4000
    assert any(f"trial {best}:" in note for trace in points for note in trace.get("text", [])), "the best is drawn"
    assert len(page.figures["parallel"]["data"][0]["line"]["color"]) == 1000
    assert "1,000 of" in text and f"And {trials - 300:,} more" in text
