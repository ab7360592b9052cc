"""Trains a cohort in this process, by itself or with others that share its batches."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from kd_bench.config.trial import Trial
from kd_bench.data import registry as datasets
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.launch import worker
from kd_bench.launch.worker import EventWriter, WorkerJob
from kd_bench.training import fit as training
from kd_bench.training import logit_cache
from kd_bench.training.cohort import CohortModule, DistillationCohort, StopRequested, SupervisedCohort
from kd_bench.training.logit_cache import LogitCache, open_store
from kd_bench.training.student import NullWriter, ResultWriter, StudentModule, serialize_state
from kd_bench.training.teacher import OpenLogitCache
from kd_bench.trials.environment import bits_depend_on, describe
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.lease import Lease
from kd_bench.trials.result_writer import TrialResultWriter
from kd_bench.utils import distributed
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import sha256


class _CohortContext:
    """What the members of a cohort have in common: images, teacher, device.

    Args:
        job: What to do.
        first: One of the trials.
    """

    def __init__(self, job: WorkerJob, first: Trial) -> None:
        torch.set_num_threads(job.threads)
        if job.memory_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(job.memory_fraction, job.device)
        self.job, self.first = job, first
        self.device = torch.device(job.device)
        if job.processes > 1:
            distributed.init_process_group(self.device)
        self.data_dir = datasets.data_dir(Path(job.data) if job.data else None)
        self.images = datasets.images(first.dataset, first.pipeline, self.data_dir)
        self.teacher = self.view = self.teacher_top1 = self.taught_by = None
        if job.teacher is not None and first.teacher is not None:
            self.taught_by = TrialFolder(Path(job.teacher))
            self.teacher, self.view = training.load_network(
                first.teacher, self.taught_by.weights, self.images, channels_last=first.channels_last
            )
            self.teacher_top1 = (self.taught_by.result() or {}).get("top1_last")

    def member(self, trial: Trial, writer: ResultWriter) -> StudentModule:
        """A trial, ready to begin.

        Raises:
            UserError: As ``build_member``, and where its batch norms cannot be synchronised on this device.
        """
        if trial.sync_batch_norm and self.job.processes > 1 and self.device.type == "cpu":
            raise UserError("sync_batch_norm: torch synchronises batch norms between GPUs only")
        return training.build_student(trial, self.images, self.teacher, writer)

    def digest(self) -> str:
        """Tells whether two processes have found the same images."""
        labels = [self.images.train_labels, self.images.test_labels]
        return hashlib.sha256(b"".join(one.numpy().tobytes() for one in labels)).hexdigest()

    def fit(self, members: list[StudentModule], voice: EventWriter | None) -> None:
        """Trains to the end; ``voice`` hears how far it is."""

        def progress(epoch: int, step: int, steps: int, rate: float) -> None:
            if voice:
                voice.tell("progress", epoch=epoch, step=step, steps=steps, rate=rate)

        train, test = training.loaders(self.first, self.images, self.device, self.job.workers, self.data_dir)
        cohort: CohortModule
        if self.teacher is not None:
            cohort = DistillationCohort(members, self.teacher, self.view, progress, self._remember(train))
        else:
            cohort = SupervisedCohort(members, progress)
        cohort.listen = worker.listen
        cohort.leaving, cohort.keep_seconds = worker.leaving.is_set, self.job.checkpoint_seconds
        try:
            training.fit(cohort, train, test, self.device, self.job.processes)
        except StopRequested:
            if voice:
                voice.tell("left", trials=[member.trial.id for member in members])
        finally:
            found = {str(path): reason for path, reason in {**train.corrupt, **test.corrupt}.items()}
            for path, reason in sorted({**found, **members[0].corrupt}.items()):
                if voice:
                    voice.tell("note", text=f"{path}: cannot be decoded and was skipped ({reason})")
            for loader in (train, test):
                loader.close()
            if isinstance(cohort, DistillationCohort):
                cohort.teacher.close()

    def _remember(self, train: training.TrainLoader) -> OpenLogitCache | None:
        """Opens the store of the teacher's logits of this loader's views, where they can be counted and it is exact."""
        first, images = self.first, self.images
        # A pass takes a GPU so little time that to fetch logits from a file, and to wait for those that go there, is
        # no gain; and whether bits depend on the batch there is up to the library of the day.
        exact = self.device.type == "cpu" and first.precision == "float32"
        if self.taught_by is None or first.teacher is None or not exact or not isinstance(images, ArrayDataset):
            return None
        views = train.views if isinstance(train, InMemoryLoader) else 0
        if not views:
            return None
        taught_by, teacher = self.taught_by, first.teacher

        def remember(compiled: bool) -> LogitCache | None:
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
            return open_store(logit_cache.folder(), about, rows, images.num_classes, size, parts=not compiled)

        return remember


def train(job: WorkerJob, held: list[tuple[Trial, TrialFolder, Lease]], voice: EventWriter) -> None:
    """Trains what this process holds the leases of; results go to the trials' folders."""
    room = _CohortContext(job, held[0][0])
    environment = describe(job.device, job.threads)
    if job.processes > 1:
        environment["processes"] = job.processes
    members = []
    for trial, folder, lease in held:
        writer = TrialResultWriter(
            folder, lease, voice.tell, room.teacher_top1, len(room.images.train_labels), job.loggers
        )
        try:
            member = room.member(trial, writer)
        except UserError as error:
            voice.tell("crashed", trial=folder.id, reason=str(error))
            continue
        writer.resume(member)
        before = folder.write_environment(environment)
        if member.epochs_done and before and before.get("threads") != job.threads:
            voice.tell(
                "note",
                text=f"{folder.path}: goes on with {job.threads} threads after {before.get('threads')}, "
                "so its last bits will not be those of an undisturbed run",
            )
        members.append(member)
    within = _load_mid_epoch(members, job.processes)
    if job.processes > 1:
        states = {one.trial.id: serialize_state(one.state()) if one.epochs_done else None for one in members}
        distributed.broadcast_object({"images": room.digest(), "states": states, "within": within})
    _go_on(members, within, 0)
    if members:
        room.fit(members, voice)


