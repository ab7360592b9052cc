"""Comparisons from Python train, and refuse, what the command line does."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kd_bench
from kd_bench import RunFailed, UserError, api
from kd_bench.cli.options import RUN_OPTIONS
from kd_bench.launch.options import RunOptions
from kd_bench.python_api import compare as compare_module
from kd_bench.python_api.arguments import named_as_in_python
from kd_bench.python_api.compare import Options, _notebook_console
from kd_bench.report.results_frame import read_results
from kd_bench.utils.command_line import command_line
from kd_bench.utils.notebook import in_notebook

#: Trains a teacher and two students in seconds.
SMALL: dict[str, Any] = {
    "trials": 1,
    "epochs": 1,
    "batch_size": 16,
    "teacher_training": {"epochs": 1},
    "dataset.train_images": 96,
    "dataset.test_images": 48,
    "jobs": 1,
}
PAIR = ("digits", "resnet14", "resnet8")


def refusal(function: Any, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def results(out: Path) -> Any:
    return kd_bench.compare(*PAIR, methods=["kd"], out=out, **SMALL)


def test_a_comparison(results: Any, out: Path) -> None:
    frame = results.frame()
    assert frame["status"].tolist() == ["done", "done"] and frame["label"].tolist() == ["none", "kd"]
    assert results.failed == {} and len(results.pairs) == 1
    (folder,) = out.glob("compare-*")
    assert frame["trial_id"].tolist() == [
        name for name in frame["trial_id"] if (folder / name / "student.safetensors").is_file()
    ]
    curves = results.plot_curves()
    assert [line.get_label() for line in curves.get_lines()] == ["student alone", "kd", "teacher"]


def test_trials_are_those_of_the_command_line(results: Any) -> None:
    overrides = [f"{key}={json.dumps(value)}" for key, value in SMALL.items() if key not in ("trials", "jobs")]
    planned = api.plan_comparison(*PAIR, ["kd"], trials=1, overrides=overrides).planned
    assert [cell.trial_id for cell in planned] == results.frame()["trial_id"].tolist()


def test_the_call_is_recorded_as_the_command(results: Any, out: Path) -> None:
    (environment, *_) = out.glob("compare-*/*/environment.json")
    command = json.loads(environment.read_text())["command"]
    assert command.startswith(
        "kd_bench.compare(dataset='digits', teacher='resnet14', student='resnet8', methods=['kd']"
    )
    assert "epochs=1" in command and "weights" not in command
    assert command_line().startswith("kd-bench")


def test_the_same_call_trains_nothing(results: Any, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    again = kd_bench.compare(*PAIR, methods="kd,", out=str(out), **SMALL)
    assert again.frame().equals(results.frame())
    assert "all is done (2 trials); nothing to train" in capfd.readouterr().err


def test_in_a_thread(results: Any, out: Path) -> None:
    thread_results: list[Any] = []
    thread = threading.Thread(
        target=lambda: thread_results.append(kd_bench.compare(*PAIR, methods=["kd"], out=out, **SMALL))
    )
    thread.start()
    thread.join()
    assert thread_results[0].frame().equals(results.frame())


def test_signals_keep_their_handlers(results: Any, out: Path) -> None:
    def handler(*_: Any) -> None:
        pass

    before = signal.signal(signal.SIGTERM, handler)
    try:
        kd_bench.compare(*PAIR, methods=["kd"], out=out, **SMALL)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_recipe_as_a_mapping_and_as_a_file(out: Path, tmp_path: Path) -> None:
    content = {
        "name": "small",
        "extends": "digits/base.yaml",
        "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
        "methods": {"none": {}, "kd": {}, "dkd": {}},
    }
    settings = {key: value for key, value in SMALL.items() if key != "trials"}
    results = kd_bench.run(content, only={"method": ["none", "dkd"], "seed": 2}, trials=3, out=out, **settings)
    assert results.frame()[["label", "seed", "status"]].to_numpy().tolist() == [["none", 2, "done"], ["dkd", 2, "done"]]
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(content))
    same = kd_bench.run(path, only={"method": "none,dkd", "seed": [2]}, trials=3, out=out, **settings)
    assert same.frame().equals(results.frame())
    assert read_results(out / "small", results.parts[0].cells)["status"].tolist() == ["done", "done"]


BROKEN = """
from kd_bench import Method


