"""What several benchmarks share: Markdown tables, the circumstances of a run, results on disk, and rows to compare on.

Only the standard library is imported here, since workers in environments of their own import it, too.
"""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

RESULTS = Path(__file__).parent / "results"
ROWS = 20_000  # of a table, at most
ALIGNMENTS = {"l": "---", "r": "---:"}


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """Write a Markdown table.

    Args:
        header: The head of each column.
        rows: The cells.
        align: "l" or "r" for each column; the last letter holds for all further ones.
    """
    align = align.ljust(len(header), align[-1])
    lines = [header, [ALIGNMENTS[letter] for letter in align[: len(header)]], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def table_of_records(records: Sequence[dict[str, Any]]) -> str:
    """Write a Markdown table of records, with a column for each name in any of them."""
    names = list(dict.fromkeys(name for record in records for name in record))
    return table(names, [[format_value(record.get(name, "")) for name in names] for record in records])


def format_value(value: Any) -> str:
    """Write a value of a record as a cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def processor() -> str:
    """Name the processor, with family and model where Linux tells them.

    Products of a maker share a name and differ in speed.
    """
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        first = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    return name + (f" (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else "")


def machine() -> str:
    """Say on what a run is: processor, cores, system and Python."""
    return f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def circumstances(*packages: str) -> str:
    """Say when and on what a run is: the date, versions of flowlab, torch and further packages, and the machine.

    Packages that are not installed are left out, since a part of a benchmark runs without them.
    """
    import flowlab

    versions = [f"flowlab {flowlab.__version__}"]
    for name in ("torch", *packages):
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return f"{date.today().isoformat()}: {', '.join(versions)}; {machine()}"


def load() -> str:
    """Say how busy the machine is."""
    minutes = os.getloadavg()[1]
    return f"load {minutes:.1f} in the last five minutes (its own one included; more than one a core inflates times)"


def memory(entry: str) -> int:
    """Look up the bytes that this process holds now (VmRSS) or held at most (VmHWM), by Linux's account.

    The peak of `resource.getrusage` begins with that of the process that started this one.
    """
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{entry}:")[1].split()[0])


def read_json(path: Path) -> dict[str, Any]:
    """Read earlier results; none without a file."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """Write results beside their place, then rename: an interrupted run keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)
    return value


def continuous(name: str, seed: int) -> "pd.DataFrame":
    """Load a table's numeric columns as continuous data, for methods that know no grids.

    Tied columns are spread over the cells of their resolution. Rows are distinct, in random order, at most `ROWS`.
    """
    import numpy as np
    import pandas as pd

    from flowlab.report.comparison import distinct_numbers
    from flowlab.tables.codec.table import Table

    frame = distinct_numbers(name)
    rng = np.random.default_rng(seed)
    table, _ = Table.learn(frame, None, None)
    x = dequantized(table, frame, rng)
    return pd.DataFrame(x[rng.permutation(len(x))[:ROWS]], columns=frame.columns)


def dequantized(table: Any, frame: "pd.DataFrame", rng: Any) -> Any:
    """The numbers (n, variables) of a table, values on a grid and repeated ones spread uniformly over their cells."""
    import numpy as np

    x = table.encode(frame)
    for k, variable in enumerate(table.variables):
        width = variable.step or variable.atom_width
        if width:
            noise = (rng.random(len(x)) - 0.5) * width
            x[:, k] += noise if variable.step else np.where(np.isin(x[:, k], variable.atoms), noise, 0.0)
    return x
