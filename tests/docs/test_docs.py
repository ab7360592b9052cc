"""The documentation: every command in it is checked, the cheap ones are run, and what is shown as output is output.

How a page says what is to be done with a block of commands, by a comment above it:

* nothing: each command is taken apart as the command line does it, and the recipes, methods, networks, data sets and
  settings in it are looked up; nothing is run;
* ``<!-- run -->``: it is run as well, in a folder that all such blocks of the page share;
* ``<!-- slow: OPTIONS -->``: it is run by ``make test-all``, with these options added to each command that trains;
* ``<!-- output -->`` to ``<!-- end -->``: these lines are what the last run block printed, one after the other;
  ``<!-- output of: COMMAND -->`` where no block has run it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_bench.cli.main import main
from kd_bench.utils.errors import UserError
from tests.docs.commands import ROOT, check, options, planned, taken_apart

PAGES = sorted([ROOT / "README.md", ROOT / "results/measured/README.md", *(ROOT / "docs").glob("*.md")])
#: Pages whose blocks build on one another, which tests of their own run.
RUN_ELSEWHERE = ("extend.md",)

#: Options of others that prose speaks of.
FOREIGN = {"moving.md": re.compile(r"--(\w*_\w+|distill|momentum|epochs|trial)")}

_BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>run|slow:[^\n]*?) ?-->\n)?(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<body>.*?)^ *```$",
    re.M | re.S,
)
_OUTPUT = re.compile(r"^<!-- output(?: of: (?P<command>[^\n]*?))? -->\n(?P<body>.*?)^<!-- end -->$", re.M | re.S)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    body: str
    marker: str
    start: int

    @property
    def commands(self) -> list[str]:
        """Its lines, with those that go on joined; of a block of no language, those that are commands."""
        if self.language not in ("", "sh", "bash", "console", "shell"):
            return []
        lines = [line.strip().removeprefix("$ ") for line in self.body.replace("\\\n", " ").splitlines()]
        named = [line for line in lines if line and not line.startswith("#")]
        return named if self.language else [line for line in named if line.split()[0] in {"kd-bench", "make", "pip"}]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["language"].strip(), match["body"], match["marker"] or "", match.start())
        for match in _BLOCK.finditer(text)
    ]


def split(line: str) -> Iterator[list[str]]:
    """The commands of a line, as a shell sees them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_options_exist(page):
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        if block.language == "text":
            assert not re.search(r"^\s*(\$ )?(kd-bench|make) ", block.body, re.M), (
                f"commands in a block of text: {block.body}"
            )
        for line in block.commands:
            for words in split(line):
                if page.name in RUN_ELSEWHERE and words[:1] == ["kd-bench"]:
                    taken_apart(words[1:])  # what it names, other blocks of the page make
                elif words and not (page.name in RUN_ELSEWHERE and words[0] not in ("make", "pip")):
                    check(words)
    spans = _SPAN.findall(_BLOCK.sub("", text))
    for span in spans:
        if re.match(r"(kd-bench|make|pip install) \S", span):
            check(next(split(span)), prose=True)
        elif option := re.match(r"--[A-Za-z][\w-]*", span):
            foreign = page.name in FOREIGN and FOREIGN[page.name].fullmatch(option[0])
            assert foreign or option[0] in options(), f"there is no option {span!r}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in RUN_ELSEWHERE], ids=lambda page: page.stem)
def test_yaml_is_of_a_recipe(page):
    from kd_bench.config.load import parse, read_recipe
    from kd_bench.config.recipe import Recipe

    for block in blocks(page):
        if block.language != "yaml":
            continue
        content = yaml.safe_load(block.body)
        pairs = [{"teacher": "cifar_resnet14", "student": "cifar_resnet8"}]
        whole = {"name": "page", "dataset": "cifar100", "pairs": pairs, "methods": ["none"], **content}
        if "extends" in content:
            del whole["dataset"]
        recipe = read_recipe(whole)
        assert parse(Recipe, recipe.model_dump(mode="json"), page.name)
        planned(whole)


@pytest.mark.parametrize(
    "line",
    [
        "kd-bench rum demo",
        "kd-bench run dem",
        "kd-bench run demo --trails 3",
        "kd-bench run demo --set epoch=3",
        "kd-bench run demo --only method=crd",
        "kd-bench table demo --format markdwon",
        "kd-bench compare --dataset digits --teacher resnet14 --student resnet9",
        "kd-bench show ikl",
        "srun kd-bench run demo --device",
        "make dmeo",
        "make demo OTU=x",
        "pip install 'kd-bench[rey]'",
        "frobnicate",
    ],
)
def test_a_command_that_is_not_one_is_found(line):
    with pytest.raises((AssertionError, UserError)):
        check(shlex.split(line))


@dataclass
class Page:
    """Runs the blocks of a page, in a folder of its own."""

    path: Path
    printed: str = ""
    ran: int = field(default=0)

    def run(self, block: Block) -> None:
        if block.language == "python":
            exec(compile(block.body, str(self.path), "exec"), {})
        else:
            self.printed = "".join(printed(words) for line in block.commands for words in split(line))
        self.ran += 1

    def compare(self, body: str) -> None:
        wanted = _solid(re.sub(r"^```.*$", "", body, flags=re.M))
        lines = _solid(self.printed)
        begins = [at for at, line in enumerate(lines) if line == wanted[0]]
        assert any(lines[at : at + len(wanted)] == wanted for at in begins), f"{self.path.name}: not printed:\n{body}"


