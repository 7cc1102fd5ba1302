"""What `elemdist export` writes computes the same as elemdist, by transformers alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from data_prep.classes import alone, class_table
from data_prep.pack import samples_of
from data_prep.segment import rows_of
from elemdist import export
from elemdist.batch import unpad
from elemdist.exported import modeling_elemdist as exported
from elemdist.exported.configuration_elemdist import ElemdistConfig
from elemdist.exported.tokenization_elemdist import ElemdistTokenizer
from elemdist.inputs import open_reading
from elemdist.model import Model
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import AblationSettings, CanineSettings, ModelSettings
from elemdist.objectives import element_nats
from elemdist.rows import PAD
from tests.conftest import TINY, elemdist, expect_user_error
from tests.data_prep.reference import texts as made_texts

N, V = 24, 8
TEXTS = [
    "Wheat  exports rose!!! 鍋とрис, naïve ‘quotes’\tand tabs",
    "a",
    "",
    "one two three four five six seven " * 3,
    "длинноесловобезпробелов " * 2,
]


def config_of(objective: str, pooling: str = "none", **changes: object) -> ModelConfig:
    model = ModelSettings(layers=2, width=64, dropout=0.0, **changes)
    labels = ["a", "b", "c"] if objective == "classify" else None
    return ModelConfig(
        N, V, objective, resolved(model, V), pooling=pooling, labels=labels, segmenter="word"
    )


def random_model(config: ModelConfig) -> Model:
    """With weights that no initialisation gives, so that each of them is seen to count."""
    torch.manual_seed(0)
    model = Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def twin_of(model: Model) -> torch.nn.Module:
    """The exported code with the exported weights."""
    config = model.config
    tree = export.config_tree(config, torch.float32)
    twin = getattr(exported, export.CLASSES[config.objective][1])(ElemdistConfig(**tree)).eval()
    twin.load_state_dict(export.weights_of(model))  # strictly: no name too many, none too few
    return twin


def tokenizer_of(config: ModelConfig) -> ElemdistTokenizer:
    return ElemdistTokenizer(**export.tokenizer_tree(config, alone))


def batch_of(config: ModelConfig):
    data = [text.encode() for text in TEXTS]
    rows_BNV = samples_of(data, config.n, config.v, config.segmenter, "truncate")
    return unpad(rows_BNV, None, np.arange(len(TEXTS)), open_reading(config))


CLASSIFIERS = {
    "bert": config_of("classify", "doc"),
    "bert pre-norm": config_of("classify", "max", norm="pre", positions="rotary"),
    "bert modern": config_of(
        "classify", "mean", norm="pre", positions="rotary", activation="geglu", biases=False,
        window=3, global_every=2,
    ),
    "albert": config_of(
        "classify", "doc", backbone="albert", embedding_width=32, activation="gelu_tanh"
    ),
    "canine on bytes of words": config_of("classify", "max", backbone="canine"),
    "canine": config_of(
        "classify", "mean", backbone="canine", input="canine", norm="pre",
        canine=CanineSettings(rate=3, local=10, kernel=5, hashes=4, buckets=100),
    ),
    "decoder": config_of("classify", "last", backbone="decoder", window=4),
    "byte": config_of("classify", "mean", input="byte"),
    "mixing": config_of("classify", "max", ablation=AblationSettings(mixing=40)),
    "tables": config_of("classify", "max", ablation=AblationSettings(tables="per_slot")),
    "slots apart": config_of(
        "classify", "max", ablation=AblationSettings(first_projection="block_diagonal")
    ),
    "canine, slots apart": config_of(
        "classify", "max", backbone="canine",
        ablation=AblationSettings(first_projection="block_diagonal"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_classifiers(name):
    config = CLASSIFIERS[name]
    model = random_model(config)
    batch = batch_of(config)
    logits_SL = model(batch.rows_TV, batch.position_T, batch.segments)
    expected_BL = torch.empty_like(logits_SL)
    expected_BL[batch.sample_S] = logits_SL
    inputs = tokenizer_of(config)(TEXTS)
    got_BL = twin_of(model)(**inputs).logits
    assert expected_BL.std() > 0.05  # logits that a mistake would change
    torch.testing.assert_close(got_BL, expected_BL, atol=1e-5, rtol=0)
    # Padding is seen without being told.
    again_BL = twin_of(model)(inputs["input_ids"]).logits
    torch.testing.assert_close(again_BL, expected_BL, atol=1e-5, rtol=0)


PREDICTORS = {
    "bert": config_of("mlm"),
    "bert pre-norm": config_of("mlm", norm="pre"),
    "albert, narrow": config_of("mlm", backbone="albert", embedding_width=32),
    "untied": config_of("mlm", tied=False),
    "tables": config_of("mlm", ablation=AblationSettings(tables="per_slot")),
    "autoregressive": config_of("mlm", head="autoregressive", slot_width=32, slot_layers=2),
    "canine": config_of("mlm", backbone="canine", input="canine"),
    "byte": config_of("mlm", input="byte", activation="geglu"),
    "decoder": config_of("clm", backbone="decoder", norm="pre", positions="rotary"),
    "decoder, autoregressive": config_of("clm", backbone="decoder", head="autoregressive"),
}


@pytest.mark.parametrize("name", PREDICTORS)
@torch.no_grad()
def test_predictions(name):
    """Logits of every position's bytes; of an autoregressive head, given the bytes before."""
    config = PREDICTORS[name]
    model = random_model(config)
    batch = batch_of(config)
    rows_TV = batch.rows_TV
    encoded_TW = model.encoder(rows_TV, batch.position_T, batch.segments)
    logits_TVE = model.head(encoded_TW, model.table, rows_TV)
    inputs = tokenizer_of(config)(TEXTS)
    twin, mask_BN = twin_of(model), inputs["attention_mask"].bool()
    ids = inputs["input_ids"]
    if config.model.input == "canine":  # labels are bytes
        rows_BNV = torch.full((*ids.shape, 4), PAD)
        for sample, length, row in zip(*places(batch), strict=True):
            rows_BNV[sample, :length] = rows_TV[row : row + length].long()
        ids = rows_BNV
    labels = torch.where(mask_BN.view(*mask_BN.shape, *[1] * (ids.ndim - 2)), ids, -100)
    head, table = twin.head, twin.elemdist.embedding.table if config.tied else None
    x_BNW = twin.elemdist(**inputs).last_hidden_state
    target = ids if ids.ndim == 3 else ids.unsqueeze(-1)
    got = head(x_BNW, table, target)
    used = (rows_TV == PAD).cumsum(1) <= 1
    for sample, length, row in zip(*places(batch), strict=True):
        ours = logits_TVE[row : row + length][used[row : row + length]]
        theirs = got[sample, :length][used[row : row + length]]
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    if config.objective == "mlm":
        loss = twin(**inputs, labels=labels).loss
        nats_T, _ = element_nats(logits_TVE, rows_TV)
        torch.testing.assert_close(loss, nats_T.mean(), atol=1e-4, rtol=0)


