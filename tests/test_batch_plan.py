from __future__ import annotations

import pytest

from elemdist.batch_plan import BatchPlan, plan_batch
from elemdist.errors import UserError
from elemdist.run_settings import BatchSettings

SAMPLE = 512 * 12  # bytes


@pytest.mark.parametrize("samples", [1, 7, 64, 97])
@pytest.mark.parametrize("micro", [1, 3, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 32])
def test_every_sample_of_a_global_batch_is_taken_once(samples, micro, ranks):
    if samples < ranks:
        with pytest.raises(UserError, match=f"--batch.global-samples {ranks} or more"):
            plan_batch(BatchSettings(samples, 0, micro), SAMPLE, ranks)
        return
    if micro == 1 and samples % ranks:
        with pytest.raises(UserError, match="one a pass, do not divide into"):
            plan_batch(BatchSettings(samples, 0, micro), SAMPLE, ranks)
        return
    plan = plan_batch(BatchSettings(samples, 0, micro), SAMPLE, ranks)
    parts = [
        plan.samples(plan.micro_batch(group, number))
        for number in range(plan.passes)
        for group in range(ranks)
    ]
    assert [place for part in parts for place in part] == list(range(samples))
    assert all(1 <= len(part) <= micro for part in parts)
    assert max(map(len, parts)) == plan.micro_samples


def test_the_parts_stay_the_same_on_other_numbers_of_ranks_where_they_divide():
    plans = [plan_batch(BatchSettings(64, 0, 4), SAMPLE, ranks) for ranks in (1, 2, 4, 16)]
    parts = [[plan.samples(k) for k in range(plan.micro_batches)] for plan in plans]
    assert all(other == parts[0] for other in parts)


def test_the_ranks_of_a_group_share_its_samples():
    plan = plan_batch(BatchSettings(64, 0, 8), SAMPLE, 8, sequence_parallel=4)
    assert plan == BatchPlan(64, groups=2, sequence_parallel=4, passes=4)
    assert plan.chain(SAMPLE) == (
        "64 samples (393,216 bytes) a step = 8 a pass x 2 groups of 4 ranks x 4 passes"
    )
    with pytest.raises(UserError, match=r"sequence_parallel: 6 ranks cannot be divided"):
        plan_batch(BatchSettings(64, 0, 8), SAMPLE, 6, sequence_parallel=4)


def test_a_global_batch_in_bytes():
    plan = plan_batch(BatchSettings(global_bytes=1 << 20, micro_samples=8), SAMPLE, 3)
    assert plan.global_samples == 171  # of 170.67
    assert plan.chain(SAMPLE) == (
        "171 samples (1,050,624 bytes) a step = 7 or 8 a pass x 3 ranks x 8 passes"
    )
    with pytest.raises(UserError, match=r"batch\.global_bytes: 3000 are less than one sample"):
        plan_batch(BatchSettings(global_bytes=3000), SAMPLE, 1)
