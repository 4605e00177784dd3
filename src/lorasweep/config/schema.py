"""The one account of every setting: its type, default, unit, bounds and meaning.

`compose` merges the YAML groups of conf/ over these dataclasses, so a wrong key or type fails there; `checks`
reads the bounds from the same fields. Past composition all code takes these types, never a DictConfig.
Neighbours: `compose` (builds them), `checks` (cross-field rules), docs/config.md (generated from here).
"""

# ruff: noqa: RUF009  (`option` is dataclasses.field with a doc)

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lorasweep.config.option import option
from lorasweep.config.running import LauncherConfig, ScaleConfig, TrackingConfig


@dataclass
class BagConfig:
    """A bag of words under a classic classifier; for model.kind=bag_of_words alone."""

    classifier: str = option(
        "logistic", "logistic: regression with an l2 penalty; forest: a random forest", choices=("logistic", "forest")
    )
    weighting: str = option(
        "tfidf",
        "what a word counts: tfidf (term frequency, inverse document frequency), counts or binary (0 or 1)",
        choices=("tfidf", "counts", "binary"),
    )
    clean: bool = option(True, "leave out HTML tags, digits and punctuation; texts are lower-cased either way")
    stop_words: bool = option(False, "leave out scikit-learn's list of frequent English words")
    ngrams: int = option(1, "words in the longest run that counts as one", at_least=1, at_most=5)
    min_rows: int = option(1, "training rows that a word must stand in", above=0)
    max_features: int | None = option(None, "keep only the N most frequent words; null: all", above=0)
    c: float = option(1.0, "logistic: inverse of the penalty's strength", above=0)
    trees: int = option(100, "forest: number of trees", above=0)
    depth: int | None = option(None, "forest: levels of a tree; null: until leaves are pure", above=0)
    min_leaf_rows: int = option(1, "forest: training rows that a leaf must hold", above=0)


@dataclass
class ModelConfig:
    """Which pretrained base the trials share, or which baseline stands in its place. Group `model`."""

    kind: str = option(
        "transformer",
        "transformer: a pretrained base; bag_of_words, majority: baselines without one, fitted on the training rows "
        "(the most frequent class wherever it stands), for which adapter, quantization, optimizer and train do nothing "
        "but train.seed",
        choices=("transformer", "bag_of_words", "majority"),
    )
    bag: BagConfig = field(default_factory=BagConfig, metadata={"doc": "bag_of_words: its settings"})
    name: str = option("", "short name shown in leaderboards; empty: the last part of `path`")
    path: str = option("", "a Hugging Face hub id, a local directory, or `builtin:NAME` for a base that ships with us")
    revision: str | None = option(None, "hub revision (branch, tag or commit); null: the default branch")
    family: str = option(
        "",
        "architecture, as config.json's model_type; scale=smoke needs it where folder and name do not tell it",
    )
    has_head: bool = option(
        False, "the checkpoint has a classification head of its own; scale=smoke then builds one with its small base"
    )
    trust_remote_code: bool = option(False, "run Python code that comes with the checkpoint; off unless you ask")


@dataclass
class QuantizationConfig:
    """How the frozen base is stored. Group `quantization`."""

    kind: str = option("none", "none, or nf4 (bitsandbytes 4-bit NormalFloat, as in QLoRA)", choices=("none", "nf4"))
    double_quant: bool = option(False, "quantize the quantization constants too (QLoRA section 3)")


@dataclass
class AdapterConfig:
    """What is trained on top of the base. Group `adapter`."""

    kind: str = option(
        "lora",
        "lora; head: the classification head alone, other adapter settings do not apply; full: every parameter; none: "
        "nothing, the pretrained model as it is (zero-shot), evaluated once",
        choices=("lora", "head", "full", "none"),
    )
    r: int = option(8, "rank of the LoRA update", above=0)
    alpha: float = option(16.0, "LoRA scale numerator: updates are scaled by alpha / r", above=0)
    dropout: float = option(0.0, "dropout on the adapter's input", at_least=0, below=1)
    targets: Any = option("all-linear", "`all-linear` (without the head) or a list of module name endings")
    layers: Any = option(None, "null: all; an integer N: the top N layers; a list: those layer indexes")
    bias: str = option(
        "none", "biases trained beside the adapter, as PEFT's `bias`", choices=("none", "lora_only", "all")
    )
    modules_to_save: list[str] = option(
        [], "endings of further linear modules (nn.Linear, not 4-bit) trained whole, as the head is; PEFT's name for it"
    )
    rslora: bool = option(False, "scale by alpha / sqrt(r) (rank-stabilised LoRA, arXiv:2312.03732)")


