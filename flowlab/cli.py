"""The command `flowlab`. Exit codes: 0 done, 1 an error (one readable line), 2 wrong usage."""

import sys
from pathlib import Path
from typing import Annotated, Any

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
    schema: Annotated[
        Path | None, typer.Option(help="What the columns are: a file from `flowlab schema`.", show_default=False)
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help='A rule between columns, "low <= high", "total = a * b"; repeatable.', show_default=False),
    ] = None,
    effort: Annotated[str, typer.Option(help="fast (seconds), default (minutes at most), or best.")] = "default",
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds that fitting may take, about.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a report (.html) too: a fifth of the rows is held out for it.", show_default=False),
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit the density of a table's rows, and save the model."""
    from flowlab.tables.density import FlowDensity
    from flowlab.tables.io import read_table
    from flowlab.tables.schema import Schema

    _check_folder(output)
    if report is not None:
        _check_folder(report)
    frame = read_table(table)
    if columns is not None:
        wanted = [name.strip() for name in columns.split(",")]
        frame = _select(frame, wanted, f"{table}, asked for by --columns")
    given = None if schema is None else Schema.load(schema)
    if report is not None:
        frame = frame.sample(frac=1, random_state=seed)
    held = round(len(frame) / 5) if report is not None else 0
    model = FlowDensity(
        effort=effort, time_limit=time_limit, schema=given, rules=rule, random_state=seed, progress=not quiet
    ).fit(frame.iloc[held:])
    model.save(output)
    if not quiet:
        console.print(escape(model.summary()), soft_wrap=True)
        console.print(f"written: {output}", highlight=False)
    if report is not None:
        model.report(frame.iloc[held:], frame.iloc[:held], report, random_state=seed)
        if not quiet:
            console.print(f"written: {report}", highlight=False)


@app.command()
def schema(
    table: Input,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write it (.json), to be edited.", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what the columns of a table are taken for, and why."""
    from flowlab.tables.io import read_table
    from flowlab.tables.schema import Schema

    found = Schema.infer(read_table(table))
    console.print(escape(repr(found)), soft_wrap=True, highlight=False)
    if output is not None:
        _check_folder(output)
        found.save(output)
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
    given: Annotated[
        str | None,
        typer.Option(help='Conditions: "cut=Ideal,carat=1.0:1.5,color=D|E".', show_default=False),
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw new rows, with the columns and types of the table that was fitted."""
    from flowlab.tables.io import write_table

    _check_folder(output)
    fitted = _load(model)
    conditions = None if given is None else _conditions(given, fitted)
    drawn = fitted.sample(rows, random_state=seed, given=conditions)
    write_table(drawn, output)
    if not quiet:
        kept = f", {drawn.attrs['acceptance']:.0%} of draws kept" if conditions else ""
        console.print(f"{rows:,} rows written: {output}{kept}")


@app.command()
def impute(
    model: Model, table: Input, output: Output, seed: Seed = 0, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Fill missing cells with draws from what the other cells of their rows say; the other cells stay as they are."""
    from flowlab.tables.io import read_table, write_table

    _check_folder(output)
    fitted = _load(model)
    frame = _select(read_table(table), fitted._names(), str(table))
    write_table(fitted.impute(frame, random_state=seed), output)
    if not quiet:
        console.print(f"{int(frame.isna().to_numpy().sum()):,} cells of {len(frame):,} rows filled; written: {output}")


@app.command()
def report(
    model: Model,
    table: Input,
    output: Output,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
    train: Annotated[
        Path | None, typer.Option(help="The table that the model was fitted to.", show_default=False)
    ] = None,
) -> None:
    """Write a page (.html) that says how good a model is on rows that it has not seen.

    TABLE holds such rows; with --train, those that it was fitted to, too. Without, half of TABLE stands for them, and the page cannot say
    whether the model's rows are copies of those that it was fitted to.
    """
    from flowlab.tables.io import read_table

    _check_folder(output)
    fitted = _load(model)
    test = _select(read_table(table), fitted._names(), str(table))
    shown = None if train is None else _select(read_table(train), fitted._names(), str(train))
    fitted.report(shown, test, output, random_state=seed)
    if not quiet:
        console.print(f"written: {output}", highlight=False)
        if train is None:
            console.print("whether rows are copies of those that the model was fitted to, a page with --train says")


@app.command()
def info(model: Model, debug: Debug = False) -> None:
    """Say what a model file holds."""
    import flowlab

    loaded = flowlab.load(model)
    console.print(escape(loaded.summary() + "\n" + repr(loaded.flow_) if hasattr(loaded, "summary") else repr(loaded)))


@app.command()
def export(
    model: Annotated[
        Path, typer.Argument(help="A model that `flowlab fit` or flowlab.save wrote.", show_default=False)
    ],
    output: Output,
    what: Annotated[
        str, typer.Option(help="log_prob (rows to nats), or sample (noise to rows; not of tables).")
    ] = "log_prob",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write log-density or sampler of a model as an ONNX file, checked in ONNX Runtime.

    Models that `flowlab fit` wrote are exported where all their columns are numbers without missing cells.
    """
    import flowlab

    _check_folder(output)
    loaded = flowlab.load(model)
    try:
        from flowlab.interop.onnx import export as to_onnx
    except ImportError as error:
        raise ValueError(str(error)) from error
    to_onnx(loaded, output, what)  # type: ignore[arg-type]
    if not quiet:
        console.print(f"written: {output}", highlight=False)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path("demo"),
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Fit real tables, compare with a Gaussian, a mixture and KDE on held-out rows, draw pictures and write a report (a few minutes)."""
    from flowlab.demo import run

    run(output, seed, console)


def _conditions(text: str, model):  # type: ignore[no-untyped-def]
    """What `sample(given=)` takes, from "cut=Ideal,carat=1.0:1.5,color=D|E"."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, wish = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise ValueError(
                f'--given wants column=value, column=low:high or column=a|b, separated by commas, not "{part}"'
            )
        kind = model.schema_[name].kind if name in model.schema_ else ""
        if kind in ("continuous", "integer") and ":" in wish:
            found[name] = tuple(_value(end, kind, name) if end.strip() else None for end in wish.split(":", 1))
        elif "|" in wish:
            found[name] = [_value(choice, kind, name) for choice in wish.split("|")]
        else:
            found[name] = None if wish == "" else _value(wish, kind, name)
    return found


def _value(text: str, kind: str, name: str):  # type: ignore[no-untyped-def]
    text = text.strip()
    if kind == "boolean" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in ("continuous", "integer"):
        try:
            return float(text) if kind == "continuous" or not text.lstrip("+-").isdigit() else int(text)
        except ValueError:
            raise ValueError(f"--given: column {name} holds numbers, and {text!r} is none") from None
    return text


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
