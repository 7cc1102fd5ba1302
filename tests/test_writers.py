from __future__ import annotations

import contextlib
import itertools

import pytest
import torch

from elemdist.sample_settings import SampleSettings
from elemdist.writers import Choice, Utf8


def allowed_after(data: bytes) -> list[int]:
    utf8 = Utf8()
    for byte in data:
        utf8.take(byte)
    return utf8.allowed().nonzero().squeeze(1).tolist()


def begins_a_text(data: bytes) -> bool:
    """Whether Python decodes these bytes with some continuation."""
    for tail in (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80"):
        with contextlib.suppress(UnicodeDecodeError):
            return bool((data + tail).decode())
    return False


def test_what_can_follow_is_what_python_decodes():
    starts = [bytes([first]) for first in allowed_after(b"")]
    told_apart = [s for s in starts if s[0] in (0x41, 0xC3, 0xE0, 0xE2, 0xED, 0xF0, 0xF1, 0xF4)]
    pairs = [start + bytes([second]) for start in told_apart for second in allowed_after(start)]
    triples = [pair + b"\x80" for pair in pairs if pair[0] >= 0xF0]
    for data in itertools.chain([b""], starts, pairs, triples):
        expected = [byte for byte in range(256) if begins_a_text(data + bytes([byte]))]
        assert allowed_after(data) == expected, data


def test_the_choice_follows_the_probabilities_within_its_bounds():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    everything = torch.ones(4, dtype=torch.bool)
    not_the_last = torch.tensor([True, True, True, False])

    def shares(allowed, **given) -> list[float]:
        choose = Choice(SampleSettings(**given))
        drawn = torch.tensor([choose(logits, allowed) for _ in range(1500)])
        return (drawn.bincount(minlength=4) / 1500).tolist()

    def near(*expected: float):
        return pytest.approx(expected, abs=0.05)

    assert shares(everything) == near(0.1, 0.2, 0.3, 0.4)
    assert shares(not_the_last) == near(1 / 6, 2 / 6, 3 / 6, 0)
    assert shares(everything, top_k=2) == near(0, 0, 3 / 7, 4 / 7)
    assert shares(everything, top_p=0.65) == near(0, 0, 3 / 7, 4 / 7)
    assert shares(everything, top_p=0.75) == near(0, 2 / 9, 3 / 9, 4 / 9)
    assert shares(everything, top_p=1e-6) == [0, 0, 0, 1]
    assert shares(everything, temperature=0) == [0, 0, 0, 1]
    assert shares(not_the_last, temperature=0) == [0, 0, 1, 0]
    assert shares(everything, temperature=0.5) == near(1 / 30, 4 / 30, 9 / 30, 16 / 30)


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-320])
@pytest.mark.parametrize("largest", [0.4, 88.0, 3e38])
def test_a_temperature_near_0_takes_the_likeliest(temperature, largest):
    logits = torch.tensor([0.1, -3e38, 0.3, largest])
    choose = Choice(SampleSettings(temperature=temperature))
    assert {choose(logits, torch.tensor([True, True, True, True])) for _ in range(20)} == {3}
    assert {choose(logits, torch.tensor([True, True, True, False])) for _ in range(20)} == {2}