class Broken(Method):
    def forward(self, student, teacher, batch):
        raise RuntimeError("no such luck")
"""


def test_trials_that_fail_are_warned_of_and_are_in_the_table(results: Any, out: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    row = f"broken={tmp_path}/broken.py:Broken"
    with pytest.warns(RuntimeWarning, match="compare: 1 training has no result: .*no such luck"):
        some = kd_bench.compare(*PAIR, methods=["kd", row], out=out, **SMALL)
    assert some.frame()["status"].tolist() == ["done", "done", "failed"]
    (reason,) = some.failed.values()
    table = " ".join(str(some.table()).split())
    assert "no such luck" in reason and "(0/1)" in table and "broken: 0 of 1 (1 failed)" in table
    assert re.search(r"broken, student cifar_resnet8, seed 0 \(\w+\) failed: ", table)
    content = {"name": "bad", "dataset": "digits", "pairs": [{"teacher": "resnet14", "student": "resnet8"}]}
    content["methods"] = {"broken": {"method": row.removeprefix("broken=")}}
    with pytest.raises(RunFailed, match="no such luck"):
        kd_bench.run(content, out=out, **SMALL)


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(tmp_path: Path) -> None:
    """As interrupting a notebook's kernel: the first SIGINT saves a checkpoint, and the same call resumes."""
    settings = SMALL | {"epochs": 500, "dataset.train_images": 200}
    code = (
        f"import kd_bench\ntry:\n    kd_bench.compare(*{PAIR!r}, methods=['kd'], **{settings!r})\n"
        "except KeyboardInterrupt:\n    print('interrupted', flush=True)\n    import os; os._exit(5)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        metrics = tmp_path / "runs"
        deadline = time.monotonic() + 120
        while process.poll() is None and not list(metrics.glob("compare-*/*/metrics.csv")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, output) == (5, "interrupted\n"), errors
    assert errors.rstrip().endswith("stopped; the same call goes on from here")
    assert list(metrics.glob("compare-*/*/checkpoint*"))
    assert not list(metrics.glob("compare-*/*/result.json"))


def test_refusals(tmp_path: Path) -> None:
    compare, run = kd_bench.compare, kd_bench.run
    assert refusal(compare, *PAIR, epoch=3) == "compare: no setting is called 'epoch'; did you mean 'epochs'?"
    assert refusal(compare, *PAIR, job=3) == "compare: no setting is called 'job'; did you mean 'jobs'?"
    assert refusal(compare, *PAIR, jobs=0) == "compare: jobs: should be at least 1 (it is 0)"
    assert refusal(compare, *PAIR, threads="2") == "compare: threads: should be a whole number (it is '2')"
    assert refusal(compare, *PAIR, trials=0) == "compare: trials: should be a whole number, at least 1 (it is 0)"
    assert refusal(compare, *PAIR, epochs=0).endswith("epochs: should be at least 1 (it is 0)")
    assert refusal(compare, *PAIR, epochs=object()) == (
        "compare: epochs: should be made of mappings, lists, text, numbers, true, false and null"
    )
    assert refusal(compare, *PAIR, out="") == "compare: out: is empty; write . for the working folder"
    assert refusal(compare, *PAIR, methods=["kd", "ikl_dk"]).endswith(
        "no method is called 'ikl_dk'; did you mean 'ikl_kd'?"
    )
    assert refusal(compare, *PAIR, methods=[]) == "compare: methods: should name at least one method, e.g. 'kd'"
    assert refusal(compare, *PAIR, methods=[3]) == "compare: methods: should be names of methods (one is 3)"
    assert refusal(compare, *PAIR, methods=[kd_bench.Method]) == (
        "compare: methods: Method is trained in another process, which reads it from a file; write the class to a file "
        "and name it as FILE.py:Method"
    )
    assert "no dataset is called 'digit'; did you mean 'digits'?" in refusal(compare, "digit", "resnet14", "resnet8")
    assert "did you mean 'resnet14'?" in refusal(compare, "digits", "resnt14", "resnet8")
    assert refusal(run, "dmo").endswith("there is no such recipe; did you mean 'demo'?")
    assert refusal(run, tmp_path / "no.yaml").endswith("no.yaml: there is no such recipe")
    assert "metod" in refusal(run, "demo", only={"metod": "kd"})
    example = 'run: only: should be a mapping, e.g. {"method": ["kd", "dkd"], "seed": 0} (it is '
    assert refusal(run, "demo", only="method=kd") == f"{example}'method=kd')"
    assert refusal(run, "demo", only=["method=kd"]) == f"{example}['method=kd'])"
    assert refusal(compare, *PAIR, lr=0.1) == (
        "compare: no setting is called 'lr'; did you mean optimizer={\"lr\": 0.1}?"
    )
    assert refusal(compare, *PAIR, methods=["kd", "kd"]).startswith("methods kd: is named twice; leave one out")
    assert refusal(compare, "digits", None, "resnet8") == (
        "teacher: should name the teacher's network, because kd needs a teacher"
    )
    assert refusal(compare, "digits", 3, "resnet8") == "compare: teacher: should be text (it is 3)"
    assert refusal(compare, "digits", "resnet14", kd_bench.create_model("resnet8", 10)) == (
        "compare: student: CifarResNet is trained in another process, which builds it by name; name it, as "
        "FILE.py:NAME if it is your own, or pass it to kd_bench.distiller"
    )
    assert refusal(compare, *PAIR, weights=3) == "compare: weights: should be text (it is 3)"
    assert refusal(compare, *PAIR, out=None) == "compare: out: should be the path of a folder (it is None)"
    assert refusal(run, 3) == "run: recipe: should be text (it is 3)"
    assert refusal(run, {"name": "x"}).startswith("x: ")
    assert refusal(run, "demo", device="tpu", out=tmp_path).startswith(
        "device tpu: there is no such device; there are: "
    )
    assert refusal(compare, *PAIR, methods=["a b=kd"]).startswith("methods a b=kd: should be a method's name")
    assert refusal(compare, *PAIR, **{"methods.kd.temprature": 2}).endswith("did you mean 'temperature'?")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Receives the plan, the options and the text of each call, which then trains nothing."""
    calls: list[Any] = []
    monkeypatch.setattr(compare_module, "_train", lambda *call: calls.append(call))
    return calls


def test_numbers_and_names_of_numpy(planned: list[Any]) -> None:
    count, epochs, rate = np.int64(1), np.int32(2), np.float32(0.25)
    rows = {"kd": {"temperature": np.float32(2)}}
    kd_bench.compare(*PAIR, rows, trials=count, epochs=epochs, clip_norm=rate, optimizer={"lr": rate}, jobs=count)
    kd_bench.run({"name": "x", "dataset": "digits", "pairs": [{"teacher": None, "student": "resnet8"}],
                  "methods": {"none": {}}, "epochs": epochs, "trials": count})  # fmt: skip
    (recipe, options, call), (from_mapping, _, _) = planned
    trial = recipe.planned[-1].trial
    assert (trial.epochs, trial.clip_norm, trial.optimizer.lr, options.jobs) == (2, 0.25, 0.25, 1)
    assert trial.method.hyperparameters["temperature"] == 2.0 and len(recipe.planned) == 2
    assert "{'kd': {'temperature': 2.0}}, trials=1, out='runs', epochs=2, clip_norm=0.25" in call
    assert [cell.trial.epochs for cell in from_mapping.planned] == [2]

    kd_bench.compare(*PAIR, np.array(["kd", "dkd"]))
    kd_bench.compare(*PAIR, iter(["kd", "dkd"]))
    for recipe, _, call in planned[2:]:
        assert list(recipe.recipe.methods) == ["none", "kd", "dkd"]
        assert "methods=['kd', 'dkd'], out=" in call


def test_networks_and_data_sets_as_paths(planned: list[Any]) -> None:
    kd_bench.compare(Path("digits"), Path("resnet14"), Path("resnet8"), ["kd"])  # type: ignore[arg-type]
    kd_bench.compare(*PAIR, ["kd"])
    first, second = ([cell.trial_id for cell in plan.planned] for plan, _, _ in planned)
    assert first == second


def test_all_seeds_that_are_given_are_trained(planned: list[Any]) -> None:
    kd_bench.compare(*PAIR, ["kd"], seeds=[5, 6, 7, 8])
    kd_bench.compare(*PAIR, ["kd"], seeds=[5, 6, 7, 8], trials=2)
    kd_bench.compare(*PAIR, ["kd"])
    seeds = [list(dict.fromkeys(cell.seed for cell in plan.planned)) for plan, _, _ in planned]
    assert seeds == [[5, 6, 7, 8], [5, 6], [0, 1, 2]]


def test_nothing_is_accepted_and_ignored(planned: list[Any]) -> None:
    message = refusal(kd_bench.run, "demo", methods={"crd": {"temperature": 2}})
    assert message.startswith("run: methods: should be names of methods; for a row with hyper-parameters pass")
    kd_bench.run("demo", **{"methods.crd_2": {"method": "crd", "temperature": 2}})  # as the message says
    assert planned[0][0].planned[-1].trial.method.hyperparameters["temperature"] == 2.0
    pairs = [{"teacher": "resnet20", "student": "resnet8"}]
    assert refusal(kd_bench.compare, *PAIR, pairs=pairs).startswith("compare: pairs: teacher and student are")
    assert refusal(kd_bench.run, "demo", only={"method": []}) == "run: only: method: should have at least one value"


def test_errors_name_arguments_and_no_options() -> None:
    assert refusal(kd_bench.compare, "digits", None, "resnet8", ["none"], weights="file") == (
        "weights file: should be those of a teacher, and there is no teacher"
    )
    with pytest.raises(UserError, match=r"^data_dir: get it by: kd-bench data fetch --out x$"), named_as_in_python():
        raise UserError("--data-dir: get it by: kd-bench data fetch --out x")
    with pytest.raises(UserError, match=r"^executor_options a: set jobs$"), named_as_in_python():
        raise UserError("--executor-option a: set --jobs")
    message = refusal(kd_bench.compare, *PAIR, {"mine": {"method": kd_bench.Method}})
    assert message.startswith("compare: methods: Method is trained in another process")


def test_options_are_those_of_the_command_line() -> None:
    """The same names, defaults and meaning; ``out`` is an argument of its own."""
    options = Options().model_dump()
    names = {"executor_option": "executor_options"}
    assert set(options) == {names.get(name, name) for name in RUN_OPTIONS} - {"out"}
    for name, (_, default) in RUN_OPTIONS.items():
        if name not in ("out", "executor_option"):
            assert options[name] == default
    given = Options(tensorboard=True, executor="slurm", executor_options={"minutes": 5}, data="~")
    expected = RunOptions(
        out=Path("x"), loggers=("tensorboard",), executor="slurm", executor_options=("minutes=5",), data=Path.home(),
        workers=2,
    )  # fmt: skip
    assert given.run_options(Path("x")) == expected
    fields = {field.name for field in dataclasses.fields(RunOptions)}
    assert fields == set(options) - {"tensorboard", "wandb"} | {"out", "loggers"}


def test_both_functions_are_documented_with_all_their_arguments() -> None:
    for function in (kd_bench.compare, kd_bench.run, kd_bench.load, kd_bench.distiller):
        doc = inspect.getdoc(function) or ""
        for name in inspect.signature(function).parameters:
            assert f"{name}" in doc.partition("Args:")[2], (function, name)


def test_nothing_of_a_notebook_is_loaded_outside_of_one() -> None:
    assert not in_notebook() and _notebook_console() is None
