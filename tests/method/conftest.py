"""What the tests of every trainer begin with, made once for each of their files."""

import pytest

from tests.helpers.small_clients import make_dataset, make_network
from utils.tensors import copy_weights


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


@pytest.fixture(scope="module")
def net():
    return make_network()


@pytest.fixture(scope="module")
def weights(net):
    return copy_weights(net)
