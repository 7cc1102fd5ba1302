"""The guard: real DeepSpeed engines on two ranks whose steps go wrong, and its counting."""

from __future__ import annotations

import json
import math

import pytest
import torch

from elemdist.errors import UserError
from elemdist.guard import FEWEST, WINDOW, Guard, GuardedAdamW
from elemdist.run_settings import GuardSettings
from tests.forkserver import run_ranks
from tests.guarded_ranks import work

KINDS = {
    **{
        f"stage {stage}, {precision}": ["--zero.stage", str(stage), "--precision", precision]
        for stage in range(4)
        for precision in ("fp32", "bf16")
    },
    "stage 0, no clipping": ["--zero.stage", "0", "--optim.grad-clip", "0"],
    "stage 2, offload": ["--zero.stage", "2", "--zero.offload-optimizer", "cpu"],
    "stage 3, offload": ["--zero.stage", "3", "--zero.offload-optimizer", "cpu"],
    "stage 3, parts": [
        "--zero.stage", "3", "--deepspeed", '{"zero_optimization.sub_group_size": 100}',
    ],
}  # fmt: skip
BAD = {
    "undisturbed": ["good"] * 4,
    "later": ["good", "good", "nan", "inf", "good", "spike", "told", "good"],
    "nan first": ["nan", "good"],
    "told first": ["told", "good"],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two ranks found in every kind of engine with every order of steps."""
    folder = tmp_path_factory.mktemp("guarded")
    cases = {
        f"{kind}: {order}": {"options": [*options, "--guard.spike", "30"], "steps": words}
        for kind, options in KINDS.items()
        for order, words in BAD.items()
    }
    run_ranks(work, 2, folder, cases, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_step_changes_nothing_on_any_rank(kind, results):
    for order, words in BAD.items():
        for rank in results:
            found = rank[f"{kind}: {order}"]
            actions = [action for action, _ in found["verdicts"]]
            assert actions == ["go on" if word == "good" else "skip" for word in words], order
            for number, word in enumerate(words):
                before, after = found["digests"][number : number + 2]
                for part in ("weights", "state"):
                    assert (before[part] == after[part]) == (word != "good"), (order, number, part)


@pytest.mark.parametrize("kind", KINDS)
def test_after_bad_steps_training_goes_on_as_if_they_had_not_been(kind, results):
    for rank in results:
        expected = rank[f"{kind}: undisturbed"]
        for order in ("later", "nan first", "told first"):
            found, good = rank[f"{kind}: {order}"], 0
            for number, word in enumerate(BAD[order]):
                if word == "good":
                    good += 1
                    assert found["norms"][number] == expected["norms"][good - 1], order
                    assert found["digests"][number + 1] == expected["digests"][good], order


@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_come_to_the_same_verdict_and_say_why(kind, results):
    for order in BAD:
        one, two = (rank[f"{kind}: {order}"] for rank in results)
        assert one["verdicts"] == two["verdicts"]
        assert one["norms"] == two["norms"]
    said = [message for _, message in results[0][f"{kind}: later"]["verdicts"]]
    assert said[2].startswith("the gradient is not finite;")
    assert "bad step 2 in a row, the run ends at 10" in said[3]
    assert "times the median of the last 23 good steps" in said[5]
    assert said[6].startswith("the loss is inf;")
    assert said[0] == said[1] == said[4] == said[7] == ""


def test_every_stage_gives_the_guard_the_norm_of_the_same_gradient(results):
    expected = results[0]["stage 0, no clipping: undisturbed"]["norms"]
    for kind in KINDS:
        close = 0.05 if "bf16" in kind else 1e-5
        (norm, *_) = results[0][f"{kind}: undisturbed"]["norms"]
        assert norm == pytest.approx(expected[0], rel=close), kind


def test_a_fused_adamw_that_is_not_refused_is_torchs():
    ours, theirs = (
        kind([torch.nn.Parameter(torch.ones(3))], fused=True)
        for kind in (GuardedAdamW, torch.optim.AdamW)
    )
    for optimizer in (ours, theirs):
        for _ in range(3):
            optimizer.param_groups[0]["params"][0].grad = torch.tensor([1.0, -2.0, 0.5])
            optimizer.step()
    assert torch.equal(ours.param_groups[0]["params"][0], theirs.param_groups[0]["params"][0])


def guard(spike: float = 5.0, most_bad_steps: int = 3, **settings) -> Guard:
    return Guard(GuardSettings(spike=spike, most_bad_steps=most_bad_steps, **settings))


def test_a_spike_is_judged_by_the_median_of_the_last_good_norms():
    one = guard()
    for number in range(FEWEST):
        assert one.verdict(None, 1000.0 if number == 0 else 1.0).action == "go on"
    assert one.judge(1.0, 4.9) is None
    assert one.judge(1.0, 5.2) == (
        "gradient norm 5.2 is 5.2 times the median of the last 20 good steps"
    )
    assert guard(spike=0.0).judge(1.0, 1e30) is None
    for _ in range(2 * WINDOW):
        one.verdict(None, 4.0)
    assert len(one.norms) == WINDOW
    assert one.judge(1.0, 19.0) is None, "the old norms still count"
    assert one.judge(1.0, 21.0) is not None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_bad_from_the_first_step_on(value):
    assert guard(spike=0.0).judge(value, 1.0) == f"the loss is {value}"
    assert guard(spike=0.0).judge(1.0, value) == "the gradient is not finite"
    assert guard(spike=0.0).judge(None, 1.0) is None


def actions(one: Guard, norms: list[float]) -> list[str]:
    return [one.verdict(None, norm).action for norm in norms]


def test_only_bad_steps_in_a_row_end_the_run():
    bad = math.inf
    one = guard(bad_step="skip")
    assert actions(one, [bad, bad, 1, bad, bad, bad]) == [
        "skip", "skip", "go on", "skip", "skip", "stop",
    ]  # fmt: skip
    assert actions(guard(bad_step="stop"), [1, bad]) == ["go on", "stop"]


def test_rollbacks_to_one_checkpoint_are_counted_over_the_rollbacks():
    one = guard(bad_step="rollback", most_bad_steps=2)
    saved = one.state()
    for expected in ("rollback", "rollback", "stop"):
        assert actions(one, [1.0, math.inf]) == ["go on", expected]
        one.load_state(saved)
    one = guard(bad_step="rollback", most_bad_steps=1)
    assert actions(one, [math.inf]) == ["rollback"]
    one.checkpoint_saved()
    assert actions(one, [math.inf, math.inf]) == ["rollback", "stop"]


def test_a_guard_goes_on_from_a_checkpoint_as_if_it_had_not_stopped():
    one, two = guard(), guard()
    actions(one, [1 / 3 + number for number in range(30)] + [math.nan])
    two.load_state(json.loads(json.dumps(one.state())))
    assert two.state() == one.state()
    assert two.bad_steps == 1
    for norm in (90.0, math.nan, math.nan):
        assert one.verdict(None, norm) == two.verdict(None, norm)


@pytest.mark.parametrize("state", [{}, {"norms": 1, "bad_steps": 0}, {"norms": ["x"]}])
def test_a_damaged_state_is_a_users_error(state):
    with pytest.raises(UserError, match="no state of the guard"):
        guard().load_state(state)
