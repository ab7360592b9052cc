"""The names of the corruptions of ImageNet-C and CIFAR-C (Hendrycks and Dietterich, 2019). Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

#: Whether corrupted copies of images are published files, or were made by a package.
Source = Literal["published", "made"]

#: The 15 corruptions, in the order of the paper: noise, blur, weather, digital.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip

#: The severities of each corruption.
SEVERITIES = (1, 2, 3, 4, 5)