@dataclass
class DataConfig:
    """Rows to train, validate and (at promotion alone) test on. Group `data`."""

    kind: str = option("demo_reviews", "where rows come from", choices=("demo_reviews", "demo_qa", "hub", "file"))
    train: str | None = option(None, "file: path of the training rows; hub: name of the split")
    validation: str | None = option(None, "file or split that the search evaluates on; null: carved from train")
    test: str | None = option(None, "file or split scored at promotion alone; null: see `test_fraction`")
    hub_id: str | None = option(None, "hub: data set id, for example stanfordnlp/imdb")
    hub_config: str | None = option(None, "hub: configuration (subset) name; null: the only one")
    hub_revision: str | None = option(None, "hub: revision; null: the default branch")
    text_column: str = option("text", "column of the text, or of the first text of a pair")
    pair_column: str | None = option(None, "column of the second text of a pair (a question's context); null: none")
    label_column: str = option("label", "column of the label")
    answers_column: str | None = option(
        None,
        "column of a question's answers, as SQuAD has them ({text: [...], answer_start: [...]}; none: unanswerable), "
        "or one answer as text; rows are then labelled answerable or unanswerable. Needed by task=qa",
    )
    instruction_column: str | None = option(
        None, "column of a row's own instruction, for task=instruct; null: `task.instruction`"
    )
    output_column: str | None = option(
        None, "column of a free response, for task=instruct; rows then have no label; null: the label is the response"
    )
    label_names: list[str] = option(
        [], "names of the classes in the order of their ids; empty: found in the training rows, sorted"
    )
    delimiter: str | None = option(None, "csv and tsv: column separator; null: by file ending")
    quoting: str = option(
        "auto", "csv and tsv: auto (csv: quoted, tsv: plain), minimal or none", choices=("auto", "minimal", "none")
    )
    drop_empty: bool = option(False, "leave out rows with an empty text, pair or label; false: they are an error")
    max_length: int = option(128, "tokens a row is cut to", above=1)
    validation_fraction: float = option(
        0.1, "share of train carved, stratified, where there is no validation", above=0, below=1
    )
    test_fraction: float | None = option(
        None,
        "share of train set aside where there is no test; null: 0.1 where validation is missing too, else 0",
        at_least=0,
        below=1,
    )
    split_seed: int = option(0, "seed of the carving", at_least=0)
    max_train_rows: int | None = option(None, "use only N training rows, drawn by `split_seed`", above=0)
    max_eval_rows: int | None = option(
        None, "use only N rows of validation and of test, drawn by `split_seed`", above=0
    )
    classes: int = option(
        2, "demo_reviews: 2 (negative, positive), 3 (also neutral) or 4 (also mixed)", at_least=2, at_most=4
    )
    demo_rows: int = option(
        2400, "demo: training rows to generate; validation and test have a quarter each", above=0, at_most=1_000_000
    )
    demo_seed: int = option(0, "demo: seed of the generator", at_least=0)


@dataclass
class TaskConfig:
    """What the model is asked to do with a row. Group `task`."""

    kind: str = option(
        "classify",
        "classify: a head over the pooled row; instruct: a causal language model is prompted and responds; qa: "
        "questions on contexts, by a causal language model or by an encoder that marks the answer",
        choices=("classify", "instruct", "qa"),
    )
    average: str = option(
        "macro", "averaging of precision, recall and F1 over classes", choices=("macro", "weighted", "binary")
    )
    predict: str = option(
        "score",
        "how an evaluation predicts. instruct: score (the class whose response is likeliest), generate (greedy "
        "decoding, read strictly) or none (loss alone); qa: generate, or extract (an encoder's start and end)",
        choices=("score", "generate", "extract", "none"),
    )
    template: str = option(
        "alpaca",
        "prompt of instruct and of generated answers: alpaca, plain or question, or a text with the slots {input} (or "
        "{text} and {pair}, {question} and {context}), {instruction}, {labels}",
    )
    template_without_input: str = option(
        "", "prompt of rows whose input is empty, where `template` is a text; empty: `template`"
    )
    instruction: str = option(
        "", "what the model is told to do, where no column says it; empty: to name one of the classes, or to answer"
    )
    verbalizer: Any = option(
        None,
        "label name -> the response that stands for it, as in {negative: bad, positive: good}; null: the name itself",
    )
    score: str = option(
        "sum", "predict=score: a response's log-likelihood, summed or the mean of its tokens", choices=("sum", "mean")
    )
    score_end: bool = option(
        True, "predict=score: a response's end-of-text token counts too, so that no response is part of another"
    )
    max_new_tokens: int = option(32, "predict=generate: tokens of a response, at most", above=0)
    no_answer: str = option("unanswerable", "qa: the response that says that there is no answer")
    no_answer_threshold: float = option(
        1.0, "qa: a probability of no answer above this one counts as none given", at_least=0, at_most=1
    )
    text_metrics: bool = option(True, "BLEU, ROUGE and METEOR of generated and extracted texts, too")
    stride: int = option(64, "predict=extract: tokens that neighbouring windows of a long context share", at_least=0)
    max_answer_tokens: int = option(30, "predict=extract: tokens of an answer, at most", above=0)
    n_best: int = option(20, "predict=extract: starts and ends that are combined, the best so many of each", above=0)


