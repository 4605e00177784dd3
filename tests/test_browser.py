"""What people see in a browser: MLflow's page of a finished sweep at its saved views, its registered model, the report.

MLflow's view format is its own and unversioned: these tests pin it for the pinned version.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chromium import FOUND, MISSING, Chromium
from test_main_job import environment, home_with_sweep, lorasweep

pytestmark = [pytest.mark.slow, pytest.mark.skipif(FOUND is None, reason=MISSING)]
# Seven trials; the second cannot but diverge.
SWEEP = """# @package _global_
defaults:
  - override /model: tiny_encoder
  - override /data: demo_reviews
  - override /sampler: random
data: {demo_rows: 240}
train: {eval_every_steps: 4, log_every_steps: 2, max_steps: 12, batch_size: 8}
sweep:
  trials: 7
  space:
    optimizer.lr: choice(1e-3, 3e-3, 1e-2, 1e30)
    adapter.r: choice(2, 4)
    optimizer.schedule: choice(linear, cosine)
  enqueue:
    - {optimizer.lr: 3e-3, adapter.r: 4, optimizer.schedule: linear}
    - {optimizer.lr: 1e30, adapter.r: 2, optimizer.schedule: linear}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose sweep `mini` is finished, its best promoted as `reviews`."""
    home = home_with_sweep(tmp_path_factory.mktemp("browser"))
    (home / "sweeps" / "mini.yaml").write_text(SWEEP)
    lorasweep(home, "sweep", "mini", "launcher.slots=2", "--json", pictures=True)
    lorasweep(home, "promote", "mini", "--as", "reviews", "--json")
    return home


@pytest.fixture(scope="module")
def rows(home: Path) -> list[dict[str, Any]]:
    return json.loads(lorasweep(home, "leaderboard", "mini", "--json"))["rows"]


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[str]:
    """The address of the leaderboard that `lorasweep ui` serves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "lorasweep.cli", "ui", "mini", "--json", "--port", port],
        cwd=home, env=environment(home), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["url"]
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium") / "profile", 2200, 1300) as browser:
        yield browser


def keep(browser: Chromium, name: str) -> None:
    """A screenshot for people, where LORASWEEP_SCREENSHOTS names a folder."""
    if folder := os.environ.get("LORASWEEP_SCREENSHOTS"):
        browser.shoot(Path(folder) / f"{name}.png")


def columns(browser: Chromium) -> list[str]:
    """Heads of the table of runs from left to right."""
    cells = "[...document.querySelectorAll('.ag-header-cell')].filter((cell) => cell.innerText.trim())"
    found = browser.ask(f"{cells}.map((cell) => [cell.getBoundingClientRect().x, cell.innerText.trim()])")
    return [head for _, head in sorted(found)]


def test_the_leaderboard_opens_sorted_with_its_columns(
    served: str, browser: Chromium, rows: list[dict[str, Any]]
) -> None:
    browser.open(served)
    text = browser.wait_for("optimizer.schedule", "lorasweep.state", "7 matching runs")
    heads = ["eval/accuracy", "optimizer.lr", "adapter.r", "optimizer.schedule", "eval/f1", "eval/loss"]
    assert columns(browser)[2 : 2 + len(heads)] == heads, "columns stand in the order of the view"
    shown = [int(number) for number in re.findall(r"^mini (\d+)$", text, re.MULTILINE)]
    value = {row["trial"]: row["metrics"].get("eval/accuracy") for row in rows}
    assert sorted(shown) == list(range(7))
    known = [value[trial] for trial in shown if value[trial] is not None]
    assert known == sorted(known, reverse=True) and len(known) >= 5
    keep(browser, "leaderboard")


def test_the_menu_has_the_views_and_opens_them(served: str, browser: Chromium, rows: list[dict[str, Any]]) -> None:
    browser.open(served)
    browser.wait_for("7 matching runs")
    browser.click('[data-testid="saved-views-trigger"]')
    text = browser.wait_for("Finalists", "Failures")
    menu = text[text.lower().index("saved views") :]
    places = [menu.index(name) for name in ("Leaderboard", "Curves", "Finalists", "Failures")]
    assert places == sorted(places)
    keep(browser, "menu")
    failures = "[...document.querySelectorAll('[role^=menuitem]')].find((one) => one.innerText.trim() === 'Failures')"
    browser.ask(f"{failures}.click()")
    failed = sum(row["state"] == "failed" for row in rows)
    assert "diverged" in browser.wait_for("lorasweep.reason", f"{failed} matching run")
    assert columns(browser)[2] == "lorasweep.reason"
    assert "viewStateShareKey=failures" in browser.ask("location.hash")
    keep(browser, "failures")


