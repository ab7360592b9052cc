"""The energy of trainings, with counters of our own: divided, added up over resumes, never zero."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_bench.training.build import build_network, build_student
from kd_bench.training.callbacks import MidEpochCheckpoint, StopRequested
from kd_bench.training.cohort import CohortModule
from kd_bench.training.energy import EnergyMeter, EpochEnergy, divide, summed_joules
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.training.student import StudentModule
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.reader import read_trial
from kd_bench.trials.result_writer import TrialResultWriter
from kd_bench.utils import energy_counters
from kd_bench.utils.energy_counters import CPU as PACKAGE
from kd_bench.utils.energy_counters import GPU, EnergyCounter, PowerZone, open_counters
from tests.training.parts import CPU, MemoryWriter, splits, trial

DATA = splits()


class Fake:
    """A counter that a fixed number of joules is added to with each reading."""

    def __init__(self, step: float = 10.0) -> None:
        self.value, self.step, self.readings = 1000.0, step, 0

    def __call__(self) -> float:
        self.value += self.step
        self.readings += 1
        return self.value


class Keeping(MemoryWriter):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[bytes] = []

    def write_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        self.kept += states


def meter(step: float = 10.0, kind: str = PACKAGE) -> EnergyMeter:
    return EnergyMeter([EnergyCounter(kind, "here", Fake(step))])


def students(*methods: str, writers: Callable[[], MemoryWriter] = MemoryWriter, **changes: Any) -> list[StudentModule]:
    trials = [trial(name, **{"epochs": 2, **changes}) for name in methods]
    teacher = next((member_trial.teacher for member_trial in trials if member_trial.teacher is not None), None)
    network = None if teacher is None else build_network(teacher, DATA)[0].eval()
    return [build_student(member_trial, DATA, network, writers()) for member_trial in trials]


def train(cohort: CohortModule, *callbacks: Any) -> None:
    fit(cohort, *loaders(cohort.members[0].trial, DATA, CPU), CPU, callbacks)


def rows(member: StudentModule) -> list[dict[str, Any]]:
    return member.history


def test_one_member_has_all_that_was_measured() -> None:
    (member,) = students("none")
    train(CohortModule([member], energy=meter()))
    # one reading when an epoch begins, and one when its training ends
    assert [row["cpu_joules"] for row in rows(member)] == pytest.approx([10.0, 10.0])
    assert all("gpu_joules" not in row for row in rows(member))
    assert summed_joules(rows(member)) == {PACKAGE: pytest.approx(20.0)}


def test_a_cohorts_energy_is_divided_as_its_seconds_are() -> None:
    members = students("none", "kd", "dkd")
    teacher = build_network(members[1].trial.teacher, DATA)[0].eval()  # type: ignore[arg-type]
    train(CohortModule(members, teacher, energy=meter(100.0)))
    for epoch in range(2):
        of = [rows(member)[epoch] for member in members]
        own_seconds = [row["own_seconds"] for row in of]
        batches = of[0]["seconds"] - own_seconds[0]
        taught = of[1]["seconds"] - own_seconds[1] - batches
        work = sum(own_seconds) + batches + taught
        for row in of:
            assert row["cpu_joules"] == pytest.approx(100.0 * row["seconds"] / work)
        assert sum(row["cpu_joules"] for row in of) >= 100.0  # each bears batches and teacher as if it were alone


def test_without_a_counter_nothing_is_recorded() -> None:
    plain, empty, still = (students("none")[0] for _ in range(3))
    train(CohortModule([plain]))
    train(CohortModule([empty], energy=EnergyMeter([])))
    train(CohortModule([still], energy=meter(0.0)))  # a counter that stands still has not measured anything
    assert [set(row) for row in rows(plain)] == [set(row) for row in rows(empty)] == [set(row) for row in rows(still)]
    assert not any("joules" in key for row in rows(plain) for key in row)
    assert summed_joules(rows(plain)) == {} and summed_joules([]) == {}


def test_a_counter_that_fails_later_is_no_error_and_no_energy() -> None:
    fake = Fake()

    def broken() -> float:
        if fake.readings > 2:
            raise RuntimeError("GPU is lost")
        return fake()

    (member,) = students("none")
    train(
        CohortModule(
            [member], energy=EnergyMeter([EnergyCounter(GPU, "a", broken), EnergyCounter(PACKAGE, "b", Fake(1.0))])
        )
    )
    assert "gpu_joules" in rows(member)[0] and "gpu_joules" not in rows(member)[1]
    assert summed_joules(rows(member)) == {PACKAGE: pytest.approx(2.0)}  # the GPU did not measure every epoch


def test_an_interrupted_epoch_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = iter([False, True])
    (member,) = students("none", writers=Keeping)
    with pytest.raises(StopRequested):
        train(CohortModule([member], energy=meter(7.0)), MidEpochCheckpoint(600.0, lambda: next(requests)))
    assert isinstance(member.writer, Keeping)
    state = torch.load(io.BytesIO(member.writer.kept[-1]), weights_only=True)
    assert state["joules"] == {PACKAGE: pytest.approx(7.0)}
    (resumed,) = students("none")
    resumed.restore_mid_epoch(state)
    train(CohortModule([resumed], energy=meter(5.0)))
    assert [row["cpu_joules"] for row in rows(resumed)] == pytest.approx([12.0, 5.0])


@pytest.mark.parametrize(("before", "after"), [(None, 5.0), (7.0, None)])
def test_a_part_of_an_epoch_does_not_pass_for_all_of_it(before: float | None, after: float | None) -> None:
    requests = iter([False, True])
    (member,) = students("none", writers=Keeping)
    energy = None if before is None else meter(before)
    with pytest.raises(StopRequested):
        train(CohortModule([member], energy=energy), MidEpochCheckpoint(600.0, lambda: next(requests)))
    assert isinstance(member.writer, Keeping)
    state = torch.load(io.BytesIO(member.writer.kept[-1]), weights_only=True)
    assert ("joules" in state) == (before is not None)
    (resumed,) = students("none")
    resumed.restore_mid_epoch(state)
    train(CohortModule([resumed], energy=None if after is None else meter(after)))
    assert "cpu_joules" not in rows(resumed)[0] and summed_joules(rows(resumed)) == {}


def test_seconds_of_an_interrupted_epoch_keep_what_the_members_share() -> None:
    """The time before the resume is no part of what was measured after it."""
    requests = iter([False, True])
    (member,) = students("none", writers=Keeping)
    with pytest.raises(StopRequested):
        train(CohortModule([member]), MidEpochCheckpoint(600.0, lambda: next(requests)))
    assert isinstance(member.writer, Keeping)
    step, seconds, divergence = torch.load(io.BytesIO(member.writer.kept[-1]), weights_only=True)["within"]
    state = torch.load(io.BytesIO(member.writer.kept[-1]), weights_only=True)
    state["within"] = (step, seconds + 1000.0, divergence)
    (resumed,) = students("none")
    resumed.restore_mid_epoch(state)
    train(CohortModule([resumed]))
    row = rows(resumed)[0]
    assert row["own_seconds"] > 1000 and row["seconds"] > row["own_seconds"]


def test_parts_of_an_epoch() -> None:
    energy = EpochEnergy()
    assert energy.with_rest({GPU: 3.0}) == {GPU: 3.0} and energy.state() == {}
    energy.restore(2.0, {GPU: 4.0})
    assert energy.with_rest({GPU: 3.0, PACKAGE: 1.0}) == {GPU: 7.0}
    assert divide({GPU: 6.0}, 2.0, 3.0) == {GPU: 4.0} and divide({GPU: 6.0}, 0.0, 0.0) == {}


def test_counters_that_two_processes_read_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both = EnergyMeter([EnergyCounter(GPU, "host, 0", Fake(10.0)), EnergyCounter(PACKAGE, "host", Fake(4.0))])
    other = {(GPU, "host, 1"): 20.0, (PACKAGE, "host"): 4.0}
    monkeypatch.setattr("kd_bench.training.energy.all_gather_object", lambda joules: [joules, other])
    both.begin()
    assert both.joules() == {GPU: 30.0, PACKAGE: 4.0}
    monkeypatch.setattr("kd_bench.training.energy.all_gather_object", lambda joules: [joules, {(PACKAGE, "host"): 4.0}])
    both.begin()
    assert both.joules() == {PACKAGE: 4.0}  # that of the other process's GPU is not known


def write_result(tmp_path: Path, energy: EnergyMeter | None) -> dict[str, Any]:
    settings = trial("none", epochs=2)
    folder = TrialFolder(tmp_path / settings.id)
    folder.create(settings)
    folder.write_environment({"device_name": "Old"})
    folder.write_environment({"device_name": "Abacus 3000"})
    writer = TrialResultWriter(folder, Held(), lambda *_, **__: None, None, 72)  # type: ignore[arg-type]
    member = build_student(settings, DATA, None, writer)
    train(CohortModule([member], energy=energy))
    result = read_trial(folder.path).result
    assert result is not None and result["status"] == "done"
    return result


class Held:
    def is_held(self) -> bool:
        return True

    def release(self, finished: bool = False) -> None:
        pass


def test_the_result_has_energy_only_if_it_was_measured(tmp_path: Path) -> None:
    with_energy = write_result(tmp_path / "a", meter(3.0))
    assert with_energy["energy"] == {"joules": {PACKAGE: pytest.approx(6.0)}, "device": "Old and Abacus 3000"}
    without = write_result(tmp_path / "b", None)
    assert "energy" not in without and set(with_energy) - set(without) == {"energy"}
    header = next((tmp_path / "b").rglob("metrics.csv")).read_text().splitlines()[0]
    assert "joules" not in header


def test_a_power_zone_that_begins_again(tmp_path: Path) -> None:
    (tmp_path / "max_energy_range_uj").write_text("1000000\n")
    zone, values = PowerZone(tmp_path), []
    for value in (900_000, 950_000, 20_000, 30_000, 10_000):
        (tmp_path / "energy_uj").write_text(f"{value}\n")
        values.append(zone())
    assert values == pytest.approx([0.9, 0.95, 1.02, 1.03, 2.01])


@pytest.fixture
def zeus(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """Takes the place of the package."""
    package, device = types.ModuleType("zeus"), types.ModuleType("zeus.device")
    package.device = device  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zeus", package)
    monkeypatch.setitem(sys.modules, "zeus.device", device)
    monkeypatch.setattr(energy_counters.importlib.util, "find_spec", lambda name: package)  # type: ignore[attr-defined]
    yield device


def test_counters_by_zeus(zeus: Any, tmp_path: Path) -> None:
    class Gpus:
        def get_name(self, index: int) -> str:
            return f"Card {index}"

        def get_total_energy_consumption(self, index: int) -> int:
            return 5_000 * (index + 1)

    (tmp_path / "energy_uj").write_text("2000000\n")
    package = types.SimpleNamespace(rapl_file=types.SimpleNamespace(path=str(tmp_path)))
    daemon = types.SimpleNamespace(get_total_energy_consumption=lambda: types.SimpleNamespace(cpu_mj=3000.0))
    zeus.get_gpus, zeus.get_cpus = Gpus, lambda: types.SimpleNamespace(cpus=[package, daemon])
    counters = open_counters("cuda:1")
    assert [(counter.kind, counter.joules()) for counter in counters] == [(GPU, 10.0), (PACKAGE, 2.0), (PACKAGE, 3.0)]
    assert [counter.kind for counter in open_counters("cpu")] == [PACKAGE, PACKAGE]
    (tmp_path / "energy_uj").unlink()  # as if it could not be read: then a part is not all
    assert [counter.kind for counter in open_counters("cuda:0")] == [GPU]


def test_what_cannot_be_read_is_no_counter(zeus: Any) -> None:
    def fail() -> Any:
        raise RuntimeError("NVML and AMDSMI unavailable")

    zeus.get_gpus = zeus.get_cpus = fail
    assert open_counters("cuda") == open_counters("cpu") == []


def test_without_the_package_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus.device", None)
    monkeypatch.setattr(energy_counters.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    assert open_counters("cuda:0") == []
