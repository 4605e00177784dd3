"""The report of a sweep: one self-contained HTML page and the same pictures as PNG files.

Reads the study and the local spool alone, so it works while a sweep runs and opens without a network; how each picture
is read stands in docs/report.md. Rooms: `material` (what is read), `objective`, `curves`, `space`, `quality` (drawn),
`tables`, `cost` (told), `page` and `plotly_page` (HTML), `png` (files). Neighbours: `ranking`, `tracking.files`
(keeps a copy on the sweep's own run), `cli` and `sweeping` (call).
"""

from __future__ import annotations

import html
from pathlib import Path

from lorasweep.config import compose
from lorasweep.config.home import Folders, Home
from lorasweep.errors import StorageError
from lorasweep.live import format_seconds
from lorasweep.reporting import cost, curves, objective, page, png, quality, space, tables
from lorasweep.reporting.material import Material
from lorasweep.reporting.page import Section
from lorasweep.reporting.pictures import Picture
from lorasweep.search.study import SweepStudy


def write(name: str, overrides: list[str], out: Path | None = None) -> Path:
    """Write the report of a sweep and keep a copy on the sweep's own MLflow run.

    Raises:
        UsageError: no sweep of this name was ever started.
    """
    home = Home.find()
    study = SweepStudy.load(compose.tracking_place(compose.place_alone(overrides, "report"), home), name)
    return attach(study, study.folders, out)


def attach(study: SweepStudy, folders: Folders, out: Path | None = None) -> Path:
    """Write the page of a study to `out` (default: report.html beside the sweep's files), its pictures into a folder
    beside it (report-pictures), and both to the sweep's own MLflow run; returns the page's path.

    Raises:
        StorageError: the file cannot be written, or MLflow has no run of this sweep.
    """
    from lorasweep.tracking import files as tracking_files

    path = (out or folders.sweep(study.name) / "report.html").resolve()
    path = path / "report.html" if path.is_dir() else path
    pictures = path.with_name(f"{path.stem}-pictures")
    sections = compile_sections(Material.read(study, folders))
    try:
        tracking_files.write_text(path, _page(study, sections))
        write_pictures([picture for section in sections for picture in section.pictures], pictures)
    except OSError as error:
        raise StorageError(f"the report cannot be written to {path}: {error.strerror}; give --out FILE") from error
    tracking_files.attach_to_sweep(folders, study.name, {"report/report.html": path, "report/pictures": pictures})
    return path


def render(study: SweepStudy, folders: Folders) -> str:
    """The page as text."""
    return _page(study, compile_sections(Material.read(study, folders)))


def _page(study: SweepStudy, sections: list[Section]) -> str:
    goals = "; ".join(f"{one.metric}, {one.direction}d" for one in study.goals.objectives)
    kept = f"; ranked where {' and '.join(map(str, study.goals.constraints))}" if study.goals.constraints else ""
    return page.render(f"Sweep {study.name}", goals + kept, sections)


def compile_sections(material: Material) -> list[Section]:
    """Everything that the page shows, in its order."""
    return [
        Section("summary", "Summary", facts(material), objective.pictures(material)),
        Section("leaderboard", "Leaderboard", tables.leaderboard(material)),
        Section("curves", "Curves", "", curves.pictures(material)),
        Section("space", "What the swept values did", "", space.pictures(material)),
        Section("quality", "What the best gets right", "", quality.pictures(material)),
        Section("models", "Models side by side", tables.models(material)),
        Section("cost", "Cost and savings", costs(material)),
    ]


def write_pictures(pictures: list[Picture], folder: Path) -> None:
    """Draw the pictures as KEY.png into a folder, whose earlier pictures go."""
    if folder.is_dir():
        for old in folder.glob("*.png"):
            old.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        png.write(picture, folder / f"{picture.key}.png")


def facts(material: Material) -> str:
    """The headline numbers."""
    study, board = material.study, material.board
    counts = study.counts()
    told = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    shown = [
        (f"{board.best['value']:.4f}" if board.best else "none", f"best {board.metric}{_about_the_best(material)}"),
        (f"{sum(counts.values()):,}", f"trials: {told}"),
        (f"{sum(row['samples'] for row in board.rows):,}", "training samples"),
        (format_seconds(study.seconds()), "of sweep"),
    ]
    cells = "".join(f"<div>{html.escape(value)}<span>{html.escape(label)}</span></div>" for value, label in shown)
    return f'<div class="facts">{cells}</div>'


def _about_the_best(material: Material) -> str:
    """Which trial it is, how sure that is, and how many others may be as good."""
    best = material.board.best
    if best is None:
        return ""
    interval = best.get("interval")
    sure = f", {interval[0]:.4f} to {interval[1]:.4f} with 95% confidence" if interval else ""
    tied = sum(bool(row.get("tied")) for row in material.board.rows if row is not best)
    others = f"; {tied:,} other{'s are' if tied > 1 else ' is'} statistically tied with it" if tied else ""
    return f", trial {best['trial']}{sure}{others}"


def costs(material: Material) -> str:
    """Cost and savings as a list."""
    lines = [
        f"<dt>{html.escape(f'{saving.figure} {saving.what}')}</dt><dd>{html.escape(saving.rests_on)}</dd>"
        for saving in cost.savings(material)
    ]
    return f"<dl>{''.join(lines)}</dl>"