def test_curves_open_as_charts_with_parallel_coordinates(served: str, browser: Chromium) -> None:
    browser.open(served.replace("viewStateShareKey=leaderboard", "viewStateShareKey=curves&compareRunsMode=CHART"))
    browser.wait_for("What the swept values did", "mini 0", "train/loss", "eval/loss", "eval/roc_auc")
    browser.wait("document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length >= 4 * 6")
    keep(browser, "curves")
    for section, chart in (
        ("From the swept values to the result", "Parallel Coordinates"),
        ("What the swept values did", "optimizer.lr vs. eval/accuracy"),
    ):  # charts are made when they come into sight
        heads = f"[...document.querySelectorAll('*')].filter((one) => one.innerText?.trim().startsWith('{section}'))"
        browser.ask(f"{heads}.at(-1).scrollIntoView()")
        browser.wait_for(chart)
        if chart == "Parallel Coordinates":
            browser.wait("document.querySelector('.parcoords svg .dimension') !== null")
    keep(browser, "curves-below")


def test_the_description_leads_to_views_and_report(served: str, browser: Chromium, rows: list[dict[str, Any]]) -> None:
    browser.open(served.replace("leaderboard", "finalists"))
    text = browser.wait_for("Sweep mini: eval/accuracy, maximized.", "lorasweep.finalist")
    assert f"{rows[0]['value']:.4f}" in text
    links = browser.ask("[...document.querySelectorAll('a')].map((a) => [a.innerText, a.getAttribute('href')])")
    there = dict(links)
    assert "viewStateShareKey=curves&compareRunsMode=CHART" in there["Curves"]
    assert there["Report"].endswith("/artifacts/report/report.html?workflowType=machine_learning")
    keep(browser, "finalists")
    browser.open(served.split("#", maxsplit=1)[0] + there["Report"])
    browser.wait_for("report", "pictures")
    frame = browser.wait("document.querySelector('iframe[src], iframe[srcdoc]') !== null")
    assert frame, "MLflow shows the page itself"
    keep(browser, "report-in-mlflow")


def test_the_registered_model_has_its_alias_and_description(served: str, browser: Chromium) -> None:
    browser.open(served.split("#", maxsplit=1)[0] + "#/models/reviews")
    browser.wait_for("reviews", "champion", "Version 1", "lorasweep predict models:/reviews@champion", "in sweep mini")
    keep(browser, "model")


def test_the_report_draws_every_picture(home: Path, browser: Chromium) -> None:
    path = home / "mlruns" / "lorasweep" / "sweeps" / "mini" / "report.html"
    browser.open(path.as_uri())
    browser.wait("window.drawn !== undefined")
    browser.ask("window.drawn")
    figures = browser.ask("[...document.querySelectorAll('figure')].map((f) => f.id)")
    left = browser.ask("[...document.querySelectorAll('.plot:not([data-drawn=yes])')].map((p) => p.parentNode.id)")
    assert left == []
    assert {"objective", "parallel", "confusion", "roc", "curve-eval-accuracy-all", "slice-00"} <= set(figures)
    assert {file.stem for file in path.with_name("report-pictures").iterdir()} == set(figures)
    assert browser.ask("document.querySelectorAll('#objective path.point').length") >= 5
    keep(browser, "report")


def test_a_click_on_a_head_sorts_the_reports_table(home: Path, browser: Chromium) -> None:
    browser.open((home / "mlruns" / "lorasweep" / "sweeps" / "mini" / "report.html").as_uri())
    browser.wait("window.drawn !== undefined")  # the page's script has run
    head = "[...document.querySelectorAll('#leaderboard th')].find((one) => one.innerText === 'trial')"
    trials = "[...document.querySelectorAll('#leaderboard tbody tr')].map((row) => Number(row.children[1].innerText))"
    browser.ask(f"{head}.click()")
    assert browser.ask(trials) == list(range(7))
    browser.ask(f"{head}.click()")
    assert browser.ask(trials) == list(range(6, -1, -1))
