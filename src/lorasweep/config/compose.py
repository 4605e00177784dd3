"""Overrides to a typed, checked config. With `words` and `search.space` the only code that knows Hydra.

A user's conf/ and sweeps/ come before ours on the search path. Hydra keeps its state in the process: each
composition here puts back what it found, and changes neither the current folder nor logging. Neighbours: `schema`,
`checks`, `home`, `words` (one override), `explain` (refusals in the user's words).
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorasweep.config import address, explain
from lorasweep.config.checks import check_config
from lorasweep.config.home import Folders, Home
from lorasweep.config.scale import apply_scale
from lorasweep.config.schema import GROUPS, TRIAL_GROUPS, Config, ObjectiveConfig, SweepConfig
from lorasweep.config.words import literal, override_string, parse_overrides
from lorasweep.errors import ConfigError, UsageError

PACKAGE_LINE = "# @package _global_"  # without it, a sweep file's keys would land below `sweeps`
AUTO, METRICS = "auto", {"qa": "eval/f1"}  # the objective where none is named, by task; else the schema's default
COMPOSED_KEPT = 32  # configs of one sweep kept in memory: one for each combination of swept groups
_search_folders: list[Path] = []  # read by our search path plugin while one composition runs
_composed: dict[Any, Config] = {}


def compose(overrides: Iterable[str] = (), sweep: str | None = None, home: Home | None = None) -> Config:
    """The config of these overrides on top of sweeps/`sweep`.yaml on top of the defaults.

    Raises:
        ConfigError: an unknown key or option, a wrong type, a broken rule.
        UsageError: no such sweep.
    """
    home, overrides = home or Home.find(), list(overrides)
    config = apply_scale(_compose(home, sweep, overrides))
    check_config(config, f"(check the overrides and sweeps/{sweep}.yaml)" if sweep else "")
    return config


def compose_trial(overrides: Iterable[str], sweep: str | None, params: dict[str, Any], home: Home) -> Config:
    """The config of one trial: `params` (override key -> value) win over everything else.

    Only groups need a composition, and one for each combination of them; values are set on a copy of its result.

    Raises:
        ConfigError: as `compose`, naming the point and the sweep file to mend.
    """
    point = ", ".join(override_string(key, value) for key, value in params.items())
    where = f"at {point or 'the defaults'}" + (f"; check `space` in sweeps/{sweep}.yaml" if sweep else "")
    groups = [override_string(key, value) for key, value in params.items() if key in GROUPS]
    try:
        config = _cached(home, sweep, (*overrides, *groups))
        config = _set_values(config, {key: value for key, value in params.items() if key not in GROUPS})
        apply_scale(config)
    except ConfigError as error:
        raise ConfigError(f"{error} {where}") from None
    check_config(config, where)
    return config


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """A copy of a config with these values by dotted key; groups need a composition instead.

    Raises:
        ConfigError: an unknown key, a wrong type, a broken rule.
    """
    changed = _set_values(copy.deepcopy(config), values)
    check_config(changed)
    return changed


def tracking_place(overrides: Iterable[str], home: Home) -> Folders:
    """Where runs are recorded, for commands that need nothing else of a config; the server only where it is named.

    Raises:
        ConfigError: a word that is no override, one of an unknown key, an address that is none.
    """
    parse_overrides(overrides := address.without_logins(overrides))
    return home.folders(compose([word for word in overrides if is_tracking(word)], home=home).tracking)


def place_alone(overrides: Iterable[str], command: str) -> list[str]:
    """The overrides of a command that shows or stops what is stored: `tracking.*`, and scale=smoke, which says that the
    smoke test is meant.

    Raises:
        UsageError: another one, which would change nothing.
    """
    found = list(overrides)
    for word in found:
        if not is_tracking(word) and word != "scale=smoke":
            key = next(iter(parse_overrides([word])))
            raise UsageError(
                f"`{word}` would change nothing: {command} is about what is stored, and takes tracking.* alone. "
                f"`lorasweep resume NAME` and `lorasweep sweep NAME` take {key}"
            )
    return found


def is_tracking(override: str) -> bool:
    """Whether an override says where runs are recorded."""
    return override.lstrip("+~").partition("=")[0].partition(".")[0] == "tracking"


def to_yaml(config: Config) -> str:
    """The resolved config as YAML."""
    import yaml
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(OmegaConf.create(literal(asdict(config))), resolve=True)
    if "\x85" not in text:
        return text
    return yaml.safe_dump(asdict(config), sort_keys=False)  # escaped: as it is, YAML reads this character as a new line


def trial_fingerprint(config: Config) -> str:
    """sha256 (hex) over the groups that decide a trial's numbers, its seed included."""
    parts = {group: asdict(getattr(config, group)) for group in TRIAL_GROUPS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def from_json(document: dict[str, Any]) -> Config:
    """The inverse of `asdict` for a config that was stored; settings that did not exist then have their defaults.

    Raises:
        ConfigError: it holds a setting that this version does not know, or of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(literal(document)))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"the stored config does not fit this version of lorasweep: {explain.first_line(error)}; use the version "
            "that started the sweep"
        ) from None


# -- Hydra ----------------------------------------------------------------------------------------------------------


def _compose(home: Home, sweep: str | None, overrides: list[str]) -> Config:
    with composing(home, sweep, overrides) as work:
        composed = work.compose()
    return _typed(composed, home, sweep, work.given, work.file)


@dataclass(frozen=True)
class Composing:
    """One composition while Hydra stands ready for it. `words`: what Hydra is given; `given`: the overrides as values;
    `file`: the sweep's."""

    words: list[str]
    given: dict[str, Any]
    file: Path | None

    def compose(self) -> Any:
        """The DictConfig, nothing resolved."""
        from hydra import compose as hydra_compose

        return hydra_compose("config", overrides=self.words)


@contextmanager
def composing(home: Home, sweep: str | None, overrides: list[str]) -> Iterator[Composing]:
    """Hydra with our search path; what it refuses inside becomes a ConfigError in the user's words."""
    import yaml
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    file = home.find_sweep(sweep) if sweep is not None else None
    given = parse_overrides(overrides)
    for key in (key for key in given if key in GROUPS):
        if not isinstance(given[key], str):
            raise ConfigError(f"`{key}={given[key]}`: {key} can be {', '.join(explain.options(key, home))}")
        if given[key] not in explain.options(key, home):  # also a path out of the group, ../data/x
            raise ConfigError(explain.unknown_option(key, given[key], home))
    if file is not None and (asked := explain.hydras_own(file)) is not None:
        raise ConfigError(f"{asked} (in {file})")
    words = ([override_string("sweeps", sweep)] if file else []) + overrides  # a name such as 2024 is no number
    with _hydra_at_rest(home):
        try:
            with initialize_config_dir(str(home.shipped / "conf"), version_base="1.3", job_name="lorasweep"):
                yield Composing(words, given, file)
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(error, home, given, file) from None
        except yaml.YAMLError as error:  # its message names the file, line and column
            raise ConfigError(f"a YAML file cannot be read: {' '.join(str(error).split())}") from None
        except Exception as error:  # Hydra's own (AssertionError, TypeError, …), on a file that is no mapping
            problem = explain.layout_problem(file) if file else explain.first_line(error)
            raise ConfigError(f"{problem or explain.first_line(error)} (in {file or home.root / 'conf'})") from None


def _cached(home: Home, sweep: str | None, overrides: tuple[str, ...]) -> Config:
    """A composed config of one's own; composed once for the same words as long as the sweep file stays the same."""
    file = home.find_sweep(sweep) if sweep is not None else None
    key = (home, sweep, overrides, file.stat().st_mtime_ns if file else 0)
    if key not in _composed:
        config = _compose(home, sweep, list(overrides))
        while len(_composed) >= COMPOSED_KEPT:
            del _composed[next(iter(_composed))]
        _composed[key] = config
    return copy.deepcopy(_composed[key])


@contextmanager
def _hydra_at_rest(home: Home) -> Iterator[None]:
    """Our search path, and no Hydra of the caller's in the way; what there was is put back."""
    from hydra.core.global_hydra import GlobalHydra

    _register()
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    _search_folders[:] = [home.root, home.shipped]
    try:
        yield
    finally:
        _search_folders.clear()
        GlobalHydra.instance().hydra = running


def _register() -> None:
    """Our schema, search path and source of sweep files, as Hydra's own plugin classes; once per process."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    if "lorasweep_schema.yaml" in ConfigStore.instance().repo:
        return
    ConfigStore.instance().store(name="lorasweep_schema", node=Config)

    class SweepFiles(FileConfigSource):
        """sweeps/ of a folder and nothing else of it, so that a folder `model` beside it is no config group."""

        @staticmethod
        def scheme() -> str:
            return "lorasweep"

        def is_group(self, config_path: str) -> bool:
            return config_path.partition("/")[0] in ("", "sweeps") and super().is_group(config_path)

        def is_config(self, config_path: str) -> bool:
            return config_path.startswith("sweeps/") and super().is_config(config_path)

        def list(self, config_path: str, results_filter: Any) -> Any:
            return super().list(config_path, results_filter) if config_path.startswith("sweeps") else []

    class UserFoldersFirst(SearchPathPlugin):
        """Does nothing while another program of the process composes."""

        def manipulate_search_path(self, search_path: Any) -> None:
            if _search_folders:
                search_path.prepend("lorasweep", f"file://{_search_folders[0] / 'conf'}")
                for folder in _search_folders:
                    search_path.append("lorasweep", f"lorasweep://{folder}")

    Plugins.instance().register(SweepFiles)
    Plugins.instance().register(UserFoldersFirst)


def _typed(composed: Any, home: Home, sweep: str | None, given: dict[str, Any], file: Path | None) -> Config:
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    unset = explain.unset_variables(OmegaConf.to_container(composed, resolve=False))
    if unset is not None:
        raise ConfigError(unset)
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        key = str(getattr(error, "full_key", "") or "")
        raise ConfigError(_missing(key)) from None
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "")
        said = f"`{key}`: {explain.first_line(error)}" if key else explain.first_line(error)
        raise ConfigError(said if key in given or not file else f"{said} (in {file})") from None
    if not isinstance(config, Config):
        raise ConfigError(
            f"{home.root / 'conf' / 'config.yaml'} is not lorasweep's: its defaults list must begin with "
            f"`lorasweep_schema`, as in {home.shipped / 'conf' / 'config.yaml'}. Is it another project's? Then set "
            "LORASWEEP_HOME to a folder of your own"
        )
    config.sweep.name = config.sweep.name or sweep or ""
    if config.tracking.uri is not None:
        config.tracking.uri = address.keep_login_apart(config.tracking.uri)
    if config.tracking.studies is not None:
        config.tracking.studies = address.keep_password_apart(config.tracking.studies)
    if config.tracking.files is not None:
        config.tracking.files = address.settled_files(config.tracking.files)
    _first_objective(config.sweep)
    if config.sweep.objective.metric == AUTO:
        config.sweep.objective.metric = METRICS.get(config.task.kind, ObjectiveConfig().metric)
    return config


def _first_objective(sweep: SweepConfig) -> None:
    """With `objectives`, `objective` is the first of them: what one trial keeps its best checkpoint by."""
    if not sweep.objectives:
        return
    if sweep.objective not in (ObjectiveConfig(), ObjectiveConfig(AUTO), sweep.objectives[0]):
        raise ConfigError(
            f"`sweep.objective` ({sweep.objective.metric}) and `sweep.objectives` are both given; name it first in "
            "`objectives` and leave `objective` out"
        )
    sweep.objective = copy.deepcopy(sweep.objectives[0])


def _set_values(config: Config, params: dict[str, Any]) -> Config:
    """Set values by dotted key with OmegaConf's own type rules; groups need a composition instead."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = explain.keys()
    for key in params:
        if key not in known:
            raise ConfigError(explain.refused_value(key, ""))
    for group in dict.fromkeys(key.partition(".")[0] for key in params):
        section = getattr(config, group)
        node = OmegaConf.structured(type(section)(**literal(vars(section))))  # its text is text, not an interpolation
        for key, value in ((key, value) for key, value in params.items() if key.startswith(f"{group}.")):
            try:
                OmegaConf.update(node, key.partition(".")[2], literal(value))
            except OmegaConfBaseException as error:
                raise ConfigError(explain.refused_value(key, explain.first_line(error))) from None
        setattr(config, group, OmegaConf.to_object(node))
    return config


# -- explaining -------------------------------------------------------------------------------------------------------


def _explain(error: Exception, home: Home, given: dict[str, Any], file: Path | None) -> ConfigError:
    """What Hydra or OmegaConf refused, and in which file it stands where it is no override of `given`."""
    from hydra.errors import MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    cause: BaseException = error.__cause__ or error
    if isinstance(error.__context__, OmegaConfBaseException):
        cause = error.__context__  # while a file was merged: Hydra names the file, OmegaConf the key
    text = str(error)
    inside = re.match(r"In '([^']+)'", text)  # the config that was being read: `sweeps/mine`, `optimizer/ours`
    place = _config_file(inside.group(1), home) if inside else file
    where = f" (in {place})" if place else ""
    if isinstance(error, MissingConfigException):  # named by a defaults list: the sweep file's, or conf/config.yaml's
        return ConfigError(f"{_missing_config(text, home)} (in {file or place})")
    wrong = re.search(r"Could not override '([^'@]+).*No match in the defaults list", text, re.DOTALL)
    if wrong and wrong.group(1).strip("/") not in given:  # `override /modle: x`
        group = wrong.group(1).strip("/")
        return ConfigError(f"there is no group `{group}`; {explain.nearest_key(group)}{where}")
    twice = re.match(r"Multiple values for (\w+)\. To override a value use 'override \w+: ([^']+)'", text)
    if twice:
        return ConfigError(
            f"`{twice.group(1)}` has a default already: write `override /{twice.group(1)}: {twice.group(2)}`{where}"
        )
    key = re.search(r"(?:Could not override '|Error merging override )([\w.@/-]+)", text)
    name = str(key.group(1) if key else getattr(cause, "full_key", None) or "")
    if place and place == file and name in ("", "sweeps"):
        return ConfigError((explain.layout_problem(place) or f"it must begin with the line `{PACKAGE_LINE}`") + where)
    if not name:
        return ConfigError(f"{_without_place(text)}{where}")
    return ConfigError(explain.refused_value(name, explain.first_line(cause)) + ("" if name in given else where))


def _missing_config(text: str, home: Home) -> str:
    missing = re.search(r"Could not (?:find|load) '([^']+)'", text)
    group, _, option = (missing.group(1) if missing else "").partition("/")
    return explain.unknown_option(group, option, home) if group in GROUPS and option else _without_place(text)


def _config_file(name: str, home: Home) -> Path:
    """Where the config of this name lies: the first on the search path."""
    folders = [home.root, home.shipped] if name.startswith("sweeps/") else [home.root / "conf", home.shipped / "conf"]
    files = [folder / f"{name}.yaml" for folder in folders]
    return next((path for path in files if path.is_file()), files[0])


def _without_place(text: str) -> str:
    """Hydra's sentence on one line, without the config it was in."""
    return " ".join(re.sub(r"^In '[^']+': ", "", text).split())


def _missing(key: str) -> str:
    if key == "model.path":
        return "`model.path` is missing: a hub id or a folder, for example model=hf model.path=/models/my-encoder"
    return f"`{key}` has no value yet; give it with {key}=VALUE"
