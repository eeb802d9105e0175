"""Rules in fitted models and in their files: what samples keep, what scores -inf, what a file may say."""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import clone

import flowlab
from flowlab import Derived, FixedCombinations, LessThan, Predicate
from flowlab.files import FileError
from flowlab.tables.codec.table import Table
from flowlab.tables.schema.rules import Rule
from helpers import small_density


def decoded(table: Table, frame: pd.DataFrame) -> pd.DataFrame:
    return table.decode(table.encode(frame))


def test_flags_are_counted():
    frame = pd.DataFrame({"a": [True, True, False, False] * 50, "b": [True, False, True, False] * 50})
    frame["x"] = np.random.default_rng(0).normal(size=200)
    model = small_density(rules=["a + b <= 1"]).fit(frame)
    assert model.table_.unbroken(frame).mean() == 0.75
    rows = model.sample(500, random_state=0)
    assert not (rows["a"] & rows["b"]).any()
    assert np.isneginf(model.score_samples(frame)).mean() == 0.25


@pytest.mark.parametrize("dtype", ["uint8", "UInt8", "uint8[pyarrow]"])
def test_sums_of_small_integers_do_not_wrap(dtype):
    rng = np.random.default_rng(0)
    a, b = rng.integers(100, 250, 200), rng.integers(100, 250, 200)
    frame = pd.DataFrame({"a": a, "b": b}).astype(dtype).assign(c=rng.choice(["u", "v"], 200))
    model = small_density(20, rules=["a + b <= 400"]).fit(frame)
    assert (model.table_.unbroken(frame) == (a + b <= 400)).all()
    rows = model.sample(300, random_state=0)
    assert (rows["a"].astype(int) + rows["b"].astype(int) <= 400).all()


def test_a_computed_column_keeps_to_its_type():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.integers(50, 130, 300), "b": rng.integers(50, 130, 300)}).astype("uint8")
    frame["t"] = np.minimum(frame["a"].astype(int) + frame["b"], 255).astype("uint8")
    frame["c"] = rng.choice(["u", "v"], 300)
    model = small_density(rules=["t = a + b"]).fit(frame)
    assert model.table_.unbroken(frame).mean() == (frame["a"].astype(int) + frame["b"] <= 255).mean()
    rows = model.sample(500, random_state=0)
    assert rows["t"].dtype == "uint8"
    assert (rows["t"] == rows["a"].astype(int) + rows["b"]).all()


def test_a_computed_share_stays_a_share():
    rng = np.random.default_rng(0)
    shares = np.round(rng.dirichlet([2] * 5, size=150), 2)
    shares[:, 4] = np.round(1 - shares[:, :4].sum(1), 2)
    frame = pd.DataFrame(shares[(shares >= 0).all(1)], columns=list("abcde"))
    frame["y"] = rng.choice(["u", "v"], len(frame))
    model = small_density(30, rules=["e = 1 - a - b - c - d"]).fit(frame)
    rule = model.table_.rules[0]
    assert (rule.lower, rule.upper) == (0.0, None)
    assert model.table_.unbroken(frame).all()
    rows = model.sample(1000, random_state=0)
    assert rows["e"].min() >= 0
    np.testing.assert_allclose(rows[list("abcde")].sum(axis=1), 1, atol=1e-9)
    outside = frame.head(2).copy()
    outside.loc[0, ["a", "e"]] = [outside["a"][0] + outside["e"][0] + 0.1, -0.1]
    assert np.isneginf(model.score_samples(outside)).tolist() == [True, False]


def test_declared_bounds_of_a_computed_column_count():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": np.round(rng.normal(10, 2, 300), 1), "b": np.round(rng.normal(10, 2, 300), 1)})
    frame["sum"] = (frame["a"] + frame["b"]).round(1)
    frame = frame[frame["sum"] <= 22]
    model = small_density(rules=["sum = a + b"], schema={"sum": {"upper": 22.0}}).fit(frame)
    rows = model.sample(300, random_state=0)
    assert rows["sum"].max() <= 22
    assert np.isneginf(model.score_samples(pd.DataFrame({"a": [12.0], "b": [11.0], "sum": [23.0]})))
    with pytest.raises(ValueError, match=r"column 'sum': .* is above its upper end 15"):
        small_density(rules=["sum = a + b"], schema={"sum": {"upper": 15.0}}).fit(frame)


