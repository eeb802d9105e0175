"""Faults of every kind, tried: kills, hostile files, dirty tables, numerical stress. Writes results/reliability.md.

    python -m benchmarks.reliability                      # all; some hours on two cores, resumes
    python -m benchmarks.reliability --only kills --scale 0.2 --no-page

A section that is done is kept beside the page, with the date and the circumstances of its run.
"""

import argparse
import importlib
import time
from pathlib import Path

from benchmarks.common import RESULTS, circumstances

SECTIONS = ("kills", "files", "dirty_tables", "stress", "determinism", "privacy", "supply_chain")
CACHE = RESULTS / "reliability"


def section(name: str, scale: float) -> str:
    """The text of a section, measured now."""
    started = time.perf_counter()
    text = importlib.import_module(f"benchmarks.faults.{name}").section(scale)
    part = "" if scale == 1 else f", at {scale:g} of the full run"
    return f"{text}\n\n*{circumstances('safetensors', 'pandas')}; {time.perf_counter() - started:,.0f} s{part}.*"


def main() -> None:
    """Measure what is not at hand, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections")
    parser.add_argument("--scale", type=float, default=1.0, help="size, as a part of the full run")
    parser.add_argument("--anew", action="store_true", help="measure again what is at hand")
    parser.add_argument("--no-page", action="store_true", help="print only")
    chosen = parser.parse_args()
    for name in chosen.only:
        place = CACHE / f"{name}.md"
        if chosen.anew or chosen.no_page or not place.exists():
            text = section(name, chosen.scale)
            print(text, flush=True)
            if not chosen.no_page:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text)
    if not chosen.no_page:
        write(CACHE, RESULTS / "reliability.md")


def write(cache: Path, page: Path) -> None:
    """The page of the sections that are at hand."""
    parts = [cache / f"{name}.md" for name in SECTIONS]
    texts = [part.read_text() for part in parts if part.exists()]
    intro = "Written by `make reliability`: what was tried, what survived, and what did not."
    page.write_text("\n\n".join(["# Reliability", intro, *texts]) + "\n")


if __name__ == "__main__":
    main()
