"""Settings for images with other channels than RGB."""

from dataclasses import replace

import pytest

from fastequi.config import Config

# numbers of channels that tests run with; those marked take long with all that they are used for
SEVERAL = [pytest.param(n, marks=pytest.mark.slow) if n != 2 else n for n in (1, 2, 5)]
ONE_OR_FIVE = [pytest.param(1, marks=pytest.mark.slow), 5]


def several(config: Config, channels: int, value_range: str = "dtype", **path) -> Config:
    """A config for so many channels, normalised as if they had been measured.

    Args:
        config: any.
        channels: how many.
        value_range: of their values.
        path: of its path's settings.
    """
    data = replace(
        config.data,
        channels=",".join(map(str, range(channels))),
        value_range=value_range,
        mean=tuple(0.3 + 0.05 * c for c in range(channels)),
        std=tuple(0.2 + 0.01 * c for c in range(channels)),
    )
    return replace(config, data=data, path=replace(config.path, **path))
