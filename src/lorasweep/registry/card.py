"""The model card: what a registered or exported model is, how good it is, where it comes from, what it cannot do.

`Facts` are gathered once, at promotion, and travel with the model as card.json, so that an export says the same years
later; those of a trial that was never registered (`registry.trial`) lack a test split. Neighbours: `registry.promote`
(gathers them), `registry.export` (adds the hub's metadata), `registry.usage` (how to load and ask).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.errors import StorageError

if TYPE_CHECKING:
    from lorasweep.config.schema import Config
    from lorasweep.registry.candidate import Candidate
    from lorasweep.tracking.recorded import Recorded

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
    `settings`: group -> key -> value of the trial; `provenance`: a run's tags without their prefix; `test`: empty where
    it was never scored on a test split; `head`: as tasks have it; `asking`: of a causal model how it is prompted
    (`registry.trial.asking`)."""

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
    head: str = "classification"
    asking: dict[str, Any] = field(default_factory=dict)

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
    split = candidate.test
    found = untested(model, candidate.recorded, candidate.config, settings, validation)
    about_test = {"test_rows": len(split), "test_fingerprint": split.fingerprint()}
    names, paired = list(candidate.label_names), split.pairs is not None
    return replace(found, labels=names, paired=paired, test=test, data={**found.data, **about_test})


def untested(
    model: str, recorded: Recorded, config: Config, settings: dict[str, Any], validation: list[Score]
) -> Facts:
    """The facts of a trial without any test split; `settings`: its base_model and base_revision."""
    counts = {key.partition("/")[2]: int(n) for key, n in recorded.metrics.items() if key.startswith("parameters/")}
    groups = ("adapter", "quantization", "optimizer", "train", "data", "task")
    return Facts(
        model=model,
        sweep=recorded.sweep,
        trial=recorded.trial,
        run_id=recorded.run_id,
        base=config.model.path,
        base_revision=settings["base_revision"],
        base_on_hub=bool(settings["base_model"]) and not Path(settings["base_model"]).is_absolute(),
        base_packed=settings["base_model"] is None,
        labels=recorded.label_names,
        paired=config.data.pair_column is not None or config.data.kind == "demo_qa",
        settings={group: asdict(getattr(config, group)) for group in groups},
        data={
            **{key: recorded.data[key] for key in ("source", "train_rows", "validation_rows", "fingerprint")},
            "hub_id": config.data.hub_id if config.data.kind == "hub" else None,
        },
        test=[],
        validation=validation,
        parameters=counts,
        provenance={
            key.removeprefix("lorasweep."): text for key, text in recorded.tags.items() if key.startswith(PROVENANCE)
        },
    )


def body(facts: Facts) -> str:
    """The card in markdown, without a title."""
    parts = (_what, _prompt, _scores, _data, _training, _limits, _provenance)
    return "\n\n".join(text for part in parts if (text := part(facts)))


def description(facts: Facts) -> str:
    """The card for MLflow's page, within what its databases hold."""
    text = body(facts)
    cut = text[:DESCRIPTION_CHARACTERS].rpartition("\n")[0]
    return text if len(text) <= DESCRIPTION_CHARACTERS else f"{cut}\n\n… (the whole card is README.md of the model)"


def _what(facts: Facts) -> str:
    trained = {"lora": "A LoRA adapter over", "head": "A classification head over", "full": "A full fine-tuning of"}
    revision = f" at revision `{facts.base_revision}`" if facts.base_revision else ""
    return (
        f"{trained[facts.kind]} `{facts.base}`{revision} that {_does(facts)}. Trial {facts.trial} of the lorasweep "
        f"sweep `{facts.sweep}`."
    )


