"""Recognises errors about memory."""

import torch

#: Parts of messages of errors without a type of their own: of the CPU's allocator, of CUDA outside of torch's
#: allocator, and of cuBLAS and cuDNN.
_MESSAGES = (
    "not enough memory",
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU or of the machine is exhausted."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(message in str(error) for message in _MESSAGES)
