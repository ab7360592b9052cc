"""``kd-bench show KEY`` and ``kd-bench list settings``: the settings of a recipe in the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand

from kd_bench.cli.show import describe
from kd_bench.cli.show_setting import describe_setting, setting_lines
from kd_bench.config.settings_reference import all_settings
from kd_bench.utils.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_key() -> None:
    assert describe("optimizer.nesterov") == (
        "optimizer.nesterov (sgd)\n"
        "  allowed  true or false\n"
        "  default  false\n"
        "  meaning  Whether the momentum is Nesterov's, which needs a momentum above 0."
    )
    assert describe("pairs.0.training.epochs") == describe("epochs") == describe_setting("epochs")


def test_kinds_of_a_block_for_which_a_key_means_the_same_are_one_entry() -> None:
    assert describe("lr").splitlines()[:3] == [
        "optimizer.lr (sgd, adamw, lamb, dot)",
        "  allowed  a number above 0",
        "  default  0.05 (sgd), 0.001 (adamw), 0.005 (lamb), 0.05 (dot)",
    ]
    titles = [line for line in describe("optimizer.momentum").splitlines() if not line.startswith(" ")]
    assert titles == ["optimizer.momentum (sgd)", "", "optimizer.momentum (dot)"]


def test_a_block_shows_its_keys() -> None:
    text = describe("schedule")
    assert text.startswith("schedule\n  allowed  a mapping\n  default  {name: step}\n")
    assert "\n\nschedule.name step: Multiplies the learning rate by gamma after each milestone" in text
    for key in ("schedule.name", "schedule.milestones (step)", "schedule.final (cosine)"):
        assert f"\n\n{key}\n" in text
    assert "augment.randaugment.bins" in describe("second_view")
    assert "`" not in text


def test_other_names_come_first() -> None:
    assert describe("kd").startswith("kd (logits)")
    Path("runs/baseline").mkdir(parents=True)
    Path("runs/baseline/recipe.yaml").write_text(
        "extends: digits/base.yaml\nname: baseline\npairs: [{teacher: null, student: resnet8}]\nmethods: [none]\n"
    )
    assert describe("baseline").startswith("baseline\n") and "These are 3 trials" in describe("baseline")
    assert describe("baseline", Path("other")).startswith("baseline\n  allowed  text\n  default  kd\n")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optimzer.lr", "optimizer.lr"),
        ("schedule.milestone", "schedule.milestones"),
        ("epohcs", "epochs"),
        ("nesterof", "nesterov"),
        ("ikl_k", "ikl_kd"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        describe(key)
    assert str(caught.value) == (
        f"no method, network, data set, recipe or setting is called {key!r}; did you mean {meant!r}?"
    )


def test_all_keys_are_listed() -> None:
    lines = setting_lines()
    assert len(lines) == len(all_settings())
    assert lines["epochs"].split("  ", 1)[0] == "240"
    assert lines["schedule.milestones (step)"].startswith("[0.625, 0.75, 0.875]  ")
    assert lines["pairs.N.training"].endswith("that differ for this pair, e.g. {optimizer: {lr: 0.01}}")
    assert lines["clip_norm"].endswith(
        "  Largest norm of a student's gradient (all its parameters and its method's together)"
    )
    assert lines["augment.own"].endswith("as path/to/file.py:name or by its name in an installed package")
    assert all(line.split("  ", 1)[1].strip() and "``" not in line for line in lines.values())


@pytest.mark.parametrize("arguments", [["list", "settings"], ["show", "optimizer.lr"], ["show", "schedule"]])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    script = (
        f"import sys; sys.argv = ['kd-bench', *{arguments!r}]\n"
        "from kd_bench.cli.main import main\n"
        "main()\n"
        "heavy = {'torch', 'timm', 'torchvision', 'pytorch_lightning', 'sklearn', 'pandas', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Learning rate" in done.stdout


def test_the_shell_completes_what_can_be_shown(tmp_path: Path) -> None:
    from kd_bench.cli import completion

    def subjects(incomplete: str, out: Path | None = None) -> list[str]:
        context = typer.Context(TyperCommand("show"))
        context.params["out"] = out
        return completion.subjects(context, incomplete)

    assert subjects("optimizer.n") == ["optimizer.name", "optimizer.nesterov"]
    assert completion.lists("sett") == ["settings"]
    assert not any("." in name for name in subjects("") if name.startswith("optimizer"))
    (tmp_path / "mine" / "compare-a").mkdir(parents=True)
    (tmp_path / "mine" / "compare-a" / "recipe.yaml").write_text("")
    assert subjects("compare-") == [] and subjects("compare-", tmp_path / "mine") == ["compare-a"]
