"""Overrides to a typed, checked config. With `cli` and `search.space` the only code that knows Hydra.

A user's conf/ and sweeps/ come before ours on the search path. Each composition error of Hydra becomes a ConfigError
that names the nearest valid key or lists a group's options. Neighbours: `schema`, `checks`, `home`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from lorasweep.config.checks import check_config
from lorasweep.config.home import Home
from lorasweep.config.schema import GROUPS, TRIAL_GROUPS, Config, TrackingConfig
from lorasweep.errors import ConfigError, nearest

_BARE = re.compile(r"[A-Za-z_/][\w./@:-]*")  # text that Hydra's grammar reads as itself without quotes
_search_folders: list[Path] = []  # read by the plugin while one composition runs


def compose(overrides: Iterable[str] = (), sweep: str | None = None, home: Home | None = None) -> Config:
    """The config of these overrides on top of sweeps/`sweep`.yaml on top of the defaults.

    Raises:
        ConfigError: an unknown key or option, a wrong type, a broken rule.
        UsageError: no such sweep.
    """
    home, overrides = home or Home.find(), list(overrides)
    if sweep is not None:
        home.find_sweep(sweep)
    config = _typed(_compose(home, sweep, overrides), sweep)
    where = f"(sweeps/{sweep}.yaml)" if sweep else ""
    check_config(config, where)
    return config


def compose_trial(overrides: Iterable[str], sweep: str | None, params: dict[str, Any], home: Home) -> Config:
    """The config of one trial: `params` (override key -> value) win over everything else.

    Raises:
        ConfigError: as `compose`, naming the point and the sweep file to mend.
    """
    words = [override_string(key, value) for key, value in params.items()]
    point = ", ".join(words) or "the defaults"
    where = f"at {point}" + (f"; check `space` in sweeps/{sweep}.yaml" if sweep else "")
    overrides = list(overrides)
    if not any(_is_group(key) for key in params):
        config = _set_values(_cached_compose(home, sweep, tuple(overrides)), params, where)
    else:
        try:
            config = _typed(_compose(home, sweep, [*overrides, *words]), sweep)
        except ConfigError as error:
            raise ConfigError(f"{error} {where}") from None
    check_config(config, where)
    return config


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`key=value` words as values of Python types; sweep syntax such as `a,b` is an error here.

    Raises:
        ConfigError: a word that is no override, or one that adds, deletes or sweeps.
    """
    parsed = {}
    for override in _parse(overrides):
        if override.is_delete() or override.is_add() or override.is_sweep_override():
            raise ConfigError(f"`{override.input_line}`: one trial takes plain key=value; a sweep file varies values")
        parsed[override.key_or_group] = _plain(override.value())
    return parsed


def tracking_folder(overrides: Iterable[str], home: Home) -> Path:
    """The folder of mlflow.db and mlruns/ for commands that need nothing else of a config.

    Raises:
        ConfigError: an override that such a command does not take.
    """
    tracking = TrackingConfig()
    for key, value in parse_overrides(overrides).items():
        if key == "tracking.dir":
            tracking.dir = str(value)
    return home.tracking_dir(tracking)


def override_string(key: str, value: Any) -> str:
    """`key=value` that Hydra reads back as this value: quoted where it must be."""
    return f"{key}={_text(value)}"


def to_yaml(config: Config) -> str:
    """The resolved config as YAML."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def trial_fingerprint(config: Config) -> str:
    """sha256 (hex) over the groups that decide a trial's numbers, its seed included."""
    parts = {group: asdict(getattr(config, group)) for group in TRIAL_GROUPS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def from_json(document: dict[str, Any]) -> Config:
    """The inverse of `asdict` for a config that was stored."""
    from omegaconf import OmegaConf

    merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(document))
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


# -- Hydra ----------------------------------------------------------------------------------------------------------


def _compose(home: Home, sweep: str | None, overrides: list[str]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _register()
    # the user's conf/ first; then ours; the roots come last and only for their sweeps/
    _search_folders[:] = [home.root / "conf", home.shipped / "conf", home.root, home.shipped]
    words = ([f"sweeps={sweep}"] if sweep else []) + overrides
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(home.shipped / "conf"), version_base="1.3", job_name="lorasweep"):
            return hydra_compose("config", overrides=words)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: `adapter=5`, a group set to a number
        raise _explain(error, words, home) from None


def _cached_compose(home: Home, sweep: str | None, overrides: tuple[str, ...]) -> Config:
    path = home.find_sweep(sweep) if sweep else None
    key = (home, sweep, overrides, path.stat().st_mtime_ns if path else 0)
    if key not in _composed:
        _composed.clear()  # one sweep at a time
        _composed[key] = _typed(_compose(home, sweep, list(overrides)), sweep)
    return copy.deepcopy(_composed[key])


_composed: dict[Any, Config] = {}


