"""Arms: one arm is one way to train, given by run-config keys and an ``[arm]`` table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mdc_flower.common.config_files import read_arm
from mdc_flower.common.config_model import Scalar
from mdc_flower.config import RunConfig, read_run_config
from strategies.common.errors import ConfigError

ARMS_DIR = Path(__file__).parents[1] / "arms"

Kind = Literal["federated", "flower-fedavg", "centralized", "one-site", "ensemble"]

Protocol = Literal["equal-passes", "equal-steps", "equal-time", "centralized-steps"]
"""What centralized training and the sites have in common, beside data, model and first weights."""

PROTOCOLS: Mapping[Kind, tuple[Protocol, ...]] = {
    "centralized": ("equal-passes", "equal-steps", "equal-time"),
    "federated": ("equal-passes", "centralized-steps"),
}
"""Protocols of the kinds of arm that have more than equal passes."""


class ArmTable(BaseModel):
    """The ``[arm]`` table of an arm file.

    Attributes
    ----------
    name : str
        Name in tables and plots; the file name if empty.
    kind : str
        ``federated``; ``flower-fedavg``: the same sites, coordinated by the FedAvg class of
        Flower; ``centralized``: one model on the pooled data; ``one-site``: site-0 alone on
        its own data; ``ensemble``: every site alone on its own data, with the models'
        predicted probabilities averaged.
    protocol : str
        ``equal-passes``: batches as large as at a site, so centralized training makes ``num-sites``
        times the steps of a site. For ``centralized``, also ``equal-steps``: as many passes and as
        many steps as a site, with batches that are ``num-sites`` times as large, which is averaging
        after every step; ``equal-time``: batches and steps of a site, so ``1 / num-sites`` of the
        passes. For ``federated``, also ``centralized-steps``: ``num-sites`` times the passes, so
        each site makes as many steps as centralized training with equal passes.
    rounds_of : str
        File name of another arm; this arm runs as many rounds as that one did with the same seed.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-")
    )

    name: str = ""
    kind: Kind = "federated"
    protocol: Protocol = "equal-passes"
    rounds_of: str = ""

    @model_validator(mode="after")
    def _protocol_is_of_the_kind(self) -> Self:
        known = PROTOCOLS.get(self.kind, ("equal-passes",))
        if self.protocol not in known:
            raise ValueError(
                f"an arm of kind {self.kind!r} has one of the protocols {', '.join(known)}"
            )
        return self

    @property
    def trains(self) -> str:
        """Return kind and protocol in one word, for the description of a job."""
        return self.kind if self.protocol == "equal-passes" else f"{self.kind}, {self.protocol}"


class Arm(BaseModel):
    """One arm: its file name, its ``[arm]`` table and the run-config keys it sets."""

    model_config = ConfigDict(frozen=True)

    key: str
    table: ArmTable
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the name used in tables and plots."""
        return self.table.name or self.key

    def config(self, shared: Mapping[str, Scalar], **more: Scalar) -> RunConfig:
        """Return the run config: ``shared``, overridden by the arm's keys, then by ``more``.

        In the protocol ``centralized-steps``, the budgets are then those of all arms times
        ``num-sites``.
        """
        extra = {key.replace("_", "-"): value for key, value in more.items()}
        config = read_run_config({**shared, **self.values, **extra})
        times = self.budgets_of(config)
        if times == 1:
            return config
        budgets = {key: times * getattr(config, key) for key in ("epoch_budget", "step_budget")}
        return config.model_copy(update=budgets)

    def budgets_of(self, config: RunConfig) -> int:
        """Return how many times the budget of the comparison the arm uses."""
        return config.num_sites if self.table.protocol == "centralized-steps" else 1


def load_arm(reference: str, folder: Path, overrides: Mapping[str, Any]) -> Arm:
    """Load an arm, given the name of a file in `ARMS_DIR` or a path relative to ``folder``.

    Raises
    ------
    ConfigError
        If the arm does not exist, its table is invalid, or it sets an unknown key.
    """
    path = _arm_path(reference, folder)
    values, table = read_arm(path)
    try:
        parsed = ArmTable.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            first["msg"],
            where=f"{path}, [arm], {'.'.join(str(part) for part in first['loc'])}".rstrip(", "),
            got=first["input"],
        ) from None
    RunConfig.check_keys(values, str(path))
    return Arm(key=path.stem, table=parsed, values={**values, **overrides})


def _arm_path(reference: str, folder: Path) -> Path:
    for path in (ARMS_DIR / f"{reference}.toml", folder / reference):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in ARMS_DIR.glob("*.toml")))
    raise ConfigError(
        "no such arm",
        where="arms",
        got=reference,
        expected=f"one of: {known}; or the path of a TOML file",
    )