def _solid(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def printed(words: list[str]) -> str:
    """What a command of ours prints, run in this process."""
    assert words[0] == "kd-bench", words
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    sys_argv, sys.argv = sys.argv, words
    try:
        with contextlib.redirect_stdout(stream):
            main()
    finally:
        sys.argv = sys_argv
    stream.flush()
    return stream.buffer.getvalue().decode()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder as the pages suppose it: a checkout, and files of other suites."""
    for name in [name for name in os.environ if name.startswith("KD_BENCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    for name in ("recipes", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def _files_of_other_suites() -> None:
    import torch

    from kd_bench.models import registry

    student, teacher = (registry.create(f"cifar_{name}", 100).state_dict() for name in ("resnet8x4", "resnet32x4"))
    both = {f"module.student.{key}": value for key, value in student.items()}
    both |= {f"module.teacher.{key}": value for key, value in teacher.items()}
    torch.save({"model": student}, "student_best")
    torch.save({"epoch": 240, "model": both, "optimizer": {}, "best_acc": 76.3}, "best")
    torch.save({"opt": Namespace(model_s="resnet8x4"), "model": student}, "resnet8x4_last.pth")


def _finished_trial(folder: Path) -> None:
    """A trial that its page takes for one that was run."""
    from kd_bench.config.load import read_recipe
    from kd_bench.plan import plan
    from tests.launch.test_sharing import TEN, finished

    named = re.search(r"kd-bench export card (\w+)", (ROOT / "docs/sharing.md").read_text(encoding="utf-8"))
    (cell,) = [cell for cell in plan(read_recipe("demo"), "demo") if named and cell.trial_id == named[1]]
    trial, _ = finished(folder / "runs", cell.trial, TEN)
    trial.path.parent.rename(folder / "runs" / "demo")


def _events(page: Path) -> list[tuple[int, Block | re.Match[str]]]:
    """Blocks to run and outputs to compare, in the page's order."""
    text = page.read_text(encoding="utf-8")
    events: list[tuple[int, Block | re.Match[str]]] = [(block.start, block) for block in blocks(page) if block.marker]
    return sorted([*events, *((match.start(), match) for match in _OUTPUT.finditer(text))], key=lambda event: event[0])


@pytest.mark.parametrize("page", [page for page in PAGES if _events(page)], ids=lambda page: page.stem)
def test_what_pages_run_and_show(page, folder):
    if page.name == "moving.md":
        _files_of_other_suites()
    if page.name == "sharing.md":
        _finished_trial(folder)
    running = Page(page)
    for _, event in _events(page):
        if isinstance(event, Block):
            if event.marker == "run":
                running.run(event)
            continue
        if event["command"]:
            running.printed = printed(shlex.split(event["command"]))
        running.compare(event["body"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "block"),
    [(page, block) for page in PAGES for block in blocks(page) if block.marker.startswith("slow:")],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_what_pages_train(page, block, folder):
    for line in block.commands:
        command = [*shlex.split(line, comments=True)[1:], *shlex.split(block.marker.removeprefix("slow:"))]
        done = subprocess.run(
            [sys.executable, "-m", "kd_bench", *command], capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Incomplete" not in done.stdout


def test_keys_that_other_suites_settings_are_mapped_to():
    """The right column of moving.md names settings and attributes of ours; each must be one."""
    from kd_bench.config.data import Dataset
    from kd_bench.config.optimizer import SGD, StepSchedule
    from kd_bench.config.trial import Training
    from kd_bench.methods import _registry as methods
    from kd_bench.types import Batch, Pair

    settings: dict[str, Any] = {"optimizer": SGD, "schedule": StepSchedule, "dataset": Dataset}
    places = {head: set(of.model_fields) for head, of in settings.items()}
    places |= {
        head: {attribute.name for attribute in fields(of)} for head, of in {"batch": Batch, "pair": Pair}.items()
    }
    text = (ROOT / "docs/moving.md").read_text(encoding="utf-8")
    keys = re.findall(r"`([a-z_]+)\.([a-z_]+)`", "\n".join(re.findall(r"^\|[^|\n]*\|([^|\n]*)\|$", text, re.M)))
    assert len(keys) > 40
    for head, key in keys:
        known = places.get(head) or {parameter.name for parameter in methods.describe(head).parameters}
        assert key in known, f"{head} has no {key}"
    plain = set(re.findall(r"`([a-z_]+)`", "\n".join(re.findall(r"^\| `num_epochs[^|\n]*\|([^|\n]*)\|$", text, re.M))))
    assert plain <= set(Training.model_fields)


def test_pages_are_built_without_warnings_and_fetch_nothing(site):
    built = sorted(site.rglob("*.html"))
    assert len(built) > 8
    for page in built:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(script|link|img|iframe)\b[^>]*\b(src|href)=.?(https?:)?//", text), page
        assert "fonts.g" not in text
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"url\(['\"]?([^)'\"]+)", sheet.read_text(encoding="utf-8")):
            assert address.startswith(("data:", "#")) or (sheet.parent / address).is_file(), (sheet, address)


def test_the_readme_leads_to_every_page():
    linked = re.findall(r"\]\(((?:docs)/[^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")]
    assert sorted(linked) == sorted(f"docs/{page.name}" for page in pages)
