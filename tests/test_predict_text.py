"""What predict, robustness and others read and print: awkward files, ids, labels, full disks."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import zstandard

from data_prep.settings import Format, InputSettings
from elemdist import cli, predict, robustness
from elemdist.errors import UserError
from elemdist.model import Model
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import ModelSettings
from elemdist.predict_settings import PredictSettings
from elemdist.robustness_settings import RobustnessSettings
from tests.conftest import REPOSITORY, TOPICS, elemdist, expect_user_error
from tests.forkserver import rank_process
from tests.test_not_finite import run_with
from tests.test_sample import saved

ODD_LABELS = [
    'a"b', "new\nline", "tab\t\\", "ветер 雨 😀", "\x00\x1b[31m", "a\u2028b", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run of each objective, of random weights."""
    folder = tmp_path_factory.mktemp("made")
    return {
        objective: run_with(objective, folder / objective, lambda flat: flat)
        for objective in ("clm", "classify")
    }


def no_constant(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def answers(capfdbinary, *words: str | Path) -> list[dict]:
    """What predict prints, run in this process: valid UTF-8, and JSON without NaN."""
    assert cli.predict([str(word) for word in words]) == 0
    out = capfdbinary.readouterr().out.decode("utf-8", "strict")
    return [json.loads(line, parse_constant=no_constant) for line in out.split("\n")[:-1]]


@pytest.mark.parametrize("stream", ["utf-8", "ascii", "latin-1", "utf-16"])
def test_ids_and_labels_of_any_kind_are_valid_json(stream, tmp_path, capfdbinary, monkeypatch):
    """Whatever the encoding of standard output is, as LC_ALL and PYTHONIOENCODING set it."""
    config = ModelConfig(
        32, 8, objective="classify", model=resolved(ModelSettings(width=32, layers=1), 8),
        labels=ODD_LABELS, pooling="max",
    )  # fmt: skip
    torch.manual_seed(0)
    (tmp_path / "run").mkdir()
    run = saved(Model(config), tmp_path / "run")
    ids = ['"é 雨"', '"a\\ud83d"', "NaN", "-Infinity", '{"x": NaN, "y": ["\\udc00"]}', "9" * 30]
    expected = ["é 雨", "a\ud83d", 3, 4, {"x": None, "y": ["\udc00"]}, int("9" * 30)]
    file = tmp_path / "a.jsonl"
    lines = [f'{{"id": {one}, "text": "wheat 雨"}}\n' for one in [*ids, "null", "false"]]
    file.write_text("".join(lines))
    expected += [7, False]
    wrapper = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding=stream)
    monkeypatch.setattr(sys, "stdout", wrapper)
    found = answers(capfdbinary, run, file, "--top", len(ODD_LABELS), "--threshold", "0")
    assert [one["id"] for one in found] == expected
    for one in found:
        assert sorted(one["labels"]) == sorted(ODD_LABELS)
        assert sorted(one["scores"]) == sorted(ODD_LABELS)


def test_what_is_left_out_is_counted_by_reason(made, tmp_path, capfd):
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"text": "a"}\n\n \n[]\n{"text": "b"}\nno\n{"text": "\xff"}\n{}\n'
    )
    assert cli.predict([made["classify"], str(file), "--on-error", "skip"]) == 0
    out, err = capfd.readouterr()
    assert [json.loads(line)["id"] for line in out.splitlines()] == [1, 5]
    lines = [line.removeprefix("elemdist predict: left out: ") for line in err.splitlines()]
    assert [line for line in lines if line.startswith("blank lines: 2 (")]
    named = [line for line in lines if line.startswith(f"{file}, line ")]
    assert [line.split("line ")[1].split(":")[0] for line in named] == ["4", "6", "7", "8"]
    with pytest.raises(UserError, match="blank lines"):
        cli.predict([made["classify"], str(file), "--on-error", "skip", "--strict"])
    with pytest.raises(UserError, match="line 4"):
        cli.predict([made["classify"], str(file)])
    assert len(capfd.readouterr().out.splitlines()) == 1, "what came before it"


CUT = {
    ".gz": gzip.compress(b'{"text": "a", "labels": ["rail"]}\n' * 9)[:-5],
    ".zst": zstandard.ZstdCompressor(write_content_size=False).compress(
        b'{"text": "a", "labels": ["rail"]}\n' * 9
    )[:-2],
}


@pytest.mark.parametrize("suffix", CUT)
def test_an_archive_that_is_cut_short_is_no_whole_one(suffix, made, tmp_path):
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(CUT[suffix])
    done = elemdist("predict", made["classify"], file)
    expect_user_error(done, f"{file}: is cut short")
    done = elemdist("robustness", made["classify"], "--text", file, "--out", tmp_path / "o.json")
    expect_user_error(done, f"{file}: is cut short")
    assert done.stdout == ""
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no documents in it"),
        (b"\n \n", "no documents in it"),
        (b'{"text": "a"}\n', "Set --labels-field"),
        (b'{"text": "a", "labels": ["none of these"]}\n', "none of its documents has a label"),
        (b'{"text": "a", "labels": []}\n', "none of its documents has a label"),
        (b'{"text": "a", "labels": {"rail": 1}}\n', "field 'labels' holds an object"),
    ],
)
def test_no_curve_over_nothing(content, part, made, tmp_path, capfd):
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=part):
        cli.robustness([made["classify"], "--text", str(file), "--rates", "[0]"])
    assert capfd.readouterr().out == ""
    if part.startswith("no documents"):
        with pytest.raises(UserError, match=part):
            cli.predict([made["classify"], str(file)])
        assert capfd.readouterr().out == ""


