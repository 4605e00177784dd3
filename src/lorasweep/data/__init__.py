"""Rows in, tokens out: where examples come from (`sources`) and how they are tokenised and cached (`encode`).

Neighbours: `config.schema.DataConfig` above, `tasks` and `training` below. Nothing here touches a model.
"""
