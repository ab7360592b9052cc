"""Who works on a trial: a lease in its folder, safe among any number of processes on any number of machines.

A lease is a numbered file, ``lease.000001``, created with O_EXCL, and only the highest number counts. To take over from
a holder that is gone is to create the next number, which exactly one process can do; nothing is ever removed from under
anybody. A holder checks that its number still is the highest before it publishes anything.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

from kd_bench.utils.files import write_atomic

#: Seconds between the signs of life that a holder gives, and after how many without one it counts as gone. They matter
#: between machines only: on one machine a holder is gone when its process is.
HEARTBEAT = 15.0
EXPIRY = 90.0

_GLOB = "lease.[0-9][0-9][0-9][0-9][0-9][0-9]"


@lru_cache(maxsize=1)
def _here() -> str:
    """This machine, this boot, and this process-id namespace: where a process id means the same process."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            parts.append(str(Path(path).readlink()) if path.endswith("/pid") else Path(path).read_text().strip())
    return "/".join(parts)


@dataclass(frozen=True)
class Holder:
    """Who holds, or held, a lease."""

    path: Path
    host: str
    here: str
    pid: int
    born: float
    token: str
    released: bool
    beat: float
    since: float = 0.0

    @property
    def number(self) -> int:
        """The lease's number."""
        return int(self.path.suffix[1:])

    @property
    def elsewhere(self) -> bool:
        """Whether it is on another machine, where one cannot see if its process runs."""
        return self.here != _here()


class Watch:
    """Tells whether leases are alive; remembers when it last saw a sign of life from other machines."""

    def __init__(self, expiry: float = EXPIRY) -> None:
        self._expiry = expiry
        self._seen: dict[tuple[str, str], tuple[float, float]] = {}

    def holder(self, folder: Path) -> Holder | None:
        """The live holder of a folder's lease; None where nobody works on it."""
        holder = latest(folder)
        return holder if holder and self._alive(holder) else None

    def _alive(self, holder: Holder) -> bool:
        if holder.released:
            return False
        if holder.here == _here():
            return _runs(holder.pid, holder.born)
        # Clocks of two machines may differ: what counts is how long ago, by our own clock, the sign of life changed.
        key = (str(holder.path), holder.token)
        now = time.monotonic()
        beat, since = self._seen.get(key, (None, now))
        if beat != holder.beat:
            since = now
        self._seen[key] = (holder.beat, since)
        return now - since < self._expiry


class Lease:
    """A lease that this process holds. Use ``claim`` to get one."""

    def __init__(self, path: Path, content: dict[str, object]) -> None:
        self.path, self._content = path, content

    def held(self) -> bool:
        """Whether it still is the folder's highest, hence ours."""
        current = latest(self.path.parent)
        return current is not None and current.token == self._content["token"]

    def beat(self) -> None:
        """Gives a sign of life."""
        with suppress(FileNotFoundError):
            os.utime(self.path)

    def release(self, finished: bool) -> None:
        """Gives it up: without trace where the trial is finished, else marked so that the next need not wait."""
        if not self.held():
            return
        if finished:
            for path in sorted(self.path.parent.glob(_GLOB)):
                path.unlink(missing_ok=True)
        else:
            write_atomic(self.path, json.dumps(self._content | {"released": True}))


def claim(folder: Path, watch: Watch) -> Lease | None:
    """Takes the lease of a folder; None where a live process holds it, or took it in this moment."""
    current = latest(folder)
    if current and watch._alive(current):
        return None
    number = current.number + 1 if current else 1
    path = folder / f"lease.{number:06d}"
    content: dict[str, object] = {
        "host": socket.gethostname(),
        "here": _here(),
        "pid": os.getpid(),
        "born": psutil.Process().create_time(),
        "token": secrets.token_hex(8),
        "since": time.time(),
        "released": False,
    }
    # Filled under another name and linked: the file is there whole or not at all, and only one process can link it.
    draft = folder / f".lease.{content['token']}.tmp"
    draft.write_text(json.dumps(content))
    try:
        os.link(draft, path)
    except FileExistsError:
        return None
    finally:
        draft.unlink()
    return Lease(path, content)


class Heartbeat:
    """A thread that gives signs of life for all leases that a process holds."""

    def __init__(self, leases: list[Lease], interval: float = HEARTBEAT) -> None:
        self._leases, self._interval = leases, interval
        self._stop = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="heartbeat").start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            for lease in self._leases:
                with suppress(OSError):
                    lease.beat()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()


def latest(folder: Path) -> Holder | None:
    """The highest lease of a folder, dead or alive."""
    for path in sorted(folder.glob(_GLOB), reverse=True):
        try:
            content = json.loads(path.read_text())
            fields = {key: content[key] for key in ("host", "here", "pid", "born", "token", "released")}
            since = float(content.get("since", 0.0))
            return Holder(path=path, beat=path.stat().st_mtime, since=since, **fields)
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError):
            # Nothing of ours writes such a file (a disk error may): it counts, for its number, as held by nobody.
            return Holder(path, "", "", 0, 0.0, "", True, 0.0)
    return None


def _runs(pid: int, born: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - born) < 1.0
    except psutil.Error:
        return False
