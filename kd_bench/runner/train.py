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
from kd_bench.data.loader import InMemoryLoader
from kd_bench.data.splits import Splits
from kd_bench.errors import UserError
from kd_bench.files import sha256
from kd_bench.recipe import Trial
from kd_bench.runner import worker
from kd_bench.runner.environment import bits_depend_on, describe
from kd_bench.runner.folder import TrialFolder
from kd_bench.runner.lease import Lease
from kd_bench.runner.sink import FolderSink
from kd_bench.runner.worker import Job, Voice
from kd_bench.training import fit as training
from kd_bench.training import logits
from kd_bench.training.cohort import Cohort, Distillation, Left, Supervised
from kd_bench.training.logits import Logits, open_store
from kd_bench.training.member import Member, Silent, Sink, packed
from kd_bench.training.teaching import Remember


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
        self.teacher = self.view = self.teacher_top1 = self.taught_by = None
        if job.teacher is not None and first.teacher is not None:
            self.taught_by = TrialFolder(Path(job.teacher))
            self.teacher, self.view = training.load_network(
                first.teacher, self.taught_by.weights, self.images, channels_last=first.channels_last
            )
            self.teacher_top1 = (self.taught_by.result() or {}).get("top1_last")

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

        train, test = training.loaders(self.first, self.images, self.device, self.job.workers, self.where)
        cohort: Cohort
        if self.teacher is not None:
            cohort = Distillation(members, self.teacher, self.view, progress, self._remember(train))
        else:
            cohort = Supervised(members, progress)
        cohort.listen = worker.listen
        cohort.leaving, cohort.keep_seconds = worker.leaving.is_set, self.job.checkpoint_seconds
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
            if isinstance(cohort, Distillation):
                cohort.teacher.close()

    def _remember(self, train: training.TrainLoader) -> Remember | None:
        """Opens the store of the teacher's logits of this loader's views, where they can be counted and it is exact."""
        first, images = self.first, self.images
        # A pass takes a GPU so little time that to fetch logits from a file, and to wait for those that go there, is
        # no gain; and whether bits depend on the batch there is up to the library of the day.
        exact = self.device.type == "cpu" and first.precision == "float32"
        if self.taught_by is None or first.teacher is None or not exact or not isinstance(images, Splits):
            return None
        views = train.views if isinstance(train, InMemoryLoader) else 0
        if not views:
            return None
        taught_by, teacher = self.taught_by, first.teacher

        def remember(compiled: bool) -> Logits | None:
            about = {
                "teacher": teacher.model,
                "trained": teacher.id,
                "weights": sha256(taught_by.weights),
                "dataset": first.dataset.title,
                "images": hashlib.blake2b(images.train_images.contiguous().numpy().data, digest_size=16).hexdigest(),
                "normalised": [list(images.mean), list(images.std)],
                "augment": [first.augment.crop, first.augment.flip],
                "input": teacher.input.model_dump(mode="json"),
                "numerics": [first.teacher_precision, first.channels_last],
                "machine": bits_depend_on(self.device, self.job.threads),
                "compiled": compiled,
            }
            rows, size = views * len(images.train_labels), first.micro_batch or first.batch_size
            # Compiled for each number of images by itself, a network has other bits for parts of a batch.
            return open_store(logits.folder(), about, rows, images.num_classes, size, parts=not compiled)

        return remember


def train(job: Job, held: list[tuple[Trial, TrialFolder, Lease]], voice: Voice) -> None:
    """Trains what this process holds the leases of; results go to the trials' folders."""
    room = _Room(job, held[0][0])
    environment = describe(job.device, job.threads)
    if job.processes > 1:
        environment["processes"] = job.processes
    members = []
    for trial, folder, lease in held:
        sink = FolderSink(folder, lease, voice.tell, room.teacher_top1, len(room.images.train_labels), job.loggers)
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
