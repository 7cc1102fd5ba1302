"""Every kind of model, trained and evaluated as a user does it: real processes, gloo, DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from elemdist.compile_check import compile_obstacle
from tests.conftest import TINY, elemdist, expect_user_error, metrics

DECODER = ["configs/decoder.yaml", "--model.slot-width", "32"]


def train(run: Path, data: Path, *options: str, ranks: int = 1, steps: int = 3) -> str:
    recipes = [word for word in options if word.endswith(".yaml")]
    rest = [word for word in options if not word.endswith(".yaml")]
    done = elemdist(
        "train", *recipes, "--run-dir", run, "--data.train", data / "train", *TINY,
        "--ranks", str(ranks), "--steps", str(steps), *rest,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evaluated(run: Path, data: Path) -> dict[str, Any]:
    done = elemdist("eval", run, "--data", data / "val")
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@pytest.fixture(scope="session")
def tokenizer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer that lacks a MASK, so that one is added."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"])
    made.train_from_iterator(texts, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="session")
def subwords(corpus: Path, tokenizer: Path, make_shards: Any) -> Path:
    """Shards of that tokenizer's tokens, with labels."""
    options = ["--segmenter", "subword", "--tokenizer", str(tokenizer)]
    options += ["--input.labels-field", "labels", "--holdout-last", "50"]
    made: Path = make_shards(corpus, *options)
    return made


@pytest.mark.parametrize(
    "options",
    [
        ["--model.input", "byte", "configs/bert-modern.yaml"],
        ["--model.input", "canine", "configs/canine.yaml", "--model.canine.buckets", "64"],
        ["configs/albert.yaml", "--model.embedding-width", "16", "--model.window", "4"],
        ["configs/canine.yaml", "configs/bert-modern.yaml", "--model.head", "autoregressive"],
    ],
    ids=["modern byte", "canine", "albert in a window", "elementwise canine"],
)
def test_each_kind_learns_and_its_checkpoint_gives_the_same_figures(options, packed, tmp_path):
    held_out = ["--data.eval", str(packed / "val"), "--eval-every", "1"]
    train(tmp_path / "run", packed, *options, *held_out, steps=6)
    seen = metrics(tmp_path / "run", "eval")
    assert seen[6]["bits_per_byte"] < seen[1]["bits_per_byte"]
    assert evaluated(tmp_path / "run", packed)["loss"] == pytest.approx(seen[6]["loss"], rel=1e-5)


def test_a_decoder_is_the_same_under_zero_3_with_less_memory(packed, tmp_path):
    """Two ranks that hold the parameters in parts, recompute, and tile: nothing changes."""
    options = [*DECODER, "--model.dropout", "0"]
    train(tmp_path / "plain", packed, *options, "--zero.stage", "0")
    saving = ["--memory.checkpoint-every", "1", "--memory.tile-rows", "16"]
    saving += ["--memory.tile-loss-rows", "24", "--zero.stage", "3"]
    train(tmp_path / "saving", packed, *options, *saving, ranks=2)
    plain, saved = metrics(tmp_path / "plain"), metrics(tmp_path / "saving")
    for step, figures in plain.items():
        assert saved[step]["loss"] == pytest.approx(figures["loss"], rel=1e-5)
        assert saved[step]["grad_norm"] == pytest.approx(figures["grad_norm"], rel=1e-4)


def test_a_subword_model_reads_a_subword_set(subwords, tokenizer, tmp_path):
    chosen = ["--model.input", "subword", "--model.tokenizer", str(tokenizer)]
    held_out = ["--data.eval", str(subwords / "val"), "--eval-every", "1"]
    told = train(tmp_path / "mlm", subwords, *chosen, *held_out, steps=6)
    rows = Tokenizer.from_file(str(tokenizer)).get_vocab_size() + 1  # a MASK is added
    assert f"({32 * rows:,} of the embedding)" in told
    seen = metrics(tmp_path / "mlm", "eval")
    assert seen[6]["bits_per_byte"] < seen[1]["bits_per_byte"]
    options = [*chosen, "--objective", "classify", "--init-from", str(tmp_path / "mlm")]
    assert "encoder weights from" in train(tmp_path / "labels", subwords, *options)
    assert evaluated(tmp_path / "labels", subwords)["documents"] == 50
    moved = tmp_path / "moved.json"
    moved.write_bytes(tokenizer.read_bytes())
    words = ["--data", subwords / "val", "--tokenizer", moved]
    done = elemdist("eval", tmp_path / "mlm", *words)
    assert json.loads(done.stdout)["loss"] == pytest.approx(seen[6]["loss"], rel=1e-5)


def test_a_compiled_model_gives_the_same_losses_or_is_refused_with_the_reason(packed, tmp_path):
    options = ["--model.dropout", "0", "--model.layers", "1"]
    if (reason := compile_obstacle()) is not None:  # no compiler, or a folder with a space
        words = ["--run-dir", tmp_path / "run", "--data.train", packed / "train", *TINY]
        expect_user_error(elemdist("train", *words, "--compile"), "compile: ", reason)
        return
    train(tmp_path / "plain", packed, *options)
    train(tmp_path / "compiled", packed, *options, "--compile")
    plain, compiled = metrics(tmp_path / "plain"), metrics(tmp_path / "compiled")
    for step, figures in plain.items():
        assert compiled[step]["loss"] == pytest.approx(figures["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--attention", "flash_attn"], ["flash_attn cannot run on cpu: it needs a GPU"]),
        (["--model.input", "subword"], ["input subword and its tokenizer.json go together"]),
        (["--compile", "--zero.stage", "3"], ["compile: ZeRO 3", "--zero.stage 2"]),
        (["--model.backbone", "decoder"], ["take --objective clm"]),
        (["--model.width", "36"], ["36 is not a multiple of v=8"]),
    ],
)
def test_what_cannot_be_trained_is_one_line(options, parts, packed, tmp_path):
    words = ["--run-dir", tmp_path / "run", "--data.train", packed / "train", *TINY, *options]
    expect_user_error(elemdist("train", *words), *parts)
    assert not (tmp_path / "run").exists()


def test_a_subword_model_refuses_other_shards_and_other_tokenizers(
    packed, subwords, tokenizer, tmp_path
):
    words = ["--run-dir", tmp_path / "run", *TINY, "--model.input", "subword"]
    words += ["--model.tokenizer", tokenizer]
    expect_user_error(
        elemdist("train", *words, "--data.train", packed / "train"), "--segmenter subword"
    )
    other = tmp_path / "other.json"
    other.write_text(tokenizer.read_text() + "\n")
    words += ["--data.train", subwords / "train", "--model.tokenizer", other]
    expect_user_error(elemdist("train", *words), "tokenizer", str(subwords))
