from __future__ import annotations

import os
import subprocess
import sys

import pytest

from elemdist.cli import VERBS
from launcher.completion import SETTINGS
from tests.conftest import ELEMDIST, elemdist, expect_user_error, run_command


def test_the_command_alone_lists_the_verbs():
    done = elemdist()
    assert done.returncode == 0
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_a_verb_loads_neither_torch_nor_a_compiler(verb):
    code = (
        "import sys; sys.argv = ['elemdist', sys.argv[1], '--help']\n"
        "from elemdist.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numba', 'deepspeed', 'streaming', 'matplotlib', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = run_command(sys.executable, "-c", code, verb)
    assert done.returncode == 0, done.stderr
    assert "default: " in done.stdout or verb not in SETTINGS
    assert f"usage: elemdist {verb}" in done.stdout


def test_data_preparation_never_imports_torch(corpus, tmp_path):
    code = (
        "import sys\n"
        "from data_prep.shard import ShardSettings, run\n"
        "run(ShardSettings([sys.argv[1]], sys.argv[2], processes=1))\n"
        "assert 'torch' not in sys.modules and 'streaming' not in sys.modules\n"
    )
    done = run_command(sys.executable, "-c", code, corpus, tmp_path / "set")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trian"], ["unknown verb 'trian'", "did you mean 'train'?"]),
        (["shard"], ["INPUTS is missing"]),
        (["shard", "x.txt"], ["--out"]),
        (["inspect", "/nowhere"], ["/nowhere"]),
        (["eval", "--dta", "x"], ["unknown option --dta", "did you mean 'data'?"]),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(words, parts):
    expect_user_error(elemdist(*words), *parts)


def test_the_offline_verbs_load_neither_torch_nor_streaming(tmp_path):
    (tmp_path / "a.txt").write_text("One text.\n\nAnother one.\n")
    code = (
        "import sys, os\n"
        "from elemdist.cli import main\n"
        "os.chdir(sys.argv[1])\n"
        "for words in (\n"
        "    'shard a.txt --out a --n 8 --processes 1 --segmenter uax29',\n"
        "    'convert a --out b --v 5 --processes 1',\n"
        "    'convert b --out c.jsonl --to jsonl', 'inspect a', 'inspect a.txt',\n"
        "    'verify a --processes 1', 'verify b --processes 1',\n"
        "):\n"
        "    sys.argv = ['elemdist', *words.split()]\n"
        "    code = main()\n"
        "    assert code == 0, (words, code)\n"
        "assert not {'torch', 'streaming', 'transformers'} & set(sys.modules)\n"
    )
    done = run_command(sys.executable, "-c", code, str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"text":"One text.' in (tmp_path / "c.jsonl").read_text()


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["status", "--help"], ["plan", "--table"]]
)
def test_a_reader_that_has_seen_enough_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as gone:
        done = subprocess.run([ELEMDIST, *words], stdout=gone, stderr=subprocess.PIPE, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_connection_that_breaks_is_an_error_all_the_same():
    """Only a closed standard output is none, whatever else raises what that raises."""
    broken = """
from elemdist import __main__, cli
def main():
    raise BrokenPipeError("of a connection")
cli.main = main
__main__.main()
"""
    done = run_command(sys.executable, "-c", broken)
    assert done.returncode == 1
    assert "of a connection" in done.stderr
