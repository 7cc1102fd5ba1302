from __future__ import annotations

import pytest

from elemdist.config import TrainSettings, learning_rate
from elemdist.errors import UserError
from elemdist.eval_settings import EvalSettings
from elemdist.run_settings import OptimSettings


@pytest.mark.parametrize(
    ("decay", "middle", "end"), [("linear", 0.55, 0.1), ("cosine", 0.55, 0.1), ("none", 1, 1)]
)
def test_learning_rate_rises_linearly_and_falls_as_asked(decay, middle, end):
    optim = OptimSettings(lr=2.0, warmup_steps=10, decay=decay, final_lr_share=0.1)
    rates = [learning_rate(optim, 110, step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(2.0 * middle)
    assert rates[110] == pytest.approx(2.0 * end)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"run_dir": None}, "--run-dir"),
        ({"steps": 0}, "steps: 0"),
        ({"keep_last": 0}, "keep_last"),
        ({"optim": OptimSettings(beta1=2)}, r"optim\.beta1: 2"),
        ({"optim": OptimSettings(eps=-1)}, r"optim\.eps: -1"),
        ({"optim": OptimSettings(grad_clip=-1)}, r"optim\.grad_clip: -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, expected):
    settings = TrainSettings(**{"run_dir": "r", **change})
    settings.data.train = "d"
    with pytest.raises(UserError, match=expected):
        settings.check()


@pytest.mark.parametrize("change", [{"micro_samples": 0}, {"samples": -1}, {"data": None}])
def test_evaluation_settings_that_cannot_work_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        EvalSettings(**{"run": "r", "data": "d", **change}).check()
