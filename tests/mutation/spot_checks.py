"""`make mutants`: does a test notice each of the mistakes in `mutants`?

Every mutation gets a copy of src/ (links, but for the changed file) and a forked process in which its tests run with
that copy on the path; heavy libraries are imported once, before the forks. A mutant that survives, or whose text is no
longer in the source, ends this with exit code 1. Words: only mutants whose file's name holds one of them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("pytest", "hypothesis", "torch", "transformers", "peft", "mlflow", "optuna", "hydra", "scipy.stats", "sklearn")
SURVIVED, KILLED = 0, 1  # pytest's exit codes


def main(words: list[str]) -> int:
    """Print one line a mutant; the number of those that survived is the exit code's reason."""
    from mutants import MUTANTS

    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.file for word in words)]
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY:
        importlib.import_module(name)
    assert "lorasweep" not in sys.modules, "the copies must be what is imported"
    left = 0
    for mutant in chosen:
        source = ROOT / "src" / "lorasweep" / mutant.file
        text = source.read_text()
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="lorasweep-mutant-") as folder:
            if text.count(mutant.was) != 1:
                verdict = f"STALE: its text stands {text.count(mutant.was)} times in the file"
            else:
                code = _tried(Path(folder), mutant.file, text.replace(mutant.was, mutant.becomes), mutant.tests)
                verdict = {SURVIVED: "SURVIVED", KILLED: "killed"}.get(code, f"NO VERDICT: pytest ended with {code}")
                if verdict != "killed":
                    print((Path(folder) / "log").read_text()[-1500:])
        left += verdict != "killed"
        change = f"{' '.join(mutant.was.split())} -> {' '.join(mutant.becomes.split())}"
        print(f"{verdict:9} {time.monotonic() - began:5.1f} s  {mutant.file}: {change}  [{mutant.tests}]", flush=True)
    print(f"{len(chosen) - left} of {len(chosen)} mutants were killed")
    return int(left > 0)


def _tried(folder: Path, file: str, text: str, tests: str) -> int:
    """pytest's exit code over tests that see the changed file."""
    shutil.copytree(ROOT / "src", folder / "src", copy_function=os.link, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conf", "sweeps"):
        (folder / name).symlink_to(ROOT / name)
    changed = folder / "src" / "lorasweep" / file
    changed.unlink()  # a link to the original
    changed.write_text(text)
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        os.chdir(ROOT)
        os.environ["PYTHONPATH"] = str(folder / "src")
        sys.path.insert(0, str(folder / "src"))
        sys.dont_write_bytecode = True
        import pytest

        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = int(pytest.main([*shlex.split(tests), "-x", "-q", "-p", "no:cacheprovider"]))
        (folder / "log").write_text(said.getvalue())
        if code == KILLED and "error" in said.getvalue().splitlines()[-1]:
            code = 71  # a test that could not even begin has noticed nothing
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main(sys.argv[1:]))
