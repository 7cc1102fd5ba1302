"""The plan's counts against models that are really built, and against the original's."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

from elemdist.errors import UserError
from elemdist.model import Model
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import ModelSettings
from elemdist.streaming_compat import fit_torchvision
from launcher import plan
from launcher.run_plan import case_of, total
from tests.conftest import REPOSITORY, elemdist, expect_user_error, run_command

fit_torchvision()  # transformers imports torchvision, too
import transformers  # noqa: E402


def settings(*recipes: str) -> plan.PlanSettings:
    paths = [str(REPOSITORY / "configs" / f"{name}.yaml") for name in recipes]
    found = plan.parse(plan.PlanSettings, paths, "elemdist plan")
    plan.take_geometry(found)
    return found


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """planned(*words) -> (exit code, what is printed) of `elemdist plan`, in this process."""
    monkeypatch.chdir(REPOSITORY)

    def run(*words: str) -> tuple[int, str]:
        code = plan.run(list(words), None)
        return code, capsys.readouterr().out

    return run


def memory(stdout: str) -> dict[str, float]:
    """Part -> GB that a plan has printed."""
    lines = stdout.partition("memory ")[2].splitlines()[1:]
    found = {}
    for line in lines:
        if not (match := re.match(r"([a-z ]+?) +([0-9.]+)( of [0-9.]+: .*)?$", line)):
            break
        found[match[1]] = float(match[2])
    return found


def test_the_counts_are_those_of_the_model_that_is_trained():
    config = ModelConfig(
        n=32, v=8, objective="mlm", model=resolved(ModelSettings(width=64, layers=3), 8)
    )
    counts = plan.parameters(config)
    assert sum(counts.values()) == sum(p.numel() for p in Model(config).parameters())
    assert counts["embedding"] == 256 * 64 // 8
    assert counts["positions"] == 32 * 64


@pytest.mark.parametrize(("size", "v"), [("base", 12), ("large", 16)])
def test_the_subword_twin_has_the_parameters_of_the_original(size, v):
    chosen = settings(size)
    chosen.v = v
    twin = plan.shape(chosen, subword=True)
    bert = transformers.BertConfig(
        hidden_size=twin.model.width,
        num_hidden_layers=twin.model.layers,
        num_attention_heads=twin.model.heads,
        intermediate_size=twin.model.feedforward,
    )
    with torch.device("meta"):
        original = transformers.BertForMaskedLM(bert)
    count = sum(p.numel() for p in original.parameters())
    # BERT has two vectors for the kinds of segments, which we have not.
    assert sum(plan.parameters(twin).values()) == count - 2 * twin.model.width


def test_the_table_of_the_readme_is_what_the_command_prints():
    done = elemdist("plan", "--table")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "| `base.yaml` | 12, 768 | 512, 12 | 6,144 | 86,060,800 | 109,512,762 |" in done.stdout


def test_the_table_of_the_recipes_is_that_of_the_plans():
    gpus = ["--gpus", "8", "--gpu", "A100-80"]
    done = elemdist("plan", "--table", *gpus)
    assert done.returncode == 0, done.stderr
    assert "| on 8 A100-80 |" in done.stdout
    line = next(line for line in done.stdout.splitlines() if "`large.yaml`" in line)
    *_, memory, steps, time = line.strip("| ").split(" | ")
    alone = elemdist("plan", "configs/large.yaml", *gpus, "--v", "16").stdout
    assert f"time: {time} for {steps} steps" in alone
    whole = next(line for line in alone.splitlines() if line.endswith(" of 80: fits"))
    # One has a decimal, the other two: both round the same number.
    large = plan.parse(plan.PlanSettings, [str(REPOSITORY / "configs" / "large.yaml"), *gpus], "")
    large.n, large.v = plan.N, 16
    ours = plan.shape(large, subword=False)
    exact = total(case_of(large, ours, plan.tensor_sizes(ours))) / 1e9
    assert (memory, whole.split()[1]) == (f"{exact:.1f}", f"{exact:.2f}")


def test_a_recipe_is_told_by_part():
    done = elemdist("plan", "configs/base.yaml", "configs/decoder.yaml", "--v", "16")
    assert done.returncode == 0, done.stderr
    assert "decoder, clm: 12 layers, width 768, 16 heads, feed-forward 2048" in done.stdout
    embedding = next(line for line in done.stdout.splitlines() if line.startswith("embedding"))
    assert embedding.split() == ["embedding", f"{256 * 48:,}", f"{30522 * 768:,}"]


def test_a_run_is_told_from_batch_to_hours(planned):
    code, out = planned("configs/base.yaml", "--gpus", "32", "--gpu", "H200", "--mfu", "0.5")
    assert code == 0
    assert "256 samples (1,572,864 bytes) a step = 8 a pass x 32 ranks x 1 pass" in out
    parts = memory(out)
    assert list(parts) == [
        "weights", "gradients", "optimizer", "batch", "activations kept", "largest temporary",
        "communication", "runtime", "all",
    ]  # fmt: skip
    assert parts["weights"] == pytest.approx(2 * 86_060_800 / 1e9, abs=0.01)
    assert parts["optimizer"] == pytest.approx(12 * 86_060_800 / 32 / 1e9, abs=0.01)
    whole = parts.pop("all")
    assert whole == pytest.approx(sum(parts.values()), abs=0.05)
    # By hand: 6 a parameter of the blocks and byte row, and attention; the head for 15 % of them,
    # as what comes behind the last block's queries, keys and values.
    rows, width = 256 * 512, 768
    flops = rows * (6 * (11 * 12 + 3) * width**2 + 12 * 12 * width * 512)
    flops += 0.15 * rows * 6 * width * (9 * width + width + 256)
    assert f"work: {flops:.3g} FLOPs a step, {flops / rows / 12:.3g} a byte" in out
    hours = 100_000 * flops / (0.5 * 989e12 * 32) / 3600
    told = f"{hours:.3g} hours" if hours >= 1 else f"{hours * 60:.3g} minutes"
    assert f"time: {told} for 100,000 steps" in out


def test_the_longest_sample_fits_and_one_row_more_does_not(planned):
    words = ["configs/base.yaml", "configs/bert-modern.yaml", "--batch.global-samples", "1"]
    words += ["--memory.checkpoint-every", "1", "--gpu-memory-gb", "16", "--zero.stage", "0"]
    code, out = planned(*words)
    longest = int(re.search(r"longest n: ([0-9,]+) rows", out)[1].replace(",", ""))
    assert planned(*words, "--n", str(longest))[0] == 0
    code, out = planned(*words, "--n", str(longest + 1))
    assert code == 1
    assert "does not fit" in out


def test_what_does_not_fit_says_what_would(planned):
    words = ["configs/large.yaml", "--v", "16", "--n", "65536", "--gpu", "A100-40"]
    words += ["--gpus", "8", "--memory.checkpoint-every", "0"]
    code, out = planned(*words)
    assert code == 1
    told = [line.strip() for line in out.splitlines() if line.startswith("  --")]
    sizes = [float(re.search(r": ([0-9.]+) GB", line)[1]) for line in told]
    assert sizes == sorted(sizes, reverse=True)
    assert [line for line in told if line.endswith(", fits")] == told[-1:]
    remedy = [word for line in told for word in line.partition(":")[0].split()]
    code, out = planned(*words, *remedy)
    assert code == 0
    assert memory(out)["all"] == pytest.approx(sizes[-1], abs=0.01)


def test_offload_is_told_by_machine(planned):
    words = ["configs/base.yaml", "--gpus", "16", "--zero.stage", "3"]
    words += ["--zero.offload-optimizer", "cpu", "--gpus-per-node", "4"]
    code, out = planned(*words)
    assert code == 0
    assert memory(out)["optimizer"] == 0
    host = float(re.search(r"offloaded +([0-9.]+) in the memory of a machine with 4", out)[1])
    assert host == pytest.approx(4 * (12 + 8) * 86_060_800 / 16 / 1e9, abs=0.01)


def test_n_and_v_come_from_the_shards(planned, tmp_path):
    manifest = {"format": "elemdist-shards", "version": 1, "n": 64, "v": 8, "labels": ["a", "b"]}
    manifest["label_counts"] = {"a": 0, "b": 0}
    manifest["counts"] = dict.fromkeys(("documents", "samples", "text_bytes", "dropped_bytes"), 0)
    (tmp_path / "index.json").write_text('{"version": 2, "shards": []}')
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    words = ["--model.width", "64", "--data.train", str(tmp_path), "--batch.micro-samples"]
    code, out = planned(*words, "8")
    assert code == 0
    assert "n = 64, v = 8" in out
    assert "n = 128, v = 8" in planned(*words, "8", "--n", "128")[1]
    del manifest["n"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        planned(*words, "8")


def test_help_loads_no_torch():
    code = (
        "import sys; from elemdist.cli import main; sys.argv = ['elemdist', 'plan', '--help']\n"
        "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = run_command(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    for words in ("--gpus", "--mfu", "RTX-6000-Ada", "Exit code 1"):
        assert words in done.stdout


def test_what_does_not_fit_gives_exit_code_1():
    done = elemdist("plan", "configs/base.yaml", "--gpu-memory-gb", "3")
    assert done.returncode == 1, done.stderr
    assert "of 3: does not fit" in done.stdout
    assert "more GPUs, larger ones" in done.stdout


def test_what_cannot_be_is_one_line():
    expect_user_error(
        elemdist("plan", "configs/base.yaml", "--sequence-parallel", "5", "--gpus", "5"),
        "12 heads cannot be split over 5 ranks",
        "1, 2, 3, 4, 6, 12",
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("configs/large.yaml", "1024 is not a multiple of v=12.*1020 and 1032"),
        ("--objective clm", "take --objective mlm"),
        ("--v -1", r"v: -1 is not in \[0, 256\]"),
        ("--gpu H1000", "gpu: 'H1000' does not fit"),
        ("--mfu 1.5", r"mfu: 1.5 is not in \(0, 1\]"),
        ("--gpus 4 --sequence-parallel 3", r"4 ranks cannot be divided into groups of 3"),
        ("--gpus 32 --batch.global-samples 31", "31 global samples do not give each of 32 ranks"),
        ("--zero.stage 1 --zero.offload-parameters cpu", "set --zero.stage 3"),
        ("--data.train nowhere", "nowhere"),
    ],
)
def test_what_cannot_be(planned, words, told):
    with pytest.raises(UserError, match=told) as raised:
        planned(*words.split())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [None, "bert-modern", "albert", "canine", "decoder"])
@pytest.mark.parametrize("size", plan.SIZES)
def test_every_size_and_kind_of_recipe_can_be_built(size, kind):
    chosen = settings(*[name for name in (size, kind) if name])
    chosen.v = 16 if size == "large" else 12
    counts = plan.parameters(plan.shape(chosen, subword=False))
    assert counts["embedding"] == 256 * chosen.model.width // chosen.v
    assert counts["blocks"] > counts["head"] > 0 or kind == "albert"


@pytest.mark.parametrize("recipe", ["reuters", "reuters-mlm"])
def test_a_recipe_that_reads_all_letters_as_small_has_a_twin(recipe, planned):
    """What a subword twin reads is its tokenizer's."""
    code, out = planned(f"configs/{recipe}.yaml")
    assert code == 0
    assert "subword" in out


