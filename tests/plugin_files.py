"""Files of a user's own, as ``kd-bench new`` writes them."""

from pathlib import Path

from kd_bench.cli.new import new

NAMES = {"method": "my_loss", "model": "my_net", "dataset": "my_data", "augmentation": "my_aug"}


def write(folder: Path) -> dict[str, str]:
    """Writes one of each kind, and their tests; how recipes name them, by kind."""
    for kind, name in NAMES.items():
        new(kind, name, folder)
    attributes = NAMES | {"method": "MyLoss", "model": "MyNet"}
    return {kind: f"{folder / NAMES[kind]}.py:{attributes[kind]}" for kind in NAMES}
