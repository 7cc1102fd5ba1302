"""The class of every code point, out of an explicit table of ranges.

`unicodedata` differs between Python versions, and shards must not: the same text gives the same
rows with every Python. So the table is written out here, and CLASSES_VERSION goes into the
manifest. What no range names is WORD: letters, digits and combining marks of scripts that put
spaces between words, and code points that Unicode has not yet given away.
"""

from __future__ import annotations

import numpy as np

CLASSES_VERSION = 1

SINGLE = 0  # a material of its own: punctuation, symbols, emoji, control characters
WORD = 1  # runs of these make one material, with the one U+0020 that follows
WHITE = 2  # ASCII white space: runs of it, in any mix, make one material
REPEAT = 3  # ASCII punctuation: repeats of one and the same character make one material

ASCII_WHITE = b"\t\n\v\f\r "
ASCII_PUNCTUATION = b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
CODE_POINTS = 0x110000

# Punctuation, symbols and spaces between the letters of each block, as hexadecimal ranges.
SEPARATE = {
    "ASCII control": "0-8 E-1F 7F",
    "Latin-1": "80-A9 AB-AC AE-B1 B4 B6-B8 BB BF D7 F7",
    "modifier signs": "2C2-2C5 2D2-2DF 2E5-2EB 2ED 2EF-2FF A6F2-A716 A720-A721 A789-A78A AB5B"
    " AB6A-AB6B",
    "Greek, Coptic": "375 37E 384-385 387 3F6 1FBD 1FBF-1FC1 1FCD-1FCF 1FDD-1FDF 1FED-1FEF"
    " 1FFD-1FFF 2CE5-2CEA 2CF9-2CFC 2CFE-2CFF",
    "Cyrillic": "482 A673 A67E",
    "Armenian, Hebrew": "55A-55F 589-58F 5BE 5C0 5C3 5C6 5F3-5FF FB29",
    "Arabic, Syriac, Nko": "600-60F 61B-61F 66A-66D 6D4 6DD-6DE 6E9 6FD-6FE 700-70F 7F6-7F9"
    " 7FE-7FF 888 890-891 8E2 FBB2-FBC2 FD3E-FD4F FDCF FDFC-FDFF",
    "Samaritan, Mandaic": "830-83E 85E",
    "Indic": "964-965 970 9F2-9F3 9FA-9FB 9FD A76 AF0-AF1 B70 BF3-BFA C77 C7F C84 D4F D79 DF4"
    " 1CC0-1CC7 1CD3 A828-A82B A836-A839 A874-A877 A8CE-A8CF A8F8-A8FA A8FC AAF0-AAF1 ABEB",
    "Georgian, Ethiopic": "10FB 1360-1368 1390-1399",
    "Cherokee, Canadian, Ogham, Runic": "1400 166D-166E 1680 169B-169C 16EB-16ED",
    "Philippine, Mongolian, Limbu": "1735-1736 1800-180A 180E 1940-1945",
    "Batak, Lepcha, Ol Chiki": "1BFC-1BFF 1C3B-1C3F 1C7E-1C7F",
    "Tifinagh, Lisu, Kayah, Rejang": "2D70 A4FE-A4FF A92E-A92F A95F",
    # U+200C and U+200D, the joiners, are WORD: Persian and Indic words contain them.
    "general punctuation": "2000-200B 200E-206F 207A-207E 208A-208E 20A0-20C0",
    "letterlike": "2100-2101 2103-2106 2108-2109 2114 2116-2118 211E-2123 2125 2127 2129 212E"
    " 213A-213B 2140-2144 214A-214D 214F",
    # Circled and parenthesised letters and digits stand in lists as signs do.
    "arrows, mathematics, enclosed": "218A-2BFF",
    "supplemental punctuation": "2E00-2E2E 2E30-2E7F",
    "private use": "E000-F8FF",
    "forms": "FE10-FE19 FE30-FE6B FEFF-FF0F FF1A-FF20 FF3B-FF40 FF5B-FF65 FFE0-FFFF",
    "ancient signs": "10100-10102 10137-1013F 10179-10189 1018C-101FC 1039F 103D0 1056F 10857"
    " 10877-10878 1091F 1093F 10A50-10A58 10A7F 10AC8 10AF0-10AF6 10B39-10B3F 10B99-10B9C 10EAD"
    " 10F55-10F59 10F86-10F89",
    "Indic, plane 1": "11047-1104D 110BB-110C1 110CD 11140-11143 11174-11175 111C5-111C8 111CD"
    " 111DB 111DD-111DF 11238-1123D 112A9 1144B-1144F 1145A-1145D 114C6 115C1-115D7 11641-11643"
    " 11660-1166C 116B9 1173C-1173F 1183B 11944-11946 119E2 11A3F-11A46 11A9A-11A9C 11A9E-11AA2"
    " 11C41-11C45 11C70-11C71 11EF7-11EF8 11FD5-11FFF",
    "Bamum to Duployan": "16A6E-16A6F 16AF5 16B37-16B3F 16B44-16B45 16E97-16E9A 16FE2 1BC9C"
    " 1BC9F-1BCA3",
    "music, mathematics": "1CF50-1D164 1D16A-1D16C 1D173-1D17A 1D183-1D184 1D18C-1D1A9"
    " 1D1AE-1D241 1D245 1D300-1D356 1D6C1 1D6DB 1D6FB 1D715 1D735 1D74F 1D76F 1D789 1D7A9 1D7C3",
    "sign writing": "1D800-1D9FF 1DA37-1DA3A 1DA6D-1DA74 1DA76-1DA83 1DA85-1DA8B",
    "late scripts": "1E14F 1E2FF 1E95E-1E95F 1ECAC 1ECB0 1ED2E",
    "emoji and pictures": "1EEF0-1FBEF 1FBFA-1FFFF",
    "tags, private planes": "E0000-10FFFF",
}

