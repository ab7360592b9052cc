"""A method or network of the user's cannot change another member's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.testing import SmallRun
from kd_bench.training.build import build_network, build_student
from kd_bench.utils.errors import UserError
from tests.training.parts import MemoryWriter, same, splits, train, trial

METHOD = """
import torch
{top}
from kd_bench.losses import cross_entropy
from kd_bench.methods.base import Method
from kd_bench.types import Needs

class Own(Method):
    needs = Needs(teacher=frozenset({{"logits", "stages", "pooled"}}))

    def __init__(self, pair):
        super().__init__(pair)
        {init}

    def forward(self, student, teacher, batch):
        {line}
        return {{"ce": cross_entropy(student.logits, batch.labels)}}
"""


def write(folder: Path, line: str = "pass", init: str = "pass", top: str = "") -> str:
    file = folder / "own.py"
    file.write_text(METHOD.format(line=line, init=init, top=top))
    return f"{file}:Own"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("teacher.logits.mul_(0)", "writes into teacher.logits"),
        ("teacher.stages[1].add_(1)", "writes into teacher.stages[1]"),
        ("batch.labels.fill_(0)", "writes into batch.labels"),
        ("batch.images.zero_()", "writes into batch.images"),
        ("batch.index[0] = 3", "writes into batch.index"),
        ("torch.set_default_dtype(torch.float64)", "changes torch's default type of numbers"),
        ("torch._C._set_grad_enabled(False)", "changes whether gradients are computed"),
        ("torch.set_num_threads(3)", "changes the number of torch's threads"),
        ("torch.backends.cudnn.deterministic = True", "changes torch.backends.cudnn.deterministic"),
        (
            "torch.nn.modules.module.register_module_forward_hook(lambda *_: None)",
            "changes the hooks of all modules",
        ),
    ],
)
def test_who_changes_what_is_shared_fails_alone(tmp_path: Path, line: str, reason: str) -> None:
    data, threads = splits(), torch.get_num_threads()
    kd, own = trial("kd"), trial(write(tmp_path, line))
    (alone,) = train([kd], data)
    first, last = train([own, kd], data), train([kd, own], data)
    for writer in (first[1], last[0]):
        assert same(writer.states, alone.states)
    for writer in (first[0], last[1]):
        assert writer.crash is not None
        assert reason in writer.crash
        assert "\n" not in writer.crash
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert not torch.backends.cudnn.deterministic
    assert not torch.nn.modules.module._global_forward_hooks


def test_what_bypasses_the_counter_reaches_nobody_and_is_found_by_the_check(tmp_path: Path) -> None:
    data = splits()
    name = write(tmp_path, "batch.labels.data.fill_(0); teacher.logits.data.zero_()")
    kd = trial("kd")
    (alone,) = train([kd], data)
    _, together = train([trial(name), kd], data)
    assert same(together.states, alone.states)
    with pytest.raises(AssertionError, match=r"writes into batch\.labels"):
        SmallRun(method=name).check_company()


def test_the_check_of_company_finds_what_is_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"writes into teacher\.logits"):
        SmallRun(method=write(tmp_path, "teacher.logits.mul_(0)")).check_company()


def build(one: Trial, data: ArrayDataset) -> None:
    assert isinstance(one.teacher, Trial)
    build_student(one, data, build_network(one.teacher, data)[0].eval(), MemoryWriter())


@pytest.mark.parametrize(
    ("where", "line"),
    [("init", "torch.set_default_dtype(torch.float64)"), ("top", "torch.set_num_threads(3)")],
)
def test_a_plug_in_that_changes_the_process_when_it_is_built_is_refused(tmp_path: Path, where: str, line: str) -> None:
    name, data = write(tmp_path, **{where: line}), splits()
    with pytest.raises(UserError, match="a setting of the process on which other methods depend"):
        build(trial(name), data)
    assert torch.get_default_dtype() is torch.float32


def test_the_labels_of_the_data_set_are_not_shared_with_plug_ins(tmp_path: Path) -> None:
    data = splits()
    before = data.train_labels.clone()
    build(trial(write(tmp_path, init="pair.train_labels.zero_()")), data)
    assert torch.equal(data.train_labels, before)


def test_a_network_that_changes_its_input_changes_nobody_else(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(3, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x.data.relu_().mean((2, 3)))\n"
    )
    data = splits()
    from kd_bench.models import registry as models

    kd = trial("kd")
    own = trial("kd", model=f"{file}:Net", model_source=models.source_hash(f"{file}:Net"))
    (alone,) = train([kd], data)
    _, together = train([own, kd], data)
    assert same(together.states, alone.states)
