"""A headless Chromium for tests: Debian's package, spoken to over its debugging pipe, which needs no further library.

Messages are JSON, each ended by a zero byte (the DevTools protocol, https://chromedevtools.github.io/devtools-protocol).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "needs a browser: apt-get install chromium (Debian), or a chromium or google-chrome on PATH"
OFF = ("gpu", "quic", "background-networking", "component-update", "sync", "extensions", "default-apps")
# software rendering, for what draws through WebGL
SWITCHES = ["--headless=new", "--no-sandbox", "--no-first-run", "--mute-audio", "--hide-scrollbars",
            "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # fmt: skip
# Chromium reads messages on descriptor 3 and writes on 4; ours may have these very numbers, so they move away first
ON_3_AND_4 = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Chromium:
    """One browser with one page of `width` x `height` dots. Use as a context."""

    def __init__(self, profile: Path, width: int = 1600, height: int = 1000):
        assert FOUND is not None, MISSING
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        words = [FOUND, *SWITCHES, *(f"--disable-{name}" for name in OFF), f"--user-data-dir={profile}"]
        words += [f"--window-size={width},{height}", "--remote-debugging-pipe", "about:blank"]
        start = [sys.executable, "-c", ON_3_AND_4, str(read), str(write), *words]
        with profile.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(start, pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=log)
        os.close(read)
        os.close(write)
        self._count, self._buffer, self._session = 0, b"", ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()  # nothing of its profile is needed again
        self.process.wait(timeout=30)
        os.close(self._in)
        os.close(self._out)

    def open(self, url: str) -> None:
        """Go to an address; returns once the page was asked for."""
        self._call("Page.navigate", url="about:blank")  # else a new fragment of the same page would load nothing
        self._call("Page.navigate", url=url)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        found = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 90) -> Any:
        """The value of an expression once it is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.ask(expression):
                return value
            time.sleep(0.2)
        raise AssertionError(f"{expression} did not become true; the page says:\n{self.text()[:3000]}")

    def wait_for(self, *texts: str, seconds: float = 90) -> str:
        """The page's text, once all of these stand in it."""
        self.wait(f"{json.dumps(texts)}.every((text) => (document.body?.innerText ?? '').includes(text))", seconds)
        return self.text()

    def text(self) -> str:
        """What a reader sees of the page."""
        return str(self.ask("document.body ? document.body.innerText : ''"))

    def click(self, selector: str) -> None:
        """A real click in the middle of the first element that a CSS selector finds."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"{element} !== null")
        x, y = self.ask(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def shoot(self, path: Path, whole: bool = False) -> Path:
        """A screenshot as PNG; `whole`: of the page to its end."""
        data = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 120
        while True:
            answer = json.loads(self._read(deadline))
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _read(self, deadline: float) -> bytes:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._in, 1 << 16) if ready else b""
            assert part, (
                "Chromium does not answer" if not ready else "Chromium has ended; see its log beside the profile"
            )
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return message
