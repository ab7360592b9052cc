"""Writes the results of a cohort's member into its trial's folder, and sends events to the scheduler."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_bench.models import weights
from kd_bench.training.energy import summed_joules
from kd_bench.training.result_writer import ResultWriter, deserialize_state, serialize_state
from kd_bench.training.student import StudentModule
from kd_bench.trials.confusion import format_rows
from kd_bench.trials.environment import peak_memory, utc_timestamp
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.trials.lease import Lease
from kd_bench.trials.loggers import Loggers
from kd_bench.trials.reader import read_environment
from kd_bench.utils.errors import UserError, first_line
from kd_bench.utils.memory import is_out_of_memory

#: Largest number of corrupt files that a result names.
_MAX_CORRUPT_FILES = 100

#: Errors of a checkpoint that cannot be loaded.
LOAD_ERRORS = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError, EOFError)


class LostLease(Exception):
    """Another process has taken over the trial, so this process must not write to its folder."""


class TrialResultWriter(ResultWriter):
    """Writes one trial's checkpoints, metrics and result. Every method checks the lease before it writes.

    Args:
        folder, lease: The trial's folder and the lease of it.
        send_event: Sends an event to the scheduler.
        teacher_top1: The teacher's accuracy in percent.
        train_images: Number of images per epoch.
        loggers: Names of the loggers to use in addition to the folder.
        class_names: Names of the classes in the order of the labels; empty if they are not known.
        images: What images the trial sees; None if that is not known.
    """

    def __init__(
        self,
        folder: TrialFolder,
        lease: Lease,
        send_event: Callable[..., None],
        teacher_top1: float | None,
        train_images: int,
        loggers: Sequence[str] = (),
        class_names: Sequence[str] = (),
        images: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self._lease, self._send_event = folder, lease, send_event
        self._teacher_top1, self._train_images, self._class_names = teacher_top1, train_images, class_names
        self._images = images
        self._loggers = Loggers(loggers, folder, lambda text: send_event("note", text=text))

    def resume(self, member: StudentModule) -> None:
        """Restores the member from its last good checkpoint, if there is one, and opens the loggers.

        Raises:
            UserError: If there is no good checkpoint, and one cannot be read, which may be good.
        """
        damaged = []
        outcome = "starts again from the beginning"
        initial = None
        for epoch, path, content in self.folder.read_checkpoints():
            try:
                if content is None:
                    raise ValueError("its content does not match the hash in its name")
                state = deserialize_state(content)
                initial = copy.deepcopy(member.state()) if initial is None else initial
                member.restore(state)
            except LOAD_ERRORS as error:
                if is_out_of_memory(error):
                    raise
                damaged.append((path, first_line(error)))
            else:
                outcome = f"continues from epoch {epoch}"
                break
        else:
            for path, _ in damaged:
                _check_readable(path)
            if initial is not None:  # the last checkpoint may have been restored in part
                member.restore(initial)
        for path, reason in damaged:
            self._send_event("note", text=f"{path}: this checkpoint is corrupt ({reason}); the trial {outcome}")
        self._loggers.open(member.trial, member.history)

    def write_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        """Writes a checkpoint within an epoch, with the state of each process, because these differ."""
        self._check_lease()
        # as tensors, because torch.save writes bytes as text, which is half as large again
        tensors = [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states]
        self.folder.write_mid_epoch(member.all_epochs_done, step, serialize_state({"step": step, "states": tensors}))

    def read_mid_epoch(self, epoch: int, world_size: int) -> tuple[int, int, list[bytes]] | None:
        """Returns the last good checkpoint within this epoch or a later one.

        Epochs are counted from 0, with those of a preparation.

        Returns:
            Epoch, step, and states, one per process; None if there is no such checkpoint.
        """
        for of_epoch, content in self.folder.read_mid_epoch(epoch):
            with suppress(*LOAD_ERRORS):
                checkpoint = deserialize_state(content)
                states = [state.numpy().tobytes() for state in checkpoint["states"] if isinstance(state, torch.Tensor)]
                if len(states) == world_size:
                    return of_epoch, int(checkpoint["step"]), states
        return None

    def write_epoch(self, member: StudentModule) -> None:
        """Writes a checkpoint and the metrics; after the last epoch, the weights and the result."""
        self._check_lease()
        if member.epochs_done < member.trial.epochs:
            self.folder.write_checkpoint(member.all_epochs_done, serialize_state(member.state()))
        self.write_row(member)
        if member.epochs_done == member.trial.epochs:
            self._finish(member)

    def write_row(self, member: StudentModule) -> None:
        """Writes the metrics without a checkpoint. After a kill, training continues from the last checkpoint."""
        self._check_lease()
        if not member.history:
            self.folder.write_preparation(member.preparation.history)
            self._send_event("prepared", trial=self.folder.id, epoch=member.all_epochs_done)
            return
        self.folder.write_metrics(member.history)
        row = member.history[-1]
        self._loggers.row(row)
        self._send_event("epoch", trial=self.folder.id, epoch=member.epochs_done, top1=row["top1"])

    def write_divergence(self, member: StudentModule, reason: str) -> None:
        """Writes a failed result, because the trial would diverge again."""
        self._check_lease()
        if member.history:
            self.folder.write_metrics(member.history)
        self._write_result({"status": "failed", "reason": reason, **self._costs(member)}, reason)

    def report_crash(self, member: StudentModule, reason: str) -> None:
        """Reports that the method raised an error. The trial stays unfinished, because an error is no result."""
        self._send_event("crashed", trial=self.folder.id, reason=reason)

    def report_note(self, member: StudentModule, text: str) -> None:
        """Shows a note with the trial's networks, method and seed."""
        trial = member.trial
        role = "teacher" if self.folder.path.parent.name == TEACHERS else trial.method.title
        self._send_event("note", text=f"{trial.model}, {role}, seed {trial.seed}: {text}")

    def _finish(self, member: StudentModule) -> None:
        self._check_lease()  # so that the weights of another process, whose result is there, are not replaced
        metadata = {"model": member.trial.model, "trial": self.folder.id}
        digest = weights.write(self.folder.weights, member.evaluated_network.state_dict(), metadata)
        history = member.history
        best = max(history, key=lambda row: row["top1"])
        result = {
            "status": "done",
            "reason": None,
            "top1_last": history[-1]["top1"],
            "top1_best": best["top1"],
            "best_epoch": best["epoch"],
            "top5_last": history[-1]["top5"],
            **_chosen_by_validation(history),
            **self._classes(member),
            **({} if member.evaluated_weights is None else {"evaluated": member.evaluated_weights}),
            **self._costs(member),
            "weights_sha256": digest,
        }
        self._write_result(result, None)

    def _classes(self, member: StudentModule) -> dict[str, Any]:
        """Returns what is known about each class, of the last epoch."""
        names = list(self._class_names)
        classes = {"class_top1_last": member.class_top1, **({"class_names": names} if names else {})}
        if member.confusion is None:
            return classes
        true, predicted = member.confusion.nonzero(as_tuple=True)
        counts = member.confusion[true, predicted]
        cells = zip(true.tolist(), predicted.tolist(), counts.tolist(), strict=True)
        return classes | {"confusion_last": format_rows(cells, len(member.confusion))}

    def _costs(self, member: StudentModule) -> dict[str, Any]:
        seconds = sum(row["seconds"] for row in member.history)
        before = sum(row["seconds"] for row in member.preparation.history)
        epochs = member.epochs_done
        parameters = _parameter_count(member.deployed)
        of_head = 0 if member.method.inference_head is None else parameters - _parameter_count(member.network)
        return {
            "epochs": epochs,
            "seconds": seconds + before,
            **({"preparation_seconds": before} if member.preparation.history else {}),
            **({"kept_parameters": of_head} if of_head else {}),
            "seconds_per_epoch": seconds / epochs if epochs else None,
            "images_per_second": self._train_images * epochs / seconds if seconds else None,
            "parameters": parameters,
            "method_parameters": _parameter_count(member.method) - of_head,
            "cohort": max((row["members"] for row in member.history), default=1),
            "peak_memory_bytes": peak_memory(next(member.network.parameters()).device),
            **self._energy(member),
            "teacher_top1": self._teacher_top1,
            **({} if member.trial.pipeline is None else _corrupt(member.corrupt)),
            "finished": utc_timestamp(),
        }

    def _energy(self, member: StudentModule) -> dict[str, Any]:
        """Returns the energy of all epochs and the devices that used it; nothing if no counter measured each epoch."""
        joules = summed_joules([*member.preparation.history, *member.history])
        if not joules:
            return {}
        environment = read_environment(self.folder.path) or {}
        parts = [*(environment.get("earlier") or ()), environment]
        names = dict.fromkeys(str(part["device_name"]) for part in parts if part.get("device_name"))
        return {"energy": {"joules": joules, "device": " and ".join(names)}}

    def _write_result(self, result: dict[str, Any], reason: str | None) -> None:
        self._check_lease()
        if self._images is not None:
            result = {**result, "images": self._images}
        if not self.folder.finish(result):
            raise LostLease(f"trial {self.folder.id} was finished by another process")
        self._lease.release(finished=True)
        self._loggers.close(result)
        top1 = result.get("top1_last")
        self._send_event("finished", trial=self.folder.id, status=result["status"], reason=reason, top1=top1)

    def _check_lease(self) -> None:
        if not self._lease.is_held():
            raise LostLease(f"trial {self.folder.id} was taken over by another process")


def _check_readable(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise UserError(
            f"{path}: this checkpoint cannot be read ({error.strerror}); make it readable and run the same command "
            "again, or remove it to train the trial from the beginning"
        ) from None


def _corrupt(files: dict[str, str]) -> dict[str, Any]:
    """Returns the number of files that could not be decoded, and the first names as split/class/file."""
    names = sorted("/".join(Path(file).parts[-3:]) for file in files)
    return {"corrupt_images": len(files), "corrupt_files": names[:_MAX_CORRUPT_FILES]}


def _chosen_by_validation(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the accuracy on held-out images, and the test accuracy of the epoch that they choose; empty without."""
    if "val_top1" not in history[-1]:
        return {}
    chosen = max(history, key=lambda row: row["val_top1"])
    return {
        "val_top1_last": history[-1]["val_top1"],
        "val_top1_best": chosen["val_top1"],
        "val_best_epoch": chosen["epoch"],
        "top1_val_best": chosen["top1"],
    }


def _parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
