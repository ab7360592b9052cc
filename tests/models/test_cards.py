import csv
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kd_bench.config.load import read_recipe
from kd_bench.config.network_names import PREFIX
from kd_bench.config.validate import parse
from kd_bench.data import registry as datasets
from kd_bench.models import cards, registry
from kd_bench.plan import plan
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import package_path

ROLES: tuple[cards.Role, ...] = ("teachers", "students")
#: Role, data set and name of every packaged card, without ``cards.load_all``: a bad card fails only its own test.
CARDS = [(role, path.parent.name, path.stem) for role in ROLES for path in sorted(package_path(role).glob("*/*.yaml"))]
IDS = ["-".join(key) for key in CARDS]

#: The pairs of Tian et al. (2020): same architecture, then different ones.
PUBLISHED_PAIRS = {
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
    ("vgg13", "mobilenet_v2"),
    ("resnet50", "mobilenet_v2"),
    ("resnet50", "vgg8"),
    ("resnet32x4", "shufflenet_v1"),
    ("resnet32x4", "shufflenet_v2"),
    ("wrn_40_2", "shufflenet_v1"),
}

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}

CARD = "model: cifar_resnet20\npublished_name: ResNet20\n"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a card in the working folder."""
    monkeypatch.chdir(tmp_path)

    def card(text: str | bytes, name: str = "mine", role: str = "teachers", dataset: str = "cifar100") -> Path:
        path = Path(role, dataset, f"{name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return card


def published(table: str) -> list[dict[str, str]]:
    with (package_path("results", "published") / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("key", CARDS, ids=IDS)
def test_card_says_what_is_so(key: tuple[cards.Role, str, str]) -> None:
    role, dataset, name = key
    card = cards.load(role, dataset, name)
    assert (card.role, card.dataset, card.name) == key
    assert dataset in datasets.names()
    has_prefix = card.model.startswith(PREFIX)
    assert registry.resolve(card.model, prefix=PREFIX if has_prefix else "") == card.model
    if has_prefix:
        assert registry.resolve(name) == card.model
    with torch.device("meta"):
        network = registry.create(card.model, num_classes=CLASSES[dataset])
    assert sum(parameter.numel() for parameter in network.parameters()) == card.parameters
    assert cards.summary(card).count("\n") == 0
    assert card.published_name in cards.describe(card)


@pytest.mark.parametrize(("role", "count"), [("teachers", 10), ("students", 16)])
def test_all_cards_sorted(role: cards.Role, count: int) -> None:
    role_cards = cards.load_all(role)
    keys = [(card.dataset, card.name) for card in role_cards]
    assert len(role_cards) == count
    assert (
        keys
        == sorted(set(keys))
        == [(dataset, name) for card_role, dataset, name in sorted(CARDS) if card_role == role]
    )
    assert cards.load_all(role, "cifar100") == [card for card in role_cards if card.dataset == "cifar100"]
    assert cards.load_all(role, "no_such_set") == []


def test_published_pairs() -> None:
    pairs = {(teacher.name, student.name) for teacher, student in cards.published_pairs("cifar100")}
    assert pairs == PUBLISHED_PAIRS
    assert {(teacher.name, student.name) for teacher, student in cards.published_pairs("imagenet")} == {
        ("resnet34", "resnet18"),
        ("resnet50", "mobilenet_v1"),
        ("beitv2_large", "resnet50"),
    }
    assert "students: resnet8x4, shufflenet_v1, shufflenet_v2" in cards.describe(
        cards.load("teachers", "cifar100", "resnet32x4")
    )
    assert "teacher resnet110 (74.31 %): 70.67 % by classical distillation (RepDistiller README)" in cards.describe(
        cards.load("students", "cifar100", "resnet20")
    )


def test_accuracies_agree_with_table_6() -> None:
    rows = published("table6")
    for row in rows:
        teacher = cards.load("teachers", row["dataset"], row["teacher"])
        student = cards.load("students", row["dataset"], row["student"])
        assert teacher.top1[0].value == float(row["teacher_top1"]), row
        assert student.top1[0].value == float(row["student_top1"]), row
        pairing = next(entry for entry in student.teachers if entry.teacher == teacher.name)
        if row["method"] == "kd":
            assert pairing.kd == float(row["top1"]), row
    assert len({(row["teacher"], row["student"]) for row in rows}) == 5


def test_accuracies_agree_with_tables_7_and_8() -> None:
    robust = [robustness for card in cards.load_all("students", "cifar100") for robustness in card.robust]
    accuracies = {(robustness.clean, robustness.autoattack) for robustness in robust}
    rows = [row for row in published("table7") if row["method"] == "ikl_at"]
    assert len(rows) == 3
    assert {(float(row["clean"]), float(row["autoattack"])) for row in rows} <= accuracies
    (kd,) = (float(row["top1"]) for row in published("table8") if row["method"] == "kd")
    assert [pairing.kd for pairing in cards.load("students", "imagenet", "resnet50").teachers] == [kd]


def test_every_published_teacher_of_cifar100_can_be_had_and_trained() -> None:
    recipe = read_recipe("cifar100/teachers")
    planned = plan(recipe, "cifar100/teachers")
    for card in cards.load_all("teachers", "cifar100"):
        assert [weights.url.partition(":")[0] for weights in card.weights] == ["https", "http"]
        assert card.weights[0].member
        assert card.weights[1].member is None
        assert {weights.key for weights in card.weights} == {"model"}
        assert card.train == cards.TrainedBy(recipe="cifar100/teachers")
        assert [trial.seed for trial in planned if trial.student == card.model] == [0, 1, 2]
    assert len(planned) == 3 * 6


def test_teachers_recipe_trains_what_other_recipes_look_for() -> None:
    made = {trial.trial_id for trial in plan(read_recipe("cifar100/teachers"), "cifar100/teachers")}
    pair = {"teacher": "resnet56", "student": "resnet20"}
    other = read_recipe({"extends": "cifar100/base.yaml", "name": "other", "pairs": [pair], "methods": {"kd": {}}})
    assert {trial.teacher_id for trial in plan(other, "other")} <= made
    assert read_recipe("cifar100/teachers").name == "teachers"


@pytest.mark.parametrize(
    ("role", "dataset", "name", "expected"),
    [
        ("teachers", "cifar100", "resnet32x4", "resnet32x4"),
        ("teachers", "cifar100", "cifar_resnet32x4", "resnet32x4"),
        ("teachers", "cifar100", "ResNet50", "resnet50"),
        ("teachers", "cifar100", "WRN-40-2", "wrn_40_2"),
        ("students", "cifar100", "ShuffleV1", "shufflenet_v1"),
        ("students", "cifar100", "MobileNetV2", "mobilenet_v2"),
        ("teachers", "imagenet", "resnet50", "resnet50"),
        ("teachers", "imagenet", "resnet50.tv_in1k", "resnet50"),
        ("teachers", "imagenet", "beitv2_large_patch16_224", "beitv2_large"),
        ("students", "imagenet", "mobilenetv1_100", "mobilenet_v1"),
    ],
)
def test_card_by_any_name(role: cards.Role, dataset: str, name: str, expected: str) -> None:
    card = cards.load(role, dataset, name)
    assert (card.dataset, card.name) == (dataset, expected)
    assert cards.find(role, dataset, name) == card
    assert cards.find(role, dataset, card.model) == card


@pytest.mark.parametrize(
    ("role", "dataset", "name", "sentence"),
    [
        ("teachers", "cifar100", "resnet32x5", "no teacher of cifar100 is called 'resnet32x5'; did you mean"),
        ("teachers", "imagenet", "resnet50.a1_in1k", "no teacher of imagenet is called 'resnet50.a1_in1k'; did you"),
        ("students", "imagenet", "ShuffleV1", "no student of imagenet is called 'ShuffleV1'; there are: mobilenet_v1"),
        ("teachers", "cifar1000", "resnet56", "no dataset with teachers' cards is called 'cifar1000'; did you mean"),
    ],
)
def test_unknown_card_names_the_nearest(role: cards.Role, dataset: str, name: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        cards.load(role, dataset, name, "a.yaml: teachers")
    assert str(error.value).startswith(f"a.yaml: teachers: {sentence}")
    assert cards.find(role, dataset, name) is None


def test_own_card_outranks_the_packaged_one(write: Write) -> None:
    before = cards.load_all("teachers", "cifar100")
    path = write(CARD, name="resnet56")
    card = cards.load("teachers", "cifar100", "resnet56")
    assert (card.path, card.model) == (path, "cifar_resnet20")
    assert len(cards.load_all("teachers", "cifar100")) == len(before)
    write(CARD, name="aaa", dataset="flowers")
    assert [card.name for card in cards.load_all("teachers", "flowers")] == ["aaa"]
    write("model: cifar_resnet110\npublished_name: Other\n", name="a_resnet110")
    assert cards.load("teachers", "cifar100", "a_resnet110").published_name == "Other"
    assert cards.load("teachers", "cifar100", "cifar_resnet110").name == "resnet110"


def test_trial_folders_of_trained_teachers_are_no_cards(write: Write) -> None:
    Path("teachers", "0123456789abcdef").mkdir(parents=True)
    Path("teachers", "0123456789abcdef", "trial.json").write_text("{}")
    assert len(cards.load_all("teachers")) == 10


@pytest.mark.parametrize(
    ("role", "text", "fault"),
    [
        pytest.param("teachers", CARD + "learning_rate: 0.1\n", "learning_rate: no such key", id="student's key"),
        pytest.param("teachers", CARD + "name: resnet20\n", "name: no such key", id="path's key"),
        pytest.param(
            "students",
            CARD + "learning_rte: 1\n",
            "learning_rte: no such key; did you mean 'learning_rate'?",
            id="typo",
        ),
        pytest.param(
            "students",
            CARD + "weights: [{url: 'https://a/b', hash: x}]\n",
            "weights.0.hash: no such key; there are: key, member, sha256, url",
            id="key of weights",
        ),
        pytest.param("teachers", "model: cifar_resnet20\n", "published_name: this key is missing", id="missing"),
        pytest.param("teachers", CARD + "parameters: many\n", "parameters: should be a whole number", id="type"),
        pytest.param("teachers", CARD + "top1: [{value: 90.5}]\n", "top1.0.source: this key is missing", id="source"),
        pytest.param("teachers", CARD + "top1: [{value: .nan, source: x}]\n", "top1.0.value: ", id="nan"),
        pytest.param("teachers", CARD + "top1: [{value: 101, source: x}]\n", "top1.0.value: ", id="percent"),
        pytest.param("teachers", CARD + "weights: [{url: 'ftp://a/b'}]\n", "weights.0.url: ", id="url"),
        pytest.param(
            "teachers", CARD + "weights: [{url: 'https://a/b', sha256: 12ab}]\n", "weights.0.sha256: ", id="hash"
        ),
        pytest.param("teachers", CARD + "timm: true\n", "timm: true needs a model with its tag", id="tag"),
        pytest.param(
            "teachers",
            "model: resnet50.tv_in1k\npublished_name: R\ntimm: true\nweights: [{url: 'https://a/b'}]\n",
            "timm: true and weights exclude each other",
            id="timm and weights",
        ),
        pytest.param("students", CARD + "teachers: [{teacher: x, kd: 70}]\n", "teachers.0: kd needs a source", id="kd"),
        pytest.param(
            "teachers", CARD + "input: {normalise: imagenet}\n", "input.normalise: 'imagenet' is none of", id="literal"
        ),
        pytest.param("teachers", "model: [\n", "is not valid YAML at line 2, column 1", id="no YAML"),
        pytest.param("teachers", CARD + "model: x\n", "is not valid YAML", id="key twice"),
        pytest.param("teachers", "- model\n", "is not a card: it should be a mapping", id="list"),
        pytest.param("teachers", "", "is not a card: it should be a mapping", id="empty"),
        pytest.param("teachers", "[" * 5000, "line 1, column 33: this is nested more than 32 levels deep", id="deep"),
        pytest.param("teachers", b"\xff\xfe", "cannot be read: ", id="not UTF-8"),
    ],
)
def test_bad_card_is_one_sentence(write: Write, role: cards.Role, text: str | bytes, fault: str) -> None:
    path = write(text, role=role)
    with pytest.raises(UserError) as error:
        cards.load_all(role)
    assert str(error.value).startswith(f"{path}: {fault}")
    assert "\n" not in str(error.value)


def test_pair_with_an_unknown_teacher_names_the_card(write: Write) -> None:
    path = write(CARD + "teachers: [{teacher: resnet57}]\n", role="students")
    with pytest.raises(UserError, match="no teacher of cifar100 is called 'resnet57'; did you mean") as error:
        cards.published_pairs("cifar100")
    assert str(error.value).startswith(f"{path}: teachers: ")
    with pytest.raises(UserError, match="resnet57"):
        cards.describe(cards.load("students", "cifar100", "mine"))


def test_description_tells_everything(write: Write) -> None:
    content: dict[str, Any] = {
        "model": "cifar_resnet20",
        "published_name": "Net-20",
        "description": "A small one.",
        "parameters": 1234567,
        "top1": [{"value": 71.5, "source": "Paper A"}],
        "robust": [
            {"setting": "AT", "clean": 60, "autoattack": 30.25, "source": "Paper B", "page": "https://example.org/p"}
        ],
        "weights": [{"url": "https://example.org/a.tar", "member": "b.pth", "key": "net.w", "sha256": "0f" * 32}],
        "input": {"size": 64, "normalise": "network"},
        "train": {"recipe": "cifar100/teachers"},
        "notes": ["Mind the step."],
        "learning_rate": 0.025,
        "teachers": [{"teacher": "resnet56", "kd": 72.25, "source": "Paper C"}, {"teacher": "resnet110"}],
    }
    path = write(yaml.safe_dump(content), role="students")
    card = cards.load("students", "cifar100", "mine")
    assert cards.describe(card).splitlines() == [
        "mine: Net-20, a student on cifar100",
        "",
        "A small one.",
        "",
        "model: cifar_resnet20",
        "parameters: 1,234,567",
        "top-1 without distillation: 71.50 % (Paper A)",
        "robust, AT: 60.00 % clean, 30.25 % under AutoAttack (Paper B)",
        "  weights on https://example.org/p",
        "learning rate: 0.025",
        "image size: 64",
        "normalisation: the network's own",
        "weights: https://example.org/a.tar",
        "  file in it: b.pth",
        "  key in the file: net.w",
        f"  SHA-256 of the file: {'0f' * 32}",
        "trained here by: kd-bench run cifar100/teachers",
        "published with the teacher resnet56 (72.34 %): 72.25 % by classical distillation (Paper C)",
        "published with the teacher resnet110 (74.31 %)",
        "",
        "Mind the step.",
        "",
        f"card: {path}",
    ]
    assert cards.summary(card) == "Net-20 on cifar100, 1.23 M parameters, 71.50 %, weights published"
    bare = cards.load("students", "cifar100", write(CARD, name="bare", role="students").stem)
    assert cards.summary(bare) == "ResNet20 on cifar100"


@pytest.mark.parametrize(("role", "kind"), [("teachers", cards.TeacherFile), ("students", cards.StudentFile)])
def test_example_in_the_readme_is_a_card(role: str, kind: type[cards.TeacherFile]) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", package_path(role, "README.md").read_text(), re.DOTALL)
    assert parse(kind, yaml.safe_load(example), "README.md").model.startswith(PREFIX)


def test_reading_all_cards_imports_nothing_heavy() -> None:
    code = """
import sys
from kd_bench.models import cards
print(len([cards.describe(card) for role in ("teachers", "students") for card in cards.load_all(role)]))
heavy = ("torch", "timm", "numpy", "pandas", "PIL", "torchvision")
print([name for name in heavy if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["26", "[]"]
