"""Files that are read back may say anything: each ends in one line, at once, or in its meaning."""

from __future__ import annotations

import copy
import itertools
import json
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from data_prep.settings import ShardSettings
from data_prep.shard import run as shard
from data_prep.store import LocalStore
from data_prep.verify.main import VerifySettings, verify
from data_prep.verify.repair import read_journal
from elemdist import artefacts
from elemdist.attempts import Attempt
from elemdist.checkpoint import Checkpoint
from elemdist.checkpoint_files import read_manifest
from elemdist.config import TrainSettings
from elemdist.curve_points import read_metrics
from elemdist.errors import UserError
from elemdist.export_card import read_figures
from elemdist.model_config import ModelConfig, model_config
from elemdist.pretrained_files import read_config
from elemdist.report import read_figures as reported
from elemdist.report_figures import comparison_part, figures_part
from elemdist.robustness import FREE, known_points
from elemdist.robustness_settings import RobustnessSettings
from elemdist.shards import ShardSet
from elemdist.stop import read_end, write_end
from launcher.history import ends_of, note_lost
from launcher.status import status_of, table

RAW = {"@nan": "NaN", "@inf": "-Infinity", "@huge": "1e999", "@digits": "9" * 5000}
HOSTILE = [
    None, True, -1, 0, 1.5, 2**61, 10**30, "", "x", "../../x", "a\n\x1b[31m", "\ud83d", [], [[1]],
    {}, {"a": 1}, ["w"] * 56, *RAW,
]  # fmt: skip


