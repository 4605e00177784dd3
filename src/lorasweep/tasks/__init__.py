"""What a model is asked to do with a row: `make_task` picks the task that the config names."""

from __future__ import annotations

from lorasweep.config.schema import Config
from lorasweep.tasks.answering import Answering
from lorasweep.tasks.base import Answers, Exam, Sitting, Task
from lorasweep.tasks.classify import Classify
from lorasweep.tasks.extract import Extract
from lorasweep.tasks.instruct import Instruct

__all__ = ["Answers", "Classify", "Exam", "Sitting", "Task", "make_task"]


def make_task(config: Config, label_names: list[str]) -> Task:
    """The task of `config.task`, for these classes; ConfigError where its settings do not fit them."""
    if config.task.kind == "instruct":
        return Instruct(config, label_names)
    if config.task.kind == "qa":
        return Extract(config, label_names) if config.task.predict == "extract" else Answering(config, label_names)
    return Classify(config.task, label_names)
