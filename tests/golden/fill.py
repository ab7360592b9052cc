"""The fixed fill of weights behind zoo.json: the same key always gets the same values, whatever the network.

    state = {key: fill(key, tensor.shape) for key, tensor in model.state_dict().items()}

Input: numpy.random.default_rng(0).standard_normal((2, 3, 32, 32)), float32; the network in eval mode, 100 classes.
zoo.json gives the first five logits of the first image and the norm of all logits.
"""

import zlib

import numpy as np


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values for the state-dict entry ``key`` of the given shape (float64; cast to the tensor's dtype)."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape)
    values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key.endswith("running_var"):
        return 1 + np.abs(values)
    if key.endswith("running_mean"):
        return 0.1 * values
    if len(shape) == 1 and key.endswith("weight"):
        return 0.3 + 0.05 * values
    if len(shape) == 1:
        return 0.1 * values
    return values * np.sqrt(1.0 / np.prod(shape[1:]))
