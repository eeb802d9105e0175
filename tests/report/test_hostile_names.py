"""The report of a table with hostile names, levels and paths: they are text, and make no element and no attribute."""

import collections
import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.report import evidence
from flowlab.report.sections import classifier, transfer

RUN = "document.title='ran'"
HOSTILE = (  # each runs something, or changes the page, if it is taken for more than text
    f"<script>{RUN}</script>",
    f'"><img src=x onerror="{RUN}">',
    f"</style><script>{RUN}</script>",
    f"</title><svg onload={RUN}>",
    f"javascript:{RUN}",
    f"' autofocus onfocus='{RUN}",
    "{{ 7 * 191 }}{% raw %}",
    "<!-- -->]]><iframe src=x>",
    "&lt;b&gt;&amp;",
    "$\\href{javascript:alert(8)}{x}$",
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.slow  # its one report takes 15 s; tests/report/test_report.py has a hostile name, too
CALM = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


class Page(HTMLParser):
    """The elements of a page with the names of their attributes, its links and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: collections.Counter[tuple[str, tuple[str, ...]]] = collections.Counter()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag, tuple(sorted(name for name, _ in attrs))] += 1
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action", "data")]

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text += data


def table(words: tuple[str, ...], rows: int, seed: int) -> pd.DataFrame:
    """Columns and levels that are called by ten words."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({words[j]: rng.choice(words[5:], rows) for j in range(3)})
    frame[words[3]] = pd.Categorical(rng.choice(words[:4], rows), categories=words[:4], ordered=True)
    frame[words[4]] = words[6]  # a constant, which the page names
    return frame.assign(**{words[8]: rng.normal(size=rows), words[9]: np.where(rng.random(rows) < 0.2, np.nan, 1.5)})


def report(words: tuple[str, ...], folder: Path) -> Path:
    """Write the report of a model of such a table, to a path and with a title of these words."""
    member = flowlab.Member("mixed", "none", steps=3, hidden=(4,), trees=2)
    rules = [f"`{words[8]}` < 99"]
    model = flowlab.FlowDensity(members=[member], validation=0.0, random_state=0, n_jobs=1, rules=rules)
    model.fit(table(words, 80, 0))
    path = folder / f"{words[5].replace('/', '')}.html"
    model.report(table(words, 80, 0), table(words, 40, 1), path, title=words[0], target=words[1])
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "REPEATS", 2)
        patch.setattr(classifier, "REPEATS", 2)
        patch.setattr(transfer, "REPEATS", 1)
        yield report(HOSTILE, tmp_path_factory.mktemp("hostile"))


def test_names_from_data_make_no_elements_and_no_attributes(hostile: Path):
    page = Page(hostile.read_text(encoding="utf-8"))
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "b", "foreignobject"}
    attributes = {name for _, attrs in page.elements for name in attrs}
    assert not [name for name in attributes if name.startswith("on") or name in ("autofocus", "srcdoc", "action")]
    assert [link for link in page.links if not link.startswith(("#", "data:image/png;base64,"))] == []
    for word in (HOSTILE[j] for j in (*range(5), 8)):  # columns, which are there as they are called
        assert word in page.text, word
    assert "1337" not in page.text  # of a template in a name


def test_hostile_names_make_the_page_that_tame_ones_make(hostile: Path, tmp_path: Path):
    tame = tuple(chr(ord("a") + j) * len(word) for j, word in enumerate(HOSTILE))
    pages = [Page(path.read_text(encoding="utf-8")) for path in (hostile, report(tame, tmp_path))]
    assert set(pages[0].elements) == set(pages[1].elements)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_runs_nothing(hostile: Path, tmp_path: Path):
    """Neither scripts of the data nor errors on the console; a page that does run something shows it would be seen."""
    planted = tmp_path / "planted.html"
    planted.write_text(f"<!DOCTYPE html><title>planted</title><p title={HOSTILE[1]}</p>{HOSTILE[0]}")
    titles = []
    for path in (hostile, planted):
        command = [str(CHROMIUM), *CALM, "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr[-500:]
        titles.append(html.unescape(re.findall(r"<title>(.*?)</title>", done.stdout)[0]))
        assert path is planted or "CONSOLE" not in done.stderr
    assert titles[0].startswith(f"{HOSTILE[0]}: flowlab report")
    assert titles[1] == "ran"
