"""The process that trains one cohort: ``python -m kd_bench.runner.worker``, its input the job as a line of JSON.

It tells the runner how far it is by lines of JSON on its output, and ends when its input closes: when the runner is
killed, so are its workers. Nothing heavy is imported before it holds the trials' leases.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from kd_bench.errors import UserError
from kd_bench.recipe import Given, Trial
from kd_bench.runner.folder import TrialFolder
from kd_bench.runner.lease import Heartbeat, Lease, Watch, claim

#: Exit code of a worker that found its trials in other hands.
BUSY = 75


@dataclass(frozen=True)
class Job:
    """What a worker is to do.

    Attributes:
        folder: ``OUT/<recipe>``.
        trials: Settings of the trials; or those of one given teacher.
        weights: The file of the given teacher; None where there is something to train.
        teacher: Folder of the finished trial whose network teaches; None where nothing does.
        data: Where data sets are; None for the default.
        device: ``cpu``, or ``cuda:<n>``.
        threads: Threads of one operation on the CPU.
        tensorboard: Whether to write TensorBoard events as well.
        workers: Processes that decode images, where these are not held in memory.
    """

    folder: str
    trials: list[dict[str, Any]]
    weights: str | None
    teacher: str | None
    data: str | None
    device: str
    threads: int
    tensorboard: bool = False
    workers: int = 0

    def line(self) -> str:
        """As a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


class Voice:
    """The worker's events, a line of JSON each."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def tell(self, event: str, **about: Any) -> None:
        """Sends an event."""
        with self._lock:
            self._stream.write(json.dumps({"event": event, **about}) + "\n")
            self._stream.flush()


def claim_all(folders: list[TrialFolder]) -> list[tuple[TrialFolder, Lease]] | None:
    """Leases of the trials that are still to be done; None where another process is ahead of us.

    Everybody claims in the same order, so of several processes that want the same cohort the one that gets the first
    trial gets them all, and the cohort is not torn apart.
    """
    watch = Watch()
    held: list[tuple[TrialFolder, Lease]] = []
    for folder in sorted(folders, key=lambda folder: folder.id):
        if folder.status() != "missing":
            continue
        lease = claim(folder.path, watch)
        if lease is None:
            if not held:
                return None
        elif folder.status() != "missing":
            lease.release(finished=True)
        else:
            held.append((folder, lease))
    return held


def main() -> int:
    """Trains the cohort that the input names."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print belongs into the log, not among the events
    voice = Voice(events)
    job = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_die_with_the_runner, daemon=True).start()
    kind = Trial if job.weights is None else Given
    trials = {trial.id: trial for trial in (kind.model_validate_json(json.dumps(one)) for one in job.trials)}
    folders = [TrialFolder(Path(job.folder) / trial) for trial in trials]
    for folder in folders:
        folder.begin(trials[folder.id])
    held = claim_all(folders)
    if held is None:
        return BUSY
    heartbeat = Heartbeat([lease for _, lease in held])
    voice.tell("claimed", trials=[folder.id for folder, _ in held])
    try:
        if held:
            _work(job, [(trials[folder.id], folder, lease) for folder, lease in held], voice)
    except UserError as error:
        voice.tell("error", reason=str(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        voice.tell("error", reason=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return 1
    finally:
        heartbeat.stop()
        for _, lease in held:
            lease.release(finished=False)
    return 0


def _die_with_the_runner() -> None:
    # The runner never writes more than the job; its end of the pipe closes when it ends, however it ends.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _work(job: Job, held: list[tuple[Trial | Given, TrialFolder, Lease]], voice: Voice) -> None:
    given, folder, lease = held[0]
    if isinstance(given, Given) and job.weights is not None:
        from kd_bench.runner.adopt import adopt

        data = Path(job.data) if job.data else None
        adopt(given, Path(job.weights), data, job.device, job.threads, folder, lease, voice.tell)
    else:
        _train(job, [(trial, *rest) for trial, *rest in held if isinstance(trial, Trial)], voice)  # type: ignore[misc]


def _train(job: Job, held: list[tuple[Trial, TrialFolder, Lease]], voice: Voice) -> None:
    import torch

    from kd_bench.data import registry as datasets
    from kd_bench.runner.environment import describe
    from kd_bench.runner.sink import FolderSink
    from kd_bench.training import fit as training
    from kd_bench.training.cohort import Distillation, Supervised

    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    first = held[0][0]
    where = datasets.data_dir(Path(job.data) if job.data else None)
    splits = datasets.images(first.dataset, first.pipeline, where)
    teacher = view = teacher_top1 = None
    if job.teacher is not None and first.teacher is not None:
        taught_by = TrialFolder(Path(job.teacher))
        teacher, view = training.load_network(first.teacher, taught_by.weights, splits)
        teacher_top1 = (taught_by.result() or {}).get("top1_last")
    environment = describe(job.device, job.threads)
    members = []
    for trial, folder, lease in held:
        sink = FolderSink(folder, lease, voice.tell, teacher_top1, len(splits.train_labels), job.tensorboard)
        try:
            member = training.build_member(trial, splits, teacher, sink)
        except UserError as error:
            voice.tell("crashed", trial=folder.id, reason=str(error))
            continue
        sink.resume(member)
        before = folder.write_environment(environment)
        if member.epochs_done and before and before.get("threads") != job.threads:
            voice.tell(
                "note",
                text=f"{folder.path}: goes on with {job.threads} threads after {before.get('threads')}, "
                "so its last bits will not be those of an undisturbed run",
            )
        members.append(member)
    if not members:
        return

    def progress(epoch: int, step: int, steps: int, rate: float) -> None:
        voice.tell("progress", epoch=epoch, step=step, steps=steps, rate=rate)

    cohort = Distillation(members, teacher, view, progress) if teacher is not None else Supervised(members, progress)
    train, test = training.loaders(first, splits, device, job.workers)
    try:
        training.fit(cohort, train, test, device)
    finally:
        for path, reason in {**train.corrupt, **test.corrupt}.items():
            voice.tell("note", text=f"{path}: cannot be decoded and was skipped ({reason})")
        for loader in (train, test):
            loader.close()


if __name__ == "__main__":
    sys.exit(main())
