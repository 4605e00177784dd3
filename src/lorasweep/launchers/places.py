"""How this machine is shared out among workers: a GPU each, or a group of cores each. Pure.

A worker sees its own share and nothing of its neighbours': its GPU is the only one in its environment, its cores are
the only ones that the kernel gives it. Neighbour: `local`, which starts workers on these places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorasweep.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """`gpu`: what CUDA_VISIBLE_DEVICES is to name, None: left as it is; `cores`: those that the worker may use, empty:
    as this process; `threads`: how many CPU threads it gets."""

    gpu: str | None
    cores: tuple[int, ...]
    threads: int

    @property
    def words(self) -> str:
        """The place for people."""
        if self.gpu is not None:
            return f"GPU {self.gpu}"
        return f"core{'s' * (len(self.cores) > 1)} {spans(self.cores)}" if self.cores else "all cores"


def share_out(workers: int, device: str, gpus: Sequence[str], cores: Sequence[int], threads: int | None) -> list[Place]:
    """A place for each of so many workers. `device` is `launcher.device`, `gpus` names those that this process sees,
    `cores` those that it may use; `threads` is `launcher.threads`.

    Raises:
        ConfigError: more workers than GPUs, or several on one named device.
    """
    if device == "cuda" or (device == "auto" and gpus):
        if workers > len(gpus):
            raise ConfigError(
                f"`launcher.workers`={workers} and this machine has {len(gpus)} GPUs: each worker takes one for "
                "itself, because trials share a GPU better as slots of one worker; use "
                f"launcher.workers={max(1, len(gpus))} with launcher.slots=auto, or launcher.device=cpu"
            )
        return [Place(gpus[index], (), threads or max(1, len(cores) // workers)) for index in range(workers)]
    if device.startswith("cuda:"):
        raise ConfigError(
            f"`launcher.device`={device} names one GPU for `launcher.workers`={workers}; use launcher.device=cuda, and "
            "choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    found = []
    for index in range(workers):
        first, end = index * len(cores) // workers, (index + 1) * len(cores) // workers
        own = tuple(cores[first:end]) or (cores[index % len(cores)],)
        found.append(Place(None, own, threads or len(own)))
    return found


def spans(numbers: Sequence[int]) -> str:
    """`0-3, 8` for 0, 1, 2, 3, 8."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in found)
