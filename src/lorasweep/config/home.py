"""Which folder is whose: the user's home of conf/ and sweeps/, ours that ships with the package, and where runs leave
their files. Neighbours: `compose` (search path), `search.study`, `tracking` (files)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from lorasweep.config.schema import TrackingConfig
from lorasweep.errors import ConfigError, UsageError, nearest

VARIABLE = "LORASWEEP_HOME"
_project: ContextVar[Path | None] = ContextVar("the folder of `project`", default=None)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def check_name(name: str, what: str = "sweep name") -> str:
    """`name`, if it can be a file, an experiment and a model: letters, digits, `_`, `.`, `-`, at most 100.

    Raises:
        ConfigError: anything else, so that no name can leave its folder.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"a {what} must start with a letter or digit and hold only letters, digits, `_`, `-` and single dots "
            f"(at most 100), got {name!r}; rename it"
        )
    return name


@contextmanager
def project(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Within this block `folder` stands in the place of LORASWEEP_HOME, in this thread; None changes nothing.

    Raises:
        UsageError: it is no folder.
    """
    if folder is None:
        yield
        return
    root = expanded(Path(folder)).resolve()
    if not exists(root, Path.is_dir):
        raise UsageError(f"folder={str(folder)!r} is no folder; name the one that holds conf/, sweeps/ and mlruns/")
    before = _project.set(root)
    try:
        yield
    finally:
        _project.reset(before)


def named_home() -> str | None:
    """The home that was named: by `project`, else by LORASWEEP_HOME; None: the current folder is it."""
    inside = _project.get()
    return str(inside) if inside is not None else os.environ.get(VARIABLE) or None


def given_path(path: str) -> Path:
    """A path as a user gave it in a sweep file or an override: a relative one counts from LORASWEEP_HOME, so that a
    sweep means the same files from wherever it is started; where there is nothing, from the current folder."""
    asked = expanded(Path(path))
    at_home = expanded(Path(named_home() or ".")) / asked  # `asked` itself where it is absolute
    return at_home if exists(at_home) else asked


def expanded(path: Path) -> Path:
    """The path with `~` as the user's folder; as it is where there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def exists(path: Path, kind: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether something is there, of a kind (`Path.is_file`, `Path.is_dir`); no where no file can have this name (too
    long) or what leads there is closed to us."""
    try:
        return kind(path)
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Home:
    """`root`: LORASWEEP_HOME or the current folder; `shipped`: the folder of our own conf/ and sweeps/."""

    root: Path
    shipped: Path

    @staticmethod
    def find() -> Home:
        """The home of this process.

        Raises:
            UsageError: LORASWEEP_HOME names no folder.
        """
        package = Path(__file__).resolve().parent.parent
        shipped = package / "shipped"
        if not shipped.is_dir():
            shipped = package.parent.parent
        named = named_home()
        root = expanded(Path(named or ".")).resolve()
        if not exists(root, Path.is_dir):
            raise UsageError(
                f"LORASWEEP_HOME={named} is no folder; name the one that holds conf/, sweeps/ and mlruns/, or unset it"
            )
        if not (shipped / "conf").is_dir():  # our code alone was sent to this machine, and all of conf/ to its home
            shipped = root
        return Home(root, shipped)

    def tracking_dir(self, tracking: TrackingConfig) -> Path:
        """The folder of mlflow.db and mlruns/; a relative `tracking.dir` counts from the current folder."""
        return expanded(Path(tracking.dir)).resolve() if tracking.dir else self.root

    def folders(self, tracking: TrackingConfig) -> Folders:
        """Where runs are recorded."""
        return Folders(self.tracking_dir(tracking), tracking.uri, tracking.studies, tracking.files)

    def sweep_names(self) -> list[str]:
        """Names of all sweep files, the user's and ours."""
        folders = {self.root / "sweeps", self.shipped / "sweeps"}
        return sorted({path.stem for folder in folders for path in folder.glob("*.yaml") if path.is_file()})

    def find_sweep(self, name: str) -> Path:
        """The file of a sweep; the user's wins over ours.

        Raises:
            ConfigError: a name that would leave the folder.
            UsageError: no such file; names the nearest.
        """
        check_name(name)
        for folder in (self.root, self.shipped):
            path = folder / "sweeps" / f"{name}.yaml"
            if path.is_file():
                return path
        raise UsageError(f"there is no sweep {name!r} in {self.root / 'sweeps'}; {nearest(name, self.sweep_names())}")


@dataclass(frozen=True)
class Folders:
    """Where runs leave their files, all below one tracking folder; a bare `mlflow ui` in it shows everything.

    `server`: the address of the MLflow server that keeps runs, artifacts and models instead; `studies`: that of the
    PostgreSQL database that keeps the studies; `files`: the folder or s3:// address of checkpoints and per-row results.
    None: they lie here."""

    tracking: Path
    server: str | None = None
    studies: str | None = None
    files: str | None = None

    @property
    def shared(self) -> bool:
        """Whether workers on several hosts can share a sweep: its study is in no file."""
        return self.studies is not None

    @property
    def mlflow_db(self) -> Path:
        """MLflow's database, where MLflow itself puts it."""
        return self.tracking / "mlflow.db"

    @property
    def mlruns(self) -> Path:
        """MLflow's artifacts."""
        return self.tracking / "mlruns"

    @property
    def own(self) -> Path:
        """What is ours: studies, spools, cache."""
        return self.mlruns / "lorasweep"

    @property
    def study_db(self) -> Path:
        """The Optuna studies of all sweeps."""
        return self.own / "study.db"

    @property
    def cache(self) -> Path:
        """Tokenised rows by fingerprint; safe to delete."""
        return self.own / "cache"

    def sweep(self, name: str) -> Path:
        """What belongs to one sweep."""
        return self.own / "sweeps" / check_name(name)

    def finalists(self, name: str) -> Path:
        """What belongs to the repeats of a sweep's best trials: their spool, results."""
        return self.sweep(name) / "finalists"

    def spool(self, name: str) -> Path:
        """Metrics of a sweep's trials on their way to MLflow."""
        return self.sweep(name) / "spool"

    def finalists_spool(self, name: str) -> Path:
        """Metrics of finalists on their way to MLflow."""
        return self.finalists(name) / "spool"


def sync_folder(folder: Path) -> None:
    """Make a new file's name durable; not every system lets a folder be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