def test_a_division_by_zero_has_no_value():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.integers(0, 9, 300), "b": rng.integers(0, 4, 300), "c": rng.choice(["u", "v"], 300)})
    frame["ratio"] = frame["a"] / frame["b"].where(frame["b"] > 0)
    model = small_density(20, rules=["ratio = a / b", "a // b <= 5 or c == 'u'"]).fit(frame)
    rows = model.sample(300, random_state=0)
    assert (rows["ratio"].isna() == (rows["b"] == 0)).all()
    known = frame[frame["b"] > 0]
    model = small_density(20, rules=["ratio = a / b"]).fit(known.assign(b=known["b"] - (known.index == known.index[0])))
    assert model.sample(200, random_state=0)["ratio"].notna().all()


def held_table(kind: str) -> tuple[pd.DataFrame, object]:
    """Rows of which half are held at one higher value, and that value."""
    rng = np.random.default_rng(0)
    low, gap, held = rng.integers(0, 90, 300), rng.integers(1, 30, 300), rng.random(300) < 0.5
    if kind in ("date", "zone", "arrow"):
        start = pd.Series(np.datetime64("2010-01-01", "us") + low.astype("timedelta64[D]"))
        end = start + pd.Series(gap.astype("timedelta64[D]"))
        top = pd.Timestamp("2262-01-01" if kind == "zone" else "9999-12-31").as_unit("us")
        end = end.where(~held, top)
        if kind == "zone":
            start, end, top = (
                start.dt.tz_localize("Europe/Paris"),
                end.dt.tz_localize("Europe/Paris"),
                top.tz_localize("Europe/Paris"),
            )
        if kind == "arrow":
            start, end, top = start.astype("date32[day][pyarrow]"), end.astype("date32[day][pyarrow]"), top.date()
        return pd.DataFrame({"low": start, "high": end, "c": np.where(held, "u", "v")}), top
    if kind == "duration":
        high = np.where(held, 10_000, low + gap)
        return pd.DataFrame(
            {"low": pd.to_timedelta(low, "h"), "high": pd.to_timedelta(high, "h"), "c": "u"}
        ), pd.Timedelta("10000h")
    if kind == "continuous":
        x = rng.random(300) * 90
        return pd.DataFrame(
            {"low": x, "high": np.minimum(100.5, x + rng.random(300) * 120), "c": np.where(held, "u", "v")}
        ), 100.5
    frame = pd.DataFrame(
        {"low": low, "high": np.where(held, 9999 if kind == "years" else 200, low + gap), "c": np.where(held, "u", "v")}
    )
    if kind == "small":
        return frame.astype({"low": "int16", "high": "uint8"}), 200
    if kind == "missing":
        frame["high"] = frame["high"].astype("Int64").mask(rng.random(300) < 0.2)
        return frame, 200
    return frame, 9999


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["years", "small", "missing", "continuous", "duration", "date", "zone", "arrow"])
def test_a_value_at_which_the_higher_column_is_held_comes_back(kind, strict):
    frame, top = held_table(kind)
    rule = LessThan("low", "high", strict)
    modelled = rule.forward(frame)
    assert list(modelled) == ["low", "high at", "high - low", "c"]
    assert modelled["high at"].nunique() == 2
    pd.testing.assert_frame_equal(rule.backward(modelled), frame, check_exact=kind != "continuous")
    table, kept = Table.learn(frame, None, [f"low {'<' if strict else '<='} high"])
    assert kept.all()
    again = Table.from_json(json.loads(json.dumps(table.to_json())))
    pd.testing.assert_frame_equal(decoded(again, frame), frame, check_exact=kind != "continuous")
    assert ((frame["high"] == top) == (modelled["high at"] == modelled["high at"].cat.categories[0])).all()
    assert table.acceptable(frame).all()


