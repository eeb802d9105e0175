"""The HTML report: whole, self-contained, escaped, honest."""

import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from threadpoolctl import threadpool_info

import flowlab
from flowlab.report import evidence, header, inputs, log_likelihood, metrics, panels, sections, verdict, write
from flowlab.report.sections import classifier, transfer
from flowlab.report.verdict import FAIR, GOOD, POOR, Check, rate
from flowlab.tables.codec.table import Table
from flowlab.tables.frames.aligned import align

RULE = "x < 1.5"  # which some of the rows break
NASTY = "<script>alert(1)</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    frame = pd.DataFrame(
        {
            "x": x,
            "$y_{1": 2 * x + rng.normal(size=rows),
            NASTY: rng.choice(["<b>bold</b>", "a & b", "$\\frac$", "nul\x00"], rows),
            "count": pd.array(rng.poisson(3, rows), dtype="Int64"),
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 365, rows), "D"),
            "flag": x > 0,
            "fixed": 1,
        }
    )
    frame.loc[rng.random(rows) < 0.3, "count"] = None
    return frame


class Bootstrap:
    """A model that draws training rows, and cells of a share of them anew: its density is made up."""

    members_ = pd.DataFrame({"kind": ["mixed"], "score": [-9.0], "weight": [1.0], "seconds": [2.0]})
    history_ = pd.DataFrame({"step": [0.0, 10.0, 20.0], "train": [3.0, 2.0, 1.0], "validation": [3.1, 2.2, 2.3]})
    calibration_ = pd.DataFrame({"test": [f"column {NASTY}"], "statistic": [0.1], "p_value": [0.3]}).set_index("test")
    validation_score_ = -9.0

    def __init__(self, train: pd.DataFrame, schema: dict[str, str] | None = None) -> None:
        self.train, self.columns_ = train, None
        self.table_ = Table.learn(train, schema, [RULE] if RULE[0] in train else None)[0]
        self.schema_ = self.table_.codec.schema

    def score_samples(self, rows: pd.DataFrame) -> np.ndarray:
        return stats.norm.logpdf(rows.iloc[:, 0].to_numpy(dtype=float))

    def sample(self, n: int, random_state: int | None = None) -> pd.DataFrame:
        rng = np.random.default_rng(random_state)
        rows = rng.integers(0, len(self.train), n)
        anew = {name: np.where(rng.random(n) < 0.2, rng.integers(0, len(self.train), n), rows) for name in self.train}
        return pd.DataFrame({name: self.train[name].iloc[index].reset_index(drop=True) for name, index in anew.items()})

    def summary(self) -> str:
        return f"a bootstrap of {NASTY}"


class Page(HTMLParser):
    """Tags, ids and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module", autouse=True)
def few_repeats() -> Iterator[None]:
    """Noise floors from two pairs of real tables, not five: most of a page's time goes into their classifiers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "REPEATS", 2)
        patch.setattr(classifier, "REPEATS", 2)
        patch.setattr(transfer, "REPEATS", 1)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    train = table(300, 0)
    return write.write_report(Bootstrap(train), train, table(120, 1), folder / "report.html")


@pytest.fixture(scope="module")
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_page_is_whole_and_self_contained(path: Path, text: str):
    page = Page(text)
    assert not page.open
    assert "http" not in text
    assert not {"script", "link", "iframe", "object", "img", "base"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]  # nothing is left of the temporary file


def test_links_lead_somewhere_and_ids_are_unique(text: str):
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    assert anchors <= set(page.ids)
    assert {section.anchor for section in sections.SECTIONS} <= anchors


def test_sections_are_listed_and_only_they_are_judged():
    listed = [section.anchor for section in sections.SECTIONS]
    assert len(listed) == len(set(listed))
    judged = {section for section in sections.SECTIONS if "judge" in vars(section)}
    assert set(sections.OVERVIEW) == judged


def test_pictures_are_there(text: str):
    page = Page(text)
    assert page.tags.count("svg") == 7 + 3 + 1  # columns, maps, training
    assert page.tags.count("figure") == 11
    assert text.count('role="img"') == 11


