"""The label layers of a trained classifier, computed anew: ``classify.refit``.

Step by step the last layer comes to fit what was hidden in each batch, and each batch a little more
than those before it. Once all beneath it stands, the best one is a convex problem, that of a linear
support vector machine for each label (squared hinge, as in LIBLINEAR, Fan et al. 2008), solved here
by L-BFGS for all labels at once. The ranks keep the features of their documents and add up losses
and gradients, which makes them all come to the same weights.
Shape suffixes: N samples of this rank, W width, K units of the wide part, X = W + K features,
L labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from elemdist.batch import unpad
from elemdist.checkpoint_state import assign
from elemdist.evaluate import gather_ranks
from elemdist.objectives import share_rows
from elemdist.start_up import Session

MOST = 1 << 28  # features of a rank, in all: 1 GiB, and as much again while they are turned
ITERATIONS = 100
TOLERANCE = 1e-5  # of the gradient, for each document


class Features:
    """What goes into the last layers of a classifier, while it is open: `parts`, a tensor each."""

    def __init__(self, head: Any) -> None:
        self.head = head
        self.parts: list[Tensor] = []
        self.hooks: list[Any] = []

    def __enter__(self) -> Features:
        def keep(x_SX: Tensor) -> None:
            self.parts.append(x_SX.detach().float())

        deep, wide = self.head.labels, self.head.wide
        self.hooks = [deep.register_forward_pre_hook(lambda _module, given: keep(given[0]))]
        if wide is not None:
            counts = wide.counts
            self.hooks.append(counts.register_forward_hook(lambda _module, _given, out: keep(out)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def take(self) -> Tensor:
        """Those of the newest pass, (S, X)."""
        x_SX, self.parts = torch.cat(self.parts, dim=1), []
        return x_SX


def refit(session: Session) -> str:
    """Computes the label layers anew, on the training documents as they are; a line about it. All
    ranks call it together."""
    settings, engine = session.settings, session.engine
    engine.eval()
    with torch.no_grad():
        x_NX, truth_NL = features(session)
    engine.train()
    head, width = engine.module.head, session.data.config.model.width
    # The deep features as long as the others, whose length is 1.
    lengths = total(float(x_NX[:, :width].norm(dim=1).sum()))
    samples = total(len(x_NX))
    scale = samples / max(lengths, 1e-12)
    x_NX[:, :width] *= scale
    with session.watchdog.paused("fitting the label layers"):
        weight_LX, bias_L, rounds = fit(x_NX, truth_NL, settings.classify.refit)
    new = {"head.labels.weight": weight_LX[:, :width] * scale, "head.labels.bias": bias_L}
    if head.wide is not None:
        new["head.wide.weight"] = weight_LX[:, width:]
    assign(engine, new)
    return f"label layers fitted to {samples:.0f} samples in {rounds} iterations"


def features(session: Session) -> tuple[Tensor, Tensor]:
    """(x_NX, truth_NL), fp32, of this rank's training samples; evenly chosen ones where all would
    be too many."""
    data, share = session.data, session.share
    xs, truths = [], []
    with Features(session.engine.module.head) as kept:
        for ids, counted in chosen(session):
            session.watchdog.beat("features of a batch")
            rows_BNV, labels_BL = data.train.gather(ids)
            batch = unpad(rows_BNV, labels_BL, ids, session.reading).to(session.ranks.device)
            rows_TV, position_T, segments = share_rows(batch.rows_TV, batch, share)
            session.engine(rows_TV, position_T, segments)
            assert batch.labels_BL is not None
            truth_SL = batch.labels_BL[batch.sample_S[segments.own]].float()
            x_SX = kept.take()
            xs.append(x_SX if counted else x_SX[:0])
            truths.append(truth_SL if counted else truth_SL[:0])
    return torch.cat(xs), torch.cat(truths)


def chosen(session: Session) -> Iterator[tuple[np.ndarray, bool]]:
    """The numbers of the samples of each pass of this rank's group, and whether they count. All
    ranks get as many passes: one that has run out repeats a sample."""
    train, plan = session.data.train, session.plan
    config = session.data.config
    width = config.model.width + (config.units if config.wide else 0)
    samples = min(train.samples, plan.groups * (MOST // width))
    ids = np.linspace(0, train.samples - 1, samples).astype(np.int64)
    mine = ids[session.group :: plan.groups]
    passes = -(-samples // (plan.groups * plan.micro_samples))
    for number in range(passes):
        some = mine[number * plan.micro_samples :][: plan.micro_samples]
        yield (some, True) if len(some) else (ids[:1], False)


def fit(x_NX: Tensor, truth_NL: Tensor, c: float) -> tuple[Tensor, Tensor, int]:
    """The weights of linear SVMs of this C on all ranks' samples, (weight_LX, bias_L, iterations):
    for each label the least |w|^2 / 2 + c * sum of max(0, 1 - margin)^2."""
    sign_NL = 2 * truth_NL - 1
    with warnings.catch_warnings():  # torch calls them a beta
        warnings.filterwarnings("ignore", message="Sparse CSR")
        # Most counts are 0, which a sparse product leaves out.
        x_NX, x_XN = x_NX.to_sparse_csr(), x_NX.T.contiguous().to_sparse_csr()
    samples = total(len(x_NX))
    # One tensor for both: L-BFGS takes its steps, and its line search, in all of it.
    weight_LX = torch.zeros(truth_NL.shape[1], x_NX.shape[1] + 1, device=x_NX.device)
    weight_LX.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight_LX], max_iter=ITERATIONS, tolerance_grad=TOLERANCE, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        short_NL = F.relu(1 - sign_NL * (x_NX @ weight_LX[:, :-1].T + weight_LX[:, -1]))
        loss = c / samples * short_NL.square().sum()
        gradient = weight_LX.new_zeros(weight_LX.shape)
        pull_NL = short_NL * sign_NL * (-2 * c / samples)
        gradient[:, :-1], gradient[:, -1] = (x_XN @ pull_NL).T, pull_NL.sum(0)
        for part in (loss, gradient):
            if dist.is_initialized():
                dist.all_reduce(part)
        gradient[:, :-1] += weight_LX[:, :-1] / samples
        weight_LX.grad = gradient
        return loss + weight_LX[:, :-1].square().sum() / (2 * samples)

    with torch.no_grad():
        optimizer.step(closure)
        rounds = optimizer.state[weight_LX]["n_iter"]
    return weight_LX[:, :-1].detach(), weight_LX[:, -1].detach(), rounds


def total(amount: float) -> float:
    """The sum over all ranks."""
    return float(sum(gather_ranks(amount)))
