"""Metrics as local `evaluate` modules: they need no network. Neighbours: `tasks` (who calls)."""
