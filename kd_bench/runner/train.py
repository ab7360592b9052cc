"""Trains a cohort in this process, by itself or with others that share its batches."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from kd_bench import distributed
from kd_bench.data import registry as datasets
from kd_bench.errors import UserError
from kd_bench.recipe import Trial
from kd_bench.runner import worker
from kd_bench.runner.environment import describe
from kd_bench.runner.folder import TrialFolder
from kd_bench.runner.lease import Lease
from kd_bench.runner.sink import FolderSink
from kd_bench.runner.worker import Job, Voice
from kd_bench.training import fit as training
from kd_bench.training.cohort import Cohort, Distillation, Left, Supervised
from kd_bench.training.member import Member, Silent, Sink, packed


class _Room:
    """What the members of a cohort have in common: images, teacher, device.

    Args:
        job: What to do.
        first: One of the trials.
    """

    def __init__(self, job: Job, first: Trial) -> None:
        torch.set_num_threads(job.threads)
        if job.memory_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(job.memory_fraction, job.device)
        self.job, self.first = job, first
        self.device = torch.device(job.device)
        if job.processes > 1:
            distributed.join(self.device)
        self.where = datasets.data_dir(Path(job.data) if job.data else None)
        self.images = datasets.images(first.dataset, first.pipeline, self.where)
        self.teacher = self.view = self.teacher_top1 = None
        if job.teacher is not None and first.teacher is not None:
            taught_by = TrialFolder(Path(job.teacher))
            self.teacher, self.view = training.load_network(
                first.teacher, taught_by.weights, self.images, channels_last=first.channels_last
            )
            self.teacher_top1 = (taught_by.result() or {}).get("top1_last")

    def member(self, trial: Trial, sink: Sink) -> Member:
        """A trial, ready to begin.

        Raises:
            UserError: As ``build_member``, and where its batch norms cannot be synchronised on this device.
        """
        if trial.sync_batch_norm and self.job.processes > 1 and self.device.type == "cpu":
            raise UserError("sync_batch_norm: torch synchronises batch norms between GPUs only")
        return training.build_member(trial, self.images, self.teacher, sink)

    def digest(self) -> str:
        """Tells whether two processes have found the same images."""
        labels = [self.images.train_labels, self.images.test_labels]
        return hashlib.sha256(b"".join(one.numpy().tobytes() for one in labels)).hexdigest()

    def fit(self, members: list[Member], voice: Voice | None) -> None:
        """Trains to the end; ``voice`` hears how far it is."""

        def progress(epoch: int, step: int, steps: int, rate: float) -> None:
            if voice:
                voice.tell("progress", epoch=epoch, step=step, steps=steps, rate=rate)

        cohort: Cohort
        if self.teacher is not None:
            cohort = Distillation(members, self.teacher, self.view, progress)
        else:
            cohort = Supervised(members, progress)
        cohort.listen = worker.listen
        cohort.leaving, cohort.keep_seconds = worker.leaving.is_set, self.job.checkpoint_seconds
        train, test = training.loaders(self.first, self.images, self.device, self.job.workers, self.where)
        try:
            training.fit(cohort, train, test, self.device, self.job.processes)
        except Left:
            if voice:
                voice.tell("left", trials=[member.trial.id for member in members])
        finally:
            found = {str(path): reason for path, reason in {**train.corrupt, **test.corrupt}.items()}
            for path, reason in sorted({**found, **members[0].corrupt}.items()):
                if voice:
                    voice.tell("note", text=f"{path}: cannot be decoded and was skipped ({reason})")
            for loader in (train, test):
                loader.close()


def train(job: Job, held: list[tuple[Trial, TrialFolder, Lease]], voice: Voice) -> None:
    """Trains what this process holds the leases of; results go to the trials' folders."""
    room = _Room(job, held[0][0])
    environment = describe(job.device, job.threads)
    if job.processes > 1:
        environment["processes"] = job.processes
    members = []
    for trial, folder, lease in held:
        sink = FolderSink(folder, lease, voice.tell, room.teacher_top1, len(room.images.train_labels), job.tensorboard)
        try:
            member = room.member(trial, sink)
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
    within = _within(members, job.processes)
    if job.processes > 1:
        states = {one.trial.id: packed(one.state()) if one.epochs_done else None for one in members}
        distributed.from_first({"images": room.digest(), "states": states, "within": within})
    _go_on(members, within, 0)
    if members:
        room.fit(members, voice)


def assist(job: Job) -> None:
    """Takes part in what the first process of the cohort does, from the epochs that it goes on from.

    Raises:
        UserError: Where the images are not those that the first process has.
    """
    trials = {trial.id: trial for trial in (Trial.model_validate_json(json.dumps(one)) for one in job.trials)}
    room = _Room(job, next(iter(trials.values())))
    told: dict[str, Any] = distributed.from_first(None)
    if told["images"] != room.digest():
        raise UserError(f"process {job.rank + 1} of {job.processes}: its images are not those of the first process")
    members = []
    for trial, state in told["states"].items():
        member = room.member(trials[trial], Silent())
        if state is not None:
            member.restore(torch.load(io.BytesIO(state), weights_only=True))
        members.append(member)
    _go_on(members, told["within"], job.rank)
    if members:
        room.fit(members, None)


def _within(members: list[Member], processes: int) -> dict[str, list[bytes]]:
    """What each process goes on from within an epoch, by trial; nothing where not all members can go on together."""
    found: dict[str, list[bytes]] = {}
    steps = set()
    for member in members:
        if member.epochs_done == member.trial.epochs:
            continue
        assert isinstance(member.sink, FolderSink)
        kept = member.sink.kept_within(member.epochs_done, processes)
        if kept is None:
            return {}
        steps.add((member.epochs_done, kept[0]))
        found[member.trial.id] = kept[1]
    return found if len(steps) == 1 else {}


def _go_on(members: list[Member], within: dict[str, list[bytes]], rank: int) -> None:
    for member in members:
        if member.trial.id in within:
            member.restore_within(torch.load(io.BytesIO(within[member.trial.id][rank]), weights_only=True))
