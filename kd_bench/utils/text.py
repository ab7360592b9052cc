"""Words of sentences."""


def count(number: int, noun: str) -> str:
    """Returns ``1 seed`` or ``2 seeds``."""
    return f"{number} {noun}{'s' * (number != 1)}"