@dataclass
class OptimizerConfig:
    """AdamW, its schedule and its clipping. Group `optimizer`."""

    kind: str = option(
        "adamw",
        "adamw; adamw8bit: the same, with the moments of adapter=full in 8 bits (bitsandbytes, arXiv:2110.02861): a "
        "quarter of their memory. Adapters are small and keep theirs in 32 bits",
        choices=("adamw", "adamw8bit"),
    )
    lr: float = option(1e-3, "peak learning rate", above=0)
    weight_decay: float = option(0.0, "decoupled weight decay; biases are never decayed", at_least=0)
    beta1: float = option(0.9, "decay of the first moment", at_least=0, below=1)
    beta2: float = option(0.999, "decay of the second moment", at_least=0, below=1)
    eps: float = option(1e-8, "added to the root of the second moment", above=0)
    schedule: str = option("linear", "shape of the learning rate", choices=("linear", "cosine", "constant"))
    warmup_steps: int = option(0, "optimizer steps of linear warm-up; wins over `warmup_ratio` when > 0", at_least=0)
    warmup_ratio: float = option(0.0, "share of all steps spent in warm-up", at_least=0, below=1)
    max_grad_norm: float = option(1.0, "global norm that gradients are clipped to; 0: no clipping", at_least=0)


@dataclass
class TrainConfig:
    """How long and how one trial trains. Group `train`."""

    batch_size: int = option(16, "rows in one micro-batch", above=0)
    accumulation: int = option(1, "micro-batches in one optimizer step", above=0)
    max_steps: int = option(0, "optimizer steps; 0: by `epochs`", at_least=0)
    epochs: float = option(1.0, "passes over the training rows where max_steps is 0", above=0)
    eval_every_steps: int = option(
        0, "optimizer steps between evaluations; 0: at the end alone. The end is always evaluated", at_least=0
    )
    eval_batch_size: int = option(64, "rows in one evaluation batch", above=0)
    early_stopping_evals: int = option(0, "stop after this many evaluations without a new best; 0: never", at_least=0)
    log_every_steps: int = option(10, "optimizer steps between train/* metric points", above=0)
    checkpoint_every_seconds: float = option(
        60.0, "seconds between checkpoints of running trials; they are also written as trials come and go", above=0
    )
    checkpoints_kept: int = option(
        2, "checkpoints of running trials kept on disk, the newest; the best adapter is in each of them", above=0
    )
    precision: str = option(
        "fp32", "fp32, bf16 or fp16 (mixed: adapters and moments stay fp32)", choices=("fp32", "bf16", "fp16")
    )
    activation_checkpointing: bool = option(False, "recompute activations in the backward pass to save memory")
    base_dropout: float | None = option(
        None,
        "dropout of the base's hidden states; null: the checkpoint's own rate. Attention's inner dropout is off",
        at_least=0,
        below=1,
    )
    seed: int = option(0, "seed of the adapter's start, the data order and dropout", at_least=0)


@dataclass
class SamplerConfig:
    """Who proposes the next point. Group `sampler`."""

    kind: str = option(
        "tpe",
        "Optuna's sampler; list: the points of sweep.enqueue and no others",
        choices=("tpe", "random", "grid", "qmc", "gp", "cmaes", "list"),
    )
    seed: int = option(0, "seed of the proposals", at_least=0)
    startup_trials: int = option(10, "tpe, gp, cmaes: random points before the model of the space is used", at_least=0)


