"""Completion, in the shells themselves where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from elemdist.cli import VERBS
from launcher.completion import SETTINGS, SHELLS, options_of
from tests.conftest import elemdist, expect_user_error


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = elemdist("completion", "bash")
    assert done.returncode == 0, done.stderr
    path = tmp_path_factory.mktemp("completion") / "elemdist.bash"
    path.write_text(done.stdout)
    return path


def completed(script: Path, *words: str, shell: str = "bash") -> list[str]:
    """What the shell offers behind these words, of which the last is begun."""
    count = len(words)
    line = " ".join(f"'{word}'" for word in words)
    text = (
        f"source '{script}'; COMP_WORDS=({line}); COMP_CWORD={count - 1}; _elemdist;"
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run([shell, "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_verbs_options_and_their_values(script):
    assert set(completed(script, "elemdist", "")) == set(VERBS)
    assert completed(script, "elemdist", "tra") == ["train"]
    assert completed(script, "elemdist", "train", "--model.lay") == ["--model.layers"]
    assert completed(script, "elemdist", "train", "--zero.stage", "") == ["0", "1", "2", "3"]
    assert completed(script, "elemdist", "launch", "--dry-run", "t") == ["true"]
    assert completed(script, "elemdist", "train", "configs/ti") == [], "the shell names files"


def test_every_verb_with_settings_has_its_options():
    assert SETTINGS.keys() <= VERBS.keys()
    for verb in SETTINGS:
        assert options_of(verb), verb
    assert VERBS.keys() - SETTINGS.keys() == {"bench", "completion"}


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_takes_its_script(shell, tmp_path):
    done = elemdist("completion", shell)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "script"
    path.write_text(done.stdout)
    if shell == "fish":
        assert "-l model.layers" in done.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; install it, then make test")
    flag = "--no-execute" if shell == "fish" else "-n"
    assert subprocess.run([shell, flag, path], capture_output=True).returncode == 0


def test_a_shell_that_is_not_known():
    expect_user_error(elemdist("completion", "bsah"), "did you mean 'bash'")
    assert "source <(elemdist completion bash)" in elemdist("completion", "--help").stdout
