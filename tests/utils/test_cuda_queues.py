"""A worker has a queue of the GPU for each of its streams, unless the user wants another number."""

import pytest

from kd_bench.launch.local_process import worker_environment


@pytest.mark.parametrize("of_user", [None, "8"])
def test_workers_have_a_queue_for_each_stream(monkeypatch: pytest.MonkeyPatch, of_user: str | None) -> None:
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    if of_user is None:
        assert int(worker_environment(1)["CUDA_DEVICE_MAX_CONNECTIONS"]) > 10
    else:
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", of_user)
        assert "CUDA_DEVICE_MAX_CONNECTIONS" not in worker_environment(1)
