import pytest

from tests.torture.runs import build_small_densenet


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch):
    """A paper GPU takes its time for each kernel, and DenseNet121 has a thousand a step."""
    monkeypatch.setattr("networks.models.build_densenet121", build_small_densenet)