# Scripts written without spaces between words: every code point is a material.
UNSPACED = {
    "Thai, Lao, Tibetan": "E00-FFF",
    "Myanmar": "1000-109F A9E0-A9FF AA60-AA7F",
    "Khmer": "1780-17FF 19E0-19FF",
    "Tai Le, New Tai Lue, Tai Tham, Tai Viet": "1950-19DF 1A20-1AAF AA80-AADF",
    "Balinese, Buginese, Cham, Javanese": "1B00-1B7F 1A00-1A1F AA00-AA5F A980-A9DF",
    "CJK, kana, bopomofo": "2E80-312F 3190-9FFF F900-FAFF FF66-FF9F 16FE3-16FF1 1AFF0-1B16F"
    " 20000-3FFFF",
    "Yi, Vai": "A000-A4CF A500-A63F",
    "Tangut, Khitan, Nushu": "17000-18CFF 1B170-1B2FF 18D00-18D7F",
    "cuneiform, hieroglyphs": "12000-12FFF 13000-1467F",
}


def ranges(table: dict[str, str]) -> list[tuple[int, int]]:
    """The inclusive code point ranges of SEPARATE or UNSPACED."""
    pairs = [part.split("-") for text in table.values() for part in text.split()]
    return [(int(pair[0], 16), int(pair[-1], 16)) for pair in pairs]


def alone() -> list[tuple[int, int]]:
    """The inclusive ranges of code points beyond ASCII, and of control characters, that are a
    material each: sorted, none beside another."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges(SEPARATE) + ranges(UNSPACED)):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def class_table() -> np.ndarray:
    """The class of every code point. Shape (0x110000,), uint8; takes about 1 ms to build."""
    table = np.full(CODE_POINTS, WORD, np.uint8)
    for first, last in ranges(SEPARATE) + ranges(UNSPACED):
        table[first : last + 1] = SINGLE
    table[list(ASCII_WHITE)] = WHITE
    table[list(ASCII_PUNCTUATION)] = REPEAT
    return table
