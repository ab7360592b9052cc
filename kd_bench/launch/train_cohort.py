"""Trains a cohort in this process, alone or as one of several processes that share its batches."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kd_bench.config.trial import Trial
from kd_bench.data import registry as datasets
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.launch.worker_protocol import EventWriter, WorkerJob, stop_requested, training
from kd_bench.training.build import build_student, load_network
from kd_bench.training.callbacks import KeepSigtermHandler, MidEpochCheckpoint, ProgressReporter, StopRequested
from kd_bench.training.cohort import CohortModule
from kd_bench.training.energy import EnergyMeter
from kd_bench.training.features import FeatureFile
from kd_bench.training.fit import fit
from kd_bench.training.loaders import EVALUATION_BATCH, GPU_EVALUATION_BATCH, TrainLoader, holdout_loader, loaders
from kd_bench.training.logit_cache import LogitCache, logits_folder, open_cache
from kd_bench.training.recorder import choose_recorder
from kd_bench.training.result_writer import ResultWriter, deserialize_state, serialize_state
from kd_bench.training.student import StudentModule
from kd_bench.training.teacher import OpenLogitCache
from kd_bench.trials.environment import describe_environment, numerics_fingerprint
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.images import check_same_images
from kd_bench.trials.lease import Lease
from kd_bench.trials.reader import read_environment
from kd_bench.trials.result_writer import LOAD_ERRORS, TrialResultWriter
from kd_bench.utils import distributed
from kd_bench.utils.energy_counters import open_counters
from kd_bench.utils.errors import UserError, first_line
from kd_bench.utils.files import sha256
from kd_bench.utils.memory import is_out_of_memory
from kd_bench.utils.plugins import describe_error


class _CohortContext:
    """What the members of a cohort share: images, teacher and device.

    Args:
        job: The worker's job.
        trials: The trials. The shared settings are read from the first one with a teacher, if there is one.
        send_event: Sends an event to the scheduler.
    """

    def __init__(self, job: WorkerJob, trials: Iterable[Trial], send_event: Callable[..., None]) -> None:
        first = min(trials, key=lambda trial: trial.teacher is None)
        torch.set_num_threads(job.threads)
        if job.memory_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(job.memory_fraction, job.device)
        self.job, self.first, self.send_event = job, first, send_event
        self.device = torch.device(job.device)
        if job.world_size > 1:
            distributed.init_process_group(self.device)
        self.data_dir = datasets.resolve_data_dir(Path(job.data) if job.data else None)
        self.images = datasets.open_dataset(first.dataset, first.pipeline, self.data_dir)
        self.teacher = self.view = self.teacher_folder = None
        self.teacher_result: dict[str, Any] = {}
        if job.teacher is not None and first.teacher is not None:
            self.teacher_folder = TrialFolder(Path(job.teacher))
            self.teacher, self.view = load_network(
                first.teacher, self.teacher_folder.weights, self.images, channels_last=first.channels_last
            )
            self.teacher_result = self.teacher_folder.result() or {}

    def build_member(self, trial: Trial, writer: ResultWriter) -> StudentModule:
        """Builds the student of a trial.

        Raises:
            UserError: As ``build_student``, if batch norms cannot be synchronised on this device, if the teacher's
                result is from other images, or if the file of the initial weights is missing or has changed.
        """
        if trial.teacher is not None and self.teacher_folder is not None and trial.teacher.dataset == trial.dataset:
            folder = self.teacher_folder.path
            check_same_images(folder, "this teacher's result is", self.teacher_result, self.images.record)
        if trial.sync_batch_norm and self.job.world_size > 1 and self.device.type == "cpu":
            raise UserError("sync_batch_norm: torch synchronises batch norms between GPUs only")
        if trial.pretrained is None:
            return build_student(trial, self.images, self.teacher, writer)
        file = self.job.pretrained.get(trial.id)
        if file is None:
            raise UserError(
                f"{trial.model}: its training starts from weights whose SHA-256 is {trial.pretrained}, and their file "
                "is not known"
            )
        if sha256(Path(file)) != trial.pretrained:
            raise UserError(f"{file}: has changed since this run was planned; run the recipe again")
        open_features = partial(self._open_feature_file, trial)
        return build_student(trial, self.images, self.teacher, writer, Path(file), open_features)

    def _open_feature_file(self, trial: Trial, count: int, length: int) -> FeatureFile | None:
        """Opens the file of the features of a network whose classifier is trained; None if there is no space for it."""
        images = self.images
        assert isinstance(images, ArrayDataset)
        size = GPU_EVALUATION_BATCH if self.device.type == "cuda" else EVALUATION_BATCH
        key = {
            "kind": "features",
            "teacher": trial.model,
            "weights": trial.pretrained,
            "dataset": trial.dataset.title,
            "images": [_images_hash(part.test_images) for part in (images, images.holdout) if part is not None]
            + [_images_hash(images.train_images)],
            "normalised": [list(images.mean), list(images.std)],
            "input": trial.input.model_dump(mode="json"),
            "numerics": [trial.precision, trial.channels_last],
            "machine": numerics_fingerprint(self.device, self.job.threads),
        }
        file = open_cache(logits_folder(), key, count, length, size, kind=FeatureFile)
        return file if isinstance(file, FeatureFile) else None

    def fit(self, members: list[StudentModule], mid_epoch_states: dict[str, list[bytes]]) -> None:
        """Trains the members to the end.

        Args:
            members: Students in the state after their last finished epoch.
            mid_epoch_states: A state within the next epoch for each process, by trial; may be empty.

        Raises:
            UserError: If one of these states does not fit, because another version has written it.
        """
        for member in members:
            if member.trial.id in mid_epoch_states:
                self._restore_mid_epoch(member, mid_epoch_states[member.trial.id][self.job.rank])
        if not members:
            return

        def progress(epoch: int, step: int, steps: int, rate: float) -> None:
            self.send_event("progress", epoch=epoch, step=step, steps=steps, rate=rate)

        train, test = loaders(self.first, self.images, self.device, self.job.workers, self.data_dir)
        holdout = holdout_loader(self.first, self.images, self.device, self.job.workers)
        recorder = None if self.job.eager else choose_recorder(self.device, self.first)
        energy = EnergyMeter(open_counters(self.job.device))
        cohort = CohortModule(members, self.teacher, self.view, self._logit_cache(train), recorder, energy)
        if cohort.first_step:
            self.send_event("resumed", epoch=cohort.start_epoch, step=cohort.first_step, steps=len(train))
        callbacks = [
            ProgressReporter(progress),
            MidEpochCheckpoint(self.job.checkpoint_seconds, stop_requested.is_set),
            KeepSigtermHandler(),
        ]
        training.set()
        try:
            fit(cohort, train, test, self.device, callbacks, holdout)
        except StopRequested:
            self.send_event("left", trials=[member.trial.id for member in members])
        finally:
            training.clear()
            opened = [loader for loader in (train, test, holdout) if loader is not None]
            corrupt = {str(path): reason for loader in opened for path, reason in loader.corrupt.items()}
            for path, reason in sorted({**corrupt, **members[0].corrupt}.items()):
                self.send_event("note", text=f"{path}: cannot be decoded and was skipped ({reason})")
            for loader in opened:
                loader.close()
            if cohort.teacher is not None:
                cohort.teacher.close()

    def _restore_mid_epoch(self, member: StudentModule, state: bytes) -> None:
        try:
            member.restore_mid_epoch(deserialize_state(state))
        except LOAD_ERRORS as error:
            if is_out_of_memory(error):
                raise
            files = Path(self.job.folder) / member.trial.id / "checkpoint" / "within-*.pt"
            raise UserError(
                f"{files}: the state within an epoch does not fit ({first_line(error)}), perhaps because another "
                "version of kd-bench has written it; remove these files to continue from the last finished epoch"
            ) from error

    def _logit_cache(self, train: TrainLoader) -> OpenLogitCache | None:
        """Returns a function that opens the cache of the teacher's logits for the views of this loader.

        Returns None if the loader has no finite set of views, or if cached logits would not be exact.
        """
        first, images, teacher, teacher_folder = self.first, self.images, self.first.teacher, self.teacher_folder
        # A GPU computes a teacher's pass as fast as logits are read from a file. Whether its bits depend on the batch
        # is up to the library's version.
        exact = self.device.type == "cpu" and first.precision == "float32"
        views = train.view_count if isinstance(train, InMemoryLoader) else 0
        if teacher_folder is None or teacher is None or not isinstance(images, ArrayDataset) or not (exact and views):
            return None

        def open_teacher_cache(compiled: bool) -> LogitCache | None:
            key = {
                "teacher": teacher.model,
                "trained": teacher.id,
                "weights": sha256(teacher_folder.weights),
                "dataset": first.dataset.title,
                "images": _images_hash(images.train_images),
                "normalised": [list(images.mean), list(images.std)],
                "augment": [first.augment.crop, first.augment.flip],
                "input": teacher.input.model_dump(mode="json"),
                "numerics": [first.teacher_precision, first.channels_last],
                "machine": numerics_fingerprint(self.device, self.job.threads),
                "compiled": compiled,
            }
            rows, size = views * len(images.train_labels), first.micro_batch or first.batch_size
            # A compiled network is specialised for each batch size, so a part of a batch has different last bits.
            return open_cache(logits_folder(), key, rows, images.num_classes, size, parts=not compiled)

        return open_teacher_cache


def _images_hash(images: torch.Tensor) -> str:
    return hashlib.blake2b(images.contiguous().numpy().data, digest_size=16).hexdigest()


def train(job: WorkerJob, leased: list[tuple[Trial, TrialFolder, Lease]], events: EventWriter) -> None:
    """Trains the trials whose leases this process holds, as rank 0, and writes the results to the trials' folders."""
    context = _CohortContext(job, [trial for trial, _, _ in leased], events.send)
    environment = describe_environment(job.device, job.threads)
    if job.world_size > 1:
        environment["processes"] = job.world_size
    environment["images"] = context.images.record
    members = []
    for trial, folder, lease in leased:
        teacher_top1 = None if trial.teacher is None else context.teacher_result.get("top1_last")
        writer = TrialResultWriter(
            folder,
            lease,
            events.send,
            teacher_top1,
            len(context.images.train_labels),
            job.loggers,
            context.images.class_names,
            images=context.images.record,
        )
        try:
            if folder.has_checkpoint():
                begun, images = read_environment(folder.path), context.images.record
                check_same_images(folder.path, "its checkpoints are", begun, images, ordered=True)
            member = context.build_member(trial, writer)
            writer.resume(member)
        except Exception as error:
            of_plugin = trial.method.source is not None or trial.model_source is not None
            if not isinstance(error, UserError) and (not of_plugin or is_out_of_memory(error)):
                raise
            traceback.print_exc()
            events.send("crashed", trial=folder.id, reason=describe_error(error))
            continue
        previous = folder.write_environment(environment)
        if member.all_epochs_done and previous and previous.get("threads") != job.threads:
            events.send(
                "note",
                text=f"{folder.path}: continues with {job.threads} threads after {previous.get('threads')}, "
                "so its last bits differ from those of an uninterrupted run",
            )
        members.append(member)
    mid_epoch_states = _read_mid_epoch_states(members, job.world_size)
    if job.world_size > 1:
        states = {
            member.trial.id: serialize_state(member.state()) if member.all_epochs_done else None for member in members
        }
        distributed.broadcast_object((context.images.record, states, mid_epoch_states))
    context.fit(members, mid_epoch_states)


