"""The compiled segmenters once more, slow and plain, to compare them with; and texts to cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hypothesis import strategies as st

from data_prep.classes import REPEAT, WHITE, WORD, class_table

CLASSES = class_table()
SEGMENTERS = ("word", "char", "byte")
WIDTHS = (1, 2, 3, 4, 12, 16)

SAMPLES = {
    "Amharic": "ሰማይ ዛሬ ሰማያዊ ነው፤ ልጆች በወንዙ ዳር ይጫወታሉ።",
    "Arabic": "قطفتُ ٣ تفاحات من الشجرة، ثم عدتُ إلى البيت؛ أليس كذلك؟",
    "Armenian": "Այսօր անձրև է գալիս, ո՞ւր ես գնում։",
    "Bengali": "আকাশে মেঘ জমেছে। বৃষ্টি হবে ২টার পরে।",
    "Chinese": "昨天我在河边看见三只白鹭,它们站着不动。",
    "Code": "def f(x_1, *args): return x_1 == 0x1F  # --- ... \t\tend\r\n\r\n",
    "Emoji": "Good 👍🏽 news: 👩‍🔬 found ☕️ and 🇨🇭!! Price: 5 €…",
    "English": "The heron's nest -- 3,5 m high -- wasn't empty; \"well\", she said...",
    "Georgian": "მდინარე ზამთარში იყინება და ბავშვები ციგურაობენ.",
    "Greek": "Ο γάτος κοιμάται στον ήλιο· πού είναι το ψάρι;",
    "Hebrew": "החתול ישן על הגג, והכלב מחכה למטה־בחצר׃",
    "Hindi": "नदी के किनारे बच्चे खेल रहे हैं। क्‍या तुम आओगे?",
    "Japanese": "きのう、川でサギを3羽見ました。コーヒーを飲む。",
    "Khmer": "ក្មេងៗលេងនៅមាត់ទន្លេ។",
    "Korean": "어제 강가에서 백로 세 마리를 보았다. 정말?",
    "Persian": "کتاب‌ها را روی میز می‌گذارم، ولی کسی نمی‌خواند.",
    "Polish": "Żółta łódź płynie ku źródłu; ćma śpi.",
    "Russian": "Вчера на реке было тихо — только цапли стояли.",
    "Tamil": "ஆற்றங்கரையில் மூன்று கொக்குகள் நின்றன.",
    "Thai": "เมื่อวานฉันเห็นนกกระยางสามตัวที่ริมแม่น้ำ",
    "Tibetan": "ཆུ་འགྲམ་ལ་བྱ་གསུམ་འདུག",
    "Vietnamese": "Hôm qua tôi thấy ba con cò bên bờ sông.",
}


def materials(text: str, segmenter: str) -> Iterator[str]:
    """The materials of a text, before any is cut to rows."""
    if segmenter == "char":
        yield from text
        return
    at = 0
    while at < len(text):
        first = text[at]
        kind = CLASSES[ord(first)]
        end = at + 1
        if kind == WORD:
            while end < len(text) and CLASSES[ord(text[end])] == WORD:
                end += 1
            if text[end : end + 1] == " ":
                end += 1
        elif kind == WHITE:
            while end < len(text) and CLASSES[ord(text[end])] == WHITE:
                end += 1
        elif kind == REPEAT:
            while text[end : end + 1] == first:
                end += 1
        yield text[at:end]
        at = end


def rows(text: str, v: int, segmenter: str) -> list[bytes]:
    """The rows of a text, without PAD."""
    data = text.encode()
    if segmenter == "byte":
        return [data[at : at + v] for at in range(0, len(data), v)]
    return rows_of_materials(materials(text, segmenter), v)


def rows_of_materials(materials: Iterable[str], v: int) -> list[bytes]:
    """The rows of materials, without PAD: each goes on in the next row where v bytes end."""
    found = []
    for material in materials:
        row = b""
        for character in material:
            more = character.encode()
            if row and len(row) + len(more) > v:
                found.append(row)
                row = b""
            while len(row) + len(more) > v:
                found.append(more[:v])
                more = more[v:]
            row += more
        found.append(row)
    return found


# Text that meets the rules: words, runs, every class, all lengths of UTF-8, and the ends of each.
pieces = st.one_of(
    st.text(max_size=8),
    st.text(alphabet=" \t\n\r\v\f", max_size=5),
    st.text(alphabet="ab1_-.,!é中ไ👍‍́\0\x1f\x7f\u0085\u00a0\u2028\u3000", max_size=8),
    st.sampled_from(sorted(SAMPLES.values())),
    st.builds(
        lambda letter, times: letter * times, st.characters(codec="utf-8"), st.integers(0, 40)
    ),
)
texts = st.lists(pieces, max_size=8).map("".join)
