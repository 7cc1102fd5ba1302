"""Noise as people and machines make it, put into text by seed.

Each letter is hit with the same probability, `rate`, whatever the kind, and each hit is one of:

- swap: it changes places with the letter behind it;
- drop: it is gone; repeat: it stands there twice;
- insert: another letter of the same text stands behind it;
- case: upper case becomes lower case, and the other way round;
- homoglyph: another letter of the same look, of another script;
- ocr: what a scanner reads in its place, as rn for m;
- mixed: any of these.

A letter to which nothing of its kind can be done, as the case of a Chinese one, stays as it is.
"""

from __future__ import annotations

import random

KINDS = ("swap", "drop", "insert", "repeat", "case", "homoglyph", "ocr", "mixed")
SINGLE = KINDS[:-1]
# Latin, and the Cyrillic or Greek letters that look like it (Unicode TR #39, confusables).
LOOKS = dict(zip("aceiopsxyjABCEHIJKMOPSTXYZN", "асеіорѕхујАВСЕНІЈКМОРЅТХҮΖΝ", strict=True))
ALIKE = LOOKS | {other: latin for latin, other in LOOKS.items()}
SCANS = {
    "m": "rn", "w": "vv", "d": "cl", "l": "1", "i": "l", "o": "0", "s": "5", "g": "q", "e": "c",
    "h": "b", "u": "ii", "n": "ri", "t": "f", "a": "o", "O": "0", "I": "l", "S": "5", "B": "8",
    "G": "6", "Z": "2", "D": "O", "E": "F", "C": "G", "U": "V", "M": "IVI",
}  # fmt: skip


def noisy(text: str, kind: str, rate: float, seed: int, number: int = 0) -> str:
    """A text with noise in it: the same for the same arguments, on every machine.

    Args:
        kind: one of KINDS. rate: how likely a letter is hit, 0 to 1. number: of the document, so
            that each gets noise of its own.
    """
    # Seeded by text, which Python hashes in the same way everywhere.
    chance = random.Random(f"{seed} {number} {kind}")
    letters = [letter for letter in text if letter.isalpha()]
    found: list[str] = []
    at = 0
    while at < len(text):
        letter = text[at]
        at += 1
        if not letter.isalpha() or chance.random() >= rate:
            found.append(letter)
            continue
        what = chance.choice(SINGLE) if kind == "mixed" else kind
        if what == "swap" and at < len(text) and text[at].isalpha():
            found += [text[at], letter]
            at += 1
        else:
            found.append(hit(letter, what, letters, chance))
    return "".join(found)


def hit(letter: str, what: str, letters: list[str], chance: random.Random) -> str:
    """What stands in the place of a letter; swap: itself, as nothing can be swapped with it."""
    if what == "drop":
        return ""
    if what == "repeat":
        return letter * 2
    if what == "insert":
        return letter + chance.choice(letters)
    if what == "case":
        return letter.swapcase()
    return {"homoglyph": ALIKE, "ocr": SCANS}.get(what, {}).get(letter, letter)
