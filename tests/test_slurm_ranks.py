"""The place of a rank out of SLURM's variables; on a real SLURM in tests/cluster."""

from __future__ import annotations

import pytest

from elemdist.errors import UserError
from elemdist.ports import PORTS
from elemdist.slurm_ranks import (
    RANKS_OF,
    first_address,
    host_names,
    in_step,
    port_of,
    says_step,
    speaks_for_all,
    take_ranks,
    tasks_per_node,
)

STEP = {
    "SLURM_JOB_ID": "71", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "n[1-3]", "MASTER_ADDR": "10.0.0.1",
}  # fmt: skip


def test_a_task_of_srun_becomes_a_rank():
    environment = dict(STEP)
    assert says_step(environment)
    take_ranks(environment)
    found = {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    assert found == {"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "5"}
    assert environment["LOCAL_WORLD_SIZE"] == "1"
    assert environment["MASTER_ADDR"] == "10.0.0.1"
    assert int(environment["MASTER_PORT"]) in PORTS
    assert not says_step(environment), "it is a rank now"


def test_neither_a_batch_script_nor_a_shell_of_srun_is_a_rank():
    batch = {name: value for name, value in STEP.items() if "STEP" not in name}
    assert not says_step(batch)
    assert not says_step(STEP | {"SLURM_STEP_NUM_TASKS": "1"})
    assert not says_step(STEP | {"RANK": "0"})


def test_the_variables_of_a_step_count_in_that_step_alone(monkeypatch):
    assert not in_step(STEP), "no daemon of SLURM is above this process"
    assert in_step(STEP | {RANKS_OF: "71"}), "its launcher has said so"
    assert not in_step(STEP | {RANKS_OF: "70"}), "of a job that this one was submitted in"
    for step, expected in [("71.2", True), (None, True), ("71.batch", False), ("72.2", False)]:
        monkeypatch.setattr("elemdist.slurm_ranks.step_of_process", lambda _, step=step: step)
        assert in_step(STEP) is expected, step


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, True), ({"RANK": "0"}, True), ({"RANK": "1"}, False),
     (STEP, False), (STEP | {"SLURM_PROCID": "0"}, True), (STEP | {"RANK": "0"}, True)],
)  # fmt: skip
def test_one_of_all_ranks_speaks(variables, expected, monkeypatch):
    for name in ("RANK", *STEP):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert speaks_for_all() or variables == {"RANK": "1"}, "these are none of srun's here"
    monkeypatch.setattr("elemdist.slurm_ranks.step_of_process", lambda _: "71.2")
    assert speaks_for_all() is expected


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("n1", "n1"), ("n[1-3,7]", "n1 n2 n3 n7"), ("n[08-10]", "n08 n09 n10"),
        ("a1,b[2,4-5],c-d.e", "a1 b2 b4 b5 c-d.e"), ("r[0-1]n[1-2]x", "r0n1x r0n2x r1n1x r1n2x"),
    ],
)  # fmt: skip
def test_the_names_of_nodes_need_no_command(nodes, expected):
    assert host_names(nodes) == expected.split()


@pytest.mark.parametrize("nodes", ["", "n[1-", "n[a-b]", "(null)["])
def test_what_names_no_nodes_is_one_line(nodes):
    with pytest.raises(UserError, match="SLURM names"):
        host_names(nodes)


def test_without_scontrol_the_name_of_a_node_is_its_address(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert first_address("localhost") == "localhost"
    with pytest.raises(UserError, match=r"scontrol.*only itself can reach; set MASTER_ADDR"):
        first_address("localhost,n2")
    with pytest.raises(UserError, match=r"scontrol.*its name is not known to the network"):
        first_address("no-such-node.invalid")


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
