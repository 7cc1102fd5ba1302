from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from elemdist import compile_check
from elemdist.attention import BACKENDS, backend
from elemdist.compile_check import compile_obstacle
from launcher import doctor, missing
from tests.conftest import ELEMDIST, elemdist, expect_user_error, run_command


@pytest.fixture(scope="module")
def report() -> dict:
    done = elemdist("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_report_tells_what_is_here(report):
    assert report["torch"] == {"version": torch.__version__, "cuda": torch.version.cuda}
    assert report["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert 0 < report["cpu"]["available_gb"] <= report["cpu"]["memory_gb"]
    assert len(report["gpus"]) == torch.cuda.device_count()
    for name in ("deepspeed", "mosaicml-streaming", "transformers"):
        assert report["versions"][name] == metadata.version(name)
    assert "flash-attn" in report["versions"]
    assert report["shared_memory"]["folder"] == "/dev/shm"
    assert report["problems"] == []


def test_the_report_tells_what_attention_runs_and_why_not_another(report):
    for short, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        found = report["attention"]["cpu"][short]
        assert found["runs"] == backend(torch.device("cpu"), dtype)
        assert set(found["cannot"]) == set(BACKENDS) - {"sdpa"}
        assert all(found["cannot"].values())


def test_the_text_says_the_same_and_no_secret():
    done = elemdist("doctor", AWS_SECRET_ACCESS_KEY="hush-hush", ELEMDIST_CACHE="/nowhere/at/all")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {line[:19].strip(): line[19:].strip() for line in done.stdout.splitlines()}
    assert lines["torch"].startswith(torch.__version__)
    assert lines["attention, fp32"] == "sdpa on cpu"
    assert lines["transformers"] == metadata.version("transformers")
    assert lines["cache"].startswith("/nowhere/at/all, ")
    assert lines["cache"].endswith(" GB free")
    assert "not varlen: it needs a GPU" in done.stdout
    assert "Nothing is broken." in done.stdout
    assert "hush-hush" not in done.stdout + done.stderr


def test_what_is_missing_comes_with_the_command_that_cures_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no program at all
    monkeypatch.setattr(missing, "find_spec", lambda name: None)
    monkeypatch.setattr(missing.ctypes.util, "find_library", lambda name: None)
    found = {one.what: one for one in missing.missing(["deepspeed"], 2, 0.1, 500.0)}
    assert found["deepspeed"].cure == f"{sys.executable} -m pip install deepspeed"
    assert found["streaming"].needed_by == "MappedDataset, for training loops of one's own"
    assert found["transformers"].needed_by == "models that elemdist export has written"
    assert found["flash_attn"].cure.endswith("pip install --no-build-isolation flash-attn")
    assert found["SLURM"].cure.endswith("elemdist launch --local")
    assert found["libaio"].cure == "apt-get install libaio-dev"
    assert found["g++"].needed_by == "--compile on a CPU"
    assert "remount" in found["shared memory, 0.1 GB"].cure
    assert not any("cache" in what for what in found), "500 GB are enough"
    assert "flash_attn" not in {one.what for one in missing.missing([], 0, 9.0, 500.0)}, "no GPU"

    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + 71 * "x")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # which is there
    cures = [one.cure for one in missing.missing([], 0, 9.0, 500.0)]
    assert "export TMPDIR=/tmp" in cures


def test_the_doctor_does_not_import_what_it_only_names():
    code = (
        "import sys; sys.argv = ['elemdist', 'doctor']\n"
        "from elemdist.cli import main\n"
        "assert main() == 0\n"
        "heavy = {'deepspeed', 'streaming', 'transformers', 'triton'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = run_command(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_without_streaming_nothing_is_broken(monkeypatch):
    for lacking, expected in (("mosaicml-streaming", []), ("deepspeed", ["deepspeed"])):
        there = lambda name, lacking=lacking: None if name == lacking else "1.0"  # noqa: E731
        monkeypatch.setattr(doctor, "version_of", there)
        problems = doctor.examine()["problems"]
        assert problems == [f"{name} is not installed" for name in expected]


def make_package(folder: Path, name: str, source: str = "") -> Path:
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text(source)
    return package


def test_another_package_of_our_name_is_broken(tmp_path):
    package = make_package(tmp_path, "data_prep")
    info = tmp_path / "other_tools-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-tools\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("data_prep\n")
    done = run_command(ELEMDIST, "doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stderr
    broken = [line for line in done.stdout.splitlines() if line.startswith("BROKEN")]
    assert len(broken) == 2
    assert f"`import data_prep` finds {package}" in broken[0]
    assert "the distribution other-tools has a package data_prep, too" in broken[1]
    assert all("an environment of its own" in line for line in broken)


def test_a_launcher_that_is_not_ours_is_one_line(tmp_path):
    package = make_package(tmp_path, "launcher")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.argv = ['elemdist', 'doctor']\n"
        # An editable installation would find launcher.doctor all the same, a usual one does not.
        "sys.meta_path = [finder for finder in sys.meta_path if 'ditable' not in str(finder)]\n"
        "from elemdist.cli import main\n"
        "sys.exit(main())\n"
    )
    expect_user_error(run_command(sys.executable, "-c", code, tmp_path), str(package), "hides it")


def test_a_torch_that_cannot_be_imported_is_broken(tmp_path):
    make_package(tmp_path, "torch", "raise ImportError('libtorch.so: not found\\nand more')")
    done = run_command(ELEMDIST, "doctor", "--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["torch"] is None
    assert report["problems"] == ["torch cannot be imported: libtorch.so: not found"]
    done = run_command(ELEMDIST, "doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "BROKEN              torch cannot be imported: libtorch.so: not found" in done.stdout


def test_torch_compile_wants_no_space_in_the_path_of_torch(monkeypatch):
    monkeypatch.setattr(compile_check, "cxx_obstacle", lambda: None)
    for folder, works in (("/opt/a b", False), ("/opt/a'b", False), ("/opt/a-b", True)):
        spec = SimpleNamespace(origin=f"{folder}/torch/__init__.py")
        monkeypatch.setattr(compile_check, "find_spec", lambda _name, spec=spec: spec)
        reason = compile_obstacle()
        assert reason is None if works else f"torch lies in '{folder}/torch'" in str(reason)


def test_without_a_cxx_compiler_there_is_no_torch_compile(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_check, "folder_obstacle", lambda: None)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler g++" in str(compile_obstacle())
    assert "install g++" in str(compile_obstacle())
    program = tmp_path / "clang++"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert "set CXX=clang++" in str(compile_obstacle())
    monkeypatch.setenv("CXX", "clang++")
    assert compile_obstacle() is None
    monkeypatch.setenv("CXX", "g++-99")
    assert compile_obstacle() == "$CXX is g++-99, which is no program here"
    if "triton" not in metadata.packages_distributions():
        assert "triton is not installed" in str(compile_obstacle("cuda"))


@pytest.mark.skipif(
    compile_obstacle() is not None,
    reason=f"torch.compile cannot work here, {compile_obstacle()}, then make test",
)
def test_with_no_obstacle_torch_compile_works(tmp_path):
    code = (
        "import torch\n"
        "half = torch.compile(lambda x: x / 2 + 1)\n"
        "assert torch.equal(half(torch.arange(4.0)), torch.tensor([1.0, 1.5, 2.0, 2.5]))\n"
    )
    done = run_command(
        sys.executable,
        "-c",
        code,
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path),
        TORCHINDUCTOR_COMPILE_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
