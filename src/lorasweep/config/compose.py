"""Overrides to a typed, checked config. With `cli` and `search.space` the only code that knows Hydra.

A user's conf/ and sweeps/ come before ours on the search path. Hydra keeps its state in the process: each
composition here puts back what it found, and changes neither the current folder nor logging. Neighbours: `schema`,
`checks`, `home`, `explain` (refusals in the user's words).
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorasweep.config import explain
from lorasweep.config.checks import check_config
from lorasweep.config.home import Home
from lorasweep.config.schema import GROUPS, TRIAL_GROUPS, Config, TrackingConfig
from lorasweep.errors import ConfigError

COMPOSED_KEPT = 32  # configs of one sweep kept in memory: one for each combination of swept groups
_BARE = re.compile(r"[A-Za-z_/][\w./@:-]*", re.ASCII)  # text that Hydra's grammar reads as itself without quotes
_KEYWORDS = {"null", "true", "false", "nan", "inf"}
_search_folders: list[Path] = []  # read by our search path plugin while one composition runs
_composed: dict[Any, Config] = {}


def compose(overrides: Iterable[str] = (), sweep: str | None = None, home: Home | None = None) -> Config:
    """The config of these overrides on top of sweeps/`sweep`.yaml on top of the defaults.

    Raises:
        ConfigError: an unknown key or option, a wrong type, a broken rule.
        UsageError: no such sweep.
    """
    home, overrides = home or Home.find(), list(overrides)
    config = _compose(home, sweep, overrides)
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
    except ConfigError as error:
        raise ConfigError(f"{error} {where}") from None
    check_config(config, where)
    return config


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`key=value` words as values of Python types.

    Raises:
        ConfigError: a word that is no override, or one that adds, deletes or sweeps (`a,b`).
    """
    words = list(overrides)
    if not words:
        return {}  # Hydra's parser takes 0.1 s to import
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, parsed = OverridesParser.create(), {}
    for word in words:
        if "=" not in word:
            raise ConfigError(f"`{word}` is no override; write key=value")
        if word[0] in "+~":
            raise ConfigError(
                f"`{word}`: every setting exists already, nothing is added or taken away; write key=value"
            )
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise ConfigError(_syntax(word, error)) from None
        if override.is_sweep_override():
            raise ConfigError(f"`{word}` holds several values; `sweep.space` of a file in sweeps/ is where values vary")
        if override.is_hydra_override() or override.key_or_group in ("hydra", "sweeps"):
            raise ConfigError(f"`{word}`: {override.key_or_group.partition('.')[0]} is no setting of lorasweep's")
        parsed[override.key_or_group] = _plain(override.value())
    return parsed


def tracking_folder(overrides: Iterable[str], home: Home) -> Path:
    """The folder of mlflow.db and mlruns/ for commands that need nothing else of a config.

    Raises:
        ConfigError: a word that is no override.
    """
    folder = parse_overrides(overrides).get("tracking.dir")
    return home.tracking_dir(TrackingConfig(dir=None if folder is None else str(folder)))


def override_string(key: str, value: Any) -> str:
    """`key=value` that Hydra reads back as this very value: quoted where it must be, interpolations kept as text."""
    return f"{key}={_text(value)}"


def to_yaml(config: Config) -> str:
    """The resolved config as YAML."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(_literal(asdict(config))), resolve=True)


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
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(_literal(document)))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"the stored config does not fit this version of lorasweep: {explain.first_line(error)}; use the version "
            "that started the sweep"
        ) from None


# -- Hydra ----------------------------------------------------------------------------------------------------------


def _compose(home: Home, sweep: str | None, overrides: list[str]) -> Config:
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    file = home.find_sweep(sweep) if sweep else None
    given = parse_overrides(overrides)
    for key in given:
        if key in GROUPS and not isinstance(given[key], str):
            raise ConfigError(f"`{key}={_text(given[key])}`: {key} can be {', '.join(explain.options(key, home))}")
    words = ([f"sweeps={sweep}"] if sweep else []) + overrides
    with _hydra_at_rest(home):
        try:
            with initialize_config_dir(str(home.shipped / "conf"), version_base="1.3", job_name="lorasweep"):
                composed = hydra_compose("config", overrides=words)
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(error, home, given, file) from None
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"a YAML file cannot be read: {' '.join(str(error).split())}") from None
        except (TypeError, AttributeError, ValueError) as error:  # Hydra's own, on a file that is no mapping
            raise ConfigError(
                f"{file or home.root / 'conf'} is not laid out as settings in groups ({explain.first_line(error)})"
            ) from None
    return _typed(composed, home, sweep)


def _cached(home: Home, sweep: str | None, overrides: tuple[str, ...]) -> Config:
    """A composed config of one's own; composed once for the same words as long as the sweep file stays the same."""
    file = home.find_sweep(sweep) if sweep else None
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


