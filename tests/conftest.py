"""Settings of the whole test suite."""

import signal
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings

from constructors import preset
from flowlab import Flow

torch.set_num_threads(1)  # pytest-xdist runs one process per core

# The same examples in every run, and none stored: a failure is reproduced by running the test again.
settings.register_profile("flowlab", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("flowlab")

# Cases of many seconds, by a part of their names: their neighbours are quick.
LONG = (
    "check_sample_weight_equivalence_on_dense_data",
    "check_regressor_data_not_an_array",
    "check_regressors_train(",
    "test_compiles_without_graph_breaks[coupling: mixture]",
    "test_compiles_without_graph_breaks[sylvester]",
    "test_compiled_without_graph_breaks[sylvester]",
    "test_compiled_flow[planar]",
    "test_conditionals_are_those_of_a_known_distribution[default]",
    "test_probabilities_and_densities_of_everything_sum_to_one[all]",
    "test_a_log_density_that_cannot_be_fitted_is_told_why[<lambda>-Has log_prob a bound]",
    "test_small_tables_do_not_overfit[200]",
    "test_two_runs_with_one_seed_give_the_same_bits_and_leave_the_global_state_alone",
    "test_a_callback_hears_of_every_member_and_can_end_all[2]",
    "test_interop_page.py::test_blocks[ONNX]",
    "test_small_tables_do_not_overfit[60]",
    "test_an_ensemble_that_was_broken_off_ends_with_the_same_bits[numbers]",
    "test_numbers_are_drawn_between_limits_as_they_are_distributed[all-0.0-0.02]",
    "test_an_ensemble_has_one_progress_with_stages[2]",
    "test_few_rows[3]",
    "test_few_rows[20]",
    "test_one_column_of_any_kind[Cauchy]",
    "test_one_column_of_any_kind[log-normal]",
    "test_one_column_of_any_kind[exponential]",
    "test_one_column_of_any_kind[uniform]",
    "test_the_weights_kept_are_those_that_did_best_on_validation_rows[restarts-8000-24000]",
    "test_conditions_of_every_kind_hold[lasts",
    "test_conditions_agree_with_the_rows_that_keep_them[{'n'",
    "test_converted_flows_are_flows[spline autoregressive]",
    "test_converted_flows_compile_and_transform[MAF, context]",
    "test_compiles_without_graph_breaks[planar]",
    "test_compiles_without_graph_breaks[sylvester, one direction]",
    "test_converted_flows_compile_and_transform[spline coupling, context, unconditional]",
    "test_correlated_gaussians_with_scales_over_four_orders[300-0.5]",
    "test_few_rows[2]",
    "test_numbers_are_drawn_between_limits_as_they_are_distributed[all-0.9-0.97]",
    "test_rows_of_conditions_may_be_any_kind[polars]",
    "test_missing_cells_are_filled_in_the_kind_that_was_given[polars]",
    "check_estimators_dtypes",
    "check_dtype_object",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--first-case", action="store_true", help="run each test with the first of its parameters only")


def pytest_itemcollected(item: pytest.Item) -> None:
    if any(part in item.nodeid for part in LONG):
        item.add_marker(pytest.mark.slow)


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
def ctrl_c() -> Iterator[Callable[[], None]]:
    """What presses Ctrl-C, heard also where pytest runs in a shell's background, whose processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def flow() -> Flow:
    return preset("real_nvp", 3)


@pytest.fixture
def conditional() -> Flow:
    return preset("real_nvp", 3, context_features=2)
