"""The page of a Table 6 of made-up trials, and a reader of its elements."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from kd_bench.cli.main import app
from tests.report.table6 import HOSTILE, Table6, make

_VOID = {"meta", "br", "link", "img", "input", "hr"}


@dataclass(frozen=True)
class Made:
    """The trials, the page, and where it lies."""

    table6: Table6
    file: Path
    text: str
    data: dict[str, Any]


def attacked(table6: Table6) -> None:
    """An evaluation of robustness in each trial of one pair and two methods, the one with the higher seed better."""
    for cell in table6.planned:
        if cell.label in ("kd", "dkd") and cell.teacher == "cifar_resnet32x4" and cell.student == "cifar_shufflenet_v1":
            folder = table6.out / "table6" / cell.trial_id / "attacks"
            folder.mkdir()
            robust = 30.0 + cell.seed + (2 if cell.label == "dkd" else 0)
            accuracy = {"clean": table6.done[cell.trial_id], "apgd-ce": robust + 3, "apgd-t": robust + 1}
            attack = {"schema_version": 1, "norm": "Linf", "eps": 8 / 255, "library": "0.2.0"}
            said = {
                "kind": "attack",
                "status": "done",
                "attack": attack,
                "images": 100,
                "of": 10000,
                "accuracy": accuracy | {"fab-t": robust + 1, "square": robust},
                "robust": robust,
                "skipped": [],
                "warnings": [HOSTILE],
                "subject": {"weights": "0" * 64},
            }
            (folder / "0000000000000000.json").write_text(json.dumps(said))


class Reader(HTMLParser):
    """Elements with attributes and ancestors, text by the innermost table cell, and whether tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.ancestors: list[tuple[str, ...]] = []
        self.cells: list[tuple[dict[str, str | None], list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.ancestors.append(tuple(self.stack))
        if tag == "br":
            self.handle_data(" ")
        if tag in ("td", "th"):
            self.cells.append((dict(attrs), []))
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.ancestors.append(tuple(self.stack))

    def handle_endtag(self, tag: str) -> None:
        if tag == "option" and self.stack[-1] != "option":
            return
        assert self.stack and self.stack[-1] == tag, (tag, self.stack[-3:], self.getpos())
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if self.cells and self.stack and {"td", "th"} & set(self.stack):
            self.cells[-1][1].append(data)


def make_page(folder: Path) -> Made:
    """Makes the trials and their page."""
    table6 = make(folder / "out")
    attacked(table6)
    recorded_by_class(table6)
    file = folder / "pages" / "report.html"
    run = CliRunner().invoke(app, ["report", "--out", str(table6.out), "--output", str(file)])
    assert run.exit_code == 0, run.output
    assert "report: 130 trials, " in run.output
    text = file.read_text(encoding="utf-8")
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    return Made(table6, file, text, json.loads(match[1]))


def recorded_by_class(table6: Table6) -> None:
    """Accuracies by class and a confusion matrix in each trial of one pair and two methods."""
    draw = random.Random(0)
    names = [f"class {index}" for index in range(99)] + [HOSTILE]
    for cell in table6.planned:
        if cell.label in ("kd", "dkd") and cell.teacher == "cifar_wrn_40_2" and cell.trial_id in table6.done:
            file = table6.out / "table6" / cell.trial_id / "result.json"
            hits = [draw.randrange(40, 100) for _ in names]
            lines = []
            for true, hit in enumerate(hits):
                row = sorted({true: hit, (true + 7) % 100: 100 - hit}.items())
                lines.append(" ".join(f"{predicted}:{count}" for predicted, count in row))
            classes = {"class_top1_last": hits, "class_names": names, "confusion_last": lines}
            file.write_text(json.dumps(json.loads(file.read_text()) | classes))
