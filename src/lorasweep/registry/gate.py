"""The gate: a registered version is loaded back, checked, compared with the champion, and is champion or challenger.

What a decision rests on is on the version's tags before any alias moves, so that a champion always says why it is one.
Neighbours: `registry` (registers), `registry.proof` (is it the trial?), `registry.alias` (moves), `stats` (the test).
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorasweep.errors import LorasweepError, PromotionRefused, StorageError
from lorasweep.registry import alias as registry_alias
from lorasweep.registry import proof as registry_proof
from lorasweep.registry.alias import CHALLENGER, CHAMPION, PREVIOUS, alias_of, version_of
from lorasweep.registry.candidate import Scored
from lorasweep.registry.result import PromotionResult
from lorasweep.registry.serve import Ask, probabilities_of, table_of
from lorasweep.stats import Decision, Results, better
from lorasweep.tracking.store import readable_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

TRIES = 3  # comparisons of one promotion, each with another champion, where others promote at the same time
TAG = "lorasweep."


@dataclass(frozen=True)
class Gate:
    """Decides about a version that is registered and scored."""

    client: MlflowClient
    scored: Scored
    model: str
    version: str
    force: str | None
    ask: Ask

    def decide(self) -> PromotionResult:
        """Load back, check, compare, move the alias; the other one of the two is the challenger."""
        proof: registry_proof.Proof | None = None
        for _ in range(TRIES):
            before = alias_of(self.client, self.model, CHAMPION)
            answers = self._answers(before)
            proof = proof or self._prove(answers["challenger"])
            decision, why_not = self._compare(before, answers.get("champion"))
            wins = before is None or (decision is not None and decision.better)
            result = self._result(before, decision, proof, forced=not wins)
            with readable_errors(f"record the decision on version {self.version} of {self.model}"):
                if not wins and self.force is None:
                    self._note(result, "refused", why_not)
                    self.client.set_registered_model_alias(self.model, CHALLENGER, self.version)
                    assert before is not None
                    raise PromotionRefused(self._refusal(before, decision, why_not))
                self._note(result, "promoted" if wins else "promoted by force", why_not)
                with contextlib.suppress(registry_alias.ChampionMoved):
                    registry_alias.move_champion(self.client, self.model, self.version, before)
                    return result
        self._tag({"decision": f"refused: other promotions moved the champion {TRIES} times meanwhile"})
        raise PromotionRefused(
            f"the champion of {self.model} changed {TRIES} times while version {self.version} was compared with it; "
            "others promote at the same time. Promote again when they are done"
        )

    def _answers(self, before: ModelVersion | None) -> dict[str, Any]:
        candidate = self.scored.candidate
        tables = {"test": table_of(candidate.test)}
        if candidate.validation is not None:
            tables["validation"] = table_of(candidate.validation)
        models = {"challenger": {"uri": f"models:/{self.model}/{self.version}", "tables": list(tables)}}
        if before is not None:
            models["champion"] = {"uri": f"models:/{self.model}/{before.version}", "tables": ["test"]}
        try:
            return self.ask({"models": models, "tables": tables})
        except StorageError as error:
            self._tag({"decision": f"refused: {error}"})
            raise

    def _prove(self, answer: dict[str, Any]) -> registry_proof.Proof:
        try:
            proof = registry_proof.prove(self.scored.candidate, self.scored.results.probabilities, answer)
        except PromotionRefused as error:
            self._tag({"decision": f"refused: {error}", "reproduced": "no"})
            raise PromotionRefused(
                f"{error}. The champion stays; version {self.version} of {self.model} keeps no alias"
            ) from None
        self._tag({"reproduced": json.dumps(proof.to_json())})
        return proof

    def _compare(self, before: ModelVersion | None, answer: dict[str, Any] | None) -> tuple[Decision | None, str]:
        """The paired test on the same rows; None and the reason where there is nothing to compare with."""
        if before is None or answer is None:
            return None, "no champion before"
        candidate, names = self.scored.candidate, self.scored.candidate.label_names
        who = f"the champion, version {before.version}"
        if "error" in answer:
            return None, f"{who}, cannot be loaded: {answer['error']}"
        try:
            probabilities = probabilities_of(answer["test"], names, who)
        except LorasweepError as error:
            return None, str(error)
        ours = self.scored.results
        theirs = Results(ours.labels, probabilities, label_names=names, rows_id=ours.rows_id)
        decision = better(
            ours,
            theirs,
            candidate.objective.metric,
            candidate.objective.direction,
            candidate.config.task.average,
            score=candidate.score,
        )
        return decision, decision.said

    def _result(
        self, before: ModelVersion | None, decision: Decision | None, proof: registry_proof.Proof, forced: bool
    ) -> PromotionResult:
        scored, record = self.scored, self.scored.candidate.record
        return PromotionResult(
            action="promoted",
            model=self.model,
            version=self.version,
            trial=record.trial,
            run_id=record.run_id,
            metric=scored.metric,
            value=scored.value,
            interval=scored.bounds,
            metrics=scored.metrics,
            previous_version=version_of(before),
            champion_value=None if decision is None else decision.other,
            comparison=None if decision is None else decision.to_json(),
            reproduced=proof.to_json(),
            forced=forced,
            reason=self.force if forced else None,
        )

    def _note(self, result: PromotionResult, verdict: str, why: str) -> None:
        """The decision with its numbers on the version's tags, before any alias moves."""
        scored = self.scored
        value = f"{scored.metric} {scored.value!r}"
        tags = {
            "decision": f"{verdict}: {value}; {why}",
            "decided": f"{registry_alias.stamp()} by {registry_alias.who()}",
            "forced": str(result.forced and verdict != "refused").lower(),
        }
        if result.reason is not None:
            tags["reason"] = result.reason
        if result.comparison is not None:
            tags["comparison"] = json.dumps({**result.comparison, "champion_version": result.previous_version})
        if result.previous_version is not None and verdict != "refused":
            tags[PREVIOUS.removeprefix(TAG)] = result.previous_version
        self._tag(tags)

    def _tag(self, tags: dict[str, str]) -> None:
        with readable_errors(f"write tags of version {self.version} of {self.model}"):
            for key, text in tags.items():
                self.client.set_model_version_tag(self.model, self.version, f"{TAG}{key}", text)

    def _refusal(self, before: ModelVersion, decision: Decision | None, why_not: str) -> str:
        trial, tags = self.scored.candidate.record.trial, before.tags
        rival = f"the champion (version {before.version}, trial {tags.get(f'{TAG}trial', '?')})"
        if decision is None:
            said = f"{why_not}, so nothing shows that this trial is better"
        else:
            rows = len(self.scored.candidate.test)
            test = decision.said[:1].upper() + decision.said[1:]
            said = f"{rival} has {decision.other:.4f} on the same {rows} rows. {test}"
        return (
            f"trial {trial} has {self.scored.metric} = {self.scored.value:.4f}; {said}. A champion gives way only to a "
            f"better one. The trial is version {self.version} of {self.model} with the alias `{CHALLENGER}`; "
            "--force --reason TEXT promotes it all the same"
        )
