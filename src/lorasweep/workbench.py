"""What the trials of one process share: rows, encoded splits, resident bases, packs.

Each thing is loaded once for all trials that agree on it. Bases that no running trial uses are dropped, the least
recently used first, when another one is needed. Neighbours: `data`, `tasks`, `models`, `training` (what is built),
`worker` (which asks for a trial's pack). The test split is out of its reach: nothing here loads it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorasweep.config.schema import TRANSFORMER, Config, ObjectiveConfig
from lorasweep.spread import evenly

if TYPE_CHECKING:
    from lorasweep.config.home import Folders
    from lorasweep.data.encode import Encoded
    from lorasweep.data.sources import SearchData
    from lorasweep.models.base import LoadedBase
    from lorasweep.models.prefix_cache import PrefixBudget
    from lorasweep.tasks import Exam, Task
    from lorasweep.training.snapshot import AnyPack

IDLE_BASES_KEPT = 1  # a base that no trial uses stays resident until another one needs the memory


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class Workbench:
    """Loads and keeps what trials share. Not thread-safe: one worker owns one workbench."""

    def __init__(self, folders: Folders, objective: ObjectiveConfig, slots: int):
        self.folders, self.objective, self.slots = folders, objective, slots
        self._data: dict[str, SearchData] = {}
        self._rows_ids: dict[str, str] = {}
        self._encoded: dict[str, tuple[Encoded, Exam]] = {}
        self._bases: dict[Any, LoadedBase] = {}  # in order of last use
        self._packs: dict[str, tuple[Any, AnyPack, Config]] = {}  # pack key -> (base key, pack, what it was made for)
        self._rebuilding = False
        self.prefixes: PrefixBudget | None = None  # what all packs' cached states of frozen layers may take

    def set_slots(self, slots: int) -> None:
        """How many slots packs have from here on; those that there are, all empty, are forgotten."""
        assert not self.active_packs, "slots are set before trials train"
        self.slots, self._packs = slots, {}

    def release(self) -> None:
        """Give back what bases and packs take of the device: others train here. They are made anew where needed."""
        from lorasweep.models.base import resolve_device
        from lorasweep.training.memory import free_memory

        devices = {config.launcher.device for _, _, config in self._packs.values()}
        self._packs, self._bases = {}, {}
        for device in devices:
            free_memory(resolve_device(device))

    def data(self, config: Config) -> SearchData:
        """Training and validation rows of a trial.

        Raises:
            DataError: a file, column, label or split that is not as the config says.
        """
        from lorasweep.data.sources import load_search_data

        key = _digest(asdict(config.data))
        if key not in self._data:
            self._data[key] = load_search_data(config.data)
        return self._data[key]

    def rows_id(self, config: Config) -> str:
        """Fingerprint of a trial's validation rows: only trials over the same ones can be compared row by row."""
        key = _digest(asdict(config.data))
        if key not in self._rows_ids:
            self._rows_ids[key] = self.data(config).validation.fingerprint()
        return self._rows_ids[key]

    def task(self, config: Config) -> Task:
        """The trial's task over the class names of its data."""
        from lorasweep.tasks import make_task

        return make_task(config, self.data(config).label_names)

    def base(self, config: Config) -> LoadedBase:
        """The frozen base of a trial, loaded at most once while it is in use.

        Raises:
            ModelError: a base that is neither local nor reachable, or cannot serve the task.
        """
        from lorasweep.models.base import base_key, load_base

        task = self.task(config)
        key = base_key(config, task.head, tuple(self.data(config).label_names))
        if key not in self._bases:
            self._drop_idle_bases()
            self._bases[key] = load_base(config, task.head, self.data(config).label_names)
        self._bases[key] = self._bases.pop(key)  # newest last
        return self._bases[key]

    def encoded(self, config: Config) -> tuple[Encoded, Exam]:
        """Tokenised training rows and what the validation rows ask, from the cache on disk where it holds them."""
        from lorasweep.models.base import load_tokenizer

        key = _digest(asdict(config.data), asdict(config.task), config.model.path, config.model.revision)
        if key not in self._encoded:
            data, task = self.data(config), self.task(config)
            tokenizer = load_tokenizer(config.model)
            self._encoded[key] = (
                task.encode(data.train, tokenizer, config.data, self.folders.cache),
                task.exam(data.validation, tokenizer, config.data, self.folders.cache),
            )
        return self._encoded[key]

    def _rung_exam(self, config: Config) -> Exam | None:
        """What trials are judged by at their rungs; None where that is the whole validation."""
        from lorasweep.models.base import load_tokenizer

        split, count = self.data(config).validation, config.pruner.eval_rows
        if config.pruner.kind == "none" or not 0 < count < len(split):
            return None
        part = split.select(evenly(range(len(split)), count))
        return self.task(config).exam(part, load_tokenizer(config.model), config.data, self.folders.cache)

    def model_fingerprint(self, config: Config) -> str:
        """sha256 (hex) of what a trial starts from: its base's files, or a baseline's settings."""
        if config.model.kind == TRANSFORMER:
            return self.base(config).fingerprint
        from lorasweep.models.baselines import describe

        return hashlib.sha256(describe(config.model).encode()).hexdigest()

    def pack(self, config: Config) -> AnyPack:
        """The pack whose base, data and task a trial shares; made where there is none yet.

        Raises:
            ConfigError: a baseline that cannot serve the task, and as `base`.
        """
        from lorasweep.models.base import base_key
        from lorasweep.training.pack import Pack

        if config.model.kind != TRANSFORMER:
            return self._baselines(config)
        names = tuple(self.data(config).label_names)
        shared = base_key(config, self.task(config).head, names)
        full, rows = config.adapter.kind == "full", config.pruner.eval_rows
        key = _digest(shared, asdict(config.data), asdict(config.task), full, rows)
        if key not in self._packs:
            base, (train, validation) = self.base(config), self.encoded(config)
            slots = 1 if full else self.slots
            budget, rungs = self._budget(config), self._rung_exam(config)
            pack = Pack(base, self.task(config), train, validation, self.objective, slots, budget, rungs)
            self._packs[key] = (shared, pack, config)
        return self._packs[key][1]

    def _baselines(self, config: Config) -> AnyPack:
        from lorasweep.training.baseline import BaselinePack

        key = _digest("baselines", asdict(config.data), asdict(config.task))
        if key not in self._packs:
            pack = BaselinePack(self.task(config), self.data(config), self.objective)
            self._packs[key] = ("baselines", pack, config)
        return self._packs[key][1]

    def before(self, config: Config, pack: AnyPack, number: int) -> dict[str, float]:
        """Metrics of a trial's base with an untrained head, by names that end in `_before`: what fine-tuning is to be
        compared with. `number`: a trial that has just entered the pack. Measured once for each base, data and seed,
        which draws the head, and kept on disk; empty where there is no base, or where it cannot be measured now."""
        from lorasweep.models.base import base_key
        from lorasweep.tracking.files import write_text
        from lorasweep.training.pack import Pack

        if not isinstance(pack, Pack):
            return {}
        base, data = pack.base, self.data(config)
        key = base_key(config, pack.task.head, tuple(data.label_names))
        rows = (data.fingerprint, asdict(config.data), asdict(config.task))
        digest = _digest(key, base.fingerprint, str(base.device), rows, config.train.seed)
        path = self.folders.cache / "before" / f"{digest}.json"
        try:
            return dict(json.loads(path.read_text()))
        except (FileNotFoundError, ValueError):  # not measured yet, or the file was damaged
            found = {f"{name}_before": value for name, value in pack.evaluate_untrained(number).items()}
        if found:
            write_text(path, json.dumps(found))
        return found

    def _budget(self, config: Config) -> PrefixBudget:
        from lorasweep.models.prefix_cache import PrefixBudget

        launcher = config.launcher
        if self.prefixes is None:
            self.prefixes = PrefixBudget(launcher.prefix_cache_gib, launcher.prefix_disk_gib, self.folders.cache)
        return self.prefixes

    @property
    def active_packs(self) -> list[AnyPack]:
        """Packs with at least one trial in training."""
        return [pack for _, pack, _ in self._packs.values() if pack.active]

    @property
    def packs(self) -> list[tuple[Config, AnyPack]]:
        """All packs, idle ones too, in the order in which they train; with a config that leads to each."""
        return [(config, pack) for _, pack, config in self._packs.values()]

    def rebuild(self, configs: list[Config]) -> list[AnyPack]:
        """Exactly the packs of these configs, empty and in this order, for a worker that goes on from a checkpoint."""
        self._packs = {}
        self._rebuilding = True  # all of them were resident together
        try:
            return [self.pack(config) for config in configs]
        finally:
            self._rebuilding = False

    def _drop_idle_bases(self) -> None:
        if self._rebuilding:
            return
        used = {base for base, pack, _ in self._packs.values() if pack.active}
        idle = [key for key in self._bases if key not in used]
        for key in idle[: max(0, len(idle) - IDLE_BASES_KEPT + 1)]:
            self._packs = {name: entry for name, entry in self._packs.items() if entry[0] != key}
            del self._bases[key]
