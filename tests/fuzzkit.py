"""Properties tried on made-up input: a few examples, always the same, with every run; thousands, new each time, by
`make torture`. What a user may see is one of our errors or an answer; anything else that is raised is a defect."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorasweep import cli
from lorasweep.refusal import OUR_MISTAKE

HEALTHY = list(HealthCheck)
QUICK = functools.partial(settings, deadline=None, derandomize=True, database=None, suppress_health_check=HEALTHY)
LONG = functools.partial(settings, deadline=None, database=None, suppress_health_check=HEALTHY)
Test = Callable[..., None]

# Text as attackers and accidents write it: traversal, names that systems reserve, what terminals and parsers act on.
NASTY = [
    "", " ", "..", ".", "../x", "a/../../x", "/etc/passwd", "\\\\host\\share", "C:\\x", "CON", "nul.txt", "a\nb",
    "a\rb", "a\0b", "\u202etxt.exe", "\u200b", "é", "e\u0301", "ﬁ", "💥", "\ud83d", "x" * 300, "é" * 120, "-x",
    "--json", "~", "~root", "~nosuchuser/x", "$HOME", "${oc.env:HOME}", "${x}", "???", "null", "true", "nan", "1e999",
    "*", "a;b", "a|b", "`id`", "$(id)", "<script>alert(1)</script>", "'", '"', "a=b", "a,b", "[", "{", "%s", "%00",
    "{0}", "\x1b[31m", "train", "sweeps", "latest", "v1",
]  # fmt: skip
nasty = st.one_of(st.sampled_from(NASTY), st.text(max_size=20))


def both(few: int, many: int, **strategies: st.SearchStrategy) -> Callable[[Test], tuple[Test, Test]]:
    """(the quick test, the long one) of a property."""

    def tests(holds: Test) -> tuple[Test, Test]:
        quick = QUICK(max_examples=few)(given(**strategies)(holds))
        long = pytest.mark.torture(LONG(max_examples=many)(given(**strategies)(holds)))
        return quick, long

    return tests


def run(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command that ended as commands do: no traceback, one of the
    documented exit codes, and one screen of error where it failed."""
    capsys.readouterr()
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    assert code in (0, 1, 2), (words, code)
    assert "Traceback" not in err, err
    assert OUR_MISTAKE not in err, err
    if code == 2:
        assert err.startswith("lorasweep: ") or "\nlorasweep: " in err or "usage: " in err, err
        assert len(err.splitlines()) < 40, err
    return code, out, err


def no_secret(found: Any, secret: str) -> bool:
    """Whether a text, or bytes, lack a secret."""
    return secret not in found if isinstance(found, str) else secret.encode() not in found
