"""What a worker writes down of itself, and how a later one takes it up to the same end.

A checkpoint holds every pack with all its trials at one moment. Study and runs may be ahead of it: the kill came later.
Training is repeated from the checkpoint, with the same bits on a CPU, and meets what is known already:
  * a trial that was asked for after it is found again, in the order of its number, and never asked twice;
  * a trial that ended after it is a ghost: it trains on in its slot up to where it ended, because the bits of its
    neighbours depend on the shapes of all, but nothing of it is logged or told again;
  * a metric that is in the spool is not logged again.
So the next thing that is new happens when all that was known has been met, with the history that it would have had.
Neighbours: `checkpoint` (files), `training.snapshot`, `search.study`; `worker` is the only user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lorasweep.config import compose
from lorasweep.posts import Post
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.study import Asked

if TYPE_CHECKING:
    import torch

    from lorasweep.checkpoint import Checkpoint
    from lorasweep.search.leases import Leases
    from lorasweep.search.study import SweepStudy
    from lorasweep.workbench import Workbench


@dataclass(frozen=True)
class SavedTrial:
    """A trial as `Pack.state` gave it: tensors by name, and JSON types. `unsent`: metrics that MLflow may not have, as
    `Tracker.unsent` gave them."""

    tensors: dict[str, torch.Tensor]
    fields: dict[str, Any]
    unsent: list[Any] = field(default_factory=list)

    def to_json(self, number: int) -> dict[str, Any]:
        """What a checkpoint holds of it beside its tensors."""
        return {"number": number, "fields": self.fields, **({"unsent": self.unsent} if self.unsent else {})}


@dataclass(frozen=True)
class Candidate:
    """A trial on its way into a slot: from its start, or as it was `saved`; with `ended` as a ghost. `taken_over`: it
    was another worker's."""

    asked: Asked
    saved: SavedTrial | None = None
    ended: TrialRecord | None = None
    taken_over: bool = False


@dataclass(frozen=True)
class Recovered:
    """Trials to take up, in order; the highest number asked for by the checkpoint; what a person should know."""

    queue: list[Candidate]
    last_asked: int
    notes: list[str]


def snapshot(
    workbench: Workbench,
    queue: Iterable[Candidate],
    last_asked: int,
    unsent: Callable[[int], list[Any]] = lambda number: [],
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """All that the next process needs, as JSON types and tensors. `queue`: trials that wait for a slot; `unsent`: what
    of a trial's metrics another host needs."""
    from lorasweep.training.snapshot import shape_of

    saved, waiting = {}, []
    for _, pack in workbench.packs:
        for number in pack.active:
            if pack.has_begun(number):
                saved[number] = SavedTrial(*pack.state(number), unsent(number))
            else:
                waiting.append(number)
    for candidate in queue:
        if candidate.saved is not None:
            saved[candidate.asked.number] = candidate.saved
        elif candidate.asked.number <= last_asked:  # later numbers are found again in the study
            waiting.append(candidate.asked.number)
    state = {
        "slots": workbench.slots,
        "last_asked": last_asked,
        "packs": [{"config": asdict(config), "shape": shape_of(pack)} for config, pack in workbench.packs],
        "trials": [trial.to_json(number) for number, trial in saved.items()],
        "waiting": waiting,
    }
    tensors = {f"{number}.{name}": t for number, trial in saved.items() for name, t in trial.tensors.items()}
    return state, tensors


def recover(
    study: SweepStudy, leases: Leases, workbench: Workbench, checkpoint: Checkpoint | None, only: list[Asked] | None
) -> Recovered:
    """Shape the packs as they were, list what goes on and claim it. `only`: trials to take up, None: all that this post
    has left, and those whose worker died before it could claim them (nobody asks at this moment)."""
    posts = leases.posts()
    ours = {number for number, post in posts.items() if post in (leases.post, None)}
    running = {asked.number: asked for asked in (study.interrupted() if only is None else only)}
    running = {number: asked for number, asked in running.items() if number in ours}
    for number in running:
        leases.claim(number)
    state = checkpoint.state if checkpoint is not None else {}
    notes = list(checkpoint.notes) if checkpoint is not None else []
    if not state:
        if notes and running:
            notes.append(f"trials {_listed(running)} train again from their first step")
        return Recovered([Candidate(asked) for asked in running.values()], -1, notes)
    same_slots, last_asked = state["slots"] == workbench.slots, int(state["last_asked"])
    ended = {}
    if same_slots:  # with other slots the bits are others, whatever is repeated
        records = [record for record in study.records() if record.trial in ours]
        ended = {record.trial: record for record in records if record.state is not TrialState.RUNNING}
        _shape_packs(study, workbench, state["packs"])
    queue = []

    def take(number: int, saved: SavedTrial | None = None) -> None:
        if number in running:
            queue.append(Candidate(running.pop(number), saved))
        elif number in ended:
            queue.append(Candidate(Asked(number, ended[number].params), saved, ended[number]))

    for trial in state["trials"]:
        take(trial["number"], saved_in(checkpoint, trial["number"]))
    later = [number for number in running if number > last_asked]
    if only is None:  # one that failed before it had parameters never had a slot
        later += [number for number, record in ended.items() if number > last_asked and record.trainable_params]
    for number in [*state["waiting"], *(number for number in sorted(running) if number <= last_asked), *sorted(later)]:
        take(number)
    return Recovered(queue, last_asked, notes)


def saved_in(checkpoint: Checkpoint | None, number: int) -> SavedTrial | None:
    """A trial's state in a checkpoint, None where it has none there."""
    for trial in checkpoint.state.get("trials", []) if checkpoint is not None else []:
        if trial["number"] == number:
            prefix = f"{number}."
            named = checkpoint.tensors.items() if checkpoint is not None else ()
            own = {name.removeprefix(prefix): tensor for name, tensor in named if name.startswith(prefix)}
            return SavedTrial(own, trial["fields"], trial.get("unsent", []))
    return None


def take_over(study: SweepStudy, leases: Leases, post: Post) -> Candidate | None:
    """Claim a trial that a dead or silent worker left, as its checkpoint has it; None where there is none.

    In this worker's packs its last bits are others than they would have been.

    Raises:
        NotRead: its checkpoint cannot be read now; nothing was claimed.
    """
    orphans = [] if post.alone else leases.orphans(post.dead())
    if not orphans:
        return None
    number, left_at = orphans[0], leases.posts()[orphans[0]]
    left = None if left_at is None else post.at(left_at).checkpoints.load(patience_seconds=0)
    with post.asking():  # another one may have been quicker, or its post have a new holder, who takes it up
        if number not in leases.orphans(post.dead()) or leases.posts()[number] != left_at:
            return None
        asked = next(asked for asked in study.interrupted() if asked.number == number)
        leases.claim(number)
    return Candidate(asked, saved_in(left, number), taken_over=True)


def _shape_packs(study: SweepStudy, workbench: Workbench, packs: list[dict[str, Any]]) -> None:
    from lorasweep.training.snapshot import reshape

    configs = [compose.from_json(pack["config"]) for pack in packs]
    for config in configs:
        config.launcher = study.config.launcher  # devices may change between starts
    for pack, saved in zip(workbench.rebuild(configs), packs, strict=True):
        reshape(pack, saved["shape"])


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))
