from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_prep.segment import rows_of
from elemdist import checkpoint
from elemdist.attention import Segments
from elemdist.checkpoint_files import digest
from elemdist.errors import UserError
from elemdist.model import Model
from elemdist.model_config import ModelConfig, Symbols, resolved
from elemdist.model_settings import AblationSettings, ModelSettings
from elemdist.rows import DOC, PAD
from elemdist.sample import Context, prompt_rows, read_prompt, run, write
from elemdist.sample_settings import SampleSettings
from elemdist.writers import ByteWriter, Choice, TokenWriter
from tests.conftest import TINY, elemdist, expect_user_error


def decoder(n: int = 64, v: int = 4, symbols: Symbols | None = None, **settings) -> Model:
    """A decoder with random weights, large enough that every row makes a difference."""
    settings = {"width": 8 * v, "layers": 3, "dropout": 0.0, "slot_width": 32} | settings
    model = ModelSettings(backbone="decoder", **settings)
    torch.manual_seed(0)
    config = ModelConfig(n=n, v=v, objective="clm", model=resolved(model, v), symbols=symbols)
    made = Model(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


def some_rows(rows: int, v: int = 4) -> torch.Tensor:
    rows_TV = torch.randint(0, 0xC0, (rows, v), dtype=torch.uint8)
    rows_TV[0] = torch.tensor([DOC] + [PAD] * (v - 1))
    return rows_TV


def whole_pass(model: Model, rows_TV: torch.Tensor) -> torch.Tensor:
    """The outputs of the model in training, all rows as one segment."""
    count = len(rows_TV)
    segments = Segments(torch.tensor([0, count], dtype=torch.int32), [count])
    with torch.no_grad():
        return model.encoder(rows_TV, torch.arange(count), segments)


KINDS = {
    "post": {"norm": "post"},
    "pre": {"norm": "pre"},
    "rotary": {"norm": "pre", "positions": "rotary"},
    "geglu": {"norm": "pre", "positions": "rotary", "activation": "geglu", "biases": False},
    "window": {"window": 5},
    "window and global": {"window": 5, "global_every": 2, "norm": "pre", "positions": "rotary"},
    "block-diagonal": {"ablation": AblationSettings(first_projection="block_diagonal")},
    "factorised": {"embedding_width": 16},
}


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_row_by_row_gives_the_outputs_of_the_whole_pass(kind, monkeypatch):
    monkeypatch.setattr("elemdist.sample.READ_AT_ONCE", 7)  # the prompt takes several parts
    model, rows_TV = decoder(**KINDS[kind]), some_rows(40)
    expected = whole_pass(model, rows_TV)
    context = Context(model)
    with torch.no_grad():
        prompt = context.read(rows_TV[:20])
        steps = [context.read(rows_TV[row : row + 1]) for row in range(20, 40)]
    torch.testing.assert_close(torch.cat([prompt, *steps]), expected)
    if "window" in kind:
        kept = [len(k) for k, _ in context.past]
        assert kept == ([5, 5, 5] if kind == "window" else [40, 5, 40])


def test_outputs_depend_on_the_rows_before_so_that_the_comparison_says_something():
    model, rows_TV = decoder(), some_rows(40)
    other_TV = rows_TV.clone()
    other_TV[1] = 7
    change = (whole_pass(model, rows_TV) - whole_pass(model, other_TV)).abs().amax(1)
    assert change[0] == 0
    assert (change[1:] > 1e-4).all()


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_when_the_positions_are_taken_the_last_half_is_read_again(positions):
    model, rows_TV = decoder(n=16, positions=positions), some_rows(17)
    context = Context(model)
    with torch.no_grad():
        context.make_room()
        context.read(rows_TV[:15])
        context.make_room()  # there is some
        context.read(rows_TV[15:16])
        context.make_room()
        out = context.read(rows_TV[16:])
    torch.testing.assert_close(out, whole_pass(model, rows_TV[8:])[-1:])
    assert len(context.rows_PV) == 9


def settings(**given) -> SampleSettings:
    chosen = SampleSettings(run="x", **given)
    chosen.check()
    return chosen


def texts(model: Model, materials: int, prompt: str = "", **given) -> list[str]:
    prompt_TV = prompt_rows(model.config, prompt, None, rows_of)
    writer = ByteWriter(Choice(settings(**given)), model.config)
    return list(write(model, prompt_TV, writer, materials))


@pytest.mark.parametrize("head", ["independent", "autoregressive"])
@pytest.mark.parametrize(
    ("given", "slots"), [({}, 4), ({"v": 3}, 3), ({"input": "byte"}, 1), ({"input": "canine"}, 4)]
)
def test_random_weights_write_valid_text_past_the_end_of_the_positions(head, given, slots):
    model = decoder(n=10, head=head, **given)
    assert model.config.slots == slots
    with torch.no_grad():  # continuation bytes and long characters would be rare
        model.head.bias_VE[:, 0x80:0xF5] += 3
        model.head.bias_VE[0, DOC] = -100
    written = texts(model, 3 * model.config.positions)
    text = "".join(written)
    assert "\ufffd" not in text
    assert len(text.encode()) >= 30
    assert {len(letter.encode()) for letter in text} == {1, 2, 3, 4}
    if given == {"input": "canine"}:  # a row is one character
        assert all(len(letter) == 1 for letter in written)
    else:  # some rows add nothing, as the next one completes their character
        assert "" in written


def test_a_seed_gives_the_same_text_and_another_seed_another():
    model = decoder(head="autoregressive")
    assert texts(model, 20, seed=5) == texts(model, 20, seed=5)
    assert texts(model, 20, seed=5) != texts(model, 20, seed=6)
    assert texts(model, 20, temperature=0, seed=5) == texts(model, 20, temperature=0, seed=6)
    assert texts(model, 20, seed=5) != texts(model, 20, "Go on ", seed=5)


def test_a_document_ends_where_doc_is_chosen():
    model = decoder()
    with torch.no_grad():
        model.head.bias_VE[0, DOC] = 100
    assert texts(model, 20) == []


def test_the_most_materials_are_written_and_the_last_character_is_whole():
    model = decoder(v=1, width=16)
    with torch.no_grad():
        model.head.bias_VE[0, DOC] = -100
        model.head.bias_VE[0, 0xF0] = 100  # characters of four bytes only
    for materials, characters in ((1, 1), (4, 1), (5, 2)):
        written = texts(model, materials)
        assert len(written) == 4 * characters
        assert len("".join(written)) == characters


def test_every_input_reads_the_prompt_as_it_was_trained():
    def rows(**given) -> list[list[int]]:
        return prompt_rows(decoder(**given).config, "né", None, rows_of).tolist()

    e, acute = "é".encode()
    assert rows() == [[DOC, PAD, PAD, PAD], [ord("n"), e, acute, PAD]]
    assert rows(input="byte") == [[DOC], [ord("n")], [e], [acute]]
    expected = [[DOC, PAD, PAD, PAD], [ord("n"), PAD, PAD, PAD], [e, acute, PAD, PAD]]
    assert rows(input="canine") == expected


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "<unk>"]
    )
    made.train_from_iterator(["the cat sat on the mat, été 猫"] * 20, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_tokens_become_text_and_only_text(tokenizer):
    from tokenizers import Tokenizer

    from elemdist.inputs import open_symbols

    symbols = open_symbols(str(tokenizer))
    model = decoder(input="subword", tokenizer=str(tokenizer), symbols=symbols)
    with torch.no_grad():
        model.head.bias_VE[0, symbols.doc] = -100
        model.head.bias_VE[0, [symbols.mask, symbols.sep, 1]] = 100  # 1: <unk>
    prompt_TV = prompt_rows(model.config, "the cat", str(tokenizer), rows_of)
    assert prompt_TV[0].item() == symbols.doc
    prompt = prompt_TV[:, 0].tolist()
    given = (Choice(settings()), model.config, str(tokenizer))
    writer = TokenWriter(*given, prompt)
    drawn = []

    def row(*arguments):
        drawn.append(TokenWriter.row(writer, *arguments))
        return drawn[-1]

    writer.row = row
    text = "".join(write(model, prompt_TV, writer, 150))
    ids = [int(one) for one in drawn]
    assert len(ids) == 150
    assert not {symbols.doc, symbols.mask, symbols.sep, 1} & set(ids)
    opened = Tokenizer.from_file(str(tokenizer))
    whole = opened.decode(prompt[1:] + ids)
    assert whole.startswith("the cat" + text)
    assert len(whole) - len("the cat" + text) <= 3  # a character that the last token begins
    with torch.no_grad():
        model.head.bias_VE[0, symbols.doc] = 100
    assert list(write(model, prompt_TV, TokenWriter(*given, prompt), 150)) == []


def test_the_prompt_of_a_file_is_taken_as_it_is(tmp_path):
    file = tmp_path / "prompt.txt"
    for text in ("né\r\n", "", "\0", "\ufeffa"):
        file.write_bytes(text.encode())
        assert read_prompt(settings(prompt_file=str(file))) == text.removeprefix("\ufeff")
    assert read_prompt(settings(prompt="né")) == "né"


REFUSED = {
    b"n\xc3\xa9\xff": "is not valid UTF-8, byte 3 is 0xff; save it as UTF-8",
    "né".encode("utf-16"): "is not valid UTF-8, byte 0 is 0xff",
    b"\xed\xa0\x80": "is not valid UTF-8, byte 0 is 0xed",
}


@pytest.mark.parametrize("content", REFUSED)
def test_a_prompt_that_is_no_utf_8_is_refused(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(UserError, match=f"prompt_file: {tmp_path}/p {REFUSED[content]}"):
        read_prompt(settings(prompt_file=str(tmp_path / "p")))


@pytest.mark.parametrize("name", ["nowhere", ".", "a\0b", "x" * 300])
def test_a_prompt_that_cannot_be_read_is_one_line(tmp_path, name):
    with pytest.raises(UserError, match="prompt_file: cannot read"):
        read_prompt(settings(prompt_file=str(tmp_path / name)))


def test_an_endless_prompt_ends():
    with pytest.raises(UserError, match="prompt_file: /dev/zero has over 16,777,216 bytes"):
        read_prompt(settings(prompt_file="/dev/zero"))


DECODER = [
    "--model.backbone", "decoder", "--objective", "clm", "--model.norm", "pre",
    "--model.positions", "rotary", "--model.head", "autoregressive", "--model.slot-width", "32",
]  # fmt: skip


def test_a_trained_decoder_goes_on_with_a_prompt(packed, tmp_path):
    folder = tmp_path / "run"
    done = elemdist(
        "train", "--run-dir", folder, "--data.train", packed / "train", *TINY, *DECODER,
        "--steps", "30",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = ("sample", folder, "--prompt", "the storm ", "--materials", "40", "--device", "cpu")
    first = elemdist(*words)
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith("\n")
    assert "\ufffd" not in first.stdout
    assert elemdist(*words).stdout == first.stdout


def saved(model: Model, folder: Path) -> str:
    """A checkpoint folder of the model's weights."""
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_json()))
    names = ("model.safetensors", "config.json")
    files = {name: [(folder / name).stat().st_size, digest(folder / name)] for name in names}
    manifest = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "step": 1}
    manifest |= {"files": files, "facts": {}, "settings": {}, "state": {}, "optimizer_steps": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_documents_are_parted_and_a_long_prompt_is_cut_with_a_word(dtype, tmp_path, capfdbinary):
    model = decoder(n=16, head="autoregressive", positions="rotary").to(dtype)
    given = {"documents": 3, "materials": 20, "device": "cpu"}
    asked = SampleSettings(saved(model, tmp_path), "the storm was near. " * 20, **given)
    assert run(asked, rows_of) == 0
    out, told = capfdbinary.readouterr()
    parts = out.decode().removesuffix("\n").split("\n---\n")
    assert len(set(parts)) == 3
    assert b"the prompt has 141 rows, the model 16 positions: it reads the last 8" in told
    # the text is that of the rows it reads
    half_TV = prompt_rows(model.config, asked.prompt, None, rows_of)[-8:]
    again = write(model, half_TV, ByteWriter(Choice(asked), model.config), 20)
    assert "".join(again) == parts[0]


def test_a_run_that_is_no_decoder_is_refused(tmp_path):
    settings = resolved(ModelSettings(width=32), 4)
    model = Model(ModelConfig(n=8, v=4, objective="mlm", model=settings))
    refused = SampleSettings(saved(model, tmp_path))
    with pytest.raises(UserError, match=r"its objective is mlm, .* --model.backbone decoder"):
        run(refused, rows_of)
    expect_user_error(elemdist("sample", tmp_path / "nowhere"), "no such folder")


def test_another_tokenizer_than_that_of_the_training_is_refused(tokenizer, tmp_path):
    symbols = Symbols(doc=0, sep=300, mask=301, vocabulary=302)
    model = decoder(input="subword", tokenizer=str(tokenizer), symbols=symbols)
    with pytest.raises(UserError, match=r"tokenizer: .* is not the one that the model was trained"):
        run(SampleSettings(saved(model, tmp_path)), rows_of)