@dataclass
class PrunerConfig:
    """Who stops a losing trial early: Optuna's pruners, with rungs in training samples seen. Group `pruner`."""

    kind: str = option(
        "none",
        "none: every trial trains to its end; asha: asynchronous successive halving; patience: against its own past",
        choices=("none", "asha", "hyperband", "median", "percentile", "wilcoxon", "patience", "threshold"),
    )
    min_samples: int = option(256, "asha, hyperband: training samples at the first rung", above=0)
    factor: int = option(
        4, "asha, hyperband: of the trials at a rung the best 1/factor go on, to factor times its samples", at_least=2
    )
    max_samples: int = option(
        4096,
        "hyperband: training samples of a trial that trains to its end; decides the number of brackets",
        above=0,
    )
    eval_rows: int = option(
        0,
        "validation rows that trials are judged by at their rungs, the same for all and evenly spread over the split; "
        "logged as `rung/...`, beside the evaluations over all rows; 0: all rows",
        at_least=0,
    )
    interval_samples: int = option(256, "all others: training samples from one rung to the next", above=0)
    warmup_samples: int = option(0, "all others: no rung before this many training samples", at_least=0)
    startup_trials: int = option(5, "median, percentile: complete trials before any is pruned", at_least=0)
    min_trials: int = option(1, "median, percentile: complete trials that a rung must have seen", above=0)
    percentile: float = option(25.0, "percentile: the best so many percent of trials go on", above=0, below=100)
    p_threshold: float = option(
        0.1, "wilcoxon: prune where the chance that it is no worse than the best trial is below", above=0, below=1
    )
    rows: int = option(1000, "wilcoxon: validation rows compared, at most", at_least=2)
    startup_rows: int = option(30, "wilcoxon: validation rows needed for a verdict", at_least=2)
    patience: int = option(3, "patience: rungs that a trial may go without a new best", at_least=0)
    min_delta: float = option(0.0, "patience: a new best must be better by more than this", at_least=0)
    lower: float | None = option(None, "threshold: prune where the objective falls below; null: no such bound")
    upper: float | None = option(None, "threshold: prune where the objective rises above; null: no such bound")


@dataclass
class ObjectiveConfig:
    """What a sweep looks for: one metric, named exactly as it is logged."""

    metric: str = option(
        "eval/accuracy",
        "name of a logged metric; auto, which conf/config.yaml says: the task's own, eval/accuracy, of task=qa eval/f1",
    )
    direction: str = option("maximize", "maximize or minimize", choices=("maximize", "minimize"))

    def problem(self, metrics: dict[str, float]) -> str | None:
        """Why these metrics of an evaluation have no value that could be ranked; None where they have."""
        value = metrics.get(self.metric)
        if value is not None and math.isfinite(value):
            return None
        said = f"is {value}" if value is not None else f"is not among those logged: {', '.join(sorted(metrics))}"
        return f"the objective {self.metric} {said}"


@dataclass
class FinalistsConfig:
    """The best trials, trained again at the end over fresh seeds: what looked best may have been lucky."""

    top: int = option(0, "how many of the best trials are repeated; 0: none", at_least=0)
    seeds: int = option(5, "fresh seeds for each of them; 1 gives no interval", above=0)


@dataclass
class SweepConfig:
    """What varies, how much of it, and what is best. The `sweep:` key of a file in sweeps/."""

    name: str = option("", "name of the study and of the MLflow experiment; the file's name where empty")
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig, metadata={"doc": "what is best"})
    objectives: list[ObjectiveConfig] = option(
        [],
        "several objectives, each {metric, direction}, instead of `objective`: the first ranks, the Pareto front is "
        "marked. Beside logged metrics: trainable_params, total_params, samples, train_seconds, cost, state_bytes",
    )
    constraints: list[str] = option(
        [], "what a trial must keep to be ranked, for example `trainable_params <= 300000`; names as in `objectives`"
    )
    trials: int = option(20, "budget: number of trials in all, however often the sweep is interrupted", above=0)
    timeout_seconds: float | None = option(None, "budget: no trial starts after this many seconds of sweep", above=0)
    total_samples: int | None = option(
        None, "budget: no trial starts once this many training samples were seen", above=0
    )
    target_value: float | None = option(
        None, "budget: no trial starts once a complete one has reached this value of the objective"
    )
    space: dict[str, Any] = option(
        {}, "override key -> values in Hydra's override grammar, for example interval(1e-4, 1e-2)"
    )
    enqueue: list[dict[str, Any]] = option([], "points to try first")
    finalists: FinalistsConfig = field(
        default_factory=FinalistsConfig,
        metadata={"doc": "the best trials repeated over fresh seeds, beside the budget and unknown to the sampler"},
    )
    max_failures: int = option(
        5, "stop the sweep after so many trials in a row have failed of one cause; 0: never", at_least=0
    )
    forked_from: str = option("", "the sweep that this one goes on from with changes; set by --fork")
    warm_start: list[str] = option(
        [], "earlier sweeps whose complete trials the sampler (tpe, gp, cmaes) starts from; shown and counted nowhere"
    )


@dataclass
class Config:
    """One trial, and how a sweep varies it. The first seven groups build a trial; the rest never change its numbers."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)


TRANSFORMER = "transformer"
TRIAL_GROUPS = ("model", "quantization", "adapter", "data", "task", "optimizer", "train")
GROUPS = (*TRIAL_GROUPS, "sampler", "pruner", "launcher", "tracking", "scale")