def _typed(composed: Any, home: Home, sweep: str | None) -> Config:
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        key = str(getattr(error, "full_key", "") or "")
        raise ConfigError(_missing(key)) from None
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "")
        raise ConfigError(f"`{key}`: {explain.first_line(error)}" if key else explain.first_line(error)) from None
    if not isinstance(config, Config):
        raise ConfigError(
            f"{home.root / 'conf' / 'config.yaml'} is not lorasweep's: its defaults list must begin with "
            f"`lorasweep_schema`, as in {home.shipped / 'conf' / 'config.yaml'}. Is it another project's? Then set "
            "LORASWEEP_HOME to a folder of your own"
        )
    config.sweep.name = config.sweep.name or sweep or ""
    return config


def _set_values(config: Config, params: dict[str, Any]) -> Config:
    """Set values by dotted key with OmegaConf's own type rules; groups need a composition instead."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = explain.keys()
    for key, value in params.items():
        group, _, name = key.partition(".")
        if key not in known:
            raise ConfigError(explain.refused_value(key, ""))
        node = OmegaConf.structured(getattr(config, group))
        try:
            OmegaConf.update(node, name, _literal(value))
            setattr(config, group, OmegaConf.to_object(node))
        except OmegaConfBaseException as error:
            raise ConfigError(explain.refused_value(key, explain.first_line(error))) from None
    return config


# -- explaining -------------------------------------------------------------------------------------------------------


def _explain(error: Exception, home: Home, given: dict[str, Any], file: Path | None) -> ConfigError:
    """What Hydra or OmegaConf refused, and where it stands: in an override, the sweep file or the user's conf/."""
    from hydra.errors import MissingConfigException

    cause = error.__cause__ or error
    text = str(error)
    if isinstance(error, MissingConfigException):
        missing = re.search(r"Could not (?:find|load) '([^']+)'", text)
        path = missing.group(1) if missing else ""
        group, _, option = path.partition("/")
        where = "" if given.get(group) == option else f" (in {file})" if file else f" (in {home.root / 'conf'})"
        if group in GROUPS and option:
            return ConfigError(explain.unknown_option(group, option, home) + where)
        return ConfigError(f"{explain.first_line(error)}{where}")
    if "Could not override" in text and "No match in the defaults list" in text:  # `override /modle: x`, or `modle=x`
        wrong = re.search(r"Could not override '([^'@]+)", text)
        group = wrong.group(1).strip("/") if wrong else ""
        if group not in given:
            return ConfigError(f"there is no group `{group}`; {explain.nearest_key(group)} (in {file})")
    key = re.search(r"(?:Could not override '|Error merging override )([\w.@/-]+)", text)
    name = key.group(1) if key else getattr(cause, "full_key", None)
    if not name:
        return ConfigError(f"{explain.first_line(error)} (in {file})" if file else explain.first_line(error))
    where = "" if name in given else f" (in {file})" if file else f" (in {home.root / 'conf'})"
    if file and name.split(".")[0] == "sweeps":
        return ConfigError(f"{file} must begin with the line `# @package _global_`")
    return ConfigError(explain.refused_value(str(name), explain.first_line(cause)) + where)


def _missing(key: str) -> str:
    if key == "model.path":
        return "`model.path` is missing: a hub id or a folder, for example model=hf model.path=/models/my-encoder"
    return f"`{key}` has no value yet; give it with {key}=VALUE"


def _syntax(word: str, error: BaseException) -> str:
    reason = re.sub(r"^Error parsing override '.*'$", "not key=value", explain.first_line(error))
    return f"cannot read the override `{word}`: {reason}. Quote text with commas, spaces or brackets: key=\"'a b'\""


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return getattr(value, "text", value)  # QuotedString


def _literal(value: Any) -> Any:
    """The value with `${` escaped, so that OmegaConf does not take text for an interpolation."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found.group(1) * 2 + "\\${", value)
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    return value


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(key)}:{_text(item)}" for key, item in value.items()) + "}"
    text = str(value)
    if _BARE.fullmatch(text) and text.lower() not in _KEYWORDS:
        return text
    # in quotes a backslash is plain unless a quote follows it, or the end
    escaped = re.sub(
        r"(\\*)(\"|$)", lambda m: m.group(1) * 2 + ("\\" + m.group(2) if m.group(2) else ""), _literal(text)
    )
    return f'"{escaped}"'
