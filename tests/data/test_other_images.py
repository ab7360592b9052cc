"""Folders of images that a network was not trained to classify."""

from __future__ import annotations

from pathlib import Path

from kd_bench.data.other_images import open_folder
from tests.data import make


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root, linked = tmp_path / "root", tmp_path / "linked"
    make.save(root / "a" / "0.png", make.image(0))
    make.save(linked / "1.png", make.image(1))
    (root / "b").symlink_to(linked)
    (root / "c").symlink_to(linked)
    (linked / "up").symlink_to(root)
    images = open_folder(root)
    assert images.count == 2
    assert sum(len(part) for part in images.parts(16)) == 2
