"""Leases of trials: at most one process, on any number of machines, trains a trial at a time.

A lease is a numbered file in the trial's folder, ``lease.000001``, created with O_EXCL. Only the highest number counts.
To take over from a dead holder, a process creates the next number, which exactly one process can do. No process
removes another's lease. A holder checks that its number is still the highest before it publishes a result.
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
from typing import Any

import psutil

from kd_bench.utils.files import write_atomic, write_new
from kd_bench.utils.regular_files import BadFile, UnreadableFile, read_json_object

#: Seconds between two heartbeats of a holder, and seconds without a heartbeat after which a holder counts as dead.
#: Only other machines depend on heartbeats: on the same machine a holder is dead if its process is.
HEARTBEAT = 15.0
EXPIRY = 90.0

#: Seconds since 1970 until the year 9000, before the last that dates can show.
_END_OF_TIME = 221_845_392_000.0

_HOLDER_KEYS = ("host", "here", "pid", "born", "token", "released")
_GLOB = "lease.[0-9][0-9][0-9][0-9][0-9][0-9]"


@lru_cache(maxsize=1)
def _process_namespace() -> str:
    """Returns machine, boot and process-id namespace, within which a process id names one process."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            parts.append(str(Path(path).readlink()) if path.endswith("/pid") else Path(path).read_text().strip())
    return "/".join(parts)


@dataclass(frozen=True)
class LeaseHolder:
    """The process that holds, or held, a lease. Times are in seconds since 1970; 0 if unknown.

    ``start_ticks`` is the start of the process in clock ticks since the start of the machine; 0 if unknown.
    """

    path: Path
    host: str = ""
    process_namespace: str = ""
    pid: int = 0
    process_started: float = 0.0
    start_ticks: int = 0
    token: str = ""
    released: bool = True
    heartbeat: float = 0.0
    acquired: float = 0.0

    @property
    def on_other_machine(self) -> bool:
        """Whether it is on another machine, so that only its heartbeat shows whether it runs."""
        return self.process_namespace != _process_namespace()


class LeaseMonitor:
    """Decides whether the holders of leases are alive. Remembers when heartbeats from other machines changed."""

    def __init__(self, expiry: float = EXPIRY) -> None:
        self._expiry = expiry
        self._seen: dict[tuple[str, str], tuple[float, float]] = {}

    def live_holder(self, folder: Path) -> LeaseHolder | None:
        """Returns the holder of a folder's lease, or None if there is none alive."""
        holder = latest_holder(folder)
        return holder if holder and self.is_alive(holder) else None

    def is_alive(self, holder: LeaseHolder) -> bool:
        """Whether a holder has not released the lease and still runs."""
        if holder.released:
            return False
        if not holder.on_other_machine:
            running = _is_running(holder)
            if running is not None:
                return running
        # The clocks of two machines may differ, so the age of a heartbeat is measured by this machine's clock, from
        # the moment at which it was first seen.
        key = (str(holder.path), holder.token)
        now = time.monotonic()
        heartbeat, seen_at = self._seen.get(key, (None, now))
        if heartbeat != holder.heartbeat:
            seen_at = now
        self._seen[key] = (holder.heartbeat, seen_at)
        return now - seen_at < self._expiry


class Lease:
    """A lease that this process holds. Call ``acquire_lease`` to get one."""

    def __init__(self, path: Path, content: dict[str, object]) -> None:
        self.path, self._content = path, content

    def is_held(self) -> bool:
        """Whether it still has the highest number in its folder, so that no other process has taken over."""
        holder = latest_holder(self.path.parent)
        # A lease without token cannot be read, or was damaged; nobody else can have made one with this number.
        return holder is not None and holder.path == self.path and holder.token in (self._content["token"], "")

    def release(self, finished: bool) -> None:
        """Releases the lease: removes all lease files of a finished trial, else marks the lease as released."""
        if not self.is_held():
            return
        if finished:
            for path in sorted(self.path.parent.glob(_GLOB)):
                with suppress(OSError):  # another user's, in a folder that only lets owners remove files
                    path.unlink(missing_ok=True)
        else:
            with suppress(OSError):  # the disk is full; when the process has ended, others see that
                write_atomic(self.path, json.dumps(self._content | {"released": True}))


