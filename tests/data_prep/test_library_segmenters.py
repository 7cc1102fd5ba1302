"""The segmenters that stand on libraries: the standard's rules, and tokens' offsets."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import unicode_segmentation_rs as rust
from cutting import (
    LINES,
    TOKENIZERS,
    UNICODE,
    cut_at,
    marked,
    materials,
    saved_tokenizers,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import SAMPLES, rows_of_materials, texts
from tokenizers import Tokenizer, models, processors

from data_prep.segment import Segmenter, rows_of, segmenter_versions
from elemdist.errors import UserError

# Scripts that ICU cuts by dictionaries, where the plain rules have no words; it also parts Hangul
# from letters and digits of other scripts.
TAILORED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "HANGUL"}
# Characters of many classes of the word and sentence rules, none that ICU treats its own way.
RULE_CHARACTERS = (
    "aZéßאب1٣ _\u00a0\u3000\t\n\r\x0b\x85\u2028.,;:!?'\"’()«»-–…·\0\x7f"
    "\u0301\u200d\u200b\u00ad\u2060👍🏽👩🔬❤\ufe0f🇨🇭🇩\U0001f1ea"
)


# Cases in the manner of the standard's WordBreakTest.txt and SentenceBreakTest.txt.
@pytest.mark.parametrize(
    "case",
    [
        "can't|,| |he| |paid| |3.14| |or| |1,000",
        "a|.|.|b| |a.b| |e.g|.",
        "\r\n|a|\n|\u0308|\r|\r\n|\n",
        "a\u0308\u200d|,|b",
        "a_1|  |b|\u3000 |c",
        "ab's|'|'|a",
        'א\'| |א"א|"',
        "🇨🇭🇩🇪🇫".replace("🇨🇭", "🇨🇭|").replace("🇩🇪", "🇩🇪|"),
        "👩\u200d🔬|👍🏽|❤\ufe0f|a",
        "\0|\x01|a\u00adb|\x7f",
        "Z|:\u200d❤",  # no letter follows the colon; the implementation in Rust does not cut it
        "カタカナ|一|。",
        "ฉัน|เห็น",
    ],
)
def test_words_of_the_standard(case: str) -> None:
    assert materials(case.replace("|", ""), "uax29") == case.split("|")


@pytest.mark.parametrize(
    "case",
    [
        "Hello there. |How are you? |Fine!",
        "He paid 3.4 p.a. then left. |A",
        'She said "stop!" |Then (it was late.) |"Go"',
        "the resp. leaders are",
        "etc.)’ ‘(the",
        "etc.)’ |‘(The",
        "A.\r\n|\r\n|b\u2029|c\n|\n",
        "Is it!? |Yes... |But",
        "昨日。|今日？|はい",
        "क्या? |हाँ। |ठीक",
    ],
)
def test_sentences_of_the_standard(case: str) -> None:
    assert materials(case.replace("|", ""), "sentence") == case.split("|")


def same_as_rust(text: str) -> None:
    """Compares with the implementation in Rust, which has no dictionaries, and of sentences gives
    only those with a letter or digit."""
    wanted = set(accumulate(map(len, rust.split_word_bounds(text))))
    for place in wanted ^ set(accumulate(map(len, materials(text, "uax29")))):
        around = {unicodedata.name(c, "?").split()[0] for c in text[max(0, place - 2) : place + 2]}
        assert around & TAILORED, (text[max(0, place - 5) : place + 5], place)
    found = [s for s in materials(text, "sentence") if any(map(str.isalnum, s))]
    assert found == [s for s in rust.unicode_sentences(text) if any(map(str.isalnum, s))]


@pytest.mark.parametrize("name", SAMPLES)
def test_another_implementation_agrees(name: str) -> None:
    same_as_rust(SAMPLES[name])


@settings(deadline=None, max_examples=400)
@given(st.text(alphabet=RULE_CHARACTERS, max_size=30))
def test_another_implementation_agrees_on_any_text(text: str) -> None:
    same_as_rust(text)


@pytest.mark.parametrize("name", UNICODE)
@settings(deadline=None, max_examples=200)
@given(
    documents=st.lists(st.one_of(texts, st.text(alphabet=RULE_CHARACTERS, max_size=6)), max_size=6),
    between=st.sampled_from([b"", b"\n", b"\r\n", b"x"]),
)
def test_documents_of_a_batch_do_not_meet(name: str, documents: list[str], between: bytes) -> None:
    encoded = [document.encode() for document in documents]
    together = marked(name, encoded, between=between)
    for document, marks in zip(encoded, together, strict=True):
        alone = materials(document.decode(), name)
        assert cut_at(document, marks) == alone
        assert "".join(alone) == document.decode()


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return saved_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def token_materials(tokenizer: Tokenizer, text: str) -> list[str]:
    """The materials by the tokenizer's own offsets, in plain Python."""
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    starts = sorted({start for start, _ in offsets})[1:]
    bounds = [0, *starts, len(text)]
    return [text[i:j] for i, j in pairwise(bounds) if j > i]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(text=st.one_of(texts, st.text(alphabet="  \n\tHeloÉé\u0301ﬁ①世👍🏽\0", max_size=20)))
