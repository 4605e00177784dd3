"""lorasweep: hyperparameter sweeps over LoRA and QLoRA fine-tuning, many trials over one resident base."""

__version__ = "0.1.0"
