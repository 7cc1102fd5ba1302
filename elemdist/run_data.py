"""The data of a run: its sets, and the shape of the model that they and the settings give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from elemdist.batch_plan import BatchPlan
from elemdist.config import TrainSettings
from elemdist.engine import Ranks, on_every
from elemdist.geometry import check_geometry, config_for, label_columns
from elemdist.mixture import Mixture, check_filled, open_mixture
from elemdist.model_config import ModelConfig
from elemdist.sequence_parallel import check_split
from elemdist.shards import ShardSet


@dataclass(frozen=True)
class Data:
    """The sets of a run, and the shape of the model that they and the settings give."""

    train: Mixture
    held_out: ShardSet | None
    config: ModelConfig

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample, padding included."""
        return self.train.n * self.train.v


def open_data(settings: TrainSettings, ranks: Ranks) -> Data:
    """Opens the sets, checks that the model can be trained on them, and compares their hashes
    where that is asked for. All ranks call it together.

    Raises:
        UserError: on all ranks, where any of them finds a flaw.
    """

    def work() -> Data:
        train = open_mixture(settings.data)
        held_out = ShardSet(settings.data.eval) if settings.data.eval else None
        config = config_for(settings, train)
        check_split(config.model.heads, settings.sequence_parallel)
        if held_out is not None:
            check_filled("data.eval", held_out)
            check_geometry(config, held_out)
            if config.labels is not None:
                label_columns(config.labels, held_out)
        for shards in (train, held_out):
            if shards is not None and settings.data.verify:
                shards.verify(ranks.rank, ranks.world_size)
        return Data(train, held_out, config)

    return on_every(work)


def facts_of(settings: TrainSettings, data: Data, plan: BatchPlan, bf16: bool) -> dict[str, Any]:
    """What a resumed run must agree with, so that it goes on with the same global batches."""
    shape = data.config.to_json()
    del shape["model"]["tokenizer"]  # the shards say which one it is, wherever it lies
    return {
        **shape,
        "data": data.train.fingerprint,
        "bf16": bf16,
        "global_samples": plan.global_samples,
        "seed": settings.seed,
    }
