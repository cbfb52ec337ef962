"""``federation.toml``: the sites, the contract of the data, and the coordinator's address.

The organizer writes it; `mdc_flower.deployment.kits.provision` creates kits from it.
"""

import difflib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from mdc_flower.common.config_files import read_toml
from mdc_flower.common.config_model import ConfigModel
from mdc_flower.common.launch import Launch
from mdc_flower.config import check_with_command, names_a_part
from mdc_flower.data.contract import Contract
from mdc_flower.data.readers.own_keys import OwnKeys
from strategies.common.errors import ConfigError
from strategies.exchange.messages import NUM_EXAMPLES, NUM_VALIDATION
from strategies.exchange.metrics import TRAIN_METRICS, VALIDATION, may_be_metric

COORDINATOR, AUTHORITY = "coordinator", "authority"
RESERVED_NAMES = frozenset({COORDINATOR, AUTHORITY})
"""Names of folders beside the sites' kits, which no site can have."""

ALL_METRICS = tuple(sorted(TRAIN_METRICS))
"""The metrics that a site shares by default."""

_FEDERATION_NAME = re.compile(r"[A-Za-z0-9-]{1,32}")
# The rule for the first character excludes hidden files, options, "." and "..".
_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DNS_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")


def _federation_name(name: str) -> str:
    if not _FEDERATION_NAME.fullmatch(name):
        raise ValueError("must be 1 to 32 letters, digits and hyphens")
    return name


def _site_name(name: str) -> str:
    if not _SITE_NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 64 letters, digits, '-', '_' and '.', and begin with a letter or digit"
        )
    if name.lower() in RESERVED_NAMES:
        raise ValueError("is reserved for a folder beside the sites' kits; choose another name")
    if name.lower().endswith((".zip", ".sha256")):  # could be a file beside another site's kit
        raise ValueError("must not end in .zip or .sha256")
    return name


def _host(host: str) -> str:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        is_name = all(_DNS_LABEL.fullmatch(label) for label in labels) and len(host) <= 253
        # A host name never ends in a number: 10.0.0.256 is a mistyped address.
        if not is_name or labels[-1].isdigit():
            raise ValueError("must be a host name or an IP address, without a port") from None
    else:
        if "%" in host:
            raise ValueError("must not contain a zone, which is valid on one machine only")
    return host


def _line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line of printable characters")
    return text


def _metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not may_be_metric(name):
            raise ValueError(_unknown_metric(name))
    if len(set(names)) != len(names):
        raise ValueError("must not contain a metric twice")
    if NUM_EXAMPLES not in names:
        raise ValueError(f"must contain {NUM_EXAMPLES!r}, the weight of an update")
    validated = any(name.startswith(VALIDATION) for name in names)
    if validated and NUM_VALIDATION not in names:
        raise ValueError(
            f"must contain {NUM_VALIDATION!r}; otherwise the other validation metrics are ignored"
        )
    return names


def _kit_metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    return _metrics(names) if names else names


def _unknown_metric(name: str) -> str:
    near = difflib.get_close_matches(name, ALL_METRICS, n=1)
    known = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(ALL_METRICS)}"
    return f"{name!r} is not a metric of a site. {known}"


FederationName = Annotated[str, AfterValidator(_federation_name)]
SiteName = Annotated[str, AfterValidator(_site_name)]
Host = Annotated[str, AfterValidator(_host)]
Line = Annotated[str, AfterValidator(_line)]
Port = Annotated[int, Field(ge=1, le=65535)]
Metrics = Annotated[tuple[str, ...], AfterValidator(_metrics)]
KitMetrics = Annotated[tuple[str, ...], AfterValidator(_kit_metrics)]
"""In a kit, no metrics mean all that the federation's job lets leave a site."""

Module = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
Job = Annotated[str, Field(pattern=r"^([A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)?$")]
Exchange = Annotated[str, AfterValidator(names_a_part)]
Base = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Share = Annotated[float, Field(gt=0, le=1)]
Days = Annotated[int, Field(ge=1, le=36500)]


class SiteSettings(OwnKeys):
    """Settings that the organizer and one site have agreed on; they are also in the site's kit.

    For the keys of its files see `OwnKeys`.

    Attributes
    ----------
    contact : str
        Person to contact when the site is missing; not used by the software.
    command : str
        As in `mdc_flower.config.SiteConfig`: the command that trains, in place of our own loop;
        empty if there is none, or if the site sets it when it starts.
    data, data_root, vocabulary, device : str
        As in `mdc_flower.config.SiteConfig`; empty if the site sets them when it starts. The path
        of the vocabulary may be relative to the kit's folder.
    threads : int
        CPU threads of the site; 0 for all cores of its machine.
    micro_batch_size : int
        Largest number of examples that the site computes at once; 0 for the run's.
    min_examples : int
        Minimum number of training examples that the site has promised.
    max_examples : int
        Maximum number of training examples that the site may have; 0 for no limit.
    metrics : tuple of str
        Metrics that leave the site together with its model.
    modules : tuple of str
        Modules at the site that a run may name as ``module:function``; none by default.
    launch : Launch
        With how many processes, and on how many machines, the site trains.
    partition_id, num_partitions : int
        Part of a public data set, to try out a federation on one machine; -1 and 0 at a real site.
    """

    contact: Line = ""
    command: Line = ""
    data: Line = ""
    data_root: Line = ""
    vocabulary: Line = ""
    device: Line = ""
    threads: Annotated[int, Field(ge=0)] = 0
    micro_batch_size: Annotated[int, Field(ge=0)] = 0
    min_examples: Annotated[int, Field(ge=1)] = 1
    max_examples: Annotated[int, Field(ge=0)] = 0
    metrics: Metrics = ALL_METRICS
    modules: tuple[Module, ...] = ()
    launch: Launch = Launch()
    partition_id: Annotated[int, Field(ge=-1)] = -1
    num_partitions: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _bounds_fit_together(self) -> Self:
        if 0 < self.max_examples < self.min_examples:
            raise ValueError(
                f"max-examples {self.max_examples} is below min-examples {self.min_examples}"
            )
        return self

    @model_validator(mode="after")
    def _keys_fit_the_command(self) -> Self:
        if self.command:
            check_with_command(self)
        return self

    @model_validator(mode="after")
    def _partition_is_there(self) -> Self:
        is_part = 0 <= self.partition_id < self.num_partitions
        is_whole = (self.partition_id, self.num_partitions) == (-1, 0)
        if not (is_part or is_whole):
            raise ValueError(
                f"partition-id {self.partition_id} is not one of num-partitions "
                f"{self.num_partitions}, counted from 0"
            )
        return self


