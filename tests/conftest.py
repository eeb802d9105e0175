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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--first-case", action="store_true", help="run each test with the first of its parameters only")


@pytest.hookimpl(trylast=True)  # after -m: a first case that is slow gives way to the next
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("first_case"):
        return
    first: dict[str, pytest.Item] = {}
    for item in items:
        first.setdefault(item.nodeid.split("[")[0], item)
    kept = list(first.values())
    config.hook.pytest_deselected(items=[item for item in items if first[item.nodeid.split("[")[0]] is not item])
    items[:] = kept


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
