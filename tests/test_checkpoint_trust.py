"""A checkpoint may hold anything: what is torn is passed over, what is wrong gives one line."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from elemdist.checkpoint import Checkpoint, find, flaw, initialise_from
from elemdist.checkpoint_files import digest
from elemdist.errors import UserError
from elemdist.model import Model
from tests.checkpoint_ranks import Setup, refused, run, save_often

SETUP = Setup(2, 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    run(folder, save_often, SETUP, run=folder / "run", steps=[3, 5], keep_last=2, keep_every=0)
    return folder / "run"


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def newest_of(run_dir: Path) -> Path:
    return run_dir / "checkpoints/step-00000005"


def resumed(tmp_path: Path, run_dir: Path, setup: Setup = SETUP) -> tuple[Any, str]:
    """(what all ranks found when they resumed, what they printed)."""
    found = run(tmp_path, refused, setup, run=run_dir)
    return found, next(path for path in tmp_path.glob("out*.log")).read_text()


def seal(folder: Path) -> None:
    """Makes the manifest fit the files again, as someone who poisons them would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {
        str(path.relative_to(folder)): [path.stat().st_size, digest(path)]
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert flaw(folder) is None


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


RANK_1 = "state/rank-00001.safetensors"
TORN = {
    "bit": (lambda at: flip_a_bit(at / RANK_1), f"{RANK_1} does not have the bytes"),
    "weights": (lambda at: flip_a_bit(at / "model.safetensors"), "does not have the bytes"),
    "missing": (lambda at: (at / RANK_1).unlink(), f"{RANK_1} is missing"),
    "short": (lambda at: (at / RANK_1).write_bytes(b""), "has 0 bytes instead of"),
    "no manifest": (lambda at: (at / "manifest.json").unlink(), "manifest.json is missing"),
    "no state": (
        lambda at: edit(at / "manifest.json", lambda tree: tree.pop("state")), "says no state",
    ),
    "torn manifest": (
        lambda at: (at / "manifest.json").write_text('{"format": "elem'), "cannot be read",
    ),
    "deep manifest": (
        lambda at: (at / "manifest.json").write_text("[" * 100_000), "cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", TORN)
def test_a_torn_checkpoint_is_passed_over_with_a_line(harm, copy, tmp_path):
    change, said = TORN[harm]
    change(newest_of(copy))
    found, log = resumed(tmp_path, copy)
    assert found == {"step": 3}
    lines = [line for line in log.splitlines() if "taking the one before" in line]
    assert len(lines) == 1  # of rank 0 alone
    assert said in lines[0]
    # without its state, a checkpoint still has weights
    assert find(str(copy)).step == (5 if harm == "no state" else 3)


def test_no_checkpoint_at_all(tmp_path):
    assert resumed(tmp_path, tmp_path / "none")[0] == {"step": None}


def set_in_manifest(key: str, value: Any) -> Callable[[Path], None]:
    return lambda at: edit(at / "manifest.json", lambda tree: tree.update({key: value}))


def list_a_file(name: str, entry: Any) -> Callable[[Path], None]:
    return lambda at: edit(at / "manifest.json", lambda tree: tree["files"].update({name: entry}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_in_manifest("format", 7), "format 7 3 is not known"),
        (set_in_manifest("version", 9), "checkpoint 9 is not known"),
        (set_in_manifest("version", [1]), "[1] is not known"),
        (set_in_manifest("step", "5"), "says no step"),
        (set_in_manifest("files", []), "says no files"),
        (set_in_manifest("files", {}), "lists no config.json"),
        (set_in_manifest("facts", None), "says no facts"),
        (set_in_manifest("state", "x"), "says no state"),
        (set_in_manifest("optimizer_steps", 1.5), "says no optimizer_steps"),
        (list_a_file("config.json", 7), "says no size and hash of config.json"),
        (list_a_file("config.json", [1]), "says no size and hash of config.json"),
        (list_a_file("../../settings.yaml", [1, "a"]), "points out of the checkpoint"),
        (list_a_file("/etc/hostname", [1, "a"]), "points out of the checkpoint"),
        (list_a_file("a\0b", [1, "a"]), "cannot be read"),
        (lambda at: (at / "manifest.json").write_text("[]"), "cannot be read"),
    ],
)  # fmt: skip
def test_a_manifest_that_says_something_else_is_passed_over(change, said, copy):
    change(newest_of(copy))
    assert said in (flaw(newest_of(copy)) or "")
    assert find(str(copy)).step == 3


def test_a_link_out_of_the_checkpoint_is_not_followed(copy, tmp_path):
    file = newest_of(copy) / RANK_1
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert flaw(newest_of(copy)) == f"{RANK_1} points out of the checkpoint"


class Trap:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/pt-state-trap", "w"))


def retensor(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edited(at: Path) -> None:
        tensors = load_file(at / name)
        change(tensors)
        save_file(tensors, at / name)

    return edited


def rename_first(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensors.pop(min(tensors))})


POISON: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (lambda at: (at / RANK_1).write_bytes(pickle.dumps(Trap())), RANK_1),
    "pickled weights": (
        lambda at: (at / "model.safetensors").write_bytes(pickle.dumps(Trap())), "model.safe",
    ),
    "no part": (lambda at: (at / RANK_1).unlink(), "is missing from element"),
    "foreign name": (retensor(RANK_1, rename_first("exp_avg/other@0")), "is no part of the model"),
    "other kind": (retensor(RANK_1, rename_first("sgd/head.bias_VE@0")), "no part of a state"),
    "behind the end": (
        retensor(RANK_1, rename_first("exp_avg/encoder.norm.bias@99")), "is no part of the model",
    ),
    "huge place": (retensor(RANK_1, rename_first(f"exp_avg/x@{'9' * 40}")), "no part of a state"),
    "integers": (
        retensor(RANK_1, lambda t: t.update({k: v.int() for k, v in t.items()})), "no part of a",
    ),
    "two dimensions": (
        retensor(RANK_1, lambda t: t.update({k: v[None] for k, v in t.items()})), "no part of a",
    ),
    "weights' shape": (
        retensor("model.safetensors", lambda t: t.update({"head.bias_VE": torch.zeros(3)})),
        "head.bias_VE has the shape (3,)",
    ),
    "weights' name": (
        retensor("model.safetensors", rename_first("more")), "is not in it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", POISON)
def test_a_poisoned_checkpoint_whose_hashes_fit_gives_one_line(harm, copy, tmp_path):
    change, said = POISON[harm]
    change(newest_of(copy))
    seal(newest_of(copy))
    found, log = resumed(tmp_path, copy)  # the same error on both ranks, and nothing hangs
    assert said in found["error"]
    assert "remove or replace this checkpoint" in found["error"]
    assert "\n" not in found["error"]
    assert "Traceback" not in log
    assert not Path("/tmp/pt-state-trap").exists()


@pytest.mark.parametrize(
    ("name", "change", "use", "said"),
    [
        ("config.json", lambda t: t.update(n="6"), "config", "n is '6', not int"),
        ("config.json", lambda t: t.pop("v"), "config", "'v'"),
        ("config.json", lambda t: t.update(more=1), "config", "more"),
        ("config.json", lambda t: t.update(labels=[1]), "config", "labels[0] is 1"),
        ("config.json", lambda t: t.update(model=[]), "config", "model is []"),
        ("config.json", lambda t: t["model"].update(width=True), "config", "model.width is True"),
        ("config.json", lambda t: t["model"].update(norm="x"), "config", "model.norm is 'x'"),
        ("config.json", lambda t: t.update(symbols={"doc": "a"}), "config", "symbols.doc is"),
        ("manifest.json", lambda t: t["settings"].update(steps=None), "settings", "steps is None"),
        (
            "manifest.json", lambda t: t["settings"]["optim"].update(lr="1"), "settings",
            "optim.lr is '1', not float",
        ),
    ],
)  # fmt: skip
def test_wrong_types_in_json_give_one_line(name, change, use, said, copy):
    edit(newest_of(copy) / name, change)
    seal(newest_of(copy))
    with pytest.raises(UserError) as caught:
        getattr(find(str(copy)), use)()
    assert said in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_go_only_into_the_model_they_are_of(copy):
    found = find(str(copy))
    model = Model(found.config())
    found.load_weights(model)
    for key, weight in found.weights().items():
        assert torch.equal(model.state_dict()[key], weight)
    retensor("model.safetensors", lambda t: t.update({"head.bias_VE": torch.zeros(3)}))(found.path)
    seal(found.path)
    with pytest.raises(UserError, match=r"head\.bias_VE has the shape \(3,\)"):
        find(str(copy)).load_weights(model)
    retensor("model.safetensors", rename_first("encoder.other"))(found.path)
    seal(found.path)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be used"):
        initialise_from(model, str(copy))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": 9_999}, "config.json says 9,999 layers"),
        ({"layers": 20_000}, "model.layers: 20000 is above 10000"),
        ({"width": 1 << 20, "feedforward": 1 << 24}, "has the shape"),
        ({"width": 1 << 40}, "above 1048576"),
        ({"heads": 0}, "heads or feedforward is 0"),
        ({"layers": 1}, "is not in the model"),
    ],
)
def test_a_model_is_built_only_once_its_shape_is_that_of_the_weights(change, said, copy):
    found = find(str(copy))
    same = found.model(found.config())
    for key, weight in found.weights().items():
        assert torch.equal(same.state_dict()[key], weight)
    edit(newest_of(copy) / "config.json", lambda tree: tree["model"].update(change))
    seal(newest_of(copy))
    found = find(str(copy))
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=said):
        found.model(found.config())
    assert time.perf_counter() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_weights_of_whole_numbers_are_refused(copy):
    retensor("model.safetensors", lambda t: t.update({k: x.long() for k, x in t.items()}))(
        newest_of(copy)
    )
    seal(newest_of(copy))
    found = find(str(copy))
    with pytest.raises(UserError, match="its numbers are I64, not of one precision"):
        found.model(found.config())


