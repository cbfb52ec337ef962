"""The commands for real sites: ``mdc provision``, ``mdc coordinator ...``, ``mdc site ...``."""

from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from mdc_flower.cli.launching import read_config, resumed_config, run_supervised
from mdc_flower.cli.shared import (
    Arm,
    Output,
    Resume,
    Seed,
    Settings,
    app,
    console,
    errors,
    with_exit_status,
)
from mdc_flower.common.config_model import Scalar
from mdc_flower.data.readers.options import Columns, HubReading, Reading

coordinator = typer.Typer(
    help="Coordinate a federation of real sites.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
site = typer.Typer(
    help="Take part in a federation.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(coordinator, name="coordinator")
app.add_typer(site, name="site")

Kit = Annotated[Path, typer.Argument(help="Kit folder.")]
Data = Annotated[str, typer.Option(help="Data set; by default, the one named in the kit.")]
Command = Annotated[
    str, typer.Option(help="Command that trains with its own data; by default, the kit's.")
]
DataRoot = Annotated[str, typer.Option(help="Folder of the built-in data sets.")]
READING = Reading()


@app.command()
def provision(
    federation: Annotated[
        Path, typer.Argument(help="TOML file that describes the sites, addresses and data.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the kits.")],
    renew: Annotated[
        list[str] | None, typer.Option(help="Site, or `coordinator`, that gets a new key.")
    ] = None,
    revoke: Annotated[list[str] | None, typer.Option(help="Site whose key to revoke.")] = None,
) -> None:
    """Make certificates, keys and a kit for the coordinator and each site."""

    def work() -> None:
        from mdc_flower.deployment.kits.provision import provision as make
        from mdc_flower.deployment.kits.spec import read_federation

        spec = read_federation(federation)
        for line in make(spec, federation, output, renew or [], revoke or []):
            console.print(line, highlight=False, markup=False)

    with_exit_status(work)


@coordinator.command("start")
def start_coordinator(
    kit: Kit,
    install_dependencies: Annotated[
        bool, typer.Option(help="Let Flower install the dependencies of each run's app.")
    ] = False,
) -> None:
    """Run the federation's SuperLink in the foreground."""

    def work() -> None:
        from mdc_flower.deployment.coordinator.coordinator import start
        from mdc_flower.deployment.kits.kits import read_coordinator_kit

        start(read_coordinator_kit(kit), install_dependencies, _tell)

    with_exit_status(work)


@coordinator.command("status")
def coordinator_status(kit: Kit) -> None:
    """Show each site's status, since when, its version and its last round."""

    def work() -> None:
        from rich.table import Table

        from mdc_flower.deployment.coordinator.coordinator import last_run, status
        from mdc_flower.deployment.kits.kits import read_coordinator_kit

        read = read_coordinator_kit(kit)
        table = Table("site", "status", "since (UTC)", "version", "last round")
        for one in status(read):
            round_text = str(one.last_round) if one.last_round else "-"
            table.add_row(
                one.node.name,
                one.node.status,
                one.node.since or "-",
                one.version or "-",
                round_text,
            )
        console.print(table)
        console.print(f"last run: {last_run(read) or 'none'}", highlight=False, markup=False)

    with_exit_status(work)


@coordinator.command("run")
def run_on_coordinator(
    kit: Kit,
    arm: Arm = None,
    set_: Settings = None,
    seed: Seed = None,
    output: Output = None,
    resume: Resume = None,
) -> None:
    """Train across the federation's sites.

    Exit status: 0 finished, 1 failed, 2 bad input, 3 too few sites, 130 interrupted.
    """
    options: dict[str, Scalar | None] = {
        "seed": seed,
        "output-dir": str(output.expanduser().absolute()) if output else None,
    }

    def work() -> None:
        from mdc_flower.deployment.coordinator.coordinator import (
            one_run,
            run_defaults,
            run_on_sites,
        )
        from mdc_flower.deployment.kits.kits import read_coordinator_kit
        from mdc_flower.jobs.run_task import load_run_task
        from strategies.common.errors import ConfigError
        from strategies.storage.run_directory import refuse_used

        read = read_coordinator_kit(kit)
        if resume is None:
            config = read_config(arm, set_ or [], options, run_defaults(read))
        else:
            config = resumed_config(resume, arm, set_ or [], options)
        load_run_task(config).check_model()
        run_dir = Path(config.output_dir)
        if not config.resume:
            refuse_used(run_dir, ConfigError, "--output")
        with one_run(read, run_dir):
            run_supervised(
                config,
                lambda config: run_on_sites(read, config, _tell),
                f"mdc coordinator run {quote(str(kit))}",
                console,
                errors,
            )

    with_exit_status(work)


@coordinator.command("merge-counts")
def merge_counts(
    counts: Annotated[list[Path], typer.Argument(help="CSV files with the sites' token counts.")],
    output: Annotated[Path, typer.Option(help="Vocabulary file to write.")],
    size: Annotated[
        int, typer.Option(min=0, help="Maximum number of tokens; 0 for all.")
    ] = READING.text.vocabulary_size,
    min_count: Annotated[
        int, typer.Option(min=1, help="Leave out tokens with a lower total count.")
    ] = READING.text.min_count,
) -> None:
    """Merge the sites' token counts into one vocabulary; print its keys for the contract."""

    def work() -> None:
        from mdc_flower.data.readers.make_vocabulary import write_vocabulary
        from mdc_flower.data.readers.token_counts import read_all_counts

        _check_output(output)
        made = write_vocabulary(output, read_all_counts(counts), size, min_count)
        console.print(made.contract_keys, highlight=False, markup=False)

    with_exit_status(work)


@site.command("count-tokens")
def count_tokens(
    data: Annotated[str, typer.Argument(help="Data set: text-folder:/abs/path or hf:NAME.")],
    output: Annotated[
        Path, typer.Option(help="CSV file to write. Read it before you send it to the coordinator.")
    ],
    data_root: Annotated[str, typer.Option(help="Folder that relative paths start from.")] = "",
    min_count: Annotated[
        int, typer.Option(min=1, help="Leave out tokens with a lower count at this site.")
    ] = READING.text.min_count,
    input_column: Annotated[
        str, typer.Option(help="Column that holds the texts.")
    ] = READING.columns.inputs,
    hf_subset: Annotated[str, typer.Option(help="Subset of a Hugging Face data set.")] = "",
) -> None:
    """Count the tokens of this site's training texts, for a vocabulary that all sites share."""

    def work() -> None:
        from mdc_flower.deployment.site.tokens import count_site_tokens

        _check_output(output)
        reading = Reading(columns=Columns(input_column), hub=HubReading(hf_subset))
        for line in count_site_tokens(data, data_root, reading, min_count, output):
            console.print(line, highlight=False, markup=False)

    with_exit_status(work)


@site.command("check")
def check_site(kit: Kit, data: Data = "", data_root: DataRoot = "", command: Command = "") -> None:
    """Check data, machine, network, certificate and key before the site joins."""

    def work() -> None:
        from mdc_flower.console.checks import show
        from mdc_flower.deployment.kits.kits import read_site_kit
        from mdc_flower.deployment.site.check import check_site as checks

        read = read_site_kit(kit).with_data(data, data_root, command)
        show(checks(read, with_page=True), console, f"mdc site check {kit}")

    with_exit_status(work)


@site.command("start")
def start_site(
    kit: Kit,
    data: Data = "",
    data_root: DataRoot = "",
    command: Command = "",
    node_rank: Annotated[
        int,
        typer.Option(min=0, help="Number of this machine, if the site's processes run on several."),
    ] = 0,
) -> None:
    """Run the checks, then take part until stopped; print each event."""

    def work() -> None:
        from mdc_flower.console.checks import show
        from mdc_flower.deployment.kits.kits import read_site_kit
        from mdc_flower.deployment.site.check import check_site as checks
        from mdc_flower.deployment.site.site import (
            only_one,
            start,
            start_ranks,
            wait_until_offline,
        )

        read = read_site_kit(kit).with_data(data, data_root, command)
        if node_rank:
            start_ranks(read, node_rank, _tell)
        with only_one(read):
            wait_until_offline(read, _tell)
            counts: list[int] = []
            counted = checks(read, counts.append)
            show(counted, console, f"mdc site start {kit}")
            start(read, _tell, *counts)

    with_exit_status(work)


def _check_output(output: Path) -> None:
    """Refuse an output path that cannot be written, before the slow work starts."""
    from strategies.common.errors import ConfigError

    if not output.absolute().parent.is_dir() or output.is_dir():
        raise ConfigError(
            "there is no such folder" if not output.is_dir() else "this is a folder",
            where="--output",
            got=str(output),
            expected="a file in an existing folder",
        )


def _tell(line: str) -> None:
    now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    console.print(f"{now}  {line}", highlight=False, markup=False)
