"""Settings of the whole test suite."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # pytest-xdist runs one process per core

# The same examples in every run, and none stored: a failure is reproduced by running the test again.
settings.register_profile("flowlab", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("flowlab")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
