"""Which fields of its configuration DeepSpeed reads after it has parsed them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from elemdist.deepspeed_import import import_deepspeed


@contextmanager
def fields_read() -> Iterator[set[str]]:
    """Collect the names of the fields that are read in here, except by DeepSpeed's listing of its
    whole configuration."""
    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    names: set[str] = set()

    def read(config: Any, name: str) -> Any:
        names.add(name)
        return object.__getattribute__(config, name)

    with (
        mock.patch.object(DeepSpeedConfig, "__getattribute__", read, create=True),
        mock.patch.object(DeepSpeedConfigModel, "__getattribute__", read, create=True),
        mock.patch.object(DeepSpeedConfig, "print", return_value=None),
    ):
        yield names


def field_of(key: str) -> str:
    """The field that holds a dotted key."""
    section, _, name = key.rpartition(".")
    return f"{section}_{name}" if section == "torch_autocast" else name.removeprefix("stage3_")
