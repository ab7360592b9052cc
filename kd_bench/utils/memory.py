"""Recognises errors about memory."""

import torch

#: What errors say that have no type of their own: of the CPU, of CUDA outside of torch's allocator, of its libraries.
_TEXTS = ("not enough memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU or of the machine is exhausted."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(text in str(error) for text in _TEXTS)
