"""An exported model in the hands of transformers' own tools: Trainer, collators, other classes."""

from __future__ import annotations

import json

import pytest
import torch

from elemdist import export
from elemdist.exported import modeling_elemdist as exported
from elemdist.exported.heads_elemdist import utf8_labels
from elemdist.exported.tokenization_elemdist import DOC, MASK, PAD, ElemdistTokenizer
from tests.exported_models import (
    CLASSIFIERS,
    PREDICTORS,
    config_of,
    random_model,
    tokenizer_of,
    twin_of,
)

TEXTS = ["Wheat exports rose!", "a b", "one two three four five six", "x", "naïve рис 鍋 ok",
         "last but one", "one", "two words"]  # fmt: skip
TRAINED = {
    **{
        f"classify, {name}": CLASSIFIERS[name]
        for name in ("bert", "albert", "wide", "canine", "decoder", "byte", "slots apart")
    },
    **{f"predict, {name}": config for name, config in PREDICTORS.items()},
}


def sequences(config) -> list[dict]:
    """Sequences with labels; of predictions, some have many and some have none."""
    torch.manual_seed(1)
    tokenizer = tokenizer_of(config)
    if config.objective == "classify":
        labels = torch.randint(0, 2, (len(TEXTS), 3)).float()
        return [
            {"input_ids": tokenizer.positions(text), "labels": one}
            for text, one in zip(TEXTS, labels, strict=True)
        ]
    batch = tokenizer.collator(0.5 if config.objective == "mlm" else 0)(TEXTS)
    return [
        {"input_ids": ids[:length], "labels": labels[:length]}
        for ids, labels, length in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"].sum(1), strict=True
        )
    ]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }


