"""The command `flowlab`. Exit codes: 0 done, 1 an error (one readable line), 2 wrong usage."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    help="Fit the density of a table, score its rows, draw new ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

Input = Annotated[Path, typer.Argument(help="A .csv, .tsv or .parquet table.", show_default=False)]
Model = Annotated[Path, typer.Argument(help="A model that `flowlab fit` wrote.", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where to write.", show_default=False)]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.", min=0)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def fit(
    table: Input,
    output: Output,
    columns: Annotated[
        str | None, typer.Option(help="Columns to model, separated by commas; all when left out.", show_default=False)
    ] = None,
    effort: Annotated[str, typer.Option(help="fast (seconds), default (minutes at most), or best.")] = "default",
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds that fitting may take, about.", show_default=False)
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit the density of a table's rows, and save the model."""
    from flowlab.tables.density import FlowDensity
    from flowlab.tables.io import read_table

    _check_folder(output)
    frame = read_table(table)
    if columns is not None:
        wanted = [name.strip() for name in columns.split(",")]
        frame = _select(frame, wanted, f"{table}, asked for by --columns")
    else:
        other = [str(name) for name in frame.columns if name not in frame.select_dtypes("number").columns]
        if other:
            numeric = ",".join(str(name) for name in frame.select_dtypes("number").columns)
            raise ValueError(
                f'{table} has columns that are not numeric ({", ".join(other)}): leave them out by --columns "{numeric}"'
            )
    model = FlowDensity(effort=effort, time_limit=time_limit, random_state=seed, progress=not quiet).fit(frame)
    model.save(output)
    if not quiet:
        console.print(escape(model.summary()))
        console.print(f"written: {output}", highlight=False)


@app.command()
def score(model: Model, table: Input, output: Output, quiet: Quiet = False, debug: Debug = False) -> None:
    """Write each row's log-density (column `log_prob`, in nats, in the units of the data)."""
    import pandas as pd

    from flowlab.tables.io import read_table, write_table

    _check_folder(output)
    fitted = _load(model)
    frame = _select(read_table(table), fitted._names(), str(table))
    scores = fitted.score_samples(frame)
    write_table(pd.DataFrame({"log_prob": scores}), output)
    if not quiet:
        console.print(f"{len(scores):,} rows, mean log-likelihood {scores.mean():.3f} nats; written: {output}")


@app.command()
def sample(
    model: Model,
    output: Output,
    rows: Annotated[int, typer.Option("-n", "--rows", help="Number of rows.", min=1)] = 1000,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw new rows, with the columns and types of the table that was fitted."""
    from flowlab.tables.io import write_table

    _check_folder(output)
    write_table(_load(model).sample(rows, random_state=seed), output)
    if not quiet:
        console.print(f"{rows:,} rows written: {output}")


@app.command()
def info(model: Model, debug: Debug = False) -> None:
    """Say what a model file holds."""
    import flowlab

    loaded = flowlab.load(model)
    console.print(escape(loaded.summary() + "\n" + repr(loaded.flow_) if hasattr(loaded, "summary") else repr(loaded)))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path("demo"),
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Fit real tables, compare with a Gaussian, a mixture and KDE on held-out rows, and draw pictures (about two minutes)."""
    from flowlab.demo import run

    run(output, seed, console)


def _load(path: Path):  # type: ignore[no-untyped-def]  # FlowDensity would import scikit-learn for the annotation
    import flowlab

    model = flowlab.load(path)
    if not isinstance(model, flowlab.FlowDensity):
        raise ValueError(f"{path} holds a {type(model).__name__}: this command needs a model that `flowlab fit` wrote")
    return model


def _select(frame, names: list[str], where: str):  # type: ignore[no-untyped-def]
    frame = frame.rename(columns=str)
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ValueError(f"no column {', '.join(missing)} in {where}; there are {', '.join(frame.columns)}")
    return frame[names]


def _check_folder(output: Path) -> None:
    """A long fit must not end in a folder that is not there."""
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {output.absolute().parent} to write {output.name} to")


def main() -> None:
    """Run the command line; errors become one readable line."""
    try:
        app()
    except (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, MemoryError) as error:
        if "--debug" in sys.argv:
            raise
        Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