@pytest.mark.parametrize("kind", ["years", pytest.param("date", marks=pytest.mark.slow)])
def test_samples_keep_the_share_of_rows_that_are_held(kind):
    frame, top = held_table(kind)
    rows = small_density(100, rules=["low <= high"]).fit(frame).sample(1000, random_state=0)
    assert (rows["high"] == top).mean() == pytest.approx((frame["high"] == top).mean(), abs=0.06)
    assert (rows["low"] <= rows["high"]).all()
    assert rows["high"].max() == top
    free = rows[rows["high"] != top]
    assert (free["high"] - free["low"]).max() <= (frame["high"] - frame["low"])[frame["high"] != top].max()


def test_nothing_is_drawn_outside_of_what_the_higher_column_spans():
    rng = np.random.default_rng(0)
    low = np.where(rng.random(300) < 0.4, -1, rng.integers(100, 150, 300))  # -1: not known
    high = np.where(low < 0, rng.integers(110, 160, 300), low + rng.integers(0, 20, 300))
    frame = pd.DataFrame({"low": low.astype("int16"), "high": high.astype("uint8"), "c": rng.choice(["u", "v"], 300)})
    model = small_density(100, rules=["low <= high"]).fit(frame)
    rows = model.sample(1000, random_state=0)
    assert rows["high"].between(frame["high"].min(), frame["high"].max()).all()
    assert (rows["low"] <= rows["high"]).all()
    assert (rows["low"] == -1).mean() == pytest.approx(0.4, abs=0.1)
    assert rows.dtypes.equals(frame.dtypes)


GAPS = np.arange(40) + 5 + np.arange(40) % 4


@pytest.mark.parametrize(
    ("low", "high", "bounds", "beyond"),
    [
        (np.arange(40), GAPS, {"lower": 3, "upper": 50}, 51),
        (np.arange(40) / 100, np.linspace(0.4, 1.0, 40).round(2), {}, 1.01),  # a share
        (pd.to_timedelta(np.arange(40), "h"), pd.to_timedelta(GAPS, "h"), {"upper": "2 days"}, "49h"),
        (
            pd.date_range("2024-01-01", periods=40),
            pd.Timestamp("2024-01-02 12:00") + pd.to_timedelta(GAPS, "D"),
            {"upper": "2024-03-01"},
            "2024-03-02",
        ),
    ],
    ids=["integer", "share", "duration", "time"],
)
def test_bounds_of_the_higher_column_hold(low, high, bounds, beyond):
    frame = pd.DataFrame({"low": low, "high": high, "c": list("abcd") * 10})
    table, kept = Table.learn(frame, {"high": bounds} if bounds else None, ["low <= high"])
    assert kept.all()
    again = Table.from_json(json.loads(json.dumps(table.to_json())))
    rows = frame.tail(2).copy()
    rows["high"] = pd.Series([frame["high"].max(), type(frame["high"].max())(beyond)], index=rows.index)
    assert again.encode_all(rows)[1].tolist() == [True, False]
    assert again.encode_all(frame)[1].all()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["whole", "decimal", "date", "missing"])
def test_a_lower_value_that_means_not_known_has_differences_of_its_own(kind, strict):
    rng = np.random.default_rng(0)
    low, unknown = rng.integers(1950, 2000, 200), rng.random(200) < 0.3
    high = np.where(unknown, rng.integers(1960, 2020, 200), low + rng.integers(1, 20, 200))
    frame = pd.DataFrame({"low": np.where(unknown, 0, low), "high": high})
    if kind == "decimal":
        frame = (frame / 10).astype("float32")
    if kind == "missing":
        frame = frame.astype("Int64").mask(pd.Series(rng.random(200) < 0.1), axis=0)
    if kind == "date":
        frame = frame.apply(
            lambda years: pd.Series((years - 1970).to_numpy(dtype="datetime64[Y]").astype("datetime64[s]"))
        )
    rule = LessThan("low", "high", strict)
    modelled = rule.forward(frame)
    assert len(rule.shifts) == 1
    span = modelled["high - low"].max() - modelled["high - low"].min()
    assert span < (frame["high"] - frame["low"]).max() / 10
    pd.testing.assert_frame_equal(rule.backward(modelled), frame)
    earlier = frame[unknown & frame["high"].notna()].head(1)
    earlier = earlier.assign(high=[frame["high"].min()])
    table, _ = Table.learn(frame, None, [str(rule)])
    assert table.encode_all(earlier)[1].all()  # what is below all such rows seen is not impossible