def assist(job: WorkerJob) -> None:
    """Takes part in what the first process of the cohort does, from the epochs that it goes on from.

    Raises:
        UserError: Where the images are not those that the first process has.
    """
    trials = {trial.id: trial for trial in (Trial.model_validate_json(json.dumps(one)) for one in job.trials)}
    room = _CohortContext(job, next(iter(trials.values())))
    told: dict[str, Any] = distributed.broadcast_object(None)
    if told["images"] != room.digest():
        raise UserError(f"process {job.rank + 1} of {job.processes}: its images are not those of the first process")
    members = []
    for trial, state in told["states"].items():
        member = room.member(trials[trial], NullWriter())
        if state is not None:
            member.restore(torch.load(io.BytesIO(state), weights_only=True))
        members.append(member)
    _go_on(members, told["within"], job.rank)
    if members:
        room.fit(members, None)


def _load_mid_epoch(members: list[StudentModule], processes: int) -> dict[str, list[bytes]]:
    """What each process goes on from within an epoch, by trial; nothing where not all members can go on together."""
    found: dict[str, list[bytes]] = {}
    steps = set()
    for member in members:
        if member.epochs_done == member.trial.epochs:
            continue
        assert isinstance(member.writer, TrialResultWriter)
        kept = member.writer.saved_mid_epoch(member.epochs_done, processes)
        if kept is None:
            return {}
        steps.add((member.epochs_done, kept[0]))
        found[member.trial.id] = kept[1]
    return found if len(steps) == 1 else {}


def _go_on(members: list[StudentModule], within: dict[str, list[bytes]], rank: int) -> None:
    for member in members:
        if member.trial.id in within:
            member.restore_mid_epoch(torch.load(io.BytesIO(within[member.trial.id][rank]), weights_only=True))