def acquire_lease(folder: Path, monitor: LeaseMonitor) -> Lease | None:
    """Acquires the lease of a folder, or returns None if a live process holds it or acquires it at this moment."""
    holder = latest_holder(folder)
    if holder and monitor.is_alive(holder):
        return None
    number = int(holder.path.suffix[1:]) + 1 if holder else 1
    path = folder / f"lease.{number:06d}"
    content: dict[str, object] = {
        "host": socket.gethostname(),
        "here": _process_namespace(),
        "pid": os.getpid(),
        "born": psutil.Process().create_time(),
        "ticks": _start_ticks(os.getpid()),
        "token": secrets.token_hex(8),
        "since": time.time(),
        "released": False,
    }
    return Lease(path, content) if write_new(path, json.dumps(content)) else None


class Heartbeat:
    """A thread that renews all leases of a process."""

    def __init__(self, leases: list[Lease], interval: float = HEARTBEAT) -> None:
        self._leases, self._interval = leases, interval
        self._stop = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="heartbeat").start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            for lease in self._leases:
                with suppress(OSError):
                    os.utime(lease.path)

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()


def latest_holder(folder: Path) -> LeaseHolder | None:
    """Returns the holder of the highest lease of a folder, dead or alive; None if there is no lease."""
    for path in sorted(folder.glob(_GLOB), reverse=True):
        try:
            content = read_json_object(path)
            if content is None:
                continue
            return _holder(path, content)
        except FileNotFoundError:
            continue
        except UnreadableFile:
            # A network may have failed for a moment, or it is another user's. Its heartbeats can still be seen.
            with suppress(OSError):
                return LeaseHolder(path, "unknown machine", released=False, heartbeat=path.stat().st_mtime)
            return LeaseHolder(path, "unknown machine", released=False)
        except (BadFile, OSError, ValueError, KeyError, TypeError):
            # kd-bench never writes such a file, but a disk error may. Its number counts, but no process holds it.
            return LeaseHolder(path)
    return None


def _holder(path: Path, content: dict[str, Any]) -> LeaseHolder:
    """Returns the holder of a lease. Raises a KeyError, TypeError or ValueError if kd-bench did not write the lease."""
    host, namespace, pid, started, token, released = (content[key] for key in _HOLDER_KEYS)
    texts, times = (host, namespace, token), (started, content.get("since", 0.0))
    ticks = content.get("ticks", 0)
    integers = type(pid) is int and type(ticks) is int
    if not (all(isinstance(text, str) for text in texts) and integers and isinstance(released, bool)):
        raise TypeError
    started, acquired = map(float, times)
    if not (0 <= pid < 2**31 and 0 <= started < _END_OF_TIME and 0 <= acquired < _END_OF_TIME):
        raise ValueError
    return LeaseHolder(path, host, namespace, pid, started, ticks, token, released, path.stat().st_mtime, acquired)


def _is_running(holder: LeaseHolder) -> bool | None:
    """Whether a holder's process runs on this machine; None if this user may not see it."""
    if holder.start_ticks:
        if ticks := _start_ticks(holder.pid):
            return ticks == holder.start_ticks
    else:  # of an earlier version, or not on Linux
        with suppress(psutil.Error):
            return abs(psutil.Process(holder.pid).create_time() - holder.process_started) < 1.0
    return None if _is_hidden(holder.pid) else False


def _start_ticks(pid: int) -> int:
    """Returns the start of a process in clock ticks since the start of the machine; 0 if unknown.

    The time of day at which a process started is not used on Linux, because it changes when the clock is set.
    """
    with suppress(OSError, ValueError, IndexError):
        # The second field, the program's name in parentheses, may have spaces; the start is the 22nd.
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    return 0


def _is_hidden(pid: int) -> bool:
    """Whether there is a process that this user cannot see, because the system hides those of other users."""
    if os.name != "posix" or not pid:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        pass
    return False
