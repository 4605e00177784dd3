"""Bases, their adapters and the tiny bases that ship with us."""
