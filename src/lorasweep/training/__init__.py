"""The one training loop: a pack of K >= 1 trials over one resident base."""
