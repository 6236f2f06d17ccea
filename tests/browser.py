"""Headless Chromium for tests, driven over its DevTools pipe: no driver to install, no waiting by
the clock."""

import base64
import json
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Page:
    """One tab; ``requests`` are the addresses it has asked for, ``errors`` its exceptions."""

    def __init__(self, to_browser, from_browser, width: int, height: int) -> None:
        self._to, self._from, self._count, self._session = to_browser, from_browser, 0, {}
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def send(self, method: str, **params: object) -> dict:
        """Calls a DevTools method and waits for its result."""
        self._count += 1
        call = {"id": self._count, "method": method, "params": params} | self._session
        self._to.write(json.dumps(call).encode() + b"\0")
        self._to.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            elif answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"]))
            elif answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> bytes:
        message = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            message += byte
        return bytes(message)

    def open(self, path: Path) -> None:
        self.send("Page.navigate", url=path.resolve().as_uri())

    def evaluate(self, expression: str) -> object:
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while self.evaluate(expression) is not True:
            assert time.monotonic() < end, f"never true: {expression}; {self.errors}"
            time.sleep(0.05)

    def mouse(self, kind: str, x: int, y: int) -> None:
        """``Pressed``, ``Moved`` or ``Released``, the left button."""
        button = {"button": "left", "buttons": 1, "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **button)

    def screenshot(self) -> np.ndarray:
        """(H, W, 3) uint8 BGR."""
        data = base64.b64decode(self.send("Page.captureScreenshot")["data"])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


@contextmanager
def chromium_page(profile: Path, width: int = 200, height: int = 150):
    """A tab of a headless Chromium with WebGL in software; skips where no Chromium is installed."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium here (looked for {', '.join(NAMES)})")
    command = [
        "sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", program,
        "--headless", "--no-sandbox", "--disable-dev-shm-usage", "--remote-debugging-pipe",
        "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run",
        f"--user-data-dir={profile}",
    ]  # fmt: skip
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as process:
        alarm = threading.Timer(180, process.kill)  # one that never answers would be waited for
        alarm.start()
        try:
            yield Page(process.stdin, process.stdout, width, height)
        finally:
            alarm.cancel()
            process.kill()