def places(batch):
    """(sample, length, first row) of each segment."""
    firsts = batch.segments.cu_lengths[:-1].tolist()
    return batch.sample_S.tolist(), batch.segments.lengths, firsts


@torch.no_grad()
def test_next_materials():
    """The loss of a causal model is that of each row's successor; labels of -100 do not count."""
    config = PREDICTORS["decoder, autoregressive"]
    twin, inputs = twin_of(random_model(config)), tokenizer_of(config)(TEXTS[3])
    ids = inputs["input_ids"]
    out = twin(**inputs, labels=ids)
    x_NW = twin.elemdist(**inputs).last_hidden_state[:, :-1]
    nats_M, _ = element_nats(twin.head(x_NW, None, ids[:, 1:])[0], ids[0, 1:])
    torch.testing.assert_close(out.loss, nats_M.mean(), atol=1e-5, rtol=0)
    some = ids.clone()
    some[:, 5:] = -100
    torch.testing.assert_close(twin(**inputs, labels=some).loss, nats_M[:4].mean())


@torch.no_grad()
def test_likeliest_materials():
    """Without labels the autoregressive head goes on from the bytes that it chose itself."""
    config = PREDICTORS["autoregressive"]
    twin, inputs = twin_of(random_model(config)), tokenizer_of(config)(TEXTS)
    best = twin(**inputs).logits.argmax(-1)
    x_BNW = twin.elemdist(**inputs).last_hidden_state
    assert torch.equal(twin.head(x_BNW, None, best).argmax(-1), best)
    assert len(best.unique()) > 3


@given(
    text=made_texts,
    v=st.integers(1, 16),
    segmenter=st.sampled_from(("word", "char", "byte")),
)
@settings(deadline=None)
def test_rows_are_those_of_the_segmenters(text, v, segmenter):
    tokenizer = cutter(v, segmenter)
    ours = rows_of(text.encode(), v, segmenter)
    padded = [row.ljust(v, bytes([PAD])) for row in tokenizer.rows(text)]
    assert b"".join(padded) == ours.tobytes()
    ids = tokenizer(text)["input_ids"][0]
    assert tokenizer.decode(ids) == text


def cutter(v: int, segmenter: str) -> ElemdistTokenizer:
    ranges = [list(pair) for pair in alone()]
    return ElemdistTokenizer(1 << 30, v, segmenter, "elementwise", ranges)


def test_every_code_point_is_of_its_class():
    """Beside a letter and beside itself: whatever starts a row of its own does so here, too."""
    points = [c for c in range(len(class_table())) if not 0xD800 <= c < 0xE000]
    text = "".join(f"a{chr(c)}{chr(c)}  " for c in points)
    tokenizer = cutter(8, "word")
    ours = rows_of(text.encode(), 8)
    assert b"".join(row.ljust(8, b"\xff") for row in tokenizer.rows(text)) == ours.tobytes()


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
        words, parts = ["--figures", "pyproject.toml"], ["no file of elemdist eval"]
    else:
        classifier, parts = "", ["elemdist export RUN --out DIR"]
    expect_user_error(elemdist("export", classifier, "--out", out, *words), *parts)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if kind == "exists" else [])


def test_inputs_that_are_not_exported():
    shuffled = config_of("mlm", ablation=AblationSettings(slots="shuffled"))
    with pytest.raises(export.UserError, match="shuffled"):
        export.check(shuffled)
    for segmenter in ("uax29", "sentence", "subword"):
        config = ModelConfig(N, V, "mlm", resolved(ModelSettings(), V), segmenter=segmenter)
        with pytest.raises(export.UserError, match="shard with --segmenter word"):
            export.check(config)
