"""Random numbers are a function of their names, in every process."""

import os
import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_bench.utils import seeding

NAMES = st.tuples(st.integers(0, 2**31), st.text(min_size=1, max_size=8), st.integers(0, 300), st.integers(0, 1000))


def test_values_are_those_of_the_first_release():
    # Fixed forever: with other values no published result could be reproduced.
    assert seeding.derive(0, "order") == 1518322231948688269
    assert seeding.derive(7, "augment", 3, 11) == 7835834780460333880


@given(NAMES, NAMES)
def test_different_names_have_different_numbers(names, other):
    assert (seeding.derive(*names) == seeding.derive(*other)) == (names == other)


def test_same_in_another_process_and_under_another_hash_seed():
    code = (
        "from kd_bench.utils import seeding; "
        "print(seeding.derive(3, 'order', 5, 7), seeding.generator(3, 'x').initial_seed())"
    )
    expected = f"{seeding.derive(3, 'order', 5, 7)} {seeding.generator(3, 'x').initial_seed()}"
    for hash_seed in ("0", "12345"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert out.stdout.strip() == expected


def test_generators_do_not_depend_on_what_was_drawn_before():
    first = torch.rand(4, generator=seeding.generator(1, "a", 2, 3))
    torch.rand(100)
    torch.rand(7, generator=seeding.generator(1, "b"))
    assert torch.equal(first, torch.rand(4, generator=seeding.generator(1, "a", 2, 3)))


def test_seeding_the_global_generator():
    seeding.seed_global(4, "weights")
    first = torch.rand(3)
    seeding.seed_global(5, "weights")
    assert not torch.equal(first, torch.rand(3))
    seeding.seed_global(4, "weights")
    assert torch.equal(first, torch.rand(3))
