"""The model registry: the gate that a trial passes, its packaging, its proof, and what serves it."""
