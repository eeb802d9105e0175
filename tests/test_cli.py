"""The command line, as a shell sees it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import flowlab
from flowlab.cli import app, main
from flowlab.command.given import read_given
from helpers import run


def flowlab_command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "flowlab", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    frame = pd.DataFrame({"a": a, "b": 2 * a + 0.1 * rng.normal(size=300), "n": rng.poisson(4.0, 300)})
    frame.to_csv(folder / "table.csv", index=False)
    frame.to_parquet(folder / "table.parquet")
    frame.assign(kind="x").to_csv(folder / "mixed.csv", index=False)
    frame.assign(user=[f"u{i}" for i in range(300)]).to_csv(folder / "ids.csv", index=False)
    whole = flowlab.datasets.load("diamonds")[["carat", "cut", "price"]].iloc[:300].copy()
    whole.loc[::7, "cut"] = None
    whole.to_csv(folder / "whole.csv", index=False)
    member = flowlab.Member("mixed", "none", steps=60, hidden=(16,))
    flowlab.FlowDensity(members=[member], random_state=0).fit(pd.read_csv(folder / "whole.csv")).save(
        folder / "whole.flow"
    )
    done = flowlab_command("fit", folder / "table.csv", "-o", folder / "m.flow", "--seed", 3, "--effort", "fast")
    assert done.returncode == 0, done.stderr
    assert "held-out log-likelihood" in done.stdout
    return folder


def test_score_gives_what_the_estimator_gives(folder, monkeypatch, capsys):
    code, out, _ = run(
        monkeypatch, capsys, "score", folder / "m.flow", folder / "table.parquet", "-o", folder / "s.csv"
    )
    assert code == 0
    assert "300 rows" in out
    expected = flowlab.load(folder / "m.flow").score_samples(pd.read_csv(folder / "table.csv"))
    assert np.allclose(pd.read_csv(folder / "s.csv")["log_prob"], expected)


def test_sample_writes_rows_with_the_tables_types_and_repeats_by_seed(folder, monkeypatch, capsys):
    for name in ("r1.parquet", "r2.parquet"):
        code, out, _ = run(
            monkeypatch, capsys, "sample", folder / "m.flow", "-n", 50, "-o", folder / name, "--seed", 7, "--quiet"
        )
        assert (code, out) == (0, "")
    rows = pd.read_parquet(folder / "r1.parquet")
    assert rows.dtypes.equals(pd.read_csv(folder / "table.csv").dtypes)
    assert len(rows) == 50
    pd.testing.assert_frame_equal(rows, pd.read_parquet(folder / "r2.parquet"))


def test_info_and_help(folder, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "info", folder / "m.flow")
    assert code == 0
    assert "n  integer" in out
    assert "written by flowlab" in out
    assert "Parameter" not in out
    assert len(out.splitlines()) < 12
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


def test_chosen_columns(folder, monkeypatch, capsys):
    arguments = (
        "fit",
        folder / "mixed.csv",
        "-o",
        folder / "ab.flow",
        "--columns",
        "b, a",
        "--effort",
        "fast",
        "--time-limit",
        1,
        "--quiet",
    )
    assert run(monkeypatch, capsys, *arguments)[:2] == (0, "")
    assert flowlab.load(folder / "ab.flow").feature_names_in_.tolist() == ["b", "a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "{}/none.csv", "-o", "{}/x.flow"), "no file"),
        (("fit", "{}/table.csv", "-o", "{}/no/folder/x.flow"), "no such folder"),
        (("fit", "{}/ids.csv", "-o", "{}/x.flow"), "'user' looks like an identifier"),
        (
            ("fit", "{}/ids.csv", "-o", "{}/x.flow"),
            "Leave it out with --exclude user, or keep it with --dtype user=categorical",
        ),
        (("sample", "{}/whole.flow", "-o", "{}/x.csv", "--given", "cut"), "column=value"),
        (("sample", "{}/whole.flow", "-o", "{}/x.csv", "--given", "cut=Odd"), "'cut' cannot be 'Odd'"),
        (("sample", "{}/whole.flow", "-o", "{}/x.csv", "--given", "carat=big"), "column carat holds numbers"),
        (("sample", "{}/whole.flow", "-o", "{}/x.csv", "--given", "carrot=1"), "no column 'carrot'; there are 'carat'"),
        (("sample", "{}/whole.flow", "-o", "{}/x.csv", "--given", "cut=Fair,cut=Good"), "'cut' twice"),
        (("fit", "{}/table.csv", "-o", "{}/x.flow", "--schema", "{}/none.json"), "none.json"),
        (("fit", "{}/mixed.csv", "-o", "{}/x.flow", "--columns", "a,z"), "no column 'z'"),
        (("fit", "{}/m.flow", "-o", "{}/x.flow"), "must end in one of"),
        (("fit", "{}/table.csv", "-o", "{}/x.flow", "--effort", "much"), "effort must be fast"),
        (("score", "{}/table.csv", "{}/table.csv", "-o", "{}/x.csv"), "not a flowlab file"),
        (("score", "{}/m.flow", "{}/table.csv", "-o", "{}/x.xlsx"), "must end in one of"),
        (("sample", "{}/none.flow", "-o", "{}/x.csv"), "there is no such file"),
        (("info", "{}/table.parquet"), "not a flowlab file"),
        (("score", "{}/m.flow", "{}/table.csv", "-o", "{}/table.csv"), "--force to overwrite it"),
        (("score", "{}/m.flow", "{}/table.csv", "-o", "{}/m.flow.csv/x.csv"), "no such folder"),
        (("score", "{}/m.flow", "{}/table.csv", "-o", "{}/s.csv", "--exclude", "a"), "fitted to column 'a' too"),
        (("score", "{}/m.flow", "{}/whole.csv", "-o", "{}/s.csv"), "no column 'a', 'b', 'n' in"),
        (("fit", "{}/table.csv", "-o", "{}/table.csv", "--effort", "fast"), "--force to overwrite it"),
        (("fit", "{}/table.csv", "-o", "{}/x.flow", "--report", "{}/r.txt"), "must end in .html"),
        (("fit", "{}/table.csv", "-o", "{}/x.html", "--report", "{}/x.html"), "both the model and the report"),
        (("report", "{}/m.flow", "{}/table.csv", "-o", "{}/r.txt"), "must end in .html"),
        (("schema", "{}/table.csv", "-o", "{}/s.txt"), "must end in .json"),
        (("export", "{}/m.flow", "-o", "{}/x.onnx"), "fit with --members autoregressive,mixture,copula,broad"),
        (("export", "{}/whole.flow", "-o", "{}/x.onnx"), "cannot be exported: ONNX has no form for categories"),
        (("fit", "{}/table.csv", "-o", "{}/x.flow", "--exclude", "q"), "no column 'q' in"),
        (("fit", "{}/table.csv", "-o", "{}/x.flow", "--exclude", "a,b,n"), "no column of"),
        (("fit", "{}/table.csv", "-o", "{}/x.flow", "--dtype", "a"), "--dtype wants COLUMN=TYPE"),
        (("fit", "{}/table.csv", "-o", "{}/x.flow", "--dtype", "a=colour"), "--dtype wants COLUMN=TYPE"),
        (("fit", "{}/table.csv", "-o", "{}/x.flow", "--sep", "--"), "--sep must be one character"),
        (("fit", "{}/table.csv", "-o", "{}/x.flow", "--encoding", "klingon"), "--encoding 'klingon' is unknown"),
    ],
)
def test_errors_are_one_readable_line_and_leave_nothing_behind(folder, monkeypatch, capsys, arguments, message):
    before = sorted(p.name for p in folder.iterdir())
    code, _, errors = run(monkeypatch, capsys, *(a.format(folder) for a in arguments))
    assert code == 1
    assert message in errors
    assert "Traceback" not in errors
    assert sorted(p.name for p in folder.iterdir()) == before


def test_whole_tables_from_schema_to_report(folder, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "schema", folder / "whole.csv", "-o", folder / "schema.json")
    assert code == 0
    assert "categorical" in out
    arguments = ("fit", folder / "whole.csv", "-o", folder / "again.flow", "--schema", folder / "schema.json")
    options = ("--effort", "fast", "--time-limit", 2, "--rule", "carat > 0", "--report", folder / "r.html", "--quiet")
    assert run(monkeypatch, capsys, *arguments, *options)[0] == 0
    assert "<html" in (folder / "r.html").read_text()
    given = ("--given", "cut=Ideal|Good,carat=0.3:0.9", "-n", "30")
    assert run(monkeypatch, capsys, "sample", folder / "whole.flow", "-o", folder / "s.csv", *given)[0] == 0
    rows = pd.read_csv(folder / "s.csv")
    assert len(rows) == 30
    assert rows["carat"].between(0.3, 0.9).all()
    assert rows["cut"].isin(["Ideal", "Good"]).all()
    assert (
        run(monkeypatch, capsys, "impute", folder / "whole.flow", folder / "whole.csv", "-o", folder / "i.csv")[0] == 0
    )
    before, after = pd.read_csv(folder / "whole.csv"), pd.read_csv(folder / "i.csv")
    assert not after.isna().any().any()
    pd.testing.assert_frame_equal(after.where(before.notna()), before, check_exact=True)


def test_report_says_so_where_training_rows_are_not_at_hand(folder, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(flowlab.FlowDensity, "report", lambda self, *tables, **options: asked.append(tables))
    arguments = ("report", folder / "m.flow", folder / "table.csv", "-o", folder / "page.html")
    for options in ((), ("--train", folder / "table.parquet")):
        code, out, _ = run(monkeypatch, capsys, *arguments, *options)
        assert code == 0
        assert ("copies" in out) == (not options)
    assert asked[0][0] is None
    assert all(len(rows) == 300 for rows in (asked[0][1], *asked[1][:2]))


def test_debug_shows_the_traceback_and_wrong_usage_is_exit_code_two(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["flowlab", "info", str(folder / "none.flow"), "--debug"])
    with pytest.raises(FileNotFoundError):
        main()
    for more in ((), ("-o", folder / "x.csv", "-n", -1)):
        assert run(monkeypatch, capsys, "sample", folder / "m.flow", *more)[0] == 2


@pytest.fixture(scope="module")
def kinds() -> dict:
    """Columns of every kind that a condition may name."""
    frame = pd.DataFrame(
        {
            "carat": [0.5, 0.7, 1.5, 2.5],
            "cut": ["Fair", "Good", "a:b", "Rome, Italy"],
            "size": pd.Categorical(["lo", "hi", "lo", "mid"], categories=["lo", "mid", "hi"], ordered=True),
            "n": [1, 2, 3, 5],
            "seat": pd.Categorical([1, 2, 3, 1]),
            "flag": [True, False, True, False],
            "day": pd.to_datetime(["2024-01-01", "2024-02-01", "2024-02-03", None]),
            "lasts": pd.to_timedelta([1, 2, 3, 5], "h"),
            "same": 3,
            "a=b": [0.1, 0.2, 0.35, 0.9],
        }
    )
    return {column.name: column for column in flowlab.Schema.infer(frame)}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["carat=1.0:1.5, cut=Fair"], {"carat": (1.0, 1.5), "cut": "Fair"}),
        (["carat=:1.5", "n=2:"], {"carat": (None, 1.5), "n": (2, None)}),
        (["carat=-1e-3:1e3"], {"carat": (-1e-3, 1e3)}),
        (["cut=Fair|Good", "n=1|2"], {"cut": ["Fair", "Good"], "n": [1, 2]}),
        (["cut=a:b"], {"cut": "a:b"}),
        (['cut="Rome, Italy"|Fair'], {"cut": ["Rome, Italy", "Fair"]}),
        (["cut='Rome, Italy',n=1"], {"cut": "Rome, Italy", "n": 1}),
        (["cut=O'Brien,n=1"], {"cut": "O'Brien", "n": 1}),
        (["cut=,flag=true"], {"cut": None, "flag": True}),
        (["flag=0|yes"], {"flag": [False, True]}),
        (["size=mid:hi"], {"size": ("mid", "hi")}),
        (["size=:mid"], {"size": (None, "mid")}),
        (["seat=1|3"], {"seat": [1, 3]}),
        (["day=2024-01-01:2024-02-01"], {"day": ("2024-01-01", "2024-02-01")}),
        (["day=2024-01-01 10:00:2024-02-01 11:30"], {"day": ("2024-01-01 10:00", "2024-02-01 11:30")}),
        (["day=2024-01-01 10:00"], {"day": "2024-01-01 10:00"}),
        (["day=:2024-01-01 10:00"], {"day": (None, "2024-01-01 10:00")}),
        (["day=31.1.2024:"], {"day": ("2024-01-31 00:00:00", None)}),
        (["lasts=1 days 02:00:00:2 days"], {"lasts": ("1 days 02:00:00", "2 days 00:00:00")}),
        (["lasts=1:30"], {"lasts": "0 days 01:30:00"}),
        (["same=1:50"], {"same": (1, 50)}),
        (['"a=b"=0.1:0.2'], {"a=b": (0.1, 0.2)}),
    ],
)
def test_conditions_are_read_as_the_columns_kinds_need(kinds, said, expected):
    found = read_given(said, kinds)
    assert {name: _plain(wish) for name, wish in found.items()} == expected


def _plain(wish):
    """A wish with time differences in pandas' longest words."""
    if isinstance(wish, tuple):
        return tuple(_plain(end) for end in wish)
    return str(pd.Timedelta(wish)) if isinstance(wish, str) and "day" in wish and "days 02" not in wish else wish


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("carat", "--given wants column=value"),
        ("=1", "--given wants column=value"),
        ("carat=big", "column carat holds numbers, and 'big' is none"),
        ("carat=1:big", "holds numbers"),
        ("carat=:", "holds numbers"),
        ("day=1|x", "holds days or times"),
        ("carrot=1", "there is no column 'carrot'"),
        ("n=1,n=2", "column 'n' twice"),
    ],
)
def test_conditions_that_are_none_are_told_apart(kinds, said, message):
    with pytest.raises(ValueError, match=message):
        read_given([said], kinds)


