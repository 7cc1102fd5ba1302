"""Whether bytes are valid UTF-8, where they may be cut, and how they are mended."""

from __future__ import annotations

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MENDING = "--on-invalid replace puts U+FFFD there, --on-error skip leaves the document out"


def is_utf8(text: bytes) -> bool:
    """Whether all of the text is valid UTF-8."""
    if text.isascii():  # many times as fast, and most text of many corpora
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def first_invalid(text: bytes) -> int:
    """Where the first invalid byte is; -1 in valid text."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.start
    return -1


def mended(text: bytes) -> bytes:
    """The text with U+FFFD for every invalid sequence."""
    return text.decode(errors="replace").encode()


def whole_characters(text: bytes) -> int:
    """Where the text may be cut: in front of a character that is not whole, if one is at its end.

    Both pieces are as valid, and are mended to the same, as if they were one.
    """
    for back in range(1, min(4, len(text) + 1)):
        byte = text[-back]
        if byte >= 0xC0:  # begins a character of 2, 3 or 4 bytes
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(text) - back if needed > back else len(text)
        if byte < 0x80:
            break
    return len(text)


def complaint(offset: int, byte: int) -> str:
    """What is wrong with an invalid byte at an offset of a file, and what to do."""
    return f"invalid UTF-8 at byte {offset:,} (0x{byte:02x}); {MENDING}"
