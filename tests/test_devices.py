"""Which GPU a rank takes, on machines that the number of GPUs is made up for."""

from __future__ import annotations

import os

import pytest
import torch

from elemdist.engine import choose_device, local_rank_of
from elemdist.errors import UserError
from elemdist.watchdog import LAUNCHER
from launcher import local

STARTERS = (LAUNCHER, "TORCHELASTIC_RUN_ID", "CUDA_VISIBLE_DEVICES")


@pytest.fixture
def see(monkeypatch):
    """Make torch see so many GPUs, with this CUDA_VISIBLE_DEVICES and that starter of ranks."""

    def make(gpus: int, visible: str | None, starter: str | None = None) -> None:
        for name in STARTERS:
            monkeypatch.delenv(name, raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        if starter is not None:
            monkeypatch.setenv(starter, "1")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return make


@pytest.mark.parametrize("visible", ["0", "3", "GPU-7f2a", "MIG-1c"])
@pytest.mark.parametrize("local_rank", [0, 1, 7])
def test_a_task_that_sees_one_gpu_takes_it(visible, local_rank, see):
    see(1, visible)
    assert choose_device("auto", local_rank) == torch.device("cuda", 0)
    assert choose_device("cuda", local_rank) == torch.device("cuda", 0)
    assert choose_device("cpu", local_rank) == torch.device("cpu")


@pytest.mark.parametrize("visible", [None, "0,1,2,3"])
def test_ranks_that_see_all_gpus_take_one_each(visible, see):
    see(4, visible)
    assert [choose_device("auto", rank).index for rank in range(4)] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="rank 4 of this machine has no GPU of its own, there are"):
        choose_device("auto", 4)


@pytest.mark.parametrize(
    ("visible", "starter"),
    [(None, None), ("", None), ("0", LAUNCHER), ("0", "TORCHELASTIC_RUN_ID")],
)
def test_ranks_do_not_share_the_one_gpu_that_all_of_them_see(visible, starter, see):
    see(1, visible, starter)
    assert choose_device("auto", 0) == torch.device("cuda", 0)
    with pytest.raises(UserError, match="rank 1 of this machine has no GPU of its own"):
        choose_device("auto", 1)


@pytest.mark.parametrize(("visible", "gpus"), [("-1", 0), ("", 0), ("-1,0", 0), ("1,-1,0", 1)])
def test_a_number_below_zero_ends_what_is_visible(visible, gpus, monkeypatch):
    monkeypatch.setattr(local, "all_gpus", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.count_gpus() == gpus


def test_without_a_gpu_a_rank_takes_the_cpu(see):
    see(0, "-1")
    assert choose_device("auto", 3) == torch.device("cpu")
    with pytest.raises(UserError, match="torch sees no GPU"):
        choose_device("cuda", 3)


def test_deepspeed_is_given_the_number_of_the_gpu_and_not_of_the_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "5")
    with local_rank_of(torch.device("cuda", 0)):
        assert os.environ["LOCAL_RANK"] == "0"
    with local_rank_of(torch.device("cpu")):
        assert os.environ["LOCAL_RANK"] == "5"
    assert os.environ["LOCAL_RANK"] == "5"
