"""What bounds a way of training: kernel launches, arithmetic or memory traffic; and what a CUDA graph adds.

Neighbours: `ways` (what is profiled), `cells` (when).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from ways import ByHand, Packed, Way, wait

MATMULS = ("gemm", "cutlass", "nvjet", "xmma", "cublas", "gemv", "wgmma")
ATTENTION = ("flash", "fmha", "attention", "softmax")
COPIES = ("memcpy", "memset")
ANNOTATIONS = ("Optimizer.", "ProfilerStep", "##", "autograd::", "aten::")  # spans on the device's line, not work
BUSY_ENOUGH = 0.75  # below it the device waits for the host's launches
PROFILED_STEPS = 2


@dataclass
class Ceilings:
    """What the device can do: bf16 products of 8192 x 8192 matrices, a copy counted both ways."""

    tflop_per_second: float
    gigabytes_per_second: float


@dataclass
class Bound:
    """Where one step's time goes. device_seconds: all kernels together; busy: their share of the wall time; shares of
    the device's time; arithmetic: FLOP of the frozen products a second over the ceiling."""

    launches: int
    device_seconds: float
    busy: float
    matmul_share: float
    attention_share: float
    other_share: float
    arithmetic: float
    verdict: str

    def fields(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def median_seconds(work: Callable[[], Any], device: torch.device, times: int = 5) -> float:
    """Seconds of one call, the median of some after a warm one."""
    found = []
    for turn in range(times + 1):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        if turn:
            found.append(time.perf_counter() - started)
    return sorted(found)[len(found) // 2]


def measure_ceilings(device: torch.device) -> Ceilings:
    """Half a second on a large GPU."""
    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = median_seconds(lambda: a @ b, device)
    source = torch.zeros(size * size * 16, device=device, dtype=torch.uint8)  # 1 GiB
    copied = median_seconds(source.clone, device)
    return Ceilings(2 * size**3 / seconds / 1e12, 2 * source.numel() / copied / 1e9)


def find_bound(way: Way, seconds: float, flop: float, ceilings: Ceilings, device: torch.device) -> Bound:
    """Profile a few steps of a warm way. `seconds`: a step's wall time without the profiler; `flop`: its frozen
    products'."""
    cuda = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with profile(activities=kinds) as profiler:
        way.run(PROFILED_STEPS)
    times = {"matmul": 0.0, "attention": 0.0, "other": 0.0}
    launches = 0
    for event in profiler.events():
        if cuda:
            if event.device_type != torch.autograd.DeviceType.CUDA or event.name.startswith(ANNOTATIONS):
                continue
        elif not event.name.startswith("aten::"):
            continue
        launches += 1
        name = event.name.lower()
        kind = "matmul" if any(word in name for word in MATMULS) else "other"
        kind = "attention" if any(word in name for word in ATTENTION) else kind
        times[kind] += event.time_range.elapsed_us() / 1e6
    whole = max(sum(times.values()), 1e-12)
    busy, arithmetic = whole / PROFILED_STEPS / seconds, flop / seconds / 1e12 / ceilings.tflop_per_second
    shares = {kind: part / whole for kind, part in times.items()}
    return Bound(
        launches // PROFILED_STEPS,
        whole / PROFILED_STEPS,
        busy,
        shares["matmul"],
        shares["attention"],
        shares["other"],
        arithmetic,
        _verdict(busy, shares["matmul"] + shares["attention"]) if cuda else "not told on a CPU",
    )


def _verdict(busy: float, arithmetic_share: float) -> str:
    if busy < BUSY_ENOUGH:
        return "kernel launches (the device waits for the host)"
    return "arithmetic" if arithmetic_share > 0.5 else "memory traffic (elementwise kernels)"


# -- CUDA graphs -------------------------------------------------------------------------------------------------------


def graph_gain(work: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Seconds of one forward and backward of a fixed shape, launched as always and replayed as a CUDA graph."""
    eager = median_seconds(work, device)
    if device.type != "cuda":
        return {"eager_seconds": eager, "graph_seconds": None, "why_not": "CUDA graphs need a CUDA device"}
    try:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                work()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        replayed = median_seconds(graph.replay, device)
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        return {"eager_seconds": eager, "graph_seconds": None, "why_not": str(error).strip().split("\n")[0]}
    return {"eager_seconds": eager, "graph_seconds": replayed, "why_not": ""}


def hand_step(way: ByHand) -> Callable[[], None]:
    """Forward and backward by hand over one batch; gradients add up, as a graph needs them to lie still."""
    batch = next(way.batches)

    def work() -> None:
        way.forward_backward(batch)

    return work


def packed_step(packed: Packed, count: int) -> Callable[[], None]:
    """Forward and backward of `count` slots over one batch, without the loop: its losses are read by the host."""
    pack = packed.pack
    from lorasweep.models.stream import Segment

    rows = torch.arange(packed.batch_size)
    segments = [Segment(index, (rows + index * packed.batch_size) % len(pack.train)) for index in range(count)]
    batch = pack.base.batch(pack.train, segments)
    forward = pack.engine.forward(batch, [0] * count)

    def work() -> None:
        with pack.base.running(forward):
            logits = pack.base.logits(batch)
            pack.task.unit_losses(logits, batch.labels).sum().backward()

    return work
