"""Finds the tiny bases that ship with us, which `model.path=builtin:NAME` names.

They lie in models/bases/NAME as ordinary checkpoints (config.json, model.safetensors in fp16, tokenizer files);
`pretrain` makes them. Neighbours: `base` (loads what `resolve` points to). Standard library only.
"""

from __future__ import annotations

from pathlib import Path

from lorasweep.errors import ModelError, nearest

PREFIX = "builtin:"
FOLDER = Path(__file__).parent / "bases"
NAMES = ("tiny_encoder", "tiny_decoder", "tiny_gpt2")


def resolve(path: str) -> str:
    """`builtin:NAME`, and `smoke:FAMILY` of scale=smoke, as the folder of that base; any other path as it is.

    ModelError for a name that we do not ship, and for an installation that lacks its files.
    """
    if path.startswith("smoke:"):
        from lorasweep.models import smoke

        return smoke.resolve(path.removeprefix("smoke:"))
    if not path.startswith(PREFIX):
        return path
    name = path.removeprefix(PREFIX)
    if name not in NAMES:
        raise ModelError(f"model.path={path}: no base of that name ships with lorasweep; {nearest(name, NAMES)}")
    folder = FOLDER / name
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"model.path={path}: {folder} lacks model.safetensors; the installation is not whole. Reinstall lorasweep, "
            f"or rebuild the bases with `python -m lorasweep.models.pretrain {FOLDER}`"
        )
    return str(folder)