def test_tokens(tokenizer_files: dict[str, str], kind: str, text: str) -> None:
    path = tokenizer_files[kind]
    found = materials(text, "subword", path)
    assert found == token_materials(Tokenizer.from_file(path), text)
    assert "".join(found) == text
    rows_TV = rows_of(text.encode(), 5, "subword", path)
    assert [row[row < 0xFC].tobytes() for row in rows_TV] == rows_of_materials(found, 5)


def test_white_space_goes_with_the_token_before(tokenizer_files: dict[str, str]) -> None:
    path = tokenizer_files["wordpiece"]
    text = " \n no  NO\t\tnó \n"
    assert materials(text, "subword", path) == [" \n no  ", "NO\t\t", "nó \n"]
    assert materials("  \n", "subword", path) == ["  \n"]
    assert materials("", "subword", path) == []


def test_tokens_of_one_character_are_one_material(tokenizer_files: dict[str, str]) -> None:
    path = tokenizer_files["bpe"]
    assert len(Tokenizer.from_file(path).encode("\u6f22").ids) > 2
    assert materials("\u6f22\u6f22", "subword", path) == ["\u6f22", "\u6f22"]


def test_settings_of_the_file_change_nothing(
    tokenizer_files: dict[str, str], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(tokenizer_files["wordpiece"])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 1)]
    )
    tokenizer.save(str(tmp_path / "cut.json"))
    text = " ".join(LINES)
    wanted = materials(text, "subword", tokenizer_files["wordpiece"])
    assert materials(text, "subword", str(tmp_path / "cut.json")) == wanted
    assert len(wanted) > 20


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs tokenizer"):
        Segmenter("subword")
    with pytest.raises(UserError, match=r"cannot read .*/none\.json: there is no such file"):
        Segmenter("subword", str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"cannot read .*: it is a folder"):
        Segmenter("subword", str(tmp_path))
    for content in (b"", b"\xff\0", b'{"a": 1}', b"[1]"):
        path = tmp_path / "bad.json"
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no file of the tokenizers library"):
            Segmenter("subword", str(path))


def test_a_tokenizer_that_refuses_a_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"a": 0}, unk_token="[none]"))
    tokenizer.save(str(tmp_path / "small.json"))
    with pytest.raises(UserError, match=r"small\.json cannot cut a text"):
        materials("b", "subword", str(tmp_path / "small.json"))


def test_libraries_load_only_when_they_are_needed() -> None:
    code = (
        "import sys; from data_prep.segment import Segmenter\n"
        "Segmenter('word'); heavy = {'torch', 'transformers'}\n"
        "assert not (heavy | {'icu4py', 'tokenizers'}) & set(sys.modules)\n"
        "Segmenter('uax29'); assert not (heavy | {'tokenizers'}) & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_user_s_locale_changes_nothing() -> None:
    code = "from data_prep.segment import rows_of\nprint(rows_of(b'a:b c.d', 9, 'uax29').tolist())"
    found = set()
    for locale in ("C", "en_US_POSIX"):
        environment = os.environ | {"LC_ALL": locale, "LANG": locale}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_versions(tokenizer_files: dict[str, str]) -> None:
    assert segmenter_versions("word") == {}
    assert set(segmenter_versions("uax29")) == {"icu4py", "icu"}
    found = [segmenter_versions("subword", tokenizer_files[kind]) for kind in TOKENIZERS]
    assert len({one["tokenizer_xxh3_128"] for one in found}) == 3
    assert all(len(one["tokenizer_xxh3_128"]) == 32 and one["tokenizers"] for one in found)
