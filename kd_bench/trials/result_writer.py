"""Writes what a member of a cohort reports into its trial's folder."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from kd_bench.training.student import StudentModule, serialize_state
from kd_bench.trials.environment import now, peak_memory
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.lease import Lease
from kd_bench.trials.loggers import Loggers
from kd_bench.utils.errors import first_line
from kd_bench.utils.files import write_atomic

#: Most corrupt files that a result names.
_NAMED = 100

#: Sends an event to the runner.
Tell = Callable[..., None]


class LostLease(Exception):
    """Another process took the trial over; nothing more may be written to its folder."""


class TrialResultWriter:
    """A trial's folder as the place where its results go.

    Args:
        folder: The trial's folder.
        lease: The right to write there; checked before each writing.
        tell: Sends an event to the runner.
        teacher_top1: The teacher's accuracy in percent.
        train_images: Images of an epoch.
        loggers: Where the metrics are shown as well, by name.
    """

    def __init__(
        self,
        folder: TrialFolder,
        lease: Lease,
        tell: Tell,
        teacher_top1: float | None,
        train_images: int,
        loggers: Sequence[str] = (),
    ) -> None:
        self.folder, self._lease, self._tell = folder, lease, tell
        self._teacher_top1, self._train_images = teacher_top1, train_images
        self._loggers = Loggers(loggers, folder, lambda text: tell("note", text=text))

    def resume(self, member: StudentModule) -> None:
        """Puts the member into the state of its last good checkpoint, if there is one."""
        self._restore(member)
        self._loggers.begin(member.trial, member.history)

    def _restore(self, member: StudentModule) -> None:
        damaged = []
        for epoch, path, content in self.folder.read_checkpoints():
            try:
                if content is None:
                    raise ValueError("its content is not what its name says")
                member.restore(torch.load(io.BytesIO(content), weights_only=True))
            except (ValueError, KeyError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
                damaged.append((path, first_line(error)))
                continue
            self._say(damaged, f"goes on from epoch {epoch}")
            return
        self._say(damaged, "starts again from zero")

    def save_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        """Keeps a checkpoint within an epoch: of each process, because what they remember of an epoch differs."""
        self._hold()
        self.folder.write_mid_epoch(member.epochs_done, step, serialize_state({"step": step, "states": states}))

    def saved_mid_epoch(self, epoch: int, processes: int) -> tuple[int, list[bytes]] | None:
        """The last good checkpoint within this epoch (from 0): its step, and the state of each of so many processes."""
        for content in self.folder.read_mid_epoch(epoch):
            try:
                kept = torch.load(io.BytesIO(content), weights_only=True)
                if len(kept["states"]) == processes:
                    return int(kept["step"]), kept["states"]
            except (ValueError, KeyError, RuntimeError, pickle.UnpicklingError, EOFError):
                continue
        return None

    def _say(self, damaged: list[tuple[Any, str]], outcome: str) -> None:
        for path, why in damaged:
            self._tell("note", text=f"{path}: this checkpoint is corrupt ({why}); the trial {outcome}")

    def epoch(self, member: StudentModule) -> None:
        """Keeps a checkpoint and the metrics; after the last epoch, finishes the trial."""
        self._hold()
        if member.epochs_done < member.trial.epochs:
            self.folder.write_checkpoint(member.epochs_done, serialize_state(member.state()))
        self.folder.write_metrics(member.history)
        row = member.history[-1]
        self._loggers.row(row)
        self._tell("epoch", trial=self.folder.id, epoch=member.epochs_done, top1=row["top1"])
        if member.epochs_done == member.trial.epochs:
            self._finish(member)

    def diverged(self, member: StudentModule, reason: str) -> None:
        """Records the trial as failed: trained again, it would fail again."""
        self._hold()
        if member.history:
            self.folder.write_metrics(member.history)
        self._conclude({"status": "failed", "reason": reason, **self._figures(member)}, reason)

    def crashed(self, member: StudentModule, reason: str) -> None:
        """Leaves the trial unfinished: an error of the code is no result."""
        self._tell("crashed", trial=self.folder.id, reason=reason)

    def _finish(self, member: StudentModule) -> None:
        weights = {key: value.detach().cpu().contiguous() for key, value in member.evaluated.state_dict().items()}
        # One entry of metadata only: safetensors writes several in random order.
        about = json.dumps({"model": member.trial.model, "trial": self.folder.id}, sort_keys=True)
        content = save(weights, metadata={"kd_bench": about})
        write_atomic(self.folder.weights, content)
        history = member.history
        best = max(history, key=lambda row: row["top1"])
        result = {
            "status": "done",
            "reason": None,
            "top1_last": history[-1]["top1"],
            "top1_best": best["top1"],
            "best_epoch": best["epoch"],
            "top5_last": history[-1]["top5"],
            "class_top1_last": member.class_top1,
            **({} if member.evaluated_as is None else {"evaluated": member.evaluated_as}),
            **self._figures(member),
            "weights_sha256": hashlib.sha256(content).hexdigest(),
        }
        self._conclude(result, None)

    def _figures(self, member: StudentModule) -> dict[str, Any]:
        seconds = sum(row["seconds"] for row in member.history)
        epochs = member.epochs_done
        return {
            "epochs": epochs,
            "seconds": seconds,
            "seconds_per_epoch": seconds / epochs if epochs else None,
            "images_per_second": self._train_images * epochs / seconds if seconds else None,
            "parameters": sum(parameter.numel() for parameter in member.network.parameters()),
            "method_parameters": sum(parameter.numel() for parameter in member.method.parameters()),
            "cohort": max((row["members"] for row in member.history), default=1),
            "peak_memory_bytes": peak_memory(next(member.network.parameters()).device),
            "teacher_top1": self._teacher_top1,
            **({} if member.trial.pipeline is None else _corrupt(member.corrupt)),
            "finished": now(),
        }

    def _conclude(self, result: dict[str, Any], reason: str | None) -> None:
        self._hold()
        if not self.folder.finish(result):
            raise LostLease(f"trial {self.folder.id} was finished by another process")
        self._lease.release(finished=True)
        self._loggers.close(result)
        self._tell(
            "finished", trial=self.folder.id, status=result["status"], reason=reason, top1=result.get("top1_last")
        )

    def _hold(self) -> None:
        if not self._lease.held():
            raise LostLease(f"trial {self.folder.id} was taken over by another process")


def _corrupt(files: dict[str, str]) -> dict[str, Any]:
    """How many files could not be decoded, and the names of the first: split, class and file."""
    names = sorted("/".join(Path(file).parts[-3:]) for file in files)
    return {"corrupt_images": len(files), "corrupt_files": names[:_NAMED]}