def _register() -> None:
    """Our schema and search path, as Hydra's own plugin classes; once per process."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    if ConfigStore.instance().repo.get("lorasweep_schema.yaml") is not None:
        return
    ConfigStore.instance().store(name="lorasweep_schema", node=Config)

    class UserFoldersFirst(SearchPathPlugin):
        def manipulate_search_path(self, search_path: Any) -> None:
            first, *rest = (f"file://{folder}" for folder in _search_folders)
            search_path.prepend("lorasweep", first)
            for folder in rest:
                search_path.append("lorasweep", folder)

    Plugins.instance().register(UserFoldersFirst)


def _parse(overrides: Iterable[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed = []
    for word in overrides:
        try:
            parsed.append(parser.parse_override(word))
        except HydraException as error:
            raise ConfigError(_syntax(word, error)) from None
    return parsed


def _typed(composed: Any, sweep: str | None) -> Config:
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        config: Config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or str(error)
        raise ConfigError(f"`{key}` has no value yet; give it with {key}=VALUE") from None
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from None
    config.sweep.name = config.sweep.name or sweep or ""
    return config


def _set_values(config: Config, params: dict[str, Any], where: str) -> Config:
    """Set values by dotted key with OmegaConf's own type rules; groups need a composition instead."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not params:
        return config
    node = OmegaConf.structured(config)
    for key, value in params.items():
        try:
            OmegaConf.update(node, key, value)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{_explain_value(key, error)} {where}") from None
    return OmegaConf.to_object(node)  # type: ignore[return-value]


# -- explaining -------------------------------------------------------------------------------------------------------


def _explain(error: Exception, words: list[str], home: Home) -> ConfigError:
    """The user's words for what Hydra or OmegaConf refused."""
    from hydra.errors import MissingConfigException, OverrideParseException

    cause = error.__cause__ or error
    if isinstance(error, ValueError):
        numbers = [word for word in words if _is_group(word.partition("=")[0]) and not re.search(r"=[A-Za-z_]", word)]
        return ConfigError(f"`{' '.join(numbers or words)}`: a group is set to the name of one of its options")
    if isinstance(error, OverrideParseException):
        return ConfigError(_syntax(getattr(error, "override", " ".join(words)), error))
    if isinstance(error, MissingConfigException):
        missing = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
        group, _, option = (missing.group(1) if missing else "").rpartition("/")
        if group in GROUPS:
            known = options(group, home)
            hint = nearest(option, known)
            close = f"; {hint}" if hint.startswith("did you mean") else ""
            return ConfigError(f"`{group}={option}` is no option; {group} can be {', '.join(known)}{close}")
        return ConfigError(_first_line(error))
    override = re.search(r"Could not override '([^']+)'", str(error))
    merging = re.search(r"Error merging override (\S+?)=", str(error))
    full_key = getattr(cause, "full_key", None)
    key = override or merging
    if key is not None or full_key:
        return ConfigError(_explain_value(key.group(1) if key else str(full_key), cause))
    return ConfigError(_first_line(error))


def _explain_value(key: str, error: BaseException) -> str:
    known = keys()
    if key in GROUPS:
        return f"`{key}` is a group: choose one of its options with {key}=OPTION, or set one of its values, {key}.NAME=VALUE"
    if key not in known and not key.startswith("sweep.space"):
        return f"there is no setting `{key}`; {_nearest_key(key, known)}"
    return f"`{key}`: {_first_line(error)} (expected {known.get(key, 'another type')})"


def _nearest_key(key: str, known: dict[str, str]) -> str:
    group, _, name = key.rpartition(".")
    inside = {other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == group}
    if inside:
        hint = nearest(name, inside)
        return hint.replace("`", f"`{group}.", 1) if hint.startswith("did you mean") else f"`{group}` has {', '.join(sorted(inside))}"
    elsewhere = [other for other in known if other.endswith(f".{key}")]
    return f"did you mean `{elsewhere[0]}`?" if elsewhere else nearest(key, [*GROUPS, "sweep"])


def _syntax(word: str, error: Exception) -> str:
    return f"cannot read the override `{word}`: {_first_line(error)}. Quote text with commas, spaces or brackets: key=\"'a b'\""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def options(group: str, home: Home) -> list[str]:
    """Names that a group can be set to, the user's and ours."""
    folders = (home.root / "conf" / group, home.shipped / "conf" / group)
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def keys(node: Any = Config, prefix: str = "") -> dict[str, str]:
    """Every dotted setting -> its type as written in the schema."""
    found: dict[str, str] = {}
    for field in fields(node() if isinstance(node, type) else node):
        value = getattr(node(), field.name)
        if is_dataclass(value):
            found |= keys(type(value), f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = str(field.type)
    return found


def _is_group(key: str) -> bool:
    return key in GROUPS


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return getattr(value, "text", value)  # QuotedString


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(key)}:{_text(item)}" for key, item in value.items()) + "}"
    text = str(value)
    if _BARE.fullmatch(text) and text.lower() not in {"null", "true", "false", "nan", "inf"}:
        return text
    # inside quotes a backslash is plain unless it stands before a quote; `$` would start an interpolation
    escaped = re.sub(r"(\\*)(\"|$)", lambda m: m.group(1) * 2 + ("\\" + m.group(2) if m.group(2) else ""), text)
    return '"' + escaped.replace("${", "\\${") + '"'