def _does(facts: Facts) -> str:
    if facts.settings["task"].get("kind") == "qa":
        if facts.head == "question_answering":
            return "reads a question with a context and marks the answer in it, or says that there is none"
        none = facts.settings["task"]["no_answer"]
        return f"reads a question with a context and writes the answer, or `{none}` where there is none"
    if facts.asking and not facts.asking["responses"]:
        return "responds to instructions"
    rows = "pairs of texts" if facts.paired else "texts"
    labels = ", ".join(f"`{label}`" for label in facts.labels[:SHOWN_LABELS])
    more = f" and {len(facts.labels) - SHOWN_LABELS} more" if len(facts.labels) > SHOWN_LABELS else ""
    return f"sorts {rows} into {len(facts.labels)} classes: {labels}{more}"


def _prompt(facts: Facts) -> str:
    if not facts.asking:
        return ""
    asking = facts.asking
    lines = ["## Prompt", "", f"````text\n{asking['prompt']}{asking['lead']}\n````"]
    if asking["prompt_without_input"]:
        lines += ["", "Where there is no text:", "", f"````text\n{asking['prompt_without_input']}\n````"]
    if asking["responses"]:
        lines += ["", "| class | response |", "|---|---|"]
        lines += [f"| {label} | {response} |" for label, response in asking["responses"].items()]
    return "\n".join(lines)


def _scores(facts: Facts) -> str:
    validation = {score.name: score for score in facts.validation}
    rows = facts.data
    chosen = (
        f"{rows['validation_rows']:,} rows by which the trial and its checkpoint were chosen, so that these values "
        "flatter. In brackets: 95% intervals over the rows."
    )
    if not facts.test:
        lines = ["## Metrics", "", "| | validation |", "|---|---|"]
        lines += [f"| {name.rpartition('/')[2]} | {score} |" for name, score in sorted(validation.items())]
        return "\n".join([*lines, "", f"It was not scored on a test split. Validation: {chosen}"])
    lines = ["## Metrics", "", "| | test | validation |", "|---|---|---|"]
    for score in facts.test:
        name = score.name.rpartition("/")[2]
        lines.append(f"| {name} | {score} | {validation.get(f'eval/{name}', '-')} |")
    tested = f"Test: {rows['test_rows']:,} rows that no part of the search had seen, scored once, at promotion."
    return "\n".join([*lines, "", f"{tested} Validation: {chosen}"])


def _data(facts: Facts) -> str:
    data = facts.data
    tested = f", {data['test_rows']:,} to test" if facts.test else ""
    of_test = f"; of the test rows: `{data['test_fingerprint']}`" if facts.test else ""
    return (
        f"## Data\n\n{data['source']}: {data['train_rows']:,} rows to train on, {data['validation_rows']:,} to "
        f"validate{tested}. Fingerprint (sha256 of train, validation and class names): `{data['fingerprint']}`"
        f"{of_test}."
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
    rows = "test rows" if facts.test else "validation rows"
    first = {
        "classification": [
            "It answers with one of its classes, whatever the text is about; a text unlike those of its data gets a "
            "confident answer all the same.",
            f"A text is cut to {length} tokens; what comes after has no influence.",
            "Probabilities are the softmax of its logits and are not calibrated.",
        ],
        "causal_lm": [
            "It was trained on the prompt above; what it writes after another one was never measured.",
            f"Rows of more than {length} tokens were cut in training and when they were scored.",
        ],
        "question_answering": [
            "It can only mark words of the context, and whether there is an answer depends on a threshold.",
            f"Contexts are read in windows of {length} tokens.",
        ],
    }
    limits = [
        *first[facts.head],
        f"The metrics hold for rows drawn like the {rows}. Nothing here was measured on other sources, languages or "
        "groups of people.",
    ]
    if facts.settings["quantization"]["kind"] != "none":
        limits.append("It was trained over 4-bit weights of its base; over others its answers differ a little.")
    if not facts.base_on_hub and facts.kind != "full":
        limits.append("Its base is not on the hub under the name above; nothing but these very weights will do.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _provenance(facts: Facts) -> str:
    lines = [f"| {key} | `{value}` |" for key, value in sorted(facts.provenance.items())]
    return "## Provenance\n\n| | |\n|---|---|\n" + "\n".join([f"| MLflow run | `{facts.run_id}` |", *lines])
