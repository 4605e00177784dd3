"""MLflow: runs, metrics, artifacts, and the page that people browse. `tracker` is what a worker talks to."""
