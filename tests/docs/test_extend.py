"""docs/extend.md: its files are written and its commands run, one after the other, as a reader would."""

import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from kd_bench.cli.main import main
from kd_bench.config.load import read_recipe
from kd_bench.config.trial import Trial
from kd_bench.launch import run_recipe
from kd_bench.models import registry
from kd_bench.models.outputs import shapes
from kd_bench.plan import plan
from kd_bench.types import Batch, Output, Pair
from kd_bench.utils import plugins

PAGE = Path(__file__).parents[2] / "docs/extend.md"
_BLOCK = re.compile(r'^```(?P<language>\w+)(?: title="(?P<file>[^"]+)")?\n(?P<body>.*?)^```$', re.M | re.S)
#: Laid over every training of the page, which is then a matter of seconds.
SMALL = (
    "--trials 1 --set epochs=1 --set teacher_training.epochs=1 "
    "--set dataset.train_images=64 --set dataset.test_images=50"
)
#: What ``table`` and ``report`` say after the trainings that ``test_all_of_it_is_planned_as_it_says`` leaves out.
NOTHING_TRAINED = "no trial of demo is in runs yet; train with: kd-bench run demo\n"


def blocks() -> list[re.Match[str]]:
    return list(_BLOCK.finditer(PAGE.read_text(encoding="utf-8")))


def commands() -> list[str]:
    return [line for block in blocks() if block["language"] == "sh" for line in block["body"].splitlines()]


def follow(block: re.Match[str]) -> None:
    """Does what a block that is no command asks for."""
    if block["file"]:
        Path(block["file"]).write_text(block["body"])
    elif block["language"] == "python":
        exec(compile(block["body"], "extend.md", "exec"), {})
    if block["language"] == "yaml":
        assert plan(read_recipe(block["file"]), block["file"])


def test_every_block_is_understood():
    assert {block["language"] for block in blocks()} == {"sh", "python", "yaml", "toml"}
    assert PAGE.read_text().count("```") == 2 * len(blocks())
    assert all(line.split()[0] in ("kd-bench", "pytest") for line in commands())
    assert {line.split()[2] for line in commands() if line.startswith("kd-bench new")} == {
        "method", "model", "dataset", "augmentation"}  # fmt: skip
    (offers,) = [block for block in blocks() if block["language"] == "toml"]
    groups = tomllib.loads(offers["body"])["project"]["entry-points"]
    kinds = (plugins.METHOD, plugins.MODEL, plugins.DATASET, plugins.AUGMENTATION)
    assert set(groups) == {kind.group for kind in kinds}
    assert all(re.fullmatch(r"[\w.]+:\w+", value) for group in groups.values() for value in group.values())


def test_all_of_it_is_planned_as_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    asked: dict[str, list[Trial]] = {}
    for block in blocks():
        if block["language"] != "sh":
            follow(block)
            continue
        for line in block["body"].splitlines():
            words = line.split()
            monkeypatch.setattr(sys, "argv", words)
            if line.startswith("pytest"):
                assert Path(words[1]).is_file()
                continue

            def train(recipe, options, console=None, line=line):
                asked[line] = [cell.trial for cell in recipe.planned]
                return {}

            monkeypatch.setattr(run_recipe, "train", train)
            main()
            printed = capsys.readouterr()
            message = printed.err.removeprefix(f"{words[1]}: {NOTHING_TRAINED}")
            assert printed.out and message.partition("\nnext:\n  kd-bench table ")[0] == "", line
    assert len(asked) == sum(line.startswith(("kd-bench run", "kd-bench compare")) for line in commands())
    for line, trials in asked.items():
        assert any(".py:" in trial.model_dump_json() for trial in trials), line
    strong = next(trials for line, trials in asked.items() if "strong=" in line)
    assert [trial.method.hyperparameters for trial in strong] == [{"weight": 4.0}]
    warm = next(trials for line, trials in asked.items() if "warm_start" in line)
    assert warm and {trial.preparation_epochs for trial in warm} == {1}
    assert Path("report.html").stat().st_size > 10_000


def table(head: str) -> dict[str, list[str]]:
    """The other cells of each row of a table by the names in its first cell."""
    (body,) = re.findall(rf"^\| {re.escape(head)} \|.*\n\|---.*\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8"), re.M)
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in body.splitlines()]
    return {name: cells for first, *cells in rows for name in re.findall(r"`(\w+)`", first)}


def test_what_a_method_reads_is_what_it_can_read():
    assert set(table("attribute of `pair`")) == {attribute.name for attribute in fields(Pair)}
    assert set(table("attribute of `batch`")) == {attribute.name for attribute in fields(Batch)}
    assert set(table("output")) == set(get_args(Output)) - {"published_preacts"}
    assert "`published_preacts`" in PAGE.read_text(encoding="utf-8")


def test_shapes_are_those_of_the_network():
    outputs = table("output")
    network_shapes = shapes(registry.create("cifar_resnet8", 100), (3, 32, 32), frozenset(outputs))
    for name, (symbols, _, example) in outputs.items():
        shape = getattr(network_shapes, name)
        several = symbols.endswith(" each")
        assert example == ", ".join(
            f"({', '.join(map(str, ('B', *dimensions)))})" for dimensions in (shape if several else [shape])
        )
        sizes = re.findall(r"\w+", symbols.removesuffix(" each"))[1:]
        known = {"K": 100, "D": 64, "H": 8, "W": 8}
        assert all(
            known.get(size, got) == got for size, got in zip(sizes, shape[-1] if several else shape, strict=True)
        )
    examples = re.findall(r"`pair\.student\.(\w+)(\[-1\])?` is `(\(.*?\))`", PAGE.read_text(encoding="utf-8"))
    assert len(examples) == 2
    for name, last, shown in examples:
        assert shown == str(getattr(network_shapes, name)[-1] if last else getattr(network_shapes, name))


@pytest.mark.slow
def test_all_of_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks():
        if block["language"] != "sh":
            follow(block)
            continue
        for line in block["body"].splitlines():
            program, *words = line.split()
            small = SMALL.split() if words[0] in ("run", "compare") else []
            if "robustness/digits" in words:  # it has no teacher, and weights are perturbed from a later epoch on
                small[small.index("teacher_training.epochs=1")] = "adversarial.weight_perturbation.from_epoch=1"
            module = ["kd_bench"] if program == "kd-bench" else [program, "-q"]
            command = [sys.executable, "-m", *module, *words, *small]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    command = [sys.executable, "-m", "kd_bench", "run", "bars.yaml", "--trials", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
