"""Before any library is imported: one thread for each test process (pytest runs two on two cores, and OpenMP threads
that wait for a core slow a step many times over), and no network."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