def mutations(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every field of a tree in turn: with hostile values, left out, and under another name."""

    def places(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        inner = node.items() if isinstance(node, dict) else enumerate(node[:1])
        for key, value in inner:
            yield (*path, key)
            if isinstance(value, (dict, list)):
                yield from places(value, (*path, key))

    for path in list(places(tree, ())):
        for value in [*HOSTILE, "gone", "renamed"]:
            mutated = copy.deepcopy(tree)
            node = mutated
            for key in path[:-1]:
                node = node[key]
            old = node[path[-1]]
            if value in ("gone", "renamed"):
                if isinstance(node, list):
                    continue
                del node[path[-1]]
                if value == "renamed":
                    node[f"{path[-1]}s"] = old
            else:
                node[path[-1]] = value
            text = json.dumps(mutated)
            for mark, raw in RAW.items():
                text = text.replace(f'"{mark}"', raw)
            yield f"{'.'.join(map(str, path))} = {ascii(value)[:30]}", text
    for text in ("", "[]", "null", "3", '"x"', "{", "\0", "[" * 100_000, '{"a":' * 100_000,
                 '{"step": 1, "step": 1}', "\ud83d"):  # fmt: skip
        yield ascii(text[:20]), text


def attack(file: Path, read: Callable[[], Any]) -> int:
    """How many mutations of a file of JSON were read, each with a UserError or without one."""
    good = file.read_text()
    read()
    count, start = 0, time.perf_counter()
    for what, text in mutations(
        json.loads(good.splitlines()[-1] if "\n" in good[:-1] and file.suffix == ".jsonl" else good)
    ):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            read()
        except UserError as error:
            if not str(error).isprintable():
                raise AssertionError(f"{file.name}: {what}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{file.name}: {what}: {error!r}") from error
        count += 1
    file.write_text(good)
    assert time.perf_counter() - start < 20
    return count


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    lines = [
        json.dumps({"text": f"word {k} more", "labels": ["a", "b"][: 1 + k % 2]}) for k in range(9)
    ]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    settings = ShardSettings([str(folder / "in.jsonl")], str(folder / "set"), n=16, quiet=True)
    settings.input.labels_field = "labels"
    settings.processes = 1
    shard(settings)
    return folder


@pytest.mark.parametrize("name", ["index.json", "manifest.json"])
def test_a_shard_set(made, name):
    def read() -> None:
        ShardSet(str(made / "set")).label_shares()
        verify(VerifySettings(str(made / "set"), processes=1, quick=True))

    assert attack(made / "set" / name, read) > 300
    manifest = json.loads((made / "set" / "manifest.json").read_text())
    for change, message in (
        ({"segmenter": "../../x"}, "segmenter is '../../x', not one of 'word'"),
        ({"labels": ["w"] * 56}, "labels has 'w' twice"),
        ({"labels": ["\ud83d", "b"]}, r"labels\[0\] is .*, not valid UTF-8"),
        ({"n": 0}, r"n: 0 is below 1"),
        ({"v": 10**30}, "not valid JSON"),
        ({"counts": manifest["counts"] | {"text_bytes": 10**9}}, "in samples that hold"),
    ):
        file = made / "set" / "manifest.json"
        file.write_text(json.dumps(manifest | change))
        with pytest.raises(UserError, match=message) as caught:
            ShardSet(str(made / "set"))
        assert "manifest.json" in str(caught.value)
        file.write_text(json.dumps(manifest))


def test_the_journal_of_a_set(made):
    file = made / "set" / "journal.jsonl"
    good = file.read_text()
    for number, line in enumerate(good.splitlines()):
        for what, text in mutations(json.loads(line)):
            lines = good.splitlines()
            lines[number] = text
            file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
            try:
                read_journal(LocalStore(str(made / "set")), {})
            except (UserError, LookupError, TypeError, ValueError, AttributeError):
                pass  # `verify --repair` says for these that the journal is damaged
            except Exception as error:
                raise AssertionError(f"{what}: {error!r}") from error
    file.write_text(good)
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(UserError, match="journal"):
        read_journal(LocalStore(str(made / "set")), {})
    file.unlink()
    file.write_text(good)


def test_the_attempts_of_a_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    attempt = Attempt.begin(run, {"job": "77", "before": 0})
    attempt.write("end", {"code": 1, "kind": "node", "reason": "r", "before": 0, "after": 5,
                          "step": 7, "asked": None})  # fmt: skip
    write_end(run, "stopped", 20, "asked", 75, attempt=1)
    line = {"kind": "train", "step": 20, "time_s": 3.5, "loss": 2.5, "bytes_per_s": 4096.0,
            "samples": 640, "samples_per_s": 5.0}  # fmt: skip
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")

    def read() -> None:
        read_end(run)
        ends_of(run)
        note_lost(run)
        table([status_of(run, [])])

    count = sum(
        attack(file, read)
        for file in (run / "end.json", attempt.folder / "begin.json", attempt.folder / "end.json")
    )
    assert count + attack(run / "metrics.jsonl", lambda: (read(), read_metrics(run))) > 400


def test_figures(tmp_path):
    figures = {
        "checkpoint": "runs/a", "step": 5, "data": "d", "objective": "classify", "loss": 0.5,
        "micro_f1": 0.5, "documents": 9, "thresholds": [0.5, 0.4],
        "intervals": {"micro_f1": [0.4, 0.6], "macro_f1": None},
        "labels": {"a": {"documents": 3, "f1": 0.5}}, "by_frequency": {"head": {"labels": 2}},
        "calibration_bins": [{"documents": 3, "probability": 0.5, "positives": 0.4}],
    }  # fmt: skip
    file = tmp_path / "f.json"
    file.write_text(json.dumps(figures))
    turn = itertools.count()

    def read() -> None:
        read_figures(str(file))
        found = reported(file)
        if next(turn) % 10 == 0:  # a picture takes a while
            figures_part("x", found)

    count = attack(file, read)
    settings = RobustnessSettings(["a"], "t", out=str(file))
    shown = {name: x for name, x in asdict(settings).items() if name not in FREE}
    point = {"run": "a", "kind": "mixed", "rate": 0.1, "seed": 1, "micro_f1": 0.5, "macro_f1": 0.4,
             "micro_roc_auc": 0.9, "macro_roc_auc": None}  # fmt: skip
    file.write_text(json.dumps({"settings": shown, "unknown_labels": {}, "points": [point]}))
    assert count + attack(file, lambda: known_points(settings)) > 500
    assert len(known_points(settings)) == 1
    for path in ("pipe", "folder"):
        (os.mkfifo if path == "pipe" else os.mkdir)(tmp_path / path)
        with pytest.raises(UserError, match=f"it is a {path}"):
            read_figures(str(tmp_path / path))
    with pytest.raises(UserError, match="it is a device"):
        read_figures("/dev/zero")


def test_a_checkpoint(tmp_path):
    settings = TrainSettings(objective="classify", run_dir="r", deepspeed={"a": 1})
    config = model_config(settings, 16, 12, ["a", "b"])
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))

    def read_shape() -> None:
        ModelConfig.from_json(artefacts.read_json(tmp_path / "config.json", ModelConfig))

    count = attack(tmp_path / "config.json", read_shape)
    files = {"model.safetensors": [3, "00"], "config.json": [3, "00"]}
    manifest = {
        "format": "elemdist-checkpoint", "version": 3, "step": 5, "optimizer_steps": 5,
        "facts": {"n": 16}, "settings": asdict(settings), "state": {"guard": {}}, "files": files,
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))

    def read() -> None:
        found, reason = read_manifest(tmp_path, to_resume=True)
        if reason is None:
            Checkpoint(tmp_path, found).settings()
            assert Checkpoint(tmp_path, found).step >= 0

    assert count + attack(tmp_path / "manifest.json", read) > 2000
    for change, message in (
        ({"layers": 20_000}, "model.layers: 20000 is above 10000"),
        ({"heads": 0}, "heads or feedforward is 0"),
        ({"heads": -1}, "model.heads: -1 is below 0"),
        ({"width": 1 << 40}, "model.width: .* is above 1048576"),
        ({"layer": 3}, "unknown key 'model.layer'; did you mean 'layers'"),
        ({"dropout": 2}, r"model.dropout: 2 is not in \[0, 1\)"),
    ):
        tree = config.to_json()
        tree["model"] = tree["model"] | change
        (tmp_path / "config.json").write_text(json.dumps(tree))
        with pytest.raises(UserError, match=message):
            read_shape()


def test_a_folder_of_transformers(tmp_path):
    config = {
        "model_type": "bert", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2,
        "intermediate_size": 16, "vocab_size": 99, "max_position_embeddings": 32,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert attack(tmp_path / "config.json", lambda: read_config(str(tmp_path))) > 100


def test_the_results_of_a_comparison(tmp_path):
    file = tmp_path / "results.json"
    file.write_text(
        json.dumps(
            {
                "settings": {},
                "metrics": ["micro_f1"],
                "models": {},
                "first": "a",
                "budget": {"steps": 5},
                "seeds": [1],
                "failed": {"a": "b"},
            }
        )
    )
    attack(file, lambda: comparison_part("x", artefacts.read_json(file, dict[str, Any])))


@pytest.mark.parametrize("size", [0, 10 << 30])
def test_reading_ends_and_stays_small(tmp_path, size):
    file = tmp_path / "sparse.json"
    with open(file, "wb") as opened:
        opened.truncate(size)
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"sparse\.json"):
        artefacts.read_json(file)
    assert time.perf_counter() - start < 1


def test_a_small_file_takes_little_memory_whatever_its_bound(tmp_path):
    (tmp_path / "small").write_bytes(b"abc")
    tracemalloc.start()
    assert artefacts.read_bytes(tmp_path / "small", 1 << 40) == b"abc"
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert artefacts.read_bytes("/proc/self/status").startswith(b"Name:")
