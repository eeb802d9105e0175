"""Reading and writing tables as CSV or Parquet."""

import os
from pathlib import Path

import pandas as pd

from flowlab.writing import written_whole

READABLE = (".csv", ".tsv", ".parquet")


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """A table from a .csv, .tsv or .parquet file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The suffix is another one, or the file cannot be read as such a table.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        if suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, sep="\t" if suffix == ".tsv" else ",", engine="pyarrow")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a {suffix} table: {error}") from error


def write_table(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table to a .csv, .tsv or .parquet file: beside its destination first, then renamed, so that no half-written file is left.

    Raises:
        ValueError: The suffix is another one.
    """
    path = Path(path)
    suffix = _suffix(path)
    with written_whole(path) as temporary:
        if suffix == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, sep="\t" if suffix == ".tsv" else ",", index=False)


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in READABLE:
        raise ValueError(f"{path} must end in one of {', '.join(READABLE)}")
    return suffix
