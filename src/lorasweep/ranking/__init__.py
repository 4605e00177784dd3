"""The ranked trials of a sweep: rows, ties, selection, and the table in the terminal."""