def test_nothing_in_a_pipe(made):
    expect_user_error(elemdist("predict", made["classify"]), "standard input: no documents in it")


def test_labels_that_a_model_does_not_know_are_counted(made, tmp_path, capfd):
    file = tmp_path / "a.csv"
    file.write_text("text,labels\nticket,rail;odd\nstorm,weather\n")
    words = [made["classify"], "--text", str(file), "--labels-separator", ";", "--rates", "[0]"]
    assert cli.robustness(words) == 0
    out, err = capfd.readouterr()
    assert "| mixed | 0." in out or "| mixed | 1." in out
    assert "left out: 1 label that" in err


def out_of(words: list[str], stdout: str, folder: Path) -> tuple[int | None, str]:
    """Exit code and standard error of a verb whose standard output is a file of this name."""
    from tests.forked_rank import verb

    err = folder / "stderr"
    process = rank_process(verb, words, dict(os.environ), str(folder), stdout, str(err))
    process.start()
    process.join(60)
    return process.exitcode, err.read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "RUN", "TEXT"],
        ["robustness", "RUN", "--text", "TEXT"],
        ["eval", "RUN", "--data", "VAL"],
        ["sample", "CLM", "--materials", "3"],
    ],
    ids=lambda words: words[0],
)
def test_a_full_disk_is_one_line(words, made, corpus, labelled, tmp_path):
    places = {"RUN": made["classify"], "CLM": made["clm"], "TEXT": corpus, "VAL": labelled / "val"}
    given = [str(places.get(word, word)) for word in words]
    code, err = out_of(given, "/dev/full", tmp_path)
    assert code == 2, err
    assert "error: standard output: cannot be written: No space left on device" in err
    assert "Traceback" not in err
    assert "Exception" not in err


@contextmanager
def file_limit(size: int):
    """No file of this process can grow beyond so many bytes; nor is a part of a compiled module
    left in a cache."""
    sys.dont_write_bytecode = True
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = False


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["eval.json", "eval.npz", "robustness.json"])
def test_a_result_that_does_not_fit_leaves_nothing(name, made, corpus, labelled, tmp_path, capfd):
    out = tmp_path / name
    words = ["eval", made["classify"], "--data", str(labelled / "val"), "--out", str(out)]
    if name.endswith(".npz"):
        words[-2:] = ["--scores", str(out)]
    if name.startswith("robustness"):
        words = ["robustness", made["classify"], "--text", str(corpus), "--out", str(out)]
    warm = [word.replace(str(out), str(tmp_path / f"warm-{name}")) for word in words]
    cli.VERBS[warm[0]](warm[1:])  # compiles loops, and keeps them in a cache
    (tmp_path / f"warm-{name}").unlink()
    with file_limit(300), pytest.raises(UserError, match="cannot be written: File too large"):
        cli.VERBS[words[0]](words[1:])
    capfd.readouterr()
    assert list(tmp_path.iterdir()) == [], "no part of it, and nothing temporary"
    assert sorted(TOPICS) == ["kitchen", "rail", "weather"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252:strict"])
def test_a_name_of_any_script_can_be_printed(encoding):
    """By a command and by a rank: here, the name of a folder that is not there."""
    name = "雨\udcff-ветер"
    code = (
        "import sys; from elemdist.output import use_utf8, write_out; use_utf8();"
        f"print({name!r}); write_out({name!r} + chr(10)); print({name!r}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=REPOSITORY,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    expected = name.encode("utf-8", "backslashreplace") + b"\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected * 2, expected)


@pytest.mark.parametrize(
    ("settings", "names"),
    [(PredictSettings, predict.READING), (RobustnessSettings, robustness.READING)],
)
def test_settings_are_those_of_shard(settings, names):
    """What a reader's error advises exists, and means the same."""
    ours, theirs = get_type_hints(settings), get_type_hints(InputSettings)
    defaults = {field.name: field.default for field in fields(InputSettings)}
    for field in fields(settings):
        if field.name not in names:
            continue
        if field.name not in ("labels_field", "id_field"):  # which have a usual name here
            assert field.default == defaults[field.name], field.name
        choices = set(get_args(ours[field.name]) or [ours[field.name]])
        known = set(get_args(theirs[field.name]) or [theirs[field.name]])
        assert choices <= known, field.name
    assert set(names) <= {field.name for field in fields(settings)}
    assert set(get_args(get_type_hints(PredictSettings)["format"])) == set(get_args(Format))


def test_labels_of_zeros_and_ones_and_of_bad_documents(made, tmp_path, capfd):
    names, file = tmp_path / "names.txt", tmp_path / "a.jsonl"
    names.write_text("rail\nweather\nkitchen\n")
    file.write_bytes(
        b'{"text": "ticket", "labels": [1, 0, 0]}\n\xff\n{"text": "storm", "labels": [0, 1, 1]}\n'
    )
    words = [made["classify"], "--text", str(file), "--rates", "[0]", "--labels-as", "multi_hot"]
    words += ["--label-names", str(names), "--out", str(tmp_path / "out.json")]
    with pytest.raises(UserError, match=r"line 2: invalid UTF-8.*--on-error skip"):
        cli.robustness(words)
    assert cli.robustness([*words, "--on-error", "skip"]) == 0
    assert "left out: documents that are not valid UTF-8: 1" in capfd.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text())["unknown_labels"] == {words[0]: 0}