@pytest.mark.parametrize("name", TRAINED)
def test_four_micro_batches_of_trainer_are_one_batch(name, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    config = TRAINED[name]
    model, data, pad = twin_of(random_model(config)), sequences(config), tokenizer_of(config).pad
    model.train()
    model(**pad(data)).loss.backward()
    expected, got = gradients(model), {}
    model.zero_grad()

    class Seen(torch.optim.SGD):
        def step(self, closure=None):
            got.update(gradients(model))

    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=1,
        use_cpu=True, report_to=[], max_grad_norm=0, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    optimizers = (Seen(model.parameters(), lr=0.1), None)
    Trainer(model, arguments, train_dataset=data, data_collator=pad, optimizers=optimizers).train()
    assert expected.keys() == got.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(got[key], gradient, atol=1e-5, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", TRAINED)
def test_the_trainer_counts_and_the_model_divides(name):
    """The same without Trainer: the share of each micro-batch in the labels of the step."""
    config = TRAINED[name]
    model, data, pad = twin_of(random_model(config)), sequences(config), tokenizer_of(config).pad
    assert model.accepts_loss_kwargs
    assert model.loss_type is None  # or Trainer of transformers 5 counts from the second byte on
    with torch.no_grad():
        expected = model(**pad(data)).loss
        batches = [pad(data[k : k + 2]) for k in range(0, len(data), 2)]
        items = sum(batch["labels"].ne(-100).sum() for batch in batches)
        parts = [model(**batch, num_items_in_batch=items).loss for batch in batches]
    torch.testing.assert_close(sum(parts), expected, atol=1e-5, rtol=1e-5)


def test_options_of_a_forward_pass_that_mean_nothing():
    model, ids = twin_of(random_model(CLASSIFIERS["bert"])), tokenizer_of(CLASSIFIERS["bert"])("a")
    fine = {"return_dict": True, "output_attentions": False, "position_ids": None}
    model(**ids, **fine)
    for name, value in (("token_type_ids", torch.zeros(1, 2)), ("output_hidden_states", True)):
        with pytest.raises(ValueError, match=f"forward: {name}: .*leave it out"):
            model(**ids, **{name: value})


CONFIGS = {
    "bert": config_of("mlm"),
    "albert, narrow": PREDICTORS["albert, narrow"],
    "canine": PREDICTORS["canine"],
    "untied": PREDICTORS["untied"],
    "autoregressive": PREDICTORS["autoregressive"],
    "decoder": PREDICTORS["decoder"],
}
CLASSES = ("MaskedLM", "CausalLM", "SequenceClassification")


@pytest.mark.parametrize("name", CONFIGS)
def test_no_class_takes_the_head_of_another(name, tmp_path):
    tree = export.config_tree(CONFIGS[name], torch.float32)
    for source in CLASSES:
        torch.manual_seed(2)
        config = exported.ElemdistConfig(**tree)
        saved = getattr(exported, f"ElemdistFor{source}")(config)
        saved.save_pretrained(tmp_path / source)
        for target in (*CLASSES, None):
            kind = getattr(exported, f"ElemdistFor{target}" if target else "ElemdistModel")
            loaded, told = kind.from_pretrained(tmp_path / source, output_loading_info=True)
            heads = {
                key for key in loaded.state_dict() if target and not key.startswith("elemdist.")
            }
            assert set(told["missing_keys"]) == (heads if source != target else set())
            encoder = loaded.elemdist if target else loaded
            for key, weight in encoder.state_dict().items():
                assert torch.equal(weight, saved.elemdist.state_dict()[key]), key


def test_weights_of_an_export_are_those_of_its_class(tmp_path):
    for config in (PREDICTORS["bert"], PREDICTORS["decoder"], CLASSIFIERS["bert"]):
        names = export.weights_of(random_model(config))
        head = export.HEADS[config.objective]
        assert {name.split(".")[0] for name in names} == {"elemdist", head}


# Collators.


@pytest.mark.parametrize("name", ["bert", "byte", "canine"])
def test_our_collator_hides_whole_materials(name):
    config = PREDICTORS[name]
    tokenizer = tokenizer_of(config)
    torch.manual_seed(0)
    texts = [f"naïve Wörter рис {number} and some more text" for number in range(60)]
    batch, plain = tokenizer.collator(0.3)(texts), tokenizer(texts)
    ids, labels, whole = batch["input_ids"], batch["labels"], plain["input_ids"]
    assert torch.equal(batch["attention_mask"], plain["attention_mask"])
    chosen_BN = (labels != -100).view(*labels.shape[:2], -1)
    assert torch.equal(chosen_BN.all(-1), chosen_BN.any(-1))  # end marks, too
    chosen_BN = chosen_BN[..., 0]
    special = torch.tensor(tokenizer.get_special_tokens_mask(whole)).view(*labels.shape[:2], -1)
    text_BN = special[..., 0] == 0
    assert not (chosen_BN & ~text_BN).any()  # no DOC, no padding
    assert float(chosen_BN.sum() / text_BN.sum()) == pytest.approx(0.3, abs=0.06)
    view = labels == whole if labels.ndim == 2 else (labels == whole).all(-1)
    assert view[chosen_BN].all()
    same = (ids == whole).view(*chosen_BN.shape, -1).all(-1)
    hidden = (ids == tokenizer.mask_token_id).view(*chosen_BN.shape, -1).all(-1)
    assert same[~chosen_BN].all()
    assert float(hidden[chosen_BN].float().mean()) == pytest.approx(0.8, abs=0.08)
    assert 0.05 < float(same[chosen_BN].float().mean()) < 0.25
    if name == "byte":  # the bytes of a word are hidden together
        sizes = [len(row) for row in tokenizer.rows(texts[0])]
        for word in chosen_BN[0, 1 : 1 + sum(sizes)].split(sizes):
            assert word.all() or not word.any()


def test_our_collator_of_next_materials():
    config = PREDICTORS["decoder"]
    tokenizer, model = tokenizer_of(config), twin_of(random_model(config))
    batch = tokenizer.collator(hidden=0)(["a b", "one two three"])
    assert torch.equal(batch["labels"][1, 1:], batch["input_ids"][1, 1:])
    assert (batch["labels"][:, 0] == -100).all()
    assert (batch["labels"][0, 3:] == -100).all()
    plain = tokenizer(["a b", "one two three"])
    # Rows that are padding teach nothing, whatever their labels.
    loss = model(**plain, labels=plain["input_ids"]).loss
    torch.testing.assert_close(model(**batch).loss, loss)
    with pytest.raises(ValueError, match="no share"):
        tokenizer.collator(hidden=1.5)


@pytest.mark.parametrize("name", ["bert", "byte", "canine"])
def test_the_collator_of_transformers_cannot_hide_single_bytes(name):
    from transformers import DataCollatorForLanguageModeling

    with pytest.raises(AttributeError, match=r"data_collator=tokenizer.collator\(\)"):
        DataCollatorForLanguageModeling(tokenizer_of(PREDICTORS[name]))


def test_single_bytes_that_somebody_hides_are_refused():
    config = PREDICTORS["bert"]
    inputs = tokenizer_of(config)("one two")
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 1, 2] = ord("e")
    with pytest.raises(ValueError, match=r"hidden and predicted whole.*tokenizer\.collator"):
        twin_of(random_model(config))(**inputs, labels=labels)


def test_the_collator_of_transformers_for_next_materials_keeps_end_marks():
    """It sets all of PAD to -100, the end marks of words among it; the model puts them back."""
    from transformers import DataCollatorForLanguageModeling

    config = PREDICTORS["decoder"]
    tokenizer, model = tokenizer_of(config), twin_of(random_model(config))
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = collate([{"input_ids": tokenizer.positions(text)} for text in TEXTS])
    assert (batch["labels"][0, 1] == -100).any()
    expected = model(**tokenizer.collator(0)(TEXTS)).loss
    torch.testing.assert_close(model(**batch).loss, expected)


def test_labels_of_characters_are_bytes():
    text = "aé鍋😀\x7f\u07ff\uffff"
    rows = utf8_labels(torch.tensor([[*map(ord, text), -100, 0, 0xE000]]))[0]
    expected = [list(one.encode().ljust(4, bytes([PAD]))) for one in text]
    assert rows.tolist() == expected + [[-100] * 4] * 3


def test_special_positions():
    tokenizer = tokenizer_of(PREDICTORS["bert"])
    ids = tokenizer.positions("ab")
    found = tokenizer.get_special_tokens_mask(ids.tolist(), already_has_special_tokens=True)
    assert found == [[1] * 8, [0, 0, *[1] * 6]]
    assert ids[0, 0] == DOC
    assert tokenizer.mask_token_id == MASK
    assert not hasattr(tokenizer, "mask_token")


# Options of the tokenizer.

REFUSED = {
    "text_pair": "b", "text_target": "b", "text_pair_target": "b", "add_special_tokens": False,
    "padding": "max_length", "truncation": "only_second", "max_length": 99, "stride": 2,
    "is_split_into_words": True, "pad_to_multiple_of": 8, "padding_side": "left",
    "return_tensors": "np", "return_token_type_ids": True, "return_attention_mask": False,
    "return_overflowing_tokens": True, "return_special_tokens_mask": True,
    "return_offsets_mapping": True, "return_length": True, "trunctation": True,
}  # fmt: skip


@pytest.mark.parametrize("call", ["__call__", "encode", "encode_plus", "batch_encode_plus"])
@pytest.mark.parametrize("name", REFUSED)
def test_options_that_mean_nothing(name, call):
    tokenizer = tokenizer_of(PREDICTORS["bert"])
    with pytest.raises(ValueError, match=f"tokenizer call: .*{name}.*leave it out") as error:
        getattr(tokenizer, call)("a text", **{name: REFUSED[name]})
    assert "\n" not in str(error.value)


def test_every_option_of_transformers_is_known():
    import inspect

    from transformers import PreTrainedTokenizerBase

    from elemdist.exported.options_elemdist import CALL, PAD_CALL

    own = {"self", "text", "max_length", "kwargs", "encoded_inputs"}
    called = inspect.signature(PreTrainedTokenizerBase.__call__).parameters
    assert set(called) - own == set(CALL)
    padded = inspect.signature(PreTrainedTokenizerBase.pad).parameters
    assert set(padded) - own <= set(PAD_CALL)


def test_options_that_say_what_is_done_anyway():
    tokenizer = tokenizer_of(PREDICTORS["bert"])
    fine = {
        "padding": True, "truncation": True, "return_tensors": "pt", "add_special_tokens": True,
        "text_pair": None, "stride": 0, "return_attention_mask": True, "verbose": False,
    }  # fmt: skip
    assert torch.equal(tokenizer("one two", **fine)["input_ids"], tokenizer("one two")["input_ids"])
    assert tokenizer("one two", padding=False)["input_ids"].shape == (1, 3, 8)
    assert tokenizer(["one two three"], max_length=3)["input_ids"].shape == (1, 3, 8)
    assert tokenizer.encode("one two") == tokenizer("one two")["input_ids"][0].tolist()
    with pytest.raises(ValueError, match="padding=False"):
        tokenizer(["one", "one two"], padding=False)
    with pytest.raises(ValueError, match="truncation=False: a text has more than"):
        tokenizer("word " * 99, truncation=False)
    for text in (None, [], ["a", 1], b"bytes", [["a"]]):
        with pytest.raises(ValueError, match="text is a string"):
            tokenizer(text)


def test_a_text_that_is_cut_is_said(caplog):
    from transformers.utils import logging

    tokenizer = ElemdistTokenizer(5, 8)
    logging.enable_propagation()
    tokenizer("exactly four words here")
    assert not caplog.records
    tokenizer("one word more than it takes")
    assert "more than the 4 rows" in caplog.text
    logging.disable_propagation()


def test_padding_of_what_was_padded_before():
    """As of a mapped dataset: the mask counts, single texts are batches of one, labels stay."""
    tokenizer = tokenizer_of(PREDICTORS["bert"])
    both = tokenizer(["one", "one two three"])
    rows = [{name: both[name][k].tolist() for name in both} | {"labels": [1.0]} for k in (0, 1)]
    found = tokenizer.pad(rows, padding=True, max_length=None, return_tensors="pt")
    assert torch.equal(found["input_ids"], both["input_ids"])
    assert torch.equal(found["attention_mask"], both["attention_mask"])
    assert found["labels"].shape == (2, 1)
    columns = {"input_ids": [one["input_ids"] for one in rows]}
    assert tokenizer.pad(columns)["input_ids"].shape == both["input_ids"].shape
    single = tokenizer.pad([{"input_ids": tokenizer("one")["input_ids"].tolist()}])
    assert torch.equal(single["input_ids"], tokenizer("one")["input_ids"])
    with pytest.raises(ValueError, match="text cannot become one tensor; remove that column"):
        tokenizer.pad([one | {"text": "a"} for one in rows])
    for option in ({"padding": "max_length"}, {"max_length": 9}, {"pad_to_multiple_of": 8}):
        with pytest.raises(ValueError, match="tokenizer pad: "):
            tokenizer.pad(rows, **option)


def test_options_of_decoding_loading_and_saving(tmp_path):
    tokenizer = tokenizer_of(PREDICTORS["bert"])
    tokenizer.save_pretrained(tmp_path, legacy_format=False)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["n"] == tokenizer.n
    ElemdistTokenizer.from_pretrained(tmp_path, use_fast=True, padding_side="right")
    ids = tokenizer.positions("a b")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a b"
    refused = [
        (tokenizer.decode, ids, {"skip_special_tokens": False}),
        (tokenizer.batch_decode, [ids], {"clean_up_tokenization_spaces": True}),
        (ElemdistTokenizer.from_pretrained, tmp_path, {"padding_side": "left"}),
        (ElemdistTokenizer.from_pretrained, tmp_path, {"model_max_length": 9}),
        (tokenizer.save_pretrained, tmp_path, {"push_to_hub": True}),
    ]
    for call, value, options in refused:
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.*leave it out"):
            call(value, **options)
