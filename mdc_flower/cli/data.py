"""The commands for data: ``mdc data check``."""

from pathlib import Path
from typing import Annotated

import typer

from mdc_flower.cli.shared import Settings, app, console, with_exit_status

data = typer.Typer(
    help="Look at data before you train on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data, name="data")


@data.command("check")
def check(
    spec: Annotated[
        str, typer.Argument(help="Data set, as in `dataset`: image-folder:/abs/path, for example.")
    ],
    contract: Annotated[
        Path | None, typer.Option(help="TOML file with the table [contract] of a federation.")
    ] = None,
    data_root: Annotated[str, typer.Option(help="Folder that relative paths start from.")] = "",
    set_: Settings = None,
    output: Annotated[
        Path, typer.Option(help="HTML page to write; it shows examples of the data.")
    ] = Path("data-check.html"),
) -> None:
    """Look at all of a data set at once: what is wrong, what is there, and some examples.

    Example: mdc data check image-folder:/data/scans --set image-size=64

    Exit status: 0 no problem, 2 problems.
    """

    def work() -> None:
        from mdc_flower.common.config_files import parse_setting
        from mdc_flower.config import read_run_config
        from mdc_flower.data.contract import read_contract
        from mdc_flower.data.survey import survey
        from mdc_flower.reports.data_page import data_page
        from strategies.common.errors import DataError
        from strategies.common.files import write_atomically

        reading = read_run_config(dict(parse_setting(text) for text in set_ or [])).reading()
        if contract is not None:
            reading = read_contract(contract).reading(reading)
        findings = survey(spec, data_root, reading)
        write_atomically(output.absolute(), data_page(spec, findings).encode())
        for line in findings.lines():
            console.print(line, markup=False, highlight=False)
        console.print(f"page: {output}", markup=False, highlight=False)
        if count := len(findings.problems):
            raise DataError(f"{count} problem{'s' if count > 1 else ''}", where=spec)

    with_exit_status(work)
