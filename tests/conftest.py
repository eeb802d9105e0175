"""Settings of the whole test suite."""

import pytest
import torch
from hypothesis import settings

from constructors import preset
from flowlab import Flow

torch.set_num_threads(1)  # pytest-xdist runs one process per core

# The same examples in every run, and none stored: a failure is reproduced by running the test again.
settings.register_profile("flowlab", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("flowlab")


@pytest.fixture(autouse=True)
def global_generator() -> None:
    """Tests that use torch's global generator (any `nn.Linear` does) are the same whatever ran before them."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def flow() -> Flow:
    return preset("real_nvp", 3)


@pytest.fixture
def conditional() -> Flow:
    return preset("real_nvp", 3, context_features=2)
