"""What a model is asked to do with a row: `make_task` picks the task that the config names.

docs/adding.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Callable

from lorasweep.config.schema import Config
from lorasweep.tasks.answering import Answering
from lorasweep.tasks.base import Answers, Exam, Sitting, Task
from lorasweep.tasks.classify import Classify
from lorasweep.tasks.extract import Extract
from lorasweep.tasks.instruct import Instruct

__all__ = ["Answers", "Classify", "Exam", "Sitting", "Task", "make_task"]

MAKERS: dict[str, Callable[[Config, list[str]], Task]] = {  # task.kind -> its maker
    "classify": lambda config, label_names: Classify(config.task, label_names),
    "instruct": Instruct,
    "qa": lambda config, label_names: (Extract if config.task.predict == "extract" else Answering)(config, label_names),
}


def make_task(config: Config, label_names: list[str]) -> Task:
    """The task of `config.task`, for these classes; ConfigError where its settings do not fit them."""
    return MAKERS[config.task.kind](config, label_names)