def test_version_interruption_and_faults(folder, monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version")[:2] == (0, f"flowlab {flowlab.__version__}\n")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def broken(*_: object, **__: object) -> None:
        raise AttributeError("no such thing")

    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    arguments = ("sample", folder / "m.flow", "-o", folder / "x.csv")
    for fault, code, said in (
        (interrupted, 130, "interrupted\n"),
        (broken, 1, "a fault in flowlab"),
    ):
        monkeypatch.setattr(flowlab.FlowDensity, "sample", fault)
        found, _, errors = run(monkeypatch, capsys, *arguments)
        assert found == code
        assert said in errors
        assert len(errors.splitlines()) == 1
    assert not (folder / "x.csv").exists()


def test_what_is_read_is_overwritten_by_force_alone(folder, tmp_path, monkeypatch, capsys):
    table = tmp_path / "t.csv"
    table.write_bytes((folder / "table.csv").read_bytes())
    (tmp_path / "link.csv").symlink_to(table)
    (tmp_path / "hard.csv").hardlink_to(table)
    for name in ("t.csv", "link.csv", "hard.csv"):
        code, _, errors = run(monkeypatch, capsys, "score", folder / "m.flow", table, "-o", tmp_path / name)
        assert code == 1
        assert "--force to overwrite it" in errors
    assert table.read_bytes() == (folder / "table.csv").read_bytes()
    arguments = ("score", folder / "m.flow", table, "-o", table, "--force", "--keep", "all")
    assert run(monkeypatch, capsys, *arguments)[0] == 0
    assert pd.read_csv(table).columns.tolist() == ["a", "b", "n", "log_prob"]
    code, _, errors = run(monkeypatch, capsys, *arguments)
    assert code == 1
    assert "log_prob of its own" in errors


def test_a_table_of_numbers_that_is_to_be_imputed(folder, tmp_path, monkeypatch, capsys):
    arguments = ("fit", folder / "table.csv", "-o", tmp_path / "m.flow", "--members", "mixed", "--effort", "fast")
    assert run(monkeypatch, capsys, *arguments, "--time-limit", 1, "-q")[0] == 0
    frame = pd.read_csv(folder / "table.csv", dtype=str)
    frame.loc[::9, "n"] = ""
    frame.to_csv(tmp_path / "t.csv", index=False)
    code, out, _ = run(monkeypatch, capsys, "impute", tmp_path / "m.flow", tmp_path / "t.csv", "-o", tmp_path / "i.csv")
    assert code == 0
    assert "34 cells of 300 rows filled; written" in out
    assert pd.read_csv(tmp_path / "i.csv")["n"].dtype == "int64"