class SiteSpec(SiteSettings):
    """One ``[[site]]``: its name and its settings."""

    name: SiteName


class CoordinatorSpec(ConfigModel):
    """``[coordinator]``: the data on which the coordinator tests the global model, if any."""

    data: Line = ""
    data_root: Line = ""


class FederationSpec(ConfigModel):
    """``federation.toml``.

    Attributes
    ----------
    name : str
        The federation's name; part of its certificates.
    host, port : str, int
        Address at which the sites reach the coordinator.
    hosts : tuple of str
        Further names and addresses of the coordinator, for its certificate.
    listen : str
        Local address that the coordinator binds.
    ca_days, certificate_days : int
        Validity of the authority's and of the coordinator's certificate, in days.
    max_site_weight : float
        Maximum share of one site in the sum of the weights of a run; 1 for no limit.
    contract : Contract or None
        Contract of the data of a classification.
    job : str
        The sites' job, ``module:function``, in place of a classification; the federation has either
        a contract or a job. Every site allows this module.
    exchange, keep : str
        As in the run config; only with a job.
    base : str
        SHA-256, in hex, of the arrays that are not exchanged, which every site's check compares;
        empty to leave it to the run.
    coordinator : CoordinatorSpec
        Settings of the coordinator only.
    site : tuple of SiteSpec
        The sites, in the order of the file.
    """

    name: FederationName
    host: Host
    port: Port = 8443
    hosts: tuple[Host, ...] = ()
    listen: Host = "0.0.0.0"
    ca_days: Days = 3650
    certificate_days: Days = 365
    max_site_weight: Share = 1.0
    contract: Contract | None = None
    job: Job = ""
    exchange: Exchange = "all"
    keep: Line = ""
    base: Base = ""
    coordinator: CoordinatorSpec = CoordinatorSpec()
    site: Annotated[tuple[SiteSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _site_names_differ(self) -> Self:
        seen: dict[str, str] = {}
        for site in self.site:
            # Kits are folders, and some file systems do not distinguish Berlin from berlin.
            other = seen.setdefault(site.name.lower(), site.name)
            if other is not site.name:
                raise ValueError(f"two sites have the same name: {other!r} and {site.name!r}")
        return self

    @model_validator(mode="after")
    def _has_contract_or_job(self) -> Self:
        if (self.contract is None) == (not self.job):
            raise ValueError(
                "a federation has either a table [contract], for a classification, or a key job"
            )
        if self.exchange != "all" and not self.job:
            raise ValueError("exchange needs a job; in a classification, set it for the run")
        if self.keep and not self.job:
            raise ValueError("keep needs a job; in a classification, set it for the run")
        if self.base and self.exchange == "all":
            raise ValueError("base needs an exchange other than 'all'")
        return self

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """Return all names and addresses for the coordinator's certificate."""
        # The coordinator's machine uses the bound address, unless it is a wildcard.
        bound = () if self.listen in ("0.0.0.0", "::") else (self.listen,)
        return (self.host, *self.hosts, *bound, "localhost", "127.0.0.1", "::1")


def read_federation(path: Path) -> FederationSpec:
    """Read ``federation.toml``.

    Raises
    ------
    ConfigError
        If the file is missing, is not TOML, or a key or value is not usable; see
        `ConfigModel.read`.
    """
    values = read_toml(path)
    home = str(path)
    name = values.get("name")
    # The contract takes the federation's name by default. If that is missing, report it first.
    if isinstance(values.get("contract"), dict) and isinstance(name, str) and name:
        named = {"name": name, **values["contract"]}
        values["contract"] = Contract.read(named, f"{home}, [contract]")
    if isinstance(values.get("coordinator"), dict):
        values["coordinator"] = CoordinatorSpec.read(
            values["coordinator"], f"{home}, [coordinator]"
        )
    if "site" in values:
        values["site"] = _read_sites(values["site"], home, bool(values.get("job")))
    return FederationSpec.read(values, home)


def _read_sites(tables: Any, home: str, own_job: bool) -> list[SiteSpec]:
    """Read the sites; those of a classification have no other metrics than its own."""
    if not (isinstance(tables, list) and all(isinstance(table, Mapping) for table in tables)):
        raise ConfigError(
            "the sites are not a list of tables", where=f"{home}, site", expected="[[site]]"
        )
    sites = []
    for number, table in enumerate(tables, 1):
        where = f"{home}, site {number}"
        site = SiteSpec.read(table, where)
        unknown = [] if own_job else [name for name in site.metrics if name not in TRAIN_METRICS]
        if unknown:
            raise ConfigError(_unknown_metric(unknown[0]), where=f"{where}, metrics")
        sites.append(site)
    return sites
