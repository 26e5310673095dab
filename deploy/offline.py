"""Switches off everything by which Flower and Ray call out of their own accord."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

OFF_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# Without this file in the home folder Ray asks the cloud's metadata address which cloud it is on.
RAY_CONFIG = ("ray_bootstrap_config.yaml", "provider: {type: local}\n")


def offline_environment(home: Path) -> dict[str, str]:
    """The variables under which Flower and Ray open no connection but those they are told to.

    `home`, an existing folder, becomes the home folder of their processes and gets Ray's file.
    They must be set before the first import of Flower or Ray, or before their processes start.
    """
    name, content = RAY_CONFIG
    (home / name).write_text(content)
    return {**OFF_SWITCHES, "HOME": str(home), "FLWR_HOME": str(home / "flwr")}


@contextmanager
def offline(settings: Mapping[str, str]) -> Iterator[None]:
    """Inside the block, this process and those it starts have an `offline_environment`, and
    the variables `settings`."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="fedirm-") as home:
        os.environ.update({**offline_environment(Path(home)), **settings})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
