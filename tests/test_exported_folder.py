"""A folder that `elemdist export` wrote, as those use it who have no elemdist."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_prep.classes import alone
from elemdist import export
from elemdist.export_settings import ExportSettings
from elemdist.exported import modeling_elemdist as exported
from elemdist.exported.configuration_elemdist import ElemdistConfig
from elemdist.exported.tokenization_elemdist import ElemdistTokenizer
from tests.conftest import TINY, elemdist, expect_user_error


@pytest.fixture(scope="module")
def classifier(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("classifier") / "run"
    words = ["--objective", "classify", "--classify.pooling", "max", "--steps", "40"]
    done = elemdist(
        "train", *TINY, *words, "--run-dir", run, "--data.train", labelled / "train",
        "--data.eval", labelled / "val", "--eval-every", "40",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def folder(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "topics of text"
    done = elemdist("export", classifier, "--out", out, "--onnx", "true")
    assert done.returncode == 0, done.stderr
    return out


ALONE = """
import json, sys
sys.modules["elemdist"] = sys.modules["data_prep"] = None  # not there: importing them fails
sys.modules["torchvision"] = None  # its CUDA build is broken beside a torch for CPUs
"""


def alone_python(code: str, cache: Path, *words: str | Path) -> str:
    """What a process prints that has transformers and no elemdist."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE + code, *map(str, words)],
        capture_output=True, text=True, timeout=300, cwd=cache,
        env={**os.environ, "HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pipeline_without_elemdist(folder, classifier, corpus, tmp_path):
    lines = corpus.read_text().splitlines()[:20]
    texts = [json.loads(line)["text"] for line in lines] + ["long text " * 100]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    printed = alone_python(
        """
from transformers import pipeline
texts = json.load(open("texts.json"))
ask = pipeline("text-classification", sys.argv[1], trust_remote_code=True, top_k=None)
print(json.dumps([ask(texts), ask(texts, batch_size=8), ask(texts[0])]))
""",
        tmp_path,
        folder,
    )
    one_by_one, batched, ((single, *_),) = json.loads(printed)
    source = tmp_path / "texts.txt"
    source.write_text("".join(f"{text}\n" for text in texts))
    done = elemdist("predict", classifier, source, "--top", "3", "--overlong", "truncate")
    expected = [json.loads(line)["scores"] for line in done.stdout.splitlines()]
    for found in (one_by_one, batched):
        for scores, told in zip(found, expected, strict=True):
            assert {one["label"]: one["score"] for one in scores} == pytest.approx(told, abs=1e-5)
    assert single["label"] == one_by_one[0][0]["label"]


def test_auto_classes_and_saving_again(folder, tmp_path):
    """AutoModel, a new classifier on the encoder, and what transformers itself saves."""
    printed = alone_python(
        """
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
options = {"trust_remote_code": True}
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **options)
batch = tokenizer(["storm and frost", "butter"])
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], **options)
encoder = AutoModel.from_pretrained(sys.argv[1], **options)
assert torch.equal(encoder(**batch)[0], model.elemdist(**batch)[0])
fresh = AutoModelForSequenceClassification.from_pretrained(
    sys.argv[1], num_labels=5, ignore_mismatched_sizes=True, **options
)
out = fresh(**batch, labels=torch.ones(2, 5))
out.loss.backward()
assert out.logits.shape == (2, 5) and fresh.elemdist.embedding.table.grad.any()
model.save_pretrained("again"); tokenizer.save_pretrained("again")
again = AutoModelForSequenceClassification.from_pretrained("again", **options)
batch2 = AutoTokenizer.from_pretrained("again", **options)(["storm and frost", "butter"])
assert torch.equal(again(**batch2).logits, model(**batch).logits)
for path in (sys.argv[1], "again"):
    try:
        AutoModel.from_pretrained(path, trust_remote_code=False)
    except ValueError as error:
        print("trust_remote_code" in str(error))
""",
        tmp_path,
        folder,
    )
    assert printed.split() == ["True", "True"]


def test_what_an_export_holds(folder, classifier):
    names = {path.name for path in folder.iterdir()}
    code = {path.name for path in export.CODE.glob("*_elemdist.py")}
    data = {"README.md", "config.json", "tokenizer_config.json", "model.safetensors", "model.onnx"}
    assert names == code | data
    for name in code:
        text = (folder / name).read_text()
        assert "import elemdist" not in text
        assert "from elemdist" not in text
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "`kitchen`, `rail`, `weather`" in card
    assert "no probabilities" not in card
    last = [json.loads(x) for x in (classifier / "metrics.jsonl").read_text().splitlines()]
    micro_f1 = next(x["micro_f1"] for x in reversed(last) if x["kind"] == "eval")
    assert f"| micro_f1 | {micro_f1:.4f} |" in card
    weights = load_file(folder / "model.safetensors")
    assert weights["elemdist.embedding.table"].shape == (256, 4)


def test_figures_of_the_card(classifier, labelled, tmp_path):
    figures = tmp_path / "figures.json"
    done = elemdist("eval", classifier, "--data", labelled / "val", "--out", figures)
    assert done.returncode == 0, done.stderr
    done = elemdist("export", classifier, "--out", tmp_path / "out", "--figures", figures)
    assert done.returncode == 0, done.stderr
    low, high = json.loads(figures.read_text())["intervals"]["micro_f1"]
    assert f"({low:.4f} to {high:.4f})" in (tmp_path / "out" / "README.md").read_text()


def test_a_checkpoint_that_was_taken_elsewhere(classifier, tmp_path):
    """Without its run there are no figures, and those of later steps are not its own."""
    (step,) = (classifier / "checkpoints").glob("step-*")
    shutil.copytree(step, tmp_path / step.name)
    for source, shown in ((tmp_path / step.name, False), (step, True)):
        out = tmp_path / f"out-{shown}"
        assert elemdist("export", source, "--out", out).returncode == 0
        assert ("## Figures" in (out / "README.md").read_text()) == shown
    with (classifier / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "eval", "step": 99, "micro_f1": 0.123456}\n')
    assert elemdist("export", step, "--out", tmp_path / "later").returncode == 0
    assert "0.1235" not in (tmp_path / "later" / "README.md").read_text()


def test_onnx_of_any_length(folder):
    """Also where a sequence has one position, and in batches that the export did not see."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    tree = json.loads((folder / "config.json").read_text())
    model = exported.ElemdistForSequenceClassification(ElemdistConfig(**tree)).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    tokenizer = ElemdistTokenizer.from_pretrained(folder)
    for texts in ([""], ["storm"], ["a b c d e f g", "soupe", "рис " * 40], ["x"] * 9):
        inputs = tokenizer(texts)
        (got,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
        with torch.no_grad():
            expected = model(**inputs).logits.numpy()
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["exists", "parent", "run", "figures", "settings"])
def test_mistakes(kind, classifier, tmp_path):
    out, words, parts = tmp_path / "out", [], []
    if kind == "exists":
        out.mkdir()
        parts = ["exists", "name a folder to be made"]
    elif kind == "parent":
        out, parts = tmp_path / "none" / "out", ["there is no folder", "make it first"]
    elif kind == "run":
        classifier, parts = tmp_path, ["no complete checkpoint"]
    elif kind == "figures":
        words, parts = ["--figures", "pyproject.toml"], ["elemdist eval --out"]
    else:
        classifier, parts = "", ["elemdist export RUN --out DIR"]
    expect_user_error(elemdist("export", classifier, "--out", out, *words), *parts)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if kind == "exists" else [])


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_are_readable_as_umask_says(umask, classifier, tmp_path):
    before = os.umask(umask)
    try:
        export.run(ExportSettings(str(classifier), str(tmp_path / "out")), alone)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o666 & ~umask}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("most", [0, 500, 5000, 20000])
def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(most, classifier, tmp_path):
    """A limit on the size of files gives the same kind of error at the same places."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    settings = ExportSettings(str(classifier), str(tmp_path / "out"))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        with pytest.raises(export.UserError, match=r"out: .*out cannot be written: \w") as error:
            export.run(settings, alone)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_removed_by_the_next(classifier, tmp_path):
    left = tmp_path / f".out.{'0' * 16}.tmp"
    other = tmp_path / f".other.{'0' * 16}.tmp"
    for folder in (left, other):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    export.run(ExportSettings(str(classifier), str(tmp_path / "out")), alone)
    assert {path.name for path in tmp_path.iterdir()} == {"out", other.name}
