"""The command `flowlab`. Exit codes: 0 done, 1 an error (a readable line or a few), 2 wrong usage, 130 interrupted."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from flowlab.command.options import (
    Debug,
    Force,
    Input,
    Model,
    Output,
    Quiet,
    ReadingOptions,
    SafeCsv,
    Seed,
    with_reading_options,
)

app = typer.Typer(
    help="Fit the density of a table, score its rows, draw new ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

MOST_ROWS = 100_000_000  # that one file is asked for


def _print_version(wanted: bool) -> None:
    if wanted:
        from flowlab.version import __version__

        console.print(f"flowlab {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def flowlab(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Fit the density of a table, score its rows, draw new ones."""


@app.command()
@with_reading_options
def fit(
    table: Input,
    output: Output,
    options: ReadingOptions,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="Columns to model, separated by commas; all when left out.", show_default=False),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="What the columns are: a file from `flowlab schema`.", show_default=False)
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help='A rule between columns, "low <= high", "total = a * b"; repeatable.', show_default=False),
    ] = None,
    effort: Annotated[str, typer.Option(help="fast (seconds), default (minutes at most), or best.")] = "default",
    members: Annotated[
        str | None,
        typer.Option(
            help='What to mix in place of what the effort says; "mixed" can impute any table.', show_default=False
        ),
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds that fitting may take, about.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a report (.html) too: a fifth of the rows is held out for it.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A folder that keeps what is done: the same command, after a crash or Ctrl-C, goes on from there.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from what the folder holds, or empty it.")] = True,
    seed: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit the density of a table's rows, and save the model."""
    from flowlab.command.tables import Reading, check_outputs
    from flowlab.command.words import names_of
    from flowlab.tables.density import FlowDensity
    from flowlab.tables.schema import Schema
    from flowlab.training.checkpoint import empty_folder

    check_outputs(output, report, [table, schema], force)
    reading = Reading.of(options)
    said = None if schema is None else Schema.load(schema)
    frame, notes = reading.read(table, None if columns is None else names_of(columns), said)
    _print_notes(notes, quiet)
    if checkpoint is not None and not resume:
        empty_folder(checkpoint)
    model = FlowDensity(
        effort=effort,
        members=None if members is None else names_of([members]),
        time_limit=time_limit,
        schema=_schema_of(said, reading.kinds, list(frame)),
        rules=rule,
        random_state=seed,
        progress=not quiet,
        checkpoint=checkpoint,
    )
    if report is not None:
        frame = frame.sample(frac=1, random_state=seed)
    held = round(len(frame) / 5) if report is not None else 0
    model.fit(frame.iloc[held:])
    model.save(output)
    if not quiet:
        console.print(escape(_in_shell(model.summary())), soft_wrap=True)
    _print_written(output, quiet)
    if report is not None:
        rest, test = frame.iloc[held:], frame.iloc[:held]
        model.report(rest, test, report, title=table.stem, random_state=seed, progress=not quiet)
        _print_written(report, quiet)


@app.command()
@with_reading_options
def schema(
    table: Input,
    options: ReadingOptions,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write it (.json), to be edited.", show_default=False)
    ] = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Show what the columns of a table are taken for, and why."""
    from flowlab.command.tables import Reading, check_output
    from flowlab.command.words import name_word
    from flowlab.tables.schema.schema import ColumnSchema, Schema

    if output is not None:
        check_output(output, [table], force, (".json",))
    reading = Reading.of(options)
    frame, notes = reading.read(table)
    found = Schema.infer(frame, reading.kinds)
    left_out = [ColumnSchema(name, "excluded", "str", "left out as asked") for name in reading.excluded]
    found = Schema([*found, *left_out], found.labels)
    console.print(escape(_in_shell(repr(found))), soft_wrap=True, highlight=False)
    hinted = " ".join(note for note in notes if "--dtype" in note)
    if ids := [name_word(c.name) for c in found if c.kind == "id" and f"column {c.name!r}" not in hinted]:
        notes.append(
            f"fit wants to be told what to do with identifiers: --exclude {','.join(ids)}, "
            f"or --dtype {ids[0]}=categorical"
        )
    _print_notes(notes, False)
    if output is not None:
        found.save(output)
        _print_written(output, False)


@app.command()
@with_reading_options
def score(
    model: Model,
    table: Input,
    output: Output,
    options: ReadingOptions,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns of the table to write beside it: --keep id,name, or --keep all.", show_default=False
        ),
    ] = None,
    safe_csv: SafeCsv = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write each row's log-density (column `log_prob`, in nats, in the units of the data)."""
    from flowlab.command.tables import Reading, check_output, check_table, scores_of
    from flowlab.command.words import names_of
    from flowlab.tables.frames.read_write import write_table

    check_table(output, safe_csv)
    check_output(output, [model, table], force)
    fitted = _load(model)
    frame, file = Reading.of(options).read_for(fitted, table)
    _print_notes(file.notes, quiet)
    kept = names_of(keep or ())
    kept = file.columns if kept == ["all"] else kept
    file.check_columns(kept, "--keep")
    if "log_prob" in kept:
        raise ValueError("--keep: the table has a column log_prob of its own; name others")
    scores = scores_of(fitted, frame)
    write_table(file.as_written(kept).assign(log_prob=scores), output, safe=safe_csv)
    if not quiet:
        console.print(
            f"{len(scores):,} rows, mean log-likelihood {scores.mean():.3f} nats; written: {output}",
            markup=False,
            soft_wrap=True,
        )


@app.command()
def sample(
    model: Model,
    output: Output,
    rows: Annotated[int, typer.Option("-n", "--rows", help="Number of rows.", min=1, max=MOST_ROWS)] = 1000,
    given: Annotated[
        list[str] | None,
        typer.Option(
            help='Conditions: "cut=Ideal,carat=1.0:1.5,color=D|E"; an open end or a missing cell is left empty; '
            '"quotation marks" around what holds a comma or the like; repeatable.',
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    safe_csv: SafeCsv = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw new rows, with the columns and types of the table that was fitted."""
    from flowlab.command.given import read_given
    from flowlab.command.tables import as_pandas, check_output, check_table, columns_of, with_arrow
    from flowlab.tables.frames.read_write import write_table

    check_table(output, safe_csv)
    check_output(output, [model], force)
    fitted = _load(model)
    conditions = read_given(given, columns_of(fitted)) if given else None
    with_arrow(fitted)
    fitted.set_params(progress=not quiet)
    drawn = as_pandas(fitted, fitted.sample(rows, random_state=seed, given=conditions))
    write_table(drawn, output, safe=safe_csv)
    if not quiet:
        share = getattr(drawn, "attrs", {}).get("acceptance")
        kept = f", {share:.0%} of draws kept" if conditions and share is not None else ""
        console.print(f"{rows:,} rows written: {output}{kept}", markup=False, soft_wrap=True)


@app.command()
@with_reading_options
def impute(
    model: Model,
    table: Input,
    output: Output,
    options: ReadingOptions,
    seed: Seed = 0,
    safe_csv: SafeCsv = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fill missing cells with draws from what the other cells of their rows say; all else stays as it is."""
    from flowlab.command.tables import Reading, check_output, check_table, write_filled

    check_table(output, safe_csv)
    check_output(output, [model, table], force)
    fitted = _load(model)
    frame, file = Reading.of(options).read_for(fitted, table)
    _print_notes(file.notes, quiet)
    filled, left = write_filled(file, frame, fitted.impute(frame, random_state=seed), output, safe_csv)
    if not quiet:
        rest = f", {left:,} left in columns that are not modelled" if left else ""
        console.print(
            f"{filled:,} cells of {len(frame):,} rows filled{rest}; written: {output}", markup=False, soft_wrap=True
        )


@app.command()
@with_reading_options
def report(
    model: Model,
    table: Input,
    output: Output,
    options: ReadingOptions,
    train: Annotated[
        Path | None, typer.Option(help="The table that the model was fitted to.", show_default=False)
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a page (.html) that says how good a model is on rows that it has not seen.

    TABLE holds such rows; with --train, those that it was fitted to, too. Without, half of TABLE stands for them, and
    the page cannot say whether the model's rows are copies of those that it was fitted to.
    """
    from flowlab.command.tables import Reading, check_output

    check_output(output, [model, table, train], force, (".html",))
    fitted = _load(model)
    reading = Reading.of(options)
    test, file = reading.read_for(fitted, table)
    _print_notes(file.notes, quiet)
    shown = None if train is None else reading.read_for(fitted, train)[0]
    fitted.report(shown, test, output, title=table.stem, random_state=seed, progress=not quiet)
    _print_written(output, quiet)
    if train is None and not quiet:
        console.print("whether rows are copies of those that the model was fitted to, a page with --train says")


@app.command()
def info(model: Model, debug: Debug = False) -> None:
    """Say what a model file holds."""
    import flowlab
    from flowlab.command.about import about

    console.print(about(flowlab.load(model), model), soft_wrap=True, highlight=False, markup=False)


@app.command()
def export(
    model: Annotated[
        Path, typer.Argument(help="A model that `flowlab fit` or flowlab.save wrote.", show_default=False)
    ],
    output: Output,
    what: Annotated[
        str, typer.Option(help="log_prob (rows to nats), or sample (noise to rows; not of tables).")
    ] = "log_prob",
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write log-density or sampler of a model as an ONNX file, checked in ONNX Runtime.

    Models that `flowlab fit --members autoregressive,mixture` wrote (or other members than mixed) are exported.
    """
    import flowlab
    from flowlab.command.tables import check_output

    check_output(output, [model], force)
    loaded = flowlab.load(model)
    if isinstance(loaded, flowlab.FlowDensity) and loaded.columns_ is None:
        raise ValueError(
            f"{model} cannot be exported: ONNX has no form for categories, dates, missing cells and rules, and it was "
            "fitted to a table with such. A model of complete numbers can: fit --columns with those alone"
        )
    try:
        from flowlab.interop.onnx import export as to_onnx
    except ImportError as error:
        raise ValueError(str(error)) from error
    to_onnx(loaded, output, what)  # type: ignore[arg-type]
    _print_written(output, quiet)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path("demo"),
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Fit real tables, compare with a Gaussian, a mixture and KDE, draw pictures and write a report (a few minutes)."""
    from flowlab.demo import run

    run(output, seed, console)


def _load(path: Path) -> Any:  # FlowDensity would import scikit-learn for the annotation
    import flowlab

    model = flowlab.load(path)
    if not isinstance(model, flowlab.FlowDensity):
        raise ValueError(f"{path} holds a {type(model).__name__}: this command needs a model that `flowlab fit` wrote")
    return model


def _schema_of(said: Any, kinds: dict[str, str], names: list[str]) -> Any:
    """Combine a schema file and --dtype into the schema of the columns that are fitted; None without either."""
    if said is None:
        return {name: kind for name, kind in kinds.items() if name in names} or None
    from flowlab.tables.schema import Schema

    kept = [column for column in said if str(column.name) in names]
    for column in kept:
        column.kind = kinds.get(str(column.name), column.kind)
    return Schema(kept, said.labels)


def _print_written(path: Path, quiet: bool) -> None:
    if not quiet:
        console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)


def _print_notes(notes: list[str], quiet: bool) -> None:
    if not quiet:
        for note in notes:
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def _in_shell(text: str) -> str:
    from flowlab.command.words import in_shell

    return in_shell(text)


def _readable(error: BaseException) -> str:
    """Write an error in the words of a shell."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"there is not enough memory{f' ({error})' if str(error) else ''}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if not isinstance(error, ValueError | TypeError | OSError | RuntimeError | ArithmeticError | KeyError) or not text:
        return f"{type(error).__name__}: {text} – a fault in flowlab, which --debug shows the place of"
    return _in_shell(text)


def main() -> None:
    """Run the command line; errors become readable lines."""
    warnings.showwarning = _show_warning
    errors = Console(stderr=True)
    try:
        app()
    except KeyboardInterrupt:
        stopped = 130
    except SystemExit as stop:
        if stop.code != 130:
            raise
        stopped = 130
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        stopped = 1
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        errors.print(f"[bold red]error:[/bold red] {escape(_readable(error))}", highlight=False, soft_wrap=True)
        stopped = 1
    if stopped == 130:
        errors.print("interrupted", highlight=False)
    raise SystemExit(stopped)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one line, without its place in the code."""
    Console(stderr=True).print(f"warning: {escape(_in_shell(str(message)))}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
