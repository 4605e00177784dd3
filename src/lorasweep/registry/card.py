"""The model card: what a registered or exported model is, how good it is, where it comes from, what it cannot do.

`Facts` are gathered once, at promotion, and travel with the model as card.json, so that an export says the same years
later. Neighbours: `registry` (gathers them), `registry.export` (adds the hub's metadata and how to load).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.errors import StorageError

if TYPE_CHECKING:
    from lorasweep.registry.candidate import Candidate

CARD, FACTS = "README.md", "card.json"
DESCRIPTION_CHARACTERS = 4900  # MLflow's databases hold 5,000
SHOWN_LABELS = 20
PROVENANCE = (  # a run's tags that say where its numbers come from
    "lorasweep.version",
    "lorasweep.git.",
    "lorasweep.fingerprint.",
    "lorasweep.sha256.",
    "lorasweep.python",
    "lorasweep.packages",
    "lorasweep.device",
    "lorasweep.seed",
)


@dataclass(frozen=True)
class Score:
    """A metric on one split; `low` and `high` bound its 95% interval, None where there is none."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4f}" + ("" if self.low is None else f" ({self.low:.4f} to {self.high:.4f})")


@dataclass(frozen=True)
class Facts:
    """All that a card says. `base_on_hub`: `base` is a hub id; `base_packed`: the base's files lie beside the adapter;
    `settings`: group -> key -> value of the trial; `provenance`: a run's tags without their prefix."""

    model: str
    sweep: str
    trial: int
    run_id: str
    base: str
    base_revision: str | None
    base_on_hub: bool
    base_packed: bool
    labels: list[str]
    paired: bool
    settings: dict[str, dict[str, Any]]
    data: dict[str, Any]
    test: list[Score]
    validation: list[Score]
    parameters: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """lora, head or full."""
        return str(self.settings["adapter"]["kind"])

    def save(self, folder: Path) -> None:
        """Write card.json and the card into a model's folder."""
        (folder / FACTS).write_text(json.dumps(asdict(self), indent=2, default=str), encoding="utf-8")
        (folder / CARD).write_text(f"# {self.model}\n\n{body(self)}", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Facts:
        """The facts of a model's folder.

        Raises:
            StorageError: it has none; it was registered by something else, or an earlier version.
        """
        try:
            said = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{folder / FACTS} cannot be read ({error}): this model was not registered by this version of "
                "lorasweep; promote it again"
            ) from None
        for split in ("test", "validation"):
            said[split] = [Score(**score) for score in said[split]]
        return cls(**said)


def gather(
    model: str, candidate: Candidate, settings: dict[str, Any], test: list[Score], validation: list[Score]
) -> Facts:
    """The facts of a candidate that was packed with these settings (`registry_package.build`)."""
    config, recorded = candidate.config, candidate.recorded
    counts = {key.partition("/")[2]: int(n) for key, n in recorded.metrics.items() if key.startswith("parameters/")}
    groups = ("adapter", "quantization", "optimizer", "train", "data", "task")
    return Facts(
        model=model,
        sweep=candidate.sweep,
        trial=candidate.record.trial,
        run_id=candidate.record.run_id,
        base=config.model.path,
        base_revision=settings["base_revision"],
        base_on_hub=bool(settings["base_model"]) and not Path(settings["base_model"]).is_absolute(),
        base_packed=settings["base_model"] is None,
        labels=list(candidate.label_names),
        paired=candidate.test.pairs is not None,
        settings={group: asdict(getattr(config, group)) for group in groups},
        data={
            **{key: recorded.data[key] for key in ("source", "train_rows", "validation_rows", "fingerprint")},
            "test_rows": len(candidate.test),
            "test_fingerprint": candidate.test.fingerprint(),
            "hub_id": config.data.hub_id if config.data.kind == "hub" else None,
        },
        test=test,
        validation=validation,
        parameters=counts,
        provenance={
            key.removeprefix("lorasweep."): text for key, text in recorded.tags.items() if key.startswith(PROVENANCE)
        },
    )


def body(facts: Facts) -> str:
    """The card in markdown, without a title."""
    return "\n\n".join(
        [_what(facts), _scores(facts), _data(facts), _training(facts), _limits(facts), _provenance(facts)]
    )