def test_small_whole_numbers_are_not_held():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"beds": rng.integers(1, 6, 300)})
    frame["rooms"] = frame["beds"] + rng.integers(0, 5, 300)
    assert LessThan("beds", "rooms").learn(frame).held == []


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"firm": rng.choice(["p", "q"], 120), "my dept": rng.choice([1.0, np.nan], 120), "k": rng.integers(0, 4, 120)}
    )
    return frame.assign(top=frame["k"] + 1, sum=2 * frame["k"] + 1, x=list("abc") * 40)


@pytest.fixture(scope="module")
def path(table, tmp_path_factory):
    rules = [
        FixedCombinations(["firm", "my dept"]),
        "k < top",
        Derived("sum", "k + top"),
        "x != 'zzz'",
        Predicate("k >= 0"),
    ]
    path = tmp_path_factory.mktemp("rules") / "m.flow"
    small_density(5, rules=rules).fit(table).save(path)
    return path


def rewritten(path, tmp_path, change) -> str:
    """A copy of a file with another description of the table."""
    with safe_open(path, "pt") as file:
        head = json.loads(file.metadata()["flowlab"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(head["state"]["table"])
    save_file(tensors, tmp_path / "changed.flow", metadata={"flowlab": json.dumps(head)})
    return str(tmp_path / "changed.flow")


def test_rules_of_every_sort_survive_a_file_and_a_clone(table, path):
    model = flowlab.load(path)
    assert [str(rule) for rule in model.table_.rules] == [
        "fixed combinations of firm, `my dept`",
        "sum = k + top",
        "k < top",
        "x != 'zzz'",
        "k >= 0",
    ]
    again = clone(model).fit(table)
    assert again.table_.rules == model.table_.rules
    by_text = small_density(5, rules=[str(rule) for rule in model.table_.rules]).fit(table)
    assert by_text.table_.rules == model.table_.rules


@pytest.mark.parametrize(
    "text",
    [
        "x != '`' + @pd.io.common.os.popen('touch pwned').read() + '`'",
        "__import__('os').system('touch pwned') == 0",
        "x.to_csv('pwned')",
        "nosuch > 1",
        "x",
        "",
        7,
        None,
        ["x != 'zzz'"],
    ],
)
def test_a_hostile_expression_in_a_file_is_refused_at_load(path, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    for key, place in (("expression", 3), ("expression", 1)):
        changed = rewritten(path, tmp_path, lambda state, k=key, p=place: state["rules"][p].update({k: text}))
        if text == "x":  # a column of text, which is no condition, is found out on use
            with pytest.raises(ValueError, match=r"the rule|column"):
                flowlab.load(changed).sample(2)
        else:
            with pytest.raises(FileError, match="rule"):
                flowlab.load(changed)
    assert not (tmp_path / "pwned").exists()


def test_whatever_a_file_says_of_a_rule_it_is_refused_or_it_works(path, table):
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["flowlab"])["state"]["table"]
    strange = [
        None,
        True,
        -1,
        0,
        1e300,
        10**30,
        "",
        "x",
        "object",
        "category",
        "nan",
        [],
        ["x"],
        [[1]],
        [None],
        {},
        {"x": 1},
    ]
    refused = 0
    for place, rule in enumerate(state["rules"]):
        for key in rule:
            for value in strange:
                changed = json.loads(json.dumps(state))
                changed["rules"][place][key] = value
                try:
                    found = Table.from_json(changed)
                except ValueError:
                    refused += 1
                    continue
                try:
                    found.acceptable(found.decode(found.encode(table)))
                except ValueError as error:  # of another type than its columns
                    assert key == "expression", error  # noqa: PT017
        for keys in ({"extra": 1}, {"rule": "Rule"}, {"rule": "Computed"}, {"rule": ["x"]}):
            with pytest.raises(ValueError, match="rule"):
                Rule.from_json(rule | keys)
    assert refused > 300
    for wrong in (None, "x > 1", [], 3, {}):
        with pytest.raises(ValueError, match="rule"):
            Rule.from_json(wrong)


def test_rules_that_do_not_lead_to_the_modelled_columns_are_refused(path, tmp_path):
    for change in (
        lambda state: state["rules"].pop(0),
        lambda state: state["rules"].reverse(),
        lambda state: state["rules"].append(state["rules"][2]),
        lambda state: state["names"].remove("top"),
        lambda state: state["rules"][0]["names"].__setitem__(0, "nosuch"),
        lambda state: state["rules"][0]["combinations"].pop(),
        lambda state: state["rules"][0]["combinations"].append("[1"),
        lambda state: state["rules"][2].update(order=["k"]),
    ):
        with pytest.raises(FileError, match="rule"):
            flowlab.load(rewritten(path, tmp_path, change))


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ("k < top", ["k < top"]),
        (Predicate("k >= 0"), ["k >= 0"]),
        (("k < top", "k < top"), ["k < top"]),
        (["k < top", LessThan("k", "top", strict=True)], ["k < top"]),
        (["k <= sum", "top <= sum"], ["top <= sum", "k <= sum"]),
        (["k < top", "top > k", "top < sum", "x == 'a' or k < 9"], None),
        ([], []),
        (None, []),
    ],
)
def test_what_may_be_passed_as_rules(table, rules, names):
    found, kept = Table.learn(table, None, rules)
    if names is not None:
        assert sorted(map(str, found.rules)) == sorted(names)
    assert kept.all() or "top < sum" in rules
    rows = table[kept].reset_index(drop=True)
    pd.testing.assert_frame_equal(decoded(found, rows), rows)
    Table.from_json(json.loads(json.dumps(found.to_json())))


