from __future__ import annotations

import pytest

from elemdist.commandline import parse
from elemdist.errors import UserError
from elemdist.sample_settings import SampleSettings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"run": None}, "name a run"),
        ({"prompt": "a", "prompt_file": "b"}, "prompt: there is a prompt_file"),
        ({"materials": 0}, "materials: 0 is below 1"),
        ({"temperature": -1.0}, "temperature: -1.0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_p": 0.0}, "top_p: 0.0 is not in"),
        ({"top_k": -1}, "top_k: -1 is below 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        SampleSettings(**{"run": "x"} | given).check()


@pytest.mark.parametrize(
    "prompt", ["12", "true", "null", '{"a": 1}', "[1]", " a ", "né\n", "-", ""]
)
def test_any_text_is_a_prompt(prompt):
    asked = parse(SampleSettings, ["run", "--prompt", prompt], "elemdist sample", "run")
    assert (asked.run, asked.prompt) == ("run", prompt)
