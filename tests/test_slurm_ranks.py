"""The place of a rank out of SLURM's variables; on a real SLURM in tests/cluster."""

from __future__ import annotations

import pytest

from elemdist.errors import UserError
from elemdist.slurm_ranks import PORTS, in_step, port_of, take_ranks, tasks_per_node

STEP = {
    "SLURM_JOB_ID": "71", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "n[1-3]", "MASTER_ADDR": "10.0.0.1",
}  # fmt: skip


def test_a_task_of_srun_becomes_a_rank():
    environment = dict(STEP)
    assert in_step(environment)
    take_ranks(environment)
    found = {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    assert found == {"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "5"}
    assert environment["LOCAL_WORLD_SIZE"] == "1"
    assert environment["MASTER_ADDR"] == "10.0.0.1"
    assert int(environment["MASTER_PORT"]) in PORTS
    assert not in_step(environment), "it is a rank now"


def test_neither_a_batch_script_nor_a_shell_of_srun_is_a_rank():
    batch = {name: value for name, value in STEP.items() if "STEP" not in name}
    assert not in_step(batch)
    assert not in_step(STEP | {"SLURM_STEP_NUM_TASKS": "1"})
    assert not in_step(STEP | {"RANK": "0"})


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE"])
def test_what_is_missing_is_one_line(name):
    environment = dict(STEP)
    del environment[name]
    with pytest.raises(UserError, match=name):
        take_ranks(environment)


def test_the_tasks_of_each_node():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("8") == [8]
    with pytest.raises(ValueError, match="tasks per node"):
        tasks_per_node("2(x")


def test_ports_differ_from_step_to_step_and_job_to_job():
    assert len({port_of(job, step) for job in range(100) for step in range(50)}) > 4900