def test_names_from_data_are_text(text: str):
    assert "<script" not in text
    assert "<b>bold" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\x00" not in text


def test_every_check_says_which_way_is_better_and_shows_its_floor(text: str):
    overview = text[text.index('id="overview"') : text.index("<nav>")]
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", overview)
    assert len(rows) >= 11
    for row in rows:
        assert all(cell.strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", row))


def test_copies_are_no_secret(text: str):
    assert "Training rows were remembered." in text


def test_rules_are_listed_with_the_rows_that_break_them(text: str):
    section = text[text.index('id="rules"') : text.index('id="privacy"')]
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", section)
    at = cells.index("x &lt; 1.5")
    train, test = ((table(*size)["x"] >= 1.5).mean() for size in ((300, 0), (120, 1)))
    assert train > 0
    assert cells[at + 1 : at + 3] == [f"{train:.2%}", f"{test:.2%}"]


def test_without_training_rows_nothing_is_said_of_copies(tmp_path: Path):
    model = Bootstrap(table(60, 0))
    text = write.write_report(model, None, table(60, 1), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "30 in place of those trained on, 30 held out" in text
    privacy = text[text.index('id="privacy"') :]
    assert "were not at hand" in privacy
    assert "remembered" not in text
    assert "equal to a training row" not in text


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(write.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write._write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_page_says_of_which_table_it_is(text: str):
    assert re.search(r"<title>report: flowlab report, \d{4}-\d\d-\d\d</title>", text)
    assert "<h1>report: how good are the model and its rows?</h1>" in text


def test_the_models_own_verdict_comes_first(text: str):
    first, second = re.findall(r"<strong>(.*?)</strong>", text[text.index('class="verdict"') :], re.DOTALL)[:2]
    assert first.startswith("The model ")
    assert "synthetic rows" in second


def test_the_header_counts_modelled_columns_alone(text: str):
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert facts["Columns modelled"] == "3 numbers, 2 categories, 1 time"
    assert facts["Columns kept exactly"] == "&#39;fixed&#39; (constant)"
    missing = table(300, 0).drop(columns="fixed").isna().to_numpy().mean()
    assert facts["Missing cells"].startswith(f"{missing:.1%}")


def test_left_out_columns_are_named_and_not_counted(tmp_path: Path):
    train = table(40, 0).assign(key=[f"k{j}" for j in range(40)], note=None)
    model = Bootstrap(train, {"key": "excluded", "note": "excluded"})
    found = dict(header.facts(model, inputs.as_table(model, train, "train"), train, train, 0, True))
    assert found["Columns left out"] == "'key', 'note'"
    assert found["Columns modelled"] == "3 numbers, 2 categories, 1 time"
    assert list(inputs.as_table(model, train, "train")) == list(table(2, 0))


def test_limits_stand_beside_readings(text: str):
    overview = text[text.index('id="overview"') : text.index("<nav>")]
    limits = dict(re.findall(r'<a href="#(\w+)">.*?data-label="limits">(.*?)</td>', overview))
    assert re.fullmatch(r"to 0\.5 ± 0\.\d+, close to 0\.5 ± 0\.\d+", limits["classifier"])
    assert re.fullmatch(r"from 0\.\d+, close from 0\.\d+", limits["transfer"])
    noise = [0.03, 0.04, 0.05]
    good, fair = verdict.limits(noise, 0.1)
    assert (rate(good, noise, 0.1), rate(good + 1e-9, noise, 0.1)) == (GOOD, FAIR)
    assert (rate(fair, noise, 0.1), rate(fair + 1e-9, noise, 0.1)) == (FAIR, POOR)


def test_tests_of_fit_are_explained_and_the_summary_is_folded(text: str):
    section = text[text.index('id="calibration"') : text.index('id="members"')]
    for words in ("Bonferroni", "“radius”", "“energy”"):
        assert words in section
    assert "<details>" in text[text.index('id="summary"') :]
    assert text.count('class="legend"') == 1


@pytest.mark.parametrize("days", [0.001, 0.05, 1.5, 2.5, 20, 61, 80, 100, 400, 700, 1100, 20_000])
def test_times_of_any_span_have_ticks(days: float):
    start = pd.Timestamp("2024-01-31")
    when = pd.DataFrame({"when": start + pd.to_timedelta(np.linspace(0, days, 200), "D")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "<svg" in panels.svg(panels.column_panel(align(when, when)[0]), "when", "when")


def test_labels_that_would_collide_are_turned():
    few, many = (align(pd.DataFrame({"n": np.arange(count)}), pd.DataFrame({"n": [0.5, 1]}))[0] for count in (3, 12))
    for column, angle in ((few, 0), (many, 90)):
        axes = panels.column_panel(column).axes[0]
        assert axes.get_xticklabels()[-1].get_text() == "other"
        assert axes.get_xticklabels()[0].get_rotation() == angle


def test_too_few_rows(tmp_path: Path):
    train = table(60, 0)
    with pytest.raises(ValueError, match="test has 5"):
        write.write_report(Bootstrap(train), train, table(5, 1), tmp_path / "report.html")
    with pytest.raises(ValueError, match="train has 0"):
        write.write_report(Bootstrap(train), train[:0], train, tmp_path / "report.html")
    with pytest.raises(ValueError, match=r"half of the test rows stand for them: .* at least 40, test has 39"):
        write.write_report(Bootstrap(train), None, train[:39], tmp_path / "report.html")


def test_what_is_no_table_is_refused_at_the_door(tmp_path: Path):
    train = table(40, 0)
    model = Bootstrap(train)
    for rows, error, message in (
        (None, TypeError, "test must be a table .* got None"),
        (train.to_numpy(), TypeError, "got ndarray"),
        (train["x"], TypeError, "got Series"),
        (train.drop(columns=["x", "flag"]), ValueError, "test has no column 'x', 'flag'; there are"),
        (pd.concat([train, train[["x"]]], axis=1), ValueError, "test: several columns have the same name"),
    ):
        with pytest.raises(error, match=message):
            write.write_report(model, train, rows, tmp_path / "report.html")
    with pytest.raises(ValueError, match="target 'z' is no column"):
        write.write_report(model, train, train, tmp_path / "report.html", target="z")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def of_array() -> flowlab.FlowDensity:
    return flowlab.FlowDensity(members=["copula"], random_state=0).fit(np.random.default_rng(0).normal(size=(60, 2)))


def test_report_on_a_model_of_an_array(of_array, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, test = (np.random.default_rng(seed).normal(size=(60, 2)) for seed in (0, 1))
    page = write.write_report(of_array, train, test.tolist(), tmp_path / "a.html", title="<i>").read_text("utf-8")
    assert "<td>KS</td>" in page
    assert "x1" in page
    assert "<h1>&lt;i&gt;:" in page
    assert capsys.readouterr() == ("", "")
    for rows, message in (
        (test[:, :1], r"test must be an array of numbers \(rows, 2\).* shape \(60, 1\)"),
        (test[:, 0], r"shape \(60,\)"),
        ("rows", "got str"),
        ([["a", "b"]] * 30, "got list"),
        (pd.DataFrame(test, columns=["p", "q"]), "has no column 'x0', 'x1'.*or give an array"),
    ):
        with pytest.raises(ValueError, match=message):
            write.write_report(of_array, train, rows, tmp_path / "b.html")


def test_a_report_holds_threads_and_shows_a_bar(of_array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counted: list[int] = []
    counts: list[set[int]] = []
    real = write.progress_bar

    def bar(total: int, progress: bool, *names: str):
        assert progress
        found = real(total, False, *names)
        counted.append(-total)
        monkeypatch.setattr(found, "update", lambda n: counted.append(n))
        return found

    def trees(*arguments: object):
        counts.append({torch.get_num_threads(), *(library["num_threads"] for library in threadpool_info())})
        return own(*arguments)

    own = metrics._trees
    monkeypatch.setattr(write, "progress_bar", bar)
    monkeypatch.setattr(metrics, "_trees", trees)
    rows = np.random.default_rng(1).normal(size=(40, 2))
    before = torch.get_num_threads(), [library["num_threads"] for library in threadpool_info()]
    write.write_report(of_array, None, rows, tmp_path / "a.html", progress=True)
    assert sum(counted) == 0  # as many steps as were promised
    assert len(counts) == -counted[0]
    assert set().union(*counts) == {1}
    assert before == (torch.get_num_threads(), [library["num_threads"] for library in threadpool_info()])


def test_report_of_a_fitted_density(tmp_path: Path):
    rows = flowlab.datasets.load("wine").iloc[:400, [0, 7, 10]]
    train, test = rows[:300], rows[300:]
    model = flowlab.FlowDensity(members=["mixture"], random_state=0).fit(train)
    page = write.write_report(model, train, test, tmp_path / "wine.html", n=150).read_text(encoding="utf-8")
    assert "Gaussian mixture" in page
    assert "150 synthetic" in page


def test_judgement_is_never_better_than_the_numbers():
    assert rate(0.04, [0.03, 0.04, 0.05], 0.1) == GOOD
    assert rate(0.09, [0.03, 0.04, 0.05], 0.1) == FAIR
    assert rate(0.2, [0.03, 0.04, 0.05], 0.1) == POOR

    def headline(*statuses: str) -> str:
        checks = [Check(f"Test {s}", "columns", "", "", "", s, "") for s in statuses]
        return verdict.verdict(checks, 100)[0]

    assert headline(GOOD, GOOD).startswith("No test here tells")
    assert headline(GOOD, FAIR).startswith("The synthetic rows are close")
    assert headline(GOOD, FAIR, POOR).startswith("The synthetic rows differ")
    remembered = Check("Copies", "privacy", "", "", "", POOR, "")
    assert verdict.verdict([remembered], 100)[0].endswith("Training rows were remembered.")


def test_baselines_have_the_probabilities_of_a_grid():
    """Summed over all values of a column on a grid, a baseline's probabilities give one."""
    rng = np.random.default_rng(0)
    train = pd.DataFrame({"a": rng.poisson(20.0, 500), "b": rng.choice(["x", "y"], 500)})
    model = Bootstrap(train)
    for level, share in (("x", 0.5), ("y", 0.5)):
        test = pd.DataFrame({"a": np.arange(-30, 90), "b": level})
        for name, found in log_likelihood.log_likelihoods(model, train, test).items():
            if name != "model":
                assert np.exp(found).sum() == pytest.approx(share, abs=0.06), name


def test_comparison_is_paired_and_counts_the_impossible():
    found = log_likelihood.comparison({"model": np.array([1.0, 2.0, -np.inf]), "other": np.array([0.0, 1.0, 5.0])})
    assert found.loc["other", ["gain", "gain_error", "ahead"]].tolist() == [1.0, 0.0, 1.0]
    assert found.loc["model", "impossible"] == 1


def test_panels_of_any_column():
    frames = table(100, 0), table(80, 1)
    for j, column in enumerate(align(*frames)):
        picture = panels.svg(panels.column_panel(column), f"c{j}", str(column.name))
        assert "<svg role=" in picture
        assert "#000000" not in picture
    empty = align(pd.DataFrame({"a": [np.nan, np.nan]}), pd.DataFrame({"a": [1.0, 2.0]}))[0]
    assert "no values" in panels.svg(panels.column_panel(empty), "empty", "a")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser(path: Path, tmp_path: Path, width: int):
    """No errors on the console, no sideways scrolling, also on a phone."""
    frame = tmp_path / "frame.html"
    script = (
        "const page = document.querySelector('iframe').contentDocument.documentElement;"
        "const count = (name) => page.querySelectorAll(name).length;"
        "document.title = [page.scrollWidth, count('svg'), count('script')].join(' ')"
    )
    frame.write_text(
        f"<title>none</title><iframe src='{path.as_uri()}' style='width:{width}px;height:900px;border:0'"
        f' onload="{script}"></iframe>'
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stdout[:300]
    assert int(found[1]) <= width
    assert (int(found[2]), int(found[3])) == (11, 0)
