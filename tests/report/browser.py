"""A headless Chromium, driven over a pipe by its DevTools protocol; needs nothing but the browser."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

#: Where ``.ci/run`` puts axe-core and the Nu validator.
_MODULES = Path(__file__).parents[2] / "build" / "page" / "node_modules"
AXE = _MODULES / "axe-core" / "axe.min.js"
VNU = _MODULES / "vnu-jar" / "build" / "dist" / "vnu.jar"

#: Chromium is slow to start on a machine that does other things.
_PATIENCE = 60.0


class Page:
    """A page that is open."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._rest, self._sent, self._session = b"", 0, ""
        #: What the console and the browser's log said, exceptions included, and every address that was asked for.
        self.messages: list[str] = []
        self.requests: list[str] = []

    def open(self, page: Path | str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a file or an address in a window of this size."""
        if not self._session:
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        address = page if isinstance(page, str) else page.as_uri()
        self.send("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.protocol === '{urlsplit(address).scheme}:'")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while not self.run(condition):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.05)

    def run(self, expression: str) -> Any:
        """The value of an expression."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def choose(self, select: str, value: str) -> None:
        """Chooses a value of a ``select`` element."""
        element = f"document.getElementById({select!r})"
        self.run(f"{element}.value = {value!r}; {element}.dispatchEvent(new Event('change'))")

    def click(self, x: float, y: float) -> None:
        """Clicks at a point of the window, which is scrolled as it is."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Presses and lets go of a key."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
        self.send("Input.dispatchKeyEvent", type="keyDown", **event)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._read, 1 << 16)
            assert chunk, "the browser ended"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled":
            self.messages.append(f"{params['type']}: {[argument.get('value') for argument in params['args']]}")
        elif event == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(params["exceptionDetails"]))
        elif event == "Log.entryAdded":
            self.messages.append(f"{params['entry']['level']}: {params['entry']['text']}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with a profile of its own, ended in any case."""
    assert CHROMIUM is not None
    to_browser, from_browser = os.pipe(), os.pipe()
    # out of the way of 3 and 4, where the browser looks for them
    descriptors = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 20) for descriptor in (to_browser[0], from_browser[1])]
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--remote-debugging-pipe", f"--user-data-dir={profile}"]  # fmt: skip
    wrapped = ["bash", "-c", f'exec "$@" 3<&{descriptors[0]} 4>&{descriptors[1]}', "bash", *command]
    process = subprocess.Popen(wrapped, pass_fds=descriptors, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for descriptor in (to_browser[0], from_browser[1], *descriptors):
        os.close(descriptor)
    try:
        yield Page(from_browser[0], to_browser[1])
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser[0])
        os.close(to_browser[1])