def as_version_2(at: Path) -> None:
    shutil.rmtree(at / "state")
    (at / "deepspeed").mkdir()
    (at / "deepspeed/mp_rank_00_model_states.pt").write_bytes(b"never read")

    def older(tree: dict[str, Any]) -> None:
        tree["version"] = 2
        del tree["state"], tree["optimizer_steps"]

    edit(at / "manifest.json", older)
    seal(at)


def test_the_weights_of_a_former_release_are_of_use_but_not_its_run(copy, tmp_path):
    as_version_2(newest_of(copy))
    found = find(str(copy))
    assert found.step == 5
    model = Model(found.config())
    assert "step 5" in initialise_from(model, str(copy))
    assert found.settings().optim.lr == 1e-2
    refusal, _ = resumed(tmp_path, copy)
    assert "earlier release" in refusal["error"]
    assert "--init-from" in refusal["error"]


def test_a_run_of_other_facts_is_refused(copy, tmp_path):
    edit(newest_of(copy) / "manifest.json", lambda tree: tree["facts"].update(seed=9))
    refusal, _ = resumed(tmp_path, copy)
    assert "its seed is 9, this start's is 1" in refusal["error"]


def test_a_model_of_another_shape_is_refused(copy, tmp_path):
    refusal, _ = resumed(tmp_path, copy, Setup(2, 3, backbone="albert"))
    assert "is not in the model" in refusal["error"]


def test_a_checkpoint_is_its_folder_and_manifest(copy):
    assert find(str(newest_of(copy))) == find(str(copy))
    assert isinstance(find(str(copy)), Checkpoint)