def description(facts: Facts) -> str:
    """The card for MLflow's page, within what its databases hold."""
    text = body(facts)
    cut = text[:DESCRIPTION_CHARACTERS].rpartition("\n")[0]
    return text if len(text) <= DESCRIPTION_CHARACTERS else f"{cut}\n\n… (the whole card is README.md of the model)"


def _what(facts: Facts) -> str:
    trained = {"lora": "A LoRA adapter over", "head": "A classification head over", "full": "A full fine-tuning of"}
    revision = f" at revision `{facts.base_revision}`" if facts.base_revision else ""
    rows = "pairs of texts" if facts.paired else "texts"
    labels = ", ".join(f"`{label}`" for label in facts.labels[:SHOWN_LABELS])
    more = f" and {len(facts.labels) - SHOWN_LABELS} more" if len(facts.labels) > SHOWN_LABELS else ""
    return (
        f"{trained[facts.kind]} `{facts.base}`{revision} that sorts {rows} into {len(facts.labels)} classes: "
        f"{labels}{more}. Trial {facts.trial} of the lorasweep sweep `{facts.sweep}`."
    )


def _scores(facts: Facts) -> str:
    validation = {score.name: score for score in facts.validation}
    lines = ["## Metrics", "", "| | test | validation |", "|---|---|---|"]
    for score in facts.test:
        name = score.name.rpartition("/")[2]
        lines.append(f"| {name} | {score} | {validation.get(f'eval/{name}', '-')} |")
    rows = facts.data
    lines += [
        "",
        f"Test: {rows['test_rows']:,} rows that no part of the search had seen, scored once, at promotion. Validation: "
        f"{rows['validation_rows']:,} rows by which the trial and its checkpoint were chosen, so that these values "
        "flatter. In brackets: 95% intervals over the rows.",
    ]
    return "\n".join(lines)


def _data(facts: Facts) -> str:
    data = facts.data
    return (
        f"## Data\n\n{data['source']}: {data['train_rows']:,} rows to train on, {data['validation_rows']:,} to "
        f"validate, {data['test_rows']:,} to test. Fingerprint (sha256 of train, validation and class names): "
        f"`{data['fingerprint']}`; of the test rows: `{data['test_fingerprint']}`."
    )


def _training(facts: Facts) -> str:
    shown = {
        "adapter": ("kind", *(("r", "alpha", "dropout", "targets", "layers", "bias") if facts.kind == "lora" else ())),
        "quantization": ("kind",),
        "optimizer": ("lr", "weight_decay", "schedule", "warmup_steps", "warmup_ratio", "max_grad_norm"),
        "train": ("batch_size", "accumulation", "max_steps", "epochs", "precision", "seed"),
        "data": ("max_length",),
    }
    lines = [f"| `{group}.{key}` | {facts.settings[group][key]} |" for group, keys in shown.items() for key in keys]
    counts = facts.parameters
    if counts:
        share = 100 * counts["trainable"] / max(1, counts["total"])
        lines.append(f"| trained parameters | {counts['trainable']:,} of {counts['total']:,} ({share:.2f}%) |")
    return "## Training\n\n| setting | value |\n|---|---|\n" + "\n".join(lines)


def _limits(facts: Facts) -> str:
    length = facts.settings["data"]["max_length"]
    limits = [
        "It answers with one of its classes, whatever the text is about; a text unlike those of its data gets a "
        "confident answer all the same.",
        f"A text is cut to {length} tokens; what comes after has no influence.",
        "The metrics hold for rows drawn like the test rows. Nothing here was measured on other sources, languages or "
        "groups of people.",
        "Probabilities are the softmax of its logits and are not calibrated.",
    ]
    if facts.settings["quantization"]["kind"] != "none":
        limits.append("It was trained over 4-bit weights of its base; over others its answers differ a little.")
    if not facts.base_on_hub and facts.kind != "full":
        limits.append("Its base is not on the hub under the name above; nothing but these very weights will do.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _provenance(facts: Facts) -> str:
    lines = [f"| {key} | `{value}` |" for key, value in sorted(facts.provenance.items())]
    return "## Provenance\n\n| | |\n|---|---|\n" + "\n".join([f"| MLflow run | `{facts.run_id}` |", *lines])
