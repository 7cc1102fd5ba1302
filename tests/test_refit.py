"""classify.refit: the label layers computed anew behind the last step, on real ranks over gloo."""

import json

import numpy as np
import pytest
import torch

from elemdist import checkpoint
from elemdist.batch import unpad
from elemdist.model import Model
from elemdist.refit import Features, fit
from elemdist.shards import ShardSet
from tests.conftest import TINY, elemdist, metrics, write_corpus
from tests.forked import train

C = 2.0
WIDE = ["--model.ablation.mixing", "24", "--classify.wide", "true"]
OPTIONS = [
    *TINY, "--objective", "classify", "--classify.pooling", "max", "--steps", "20",
    "--classify.loss", "squared_hinge", "--classify.refit", str(C), "--eval-every", "0",
    "--model.dropout", "0",
]  # fmt: skip


def objective(
    x_NX: torch.Tensor, truth_NL: torch.Tensor, weight_LX: torch.Tensor, bias_L: torch.Tensor
) -> torch.Tensor:
    margin_NL = (2 * truth_NL - 1) * (x_NX @ weight_LX.T + bias_L)
    return weight_LX.square().sum() / 2 + C * (1 - margin_NL).clamp(min=0).square().sum()


def test_no_other_weights_are_better():
    torch.manual_seed(0)
    x, truth = torch.randn(200, 12).relu(), (torch.rand(200, 5) < 0.2).float()
    truth[:, 4] = 0  # a label that no document has
    weight, bias, iterations = fit(x, truth, C)
    assert 5 < iterations < 100
    found = [one.double().requires_grad_() for one in (weight, bias)]
    loss = objective(x.double(), truth.double(), *found)
    loss.backward()
    for one in found:
        assert one.grad is not None
        assert one.grad.abs().max() < 1e-4 * len(x)
    from sklearn.svm import LinearSVC

    theirs = LinearSVC(C=C, intercept_scaling=100.0, max_iter=100_000).fit(x, truth[:, 0])
    np.testing.assert_allclose(weight[0], theirs.coef_[0], atol=5e-3)


@pytest.fixture(scope="module")
def one_rank(labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refit")
    words = ["--run-dir", folder / "run", "--data.train", labelled / "train", *OPTIONS, *WIDE]
    assert "label layers fitted to" in train(folder / "log", 1, *words)
    return folder / "run"


def test_the_card_of_an_export_says_what_its_scores_are(one_rank, tmp_path):
    done = elemdist("export", one_rank, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "they are no probabilities" in (tmp_path / "out" / "README.md").read_text()


def refitted(run, data):
    """(objective, its gradient, samples, weights) of a run's last checkpoint, by hand."""
    found = checkpoint.find(str(run))
    model = Model(found.config()).eval()
    found.load_weights(model, as_trained=True)
    shards = ShardSet(str(data / "train"))
    rows, labels = shards.gather(np.arange(shards.samples))
    batch = unpad(rows, labels, np.arange(shards.samples))
    with Features(model.head) as features, torch.no_grad():
        logits = model(batch.rows_TV, batch.position_T, batch.segments)
    x, head = features.take(), model.head
    width = model.config.model.width
    deep = [x[:, :width] @ head.labels.weight.T + head.labels.bias]
    wide = [] if head.wide is None else [x[:, width:] @ head.wide.weight.T]
    torch.testing.assert_close(sum([*deep, *wide]), logits)  # that is what it predicts by
    scale = 1 / x[:, :width].norm(dim=1).mean()
    x[:, :width] *= scale
    weights = [head.labels.weight / scale]
    weights += [] if head.wide is None else [head.wide.weight]
    weight = torch.cat(weights, 1).detach().double().requires_grad_()
    bias = head.labels.bias.detach().double().requires_grad_()
    assert batch.labels_BL is not None
    loss = objective(x.double(), batch.labels_BL[batch.sample_S].double(), weight, bias)
    loss.backward()
    gradient = torch.cat([weight.grad.flatten(), bias.grad.flatten()])
    return loss.item(), gradient, shards.samples, weight.detach()


def test_a_run_ends_with_the_best_label_layers(one_rank, labelled):
    _, gradient, samples, weight = refitted(one_rank, labelled)
    assert gradient.abs().max() < 1e-3 * samples
    assert weight.abs().max() > 0.1
    events = [json.loads(line) for line in (one_rank / "metrics.jsonl").read_text().splitlines()]
    (told,) = [event for event in events if event.get("event") == "refit"]
    assert told["step"] == 20
    assert f"fitted to {samples} samples" in told["line"]
    assert len(metrics(one_rank)) == 20
    # Its counts started at the frequencies of its documents.
    assert checkpoint.find(str(one_rank)).weights()["head.wide.counts.weight"].std() > 0.1


@pytest.mark.parametrize(
    "more",
    [
        ["--zero.stage", "1"],
        ["--zero.stage", "3"],
        ["--zero.stage", "0", "--precision", "fp32"],
        ["--zero.stage", "2", "--sequence-parallel", "2"],
    ],
    ids=" ".join,
)
def test_ranks_come_to_the_same_layers_together(more, one_rank, labelled, tmp_path):
    run = tmp_path / "run"
    words = ["--run-dir", run, "--data.train", labelled / "train", *OPTIONS, *WIDE]
    train(tmp_path / "log", 2, *words, *more)
    (loss, gradient, samples, weight) = refitted(run, labelled)
    (expected, _, _, wanted) = refitted(one_rank, labelled)
    assert gradient.abs().max() < 1e-3 * samples
    assert loss == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(weight, wanted, atol=0.02, rtol=0.02)


def test_fewer_samples_than_ranks(make_shards, tmp_path):
    """The third rank has none of its own."""
    two = write_corpus(tmp_path / "two.jsonl", 2, seed=1)
    few = make_shards(two, "--input.labels-field", "labels")
    samples = ShardSet(str(few)).samples
    assert samples < 3
    words = ["--run-dir", tmp_path / "run", "--data.train", few, *OPTIONS, *WIDE]
    words += ["--batch.micro-samples", "1", "--batch.global-samples", "3"]
    assert f"fitted to {samples} samples" in train(tmp_path / "log", 3, *words)


def test_without_a_wide_part_and_only_behind_the_last_step(labelled, tmp_path):
    words = ["--run-dir", tmp_path / "run", "--data.train", labelled / "train", *OPTIONS]
    out = train(tmp_path / "log", 1, *words, "--stop-step", "10")
    assert "label layers" not in out
    out = train(tmp_path / "log", 2, *words, "--resume")
    assert out.count("label layers fitted") == 1
    _, gradient, samples, _ = refitted(tmp_path / "run", labelled)
    assert gradient.abs().max() < 1e-3 * samples
