"""What people ask of a sweep while it runs, as its study knows it: stop a trial, pause, train a clone of one.

Neighbours: `reader` (below), `study` (adds asking and telling); `requests` and `clones` say how it is stored; `control`
asks, `worker` acts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorasweep.config.home import Folders
from lorasweep.errors import UsageError
from lorasweep.search import clones, requests
from lorasweep.search.database import readable_errors
from lorasweep.search.reader import PARAMS, StudyReader
from lorasweep.search.requests import Request
from lorasweep.search.storage import read

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Asked:
    """A trial to train: its number in the study and its point, override key -> value. `claimed`: the post that trains
    it stands in the study already."""

    number: int
    params: dict[str, Any]
    claimed: bool = field(default=False, compare=False)


class SteeredStudy(StudyReader):
    """A study that other processes can ask something of."""

    def __init__(self, folders: Folders, study: optuna.Study, about: dict[str, Any]):
        """`about`: identity, overrides, sweep_file and config as JSON types."""
        super().__init__(folders, study, about)
        # a pause is for the workers that run at that moment, all of them: not for one that opens the study later
        self._earlier_pauses = {request.id for request in self._requests() if request.kind == requests.PAUSE}

    def request(self, kind: str, trial: int | None = None) -> Request:
        """Ask the workers of this sweep to stop a trial or to pause."""
        request = requests.new_request(kind, trial)
        self._stored.set_attribute(*requests.stored(request))
        return request

    def requests(self) -> list[Request]:
        """What was asked and not yet acted on; a pause that is older than this object is not meant for it."""
        return [request for request in self._requests() if request.id not in self._earlier_pauses]

    def acted(self, request: Request) -> None:
        """Note that a stop was acted on. A pause stays: other workers must see it too, later ones ignore it."""
        if request.kind != requests.PAUSE:
            self._stored.set_attribute(*requests.stored(request, acted=True))

    def _requests(self) -> list[Request]:
        return requests.waiting(self._stored.attributes())

    def clone(self, number: int, changes: dict[str, Any], warm: bool = False) -> Asked:
        """A trial with the point of trial `number` and `changes` to it; it waits for a worker. With `warm` it starts
        from that trial's adapter.

        Raises:
            StorageError: there is no such trial.
            UsageError: `warm`, and it left no adapter; a study of single trials.
        """
        if self.space is None:
            raise UsageError(f"{self.name!r} holds single trials; train another one with `lorasweep train key=value …`")
        params = {**(read(self._stored.trial(number), PARAMS) or {}), **changes}
        if warm and not self._left_adapter(number):
            raise UsageError(
                f"trial {number} of sweep {self.name!r} left no adapter to start from: only trials that were complete, "
                "or stopped by hand after an evaluation, do; leave --warm out"
            )
        waiting = clones.template(self.space, params, PARAMS, {"of": number, "warm": warm})
        with readable_errors(self.folders):
            made = self._stored.storage.create_new_trial(self._study._study_id, template_trial=waiting)
            return Asked(self._stored.storage.get_trial(made).number, params)

    def cloned_from(self, number: int) -> int | None:
        """The trial that this one was cloned from, None for one that was proposed."""
        origin = clones.clone_of(self._stored.trial(number))
        return None if origin is None else int(origin["of"])

    def warm_from(self, number: int) -> str | None:
        """The MLflow run whose adapter this trial starts from; None: it starts afresh."""
        origin = clones.clone_of(self._stored.trial(number))
        return self.run_id(origin["of"]) if origin is not None and origin["warm"] else None