def train_on_other_rank(job: WorkerJob) -> None:
    """Trains the cohort as a rank above 0, from the states that rank 0 broadcasts. Writes no results.

    Raises:
        UserError: If this process reads other images than rank 0.
    """
    trials = {trial.id: trial for trial in (Trial.model_validate_json(json.dumps(settings)) for settings in job.trials)}
    context = _CohortContext(job, trials.values(), lambda *_, **__: None)
    image_record, states, mid_epoch_states = distributed.broadcast_object(None)
    if image_record != context.images.record:
        raise UserError(
            f"process {job.rank + 1} of {job.world_size}: its images differ from those of the first process"
        )
    members = []
    for trial_id, state in states.items():
        member = context.build_member(trials[trial_id], ResultWriter())
        if state is not None:
            member.restore(deserialize_state(state))
        members.append(member)
    context.fit(members, mid_epoch_states)


def _read_mid_epoch_states(members: list[StudentModule], world_size: int) -> dict[str, list[bytes]]:
    """Reads the earliest of the checkpoints within an epoch: a state for each process, by trial.

    Members with a later one, or with none, begin after their last finished epoch. Returns an empty dict if that is not
    a later epoch for each of them, because members of a cohort must begin an epoch at the same step.
    """
    states: dict[str, list[bytes]] = {}
    positions: dict[str, tuple[int, int]] = {}
    unfinished = [member for member in members if member.epochs_done < member.trial.epochs]
    for member in unfinished:
        assert isinstance(member.writer, TrialResultWriter)
        checkpoint = member.writer.read_mid_epoch(member.all_epochs_done, world_size)
        if checkpoint is not None:
            epoch, step, states[member.trial.id] = checkpoint
            positions[member.trial.id] = epoch - member.preparation.epochs, step
    if not positions:
        return {}
    first = min(positions.values())
    resumed = {trial_id: states[trial_id] for trial_id, position in positions.items() if position == first}
    later = all(member.next_epoch > first[0] for member in unfinished if member.trial.id not in resumed)
    return resumed if later else {}
