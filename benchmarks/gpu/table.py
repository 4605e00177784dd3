"""results.json as a page that people read. Neighbour: `cells`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

GIB = 2**30


def write_table(results: dict[str, Any], path: Path) -> None:
    """One section a cell: speeds and ratios, memory against its estimate, what bounds a step, CUDA graphs."""
    machine = results["machine"]
    lines = [
        "# lorasweep on a GPU, measured",
        "",
        f"{machine['device']}, {machine['memory_bytes'] / GIB:.0f} GiB; Python {machine['python']}, torch "
        f"{machine['torch']} (CUDA {machine['cuda']}), transformers {machine['transformers']}, peft {machine['peft']}. "
        f"Ceilings measured here: {machine['tflop_per_second']:.0f} TFLOP/s in bf16 products, "
        f"{machine['gigabytes_per_second']:.0f} GB/s copied. Batch 8 a slot, rank 8 on all linear layers; medians of "
        "interleaved rounds; `make gpu` makes this page.",
    ]
    for cell in results["cells"]:
        lines += ["", f"## {cell['name']}", "", *_speeds(cell), "", *_bounds(cell), *_graphs(cell)]
        if cell["forwards_were_cut"]:
            lines.append("Memory ran out in between: forwards were cut, so that the largest packs are slower.")
    if results["dropped"]:
        lines += ["", "## Not measured", "", *(f"- {reason}" for reason in results["dropped"])]
    path.write_text("\n".join([*lines, ""]))


def _speeds(cell: dict[str, Any]) -> list[str]:
    rate = {way["name"]: way["samples_per_second"] for way in cell["ways"]}
    hand, trainer, one = rate["PEFT by hand"], rate["transformers.Trainer"], rate["lorasweep, 1 slots"]
    lines = [
        "| way | ms a step | samples/s | of Trainer | of by hand | of one slot | peak GiB | estimate GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in cell["ways"]:
        own, slots = way["samples_per_second"], way["name"].removeprefix("lorasweep, ").removesuffix(" slots")
        memory = [
            f"{cell['memory'][kind][slots] / GIB:.2f}" if cell["memory"][kind].get(slots) else ""
            for kind in ("measured", "estimate")
        ]
        lines.append(
            f"| {way['name']} | {way['step_seconds'] * 1e3:.1f} | {own:.1f} | {own / trainer:.2f}x | {own / hand:.2f}x "
            f"| {own / one:.2f}x | {memory[0]} | {memory[1]} |"
        )
    return lines


def _bounds(cell: dict[str, Any]) -> list[str]:
    lines = [
        "| a step of | launches | device busy | in products | in attention | elsewhere | of arithmetic | bound by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {name} | {bound['launches']} | {bound['busy']:.0%} | {bound['matmul_share']:.0%} "
        f"| {bound['attention_share']:.0%} | {bound['other_share']:.0%} | {bound['arithmetic']:.0%} "
        f"| {bound['verdict']} |"
        for name, bound in cell["bounds"].items()
    ]


def _graphs(cell: dict[str, Any]) -> list[str]:
    if not cell["graphs"]:
        return []
    lines = ["", "| forward and backward, one shape | launched, ms | CUDA graph, ms | gain |", "|---|---|---|---|"]
    for name, found in cell["graphs"].items():
        eager, graph = found["eager_seconds"], found["graph_seconds"]
        said = f"not captured: {found['why_not']} | " if graph is None else f"{graph * 1e3:.1f} | {eager / graph:.2f}x"
        lines.append(f"| {name} | {eager * 1e3:.1f} | {said} |")
    return lines
