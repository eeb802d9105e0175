"""Arguments and options that several commands share, each with its help; light, since every command imports it."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

MOST_SEED = 2**32 - 1  # what numpy's generators take
TABLE = "A .csv, .tsv (or .csv.gz and the like) or .parquet table; - is CSV from standard input."

Input = Annotated[Path, typer.Argument(help=TABLE, show_default=False, allow_dash=True)]
Model = Annotated[Path, typer.Argument(help="A model that `flowlab fit` wrote.", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where to write.", show_default=False)]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.", min=0, max=MOST_SEED)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Force = Annotated[bool, typer.Option("--force", help="Allow an output to overwrite a file that is read.")]
SafeCsv = Annotated[
    bool, typer.Option("--safe-csv", help="Put a quote before texts that a spreadsheet would take for formulas.")
]


def _reading(text: str) -> Any:
    return typer.Option(help=text, show_default=False, rich_help_panel="How tables are read")


class ReadingOptions(NamedTuple):
    """The options that say how tables are read, as typed; `flowlab.command.tables.Reading.of` gives them meaning."""

    sep: Annotated[str | None, _reading("What stands between columns, if it is not found: ';', '|' or tab.")] = None
    decimal: Annotated[str | None, _reading("What stands before a number's fraction, if it is not found: . or ,")] = (
        None
    )
    encoding: Annotated[str | None, _reading("Encoding of the text, such as cp1252, latin-1 or utf-16.")] = None
    missing: Annotated[
        list[str] | None,
        _reading("Cells that mean that there is none, beside empty ones: --missing NA,-999; repeatable."),
    ] = None
    text: Annotated[list[str] | None, _reading("Columns whose cells stay text: --text zip,phone; repeatable.")] = None
    dtype: Annotated[
        list[str] | None,
        _reading(
            "What a column holds: COLUMN=text, number ($1,658.18, 15%), date, a format of days (%d/%m/%Y), duration, "
            "boolean, integer, continuous, categorical; repeatable, or separated by commas."
        ),
    ] = None
    exclude: Annotated[list[str] | None, _reading("Columns to leave out: --exclude id,name; repeatable.")] = None


def with_reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of `ReadingOptions` in place of its parameter of that type.

    Typer makes options of the parameters in a function's signature: the wrapper has those of the command, with one for
    each field of `ReadingOptions` where that parameter was, and calls the command with the fields put together.
    """
    hints = get_type_hints(ReadingOptions, include_extras=True)
    kind, defaults = inspect.Parameter.POSITIONAL_OR_KEYWORD, ReadingOptions._field_defaults
    fields = [inspect.Parameter(name, kind, default=defaults[name], annotation=hints[name]) for name in hints]
    signature = inspect.signature(command)
    [taken] = [name for name, parameter in signature.parameters.items() if parameter.annotation is ReadingOptions]
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        parameters += fields if name == taken else [parameter]

    @wraps(command)
    def wrapper(**given: Any) -> None:
        command(**{taken: ReadingOptions(**{name: given.pop(name) for name in hints})}, **given)

    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapper
