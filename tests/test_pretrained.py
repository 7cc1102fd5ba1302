"""What is taken out of folders that transformers saved, in each of their forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from elemdist import checkpoint
from elemdist.attention import Segments
from elemdist.checkpoint import initialise_from
from elemdist.model import Model
from elemdist.model_config import Symbols
from tests.conftest import TINY, elemdist, expect_user_error
from tests.pretrained_folders import save, shape, state_of


@pytest.mark.parametrize(
    ("kind", "task", "own", "objective", "told"),
    [
        ("Bert", "ForMaskedLM", True, "mlm",
         "embedding, positions, embedding norm, 2 blocks, prediction head"),
        ("Bert", "ForMaskedLM", False, "mlm",
         "positions, embedding norm, 2 blocks; left as initialised: embedding, prediction head"),
        ("Bert", "Model", True, "mlm",
         "embedding, positions, embedding norm, 2 blocks; left as initialised: prediction head"),
        ("Bert", "ForSequenceClassification", False, "classify",
         "positions, embedding norm, 2 blocks, pooler; left as initialised: embedding, labels"),
        ("Bert", "ForPreTraining", True, "classify",
         "embedding, positions, embedding norm, 2 blocks, pooler; left as initialised: labels"),
        ("Albert", "ForMaskedLM", True, "mlm",
         "embedding, positions, embedding norm, widening matrix, 1 block, prediction head"),
        ("Albert", "Model", False, "classify",
         "positions, embedding norm, widening matrix, 1 block, pooler; left as initialised:"
         " embedding, labels"),
        ("Canine", "Model", True, "classify",
         "embedding, positions, embedding norm, local block, down-sampling, 2 blocks, up-sampling,"
         " last block, pooler; left as initialised: labels"),
        ("Canine", "Model", False, "mlm",
         "positions, embedding norm, local block, down-sampling, 2 blocks, up-sampling, last block;"
         " left as initialised: embedding, prediction head"),
    ],
)  # fmt: skip
def test_the_line_says_what_was_taken_and_what_was_not(tmp_path, kind, task, own, objective, told):
    folder = save(tmp_path / "theirs", kind, task)
    model = Model(shape(kind, own, objective=objective))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    line = initialise_from(model, f"hf:{folder}")
    assert line == f"weights of {kind.lower()} from {folder}: {told}"

    state = {name.removeprefix(f"{kind.lower()}."): t for name, t in state_of(folder).items()}
    after = model.state_dict()
    left = told.partition("left as initialised: ")[2]
    for name, tensor in before.items():
        word = {"head": "prediction head", "encoder": name.split(".")[1]}[name.split(".")[0]]
        if objective == "classify" and word == "prediction head":
            word = "labels" if "labels" in name else "pooler"
        same = torch.equal(after[name], tensor)
        # biases of 0 and norms of 1 are what both start from
        if tensor.ndim > 1 and tensor.std() > 0:
            assert same == (word in left), name
    block = "encoder.albert_layer_groups.0.albert_layers.0.ffn" if kind == "Albert" else (
        "encoder.layer.1.intermediate.dense"
    )  # fmt: skip
    last = 0 if kind == "Albert" else 1
    assert torch.equal(after[f"encoder.blocks.{last}.up.weight"], state[f"{block}.weight"])


def test_the_positions_get_the_vector_of_the_first_segment_and_are_cut(tmp_path):
    folder = save(tmp_path / "theirs")
    state = state_of(folder)
    model = Model(shape(n=5))
    initialise_from(model, f"hf:{folder}")
    expected = (
        state["embeddings.position_embeddings.weight"][:5]
        + state["embeddings.token_type_embeddings.weight"][0]
    )
    assert torch.equal(model.encoder.positions.weight, expected)


def in_parts(folder: Path, model: transformers.PreTrainedModel) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def pickled(folder: Path, model: transformers.PreTrainedModel) -> None:
    model.save_pretrained(folder, safe_serialization=False)
    assert (folder / "pytorch_model.bin").is_file()


def with_names_of_tensorflow(folder: Path, model: transformers.PreTrainedModel) -> None:
    model.save_pretrained(folder)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    state = {}
    for name, tensor in state_of(folder).items():
        for new, earlier in old.items():
            name = name.replace(new, earlier)
        state[name] = tensor
    state["bert.embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("form", [in_parts, pickled, with_names_of_tensorflow])
def test_every_form_of_a_checkpoint_gives_the_same_weights(form, tmp_path):
    folder = save(tmp_path / "theirs", "Bert", "ForMaskedLM")
    theirs = transformers.BertForMaskedLM.from_pretrained(folder)
    form(tmp_path / "other", theirs)
    models = [Model(shape(own=True)) for _ in range(2)]
    initialise_from(models[0], f"hf:{folder}")
    line = initialise_from(models[1], f"hf:{tmp_path / 'other'}")
    assert "left as initialised" not in line
    for (name, one), two in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_half_precision_is_taken_as_fp32(tmp_path):
    folder = save(tmp_path / "theirs")
    state = {name: tensor.bfloat16() for name, tensor in state_of(folder).items()}
    save_file(state, folder / "model.safetensors")
    model = Model(shape())
    initialise_from(model, f"hf:{folder}")
    got = model.encoder.blocks[0].down.weight
    assert got.dtype == torch.float32
    assert torch.equal(got, state["encoder.layer.0.output.dense.weight"].float())


@pytest.mark.parametrize("kept", ["bias", "decoder.bias", "both"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["Bert", "Albert"])
def test_predictions_are_theirs_whichever_version_saved_them(kind, tied, kept, tmp_path):
    """Below 5 the two biases are one tensor, which has either name in a file or both; version 5
    saves both of an untied model, of which only the decoder's own is used."""
    folder = save(tmp_path / "theirs", kind, "ForMaskedLM", tie_word_embeddings=tied)
    theirs = getattr(transformers, f"{kind}ForMaskedLM").from_pretrained(folder)
    prefix = "cls.predictions" if kind == "Bert" else "predictions"
    state = {k: x for k, x in theirs.state_dict().items() if not k.endswith("position_ids")}
    for name in (f"{prefix}.bias", f"{prefix}.decoder.bias"):
        del state[name]
    torch.manual_seed(3)
    right = torch.randn(50)
    theirs.get_output_embeddings().bias.data.copy_(right)
    if kept != "bias":
        state[f"{prefix}.decoder.bias"] = right
    if kept != "decoder.bias":
        state[f"{prefix}.bias"] = right if kept == "bias" else torch.randn(50)
    if tied:
        del state[f"{prefix}.decoder.weight"]
    save_file(state, folder / "model.safetensors")
    model = Model(shape(kind, own=True, tied=tied)).eval()
    initialise_from(model, f"hf:{folder}")
    ids = torch.arange(4, 20)
    with torch.no_grad():
        segments = Segments(torch.tensor([0, len(ids)]).int(), [len(ids)])
        logits = model(ids.int().unsqueeze(1), torch.arange(len(ids)), segments)
        expected = theirs.eval()(ids.unsqueeze(0)).logits[0]
    torch.testing.assert_close(logits[:, 0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_that_a_run_adds_stay_as_initialised(tmp_path, tied):
    folder = save(tmp_path / "theirs", "Bert", "ForMaskedLM")
    model = Model(
        shape(own=True, symbols=Symbols(doc=50, sep=2, mask=51, vocabulary=52), tied=tied)
    )
    table = model.encoder.embedding.table.detach().clone()
    initialise_from(model, f"hf:{folder}")
    now = model.encoder.embedding.table
    assert torch.equal(now[:50], state_of(folder)["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(now[50:], table[50:])
    if not tied:
        assert torch.equal(model.head.table[:50], now[:50])


def test_training_starts_from_a_folder_of_transformers(packed, tmp_path):
    folder = save(tmp_path / "theirs", "Bert", "ForMaskedLM")
    state = state_of(folder)
    words = ["train", "--data.train", packed / "train", *TINY, "--init-from", f"hf:{folder}"]
    run = tmp_path / "run"
    # With a learning rate of 0 the weights stay what they were taken for.
    done = elemdist(*words, "--run-dir", run, "--steps", "2", "--optim.lr", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"weights of bert from {folder}: positions" in done.stdout
    weights = checkpoint.find(str(run)).weights()
    for number in range(2):
        theirs = state[f"bert.encoder.layer.{number}.output.dense.weight"]
        assert torch.equal(weights[f"encoder.blocks.{number}.down.weight"], theirs)

    done = elemdist(*words, "--run-dir", tmp_path / "new", "--model.norm", "pre")
    expect_user_error(done, "its model.norm is post, this run's is pre; set --model.norm post")
