"""Skips tests that make corrupted images where OpenCV cannot be imported."""

import pytest


def require_opencv() -> None:
    """Skips the module that calls this while it is imported, if OpenCV lacks a library of the system."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:  # its wheel needs libGL, which small systems lack
        if "lib" not in str(error):
            raise
        pytest.skip(f"OpenCV cannot be imported: {error}", allow_module_level=True)
