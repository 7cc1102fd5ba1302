"""What lies in memory or on a disk instead of on the device: the numbers stay the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import TINY, elemdist, expect_user_error
from tests.engine_ranks import run_cases

CPU = {
    "1": ["--zero.offload-optimizer", "cpu"],
    "2": ["--zero.offload-optimizer", "cpu"],
    "3": ["--zero.offload-optimizer", "cpu"],
    "3 parameters": ["--zero.offload-parameters", "cpu"],
    "3 both": ["--zero.offload-optimizer", "cpu", "--zero.offload-parameters", "cpu"],
}


def check_same(found: dict, name: str, other: str) -> None:
    """Losses and norms of every step of every rank are those of the other case."""
    assert len(found[name]) == len(found[other]) == 2
    for mine, theirs in zip(found[name], found[other], strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-6)
        assert mine["norms"] == pytest.approx(theirs["norms"], rel=1e-6)


def test_offload_to_memory_changes_no_number(tmp_path):
    cases = {f"cpu {name}": ["--zero.stage", name[0], *words] for name, words in CPU.items()}
    cases |= {f"none {stage}": ["--zero.stage", stage] for stage in "123"}
    found = run_cases({name: {"argv": argv} for name, argv in cases.items()}, tmp_path)
    for name in CPU:
        check_same(found, f"cpu {name}", f"none {name[0]}")


@pytest.mark.skipif(
    "ELEMDIST_TEST_NVME" not in os.environ,
    reason="needs libaio-dev and compiles for minutes; ELEMDIST_TEST_NVME=1 make test",
)
def test_offload_to_a_disk_changes_no_number(tmp_path):
    """The model is wide enough to be swapped: DeepSpeed keeps parts below 1 MB in memory."""
    common = ["--model.width", "512", "--model.layers", "1", "--zero.stage", "3"]
    bf16 = [*common, "--precision", "bf16"]  # on a CPU parameters come back in no other
    fetched = '{"zero_optimization.offload_param.max_in_cpu": 0}'
    cases = {
        "optimizer": [*common, "--zero.offload-optimizer", "nvme"],
        "parameters": [*bf16, "--zero.offload-parameters", "nvme", "--deepspeed", fetched],
    }
    for name, argv in cases.items():
        (tmp_path / name).mkdir()
        argv += ["--zero.nvme-path", str(tmp_path / name)]
    cases |= {"none": common, "none bf16": bf16}
    found = run_cases(
        {name: {"argv": argv} for name, argv in cases.items()}, tmp_path, timeout_s=550
    )
    check_same(found, "optimizer", "none")
    check_same(found, "parameters", "none bf16")
    for kind in ("exp_avg-*", "exp_avg_sq-*"):
        assert list((tmp_path / "optimizer").rglob(kind))
    assert list((tmp_path / "parameters").rglob("*param*.swp"))


@pytest.mark.parametrize("case", ["no compiler", "no folder", "no right to write"])
def test_a_machine_that_cannot_offload_to_a_disk_is_one_line(case, packed, tmp_path):
    folder = tmp_path / "disk"
    expected = {
        "no compiler": "libaio",
        "no folder": "there is no folder",
        "no right to write": "cannot write to",
    }[case]
    if case != "no folder":
        folder.mkdir()
    if case == "no right to write":
        if os.geteuid() == 0:
            folder = Path("/proc")  # where not even root makes a file
        else:
            folder.chmod(0o500)
    done = elemdist(
        "train", "--run-dir", tmp_path / "run", "--data.train", packed / "train", *TINY,
        "--zero.stage", "3", "--zero.offload-optimizer", "nvme", "--zero.nvme-path", folder,
        "--steps", "2", CC="false",
    )  # fmt: skip
    expect_user_error(done, "zero.", expected)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