def test_the_vocabulary_of_input_subword_is_its_tokenizers(planned, tmp_path):
    """Its table and its predictions, which are most of a small model's parameters and work."""
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(4000)} | {"[UNK]": 4000}
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel(words, unk_token="[UNK]")).save(str(path))
    command = ("configs/tiny.yaml", "--model.input", "subword", "--model.tokenizer", str(path))
    code, out = planned(*command)
    assert code == 0
    assert "4,004 subwords" in out  # with DOC, SEP and MASK, which it lacks
    counts = re.search(r"^embedding +([0-9,]+) +([0-9,]+)$", out, re.M)
    assert counts is not None
    assert counts[1] == counts[2]
    work = [float(re.search(r"work: ([0-9.e+]+)", text)[1]) for text in (out, planned(
        "configs/tiny.yaml", "--model.input", "subword")[1])]  # fmt: skip
    assert work[0] < work[1]  # 30,522 cost more
    with pytest.raises(UserError, match="has 4004 tokens; leave --vocabulary out"):
        planned(*command, "--vocabulary", "5000")


def test_a_wide_part_takes_memory(planned):
    most = [
        memory(planned("configs/reuters.yaml", "--classify.wide", wide)[1])["all"]
        for wide in ("false", "true")
    ]
    assert most[0] < most[1]


def test_the_deepspeed_configuration_is_shown_with_what_is_laid_above_it():
    done = elemdist(
        "plan", "configs/tiny.yaml", "--gpus", "4", "--zero.stage", "2", "--deepspeed-config",
        "--deepspeed", '{"zero_optimization.reduce_bucket_size": 7}',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout)
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["reduce_bucket_size"] == 7
    assert config["gradient_clipping"] == 1.0