@pytest.mark.parametrize(
    ("rules", "options", "message"),
    [
        (5, {}, "rules must be a list of strings and rules"),
        ([5], {}, "a rule must be a string or one of flowlab's rules, got 5"),
        ([None], {}, "got None"),
        ([["k < top"]], {}, "got \\['k < top'\\]"),
        ("", {}, "the rule '' cannot be read"),
        ("k < nosuch", {}, "names column 'nosuch', which is not in the table; there are 'firm'"),
        ("k > 99", {}, "only 0 of 120 rows keep the rules k > 99"),
        (["k < top", "top < k"], {}, "only 0 of 120 rows keep the rules"),
        (["k = top - 1", "top = k + 1"], {}, "go in a circle: drop one"),
        (["k = sum", "k = top"], {}, "go in a circle: drop one"),
        ("k < top", {"schema": {"top": "excluded"}}, "names column 'top', which the schema excludes"),
        ("k < k", {}, "compares a column with itself"),
        ("x + 1 > 2", {}, "column 'x' holds text"),
        ("fixed combinations of firm", {}, "cannot be read"),
    ],
)
def test_rules_that_cannot_be_are_told_why(table, rules, options, message):
    with pytest.raises(ValueError, match=message):
        small_density(1, rules=rules, **options).fit(table)


def test_new_rows_may_have_other_types(path, table):
    model = flowlab.load(path)
    expected = model.score_samples(table.head(5))
    other = table.head(5).astype({"k": "Int8", "top": float, "sum": object, "my dept": object, "x": "category"})
    np.testing.assert_array_equal(model.score_samples(other), expected)
    unknown = model.score_samples(table.head(5).assign(x=np.nan, top=pd.Series([None] * 5, dtype=object)))
    assert np.isfinite(unknown).all()
