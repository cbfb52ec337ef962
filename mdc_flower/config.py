"""`RunConfig` and `SiteConfig`: the only readers of Flower's run config and node config.

Configuration lives in three places. The run config is the same for everyone in a run. The node
config belongs to one site and never leaves it. Values that change from round to round are part
of the round's plan. Flower's values are int, float, bool or str, so 0 or "" means "not set".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mdc_flower.common.config_model import ConfigModel
from mdc_flower.common.launch import Ranks, Rendezvous
from mdc_flower.common.local_work import budget_of, check_work, controller_of, unit_of
from mdc_flower.common.outer_step import OuterMomentum, check_outer, outer_of
from mdc_flower.data.readers.options import AudioReading, Columns, HubReading, Reading, TextReading
from mdc_flower.data.readers.own_keys import OwnKeys
from strategies.aggregation.averaging import WEIGHTINGS
from strategies.exchange.deadline import Deadline
from strategies.exchange.messages import NUM_EXAMPLES
from strategies.exchange.metrics import TRAIN, TRAIN_METRICS, VALIDATION, Value, may_be_metric
from strategies.method.local_work import Horizon, Unit
from strategies.method.recipes import LrSchedule, PeakShape, Recipe
from strategies.method.round_plan import CycleShape

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]  # Flower's integers have 64 bits
AtLeastOne = Annotated[int, Field(ge=1)]

MAY_CHANGE = frozenset(
    {
        "num-rounds",
        "epoch-budget",
        "step-budget",
        "min-sites",
        "max-round-retries",
        "wait-for-sites-s",
        "quorum-patience-s",
        "round-deadline-s",
        "deadline-factor",
        "longest-round-s",
        "max-restarts",
        "keep-checkpoints",
        "keep-updates",
        "track",
        "data-root",
        "output-dir",
        "resume",
    }
)
"""Run config keys that may change in a resumed run: its end, waiting times, places of files.

They do not change what a site computes for a given plan.
"""

JOB_KEYS = frozenset(
    {
        "dataset",
        "data-root",
        "contract",
        "image-size",
        "audio-sample-rate",
        "audio-mels",
        "audio-seconds",
        "text-length",
        "vocabulary",
        "vocabulary-size",
        "vocabulary-min-count",
        "input-column",
        "label-column",
        "group-column",
        "hf-subset",
        "hf-test-split",
        "max-train-examples",
        "max-test-examples",
        "validation-fraction",
        "partition",
        "partition-alpha",
        "partition-shards",
        "partition-size-ratio",
        "model",
        "optimizer",
        "momentum",
        "nesterov",
        "weight-decay",
        "batch-size",
        "label-smoothing",
        "augment",
        "channels-last",
    }
)
"""Run config keys of data, model and optimizer: they mean what the job makes of them.

Those that a user's job does not read have no effect.
"""

CLASSIFICATION_JOB = "classification"
"""Value of ``job`` for the classification of the run's data set."""

AUTO_TRACK = "auto"
"""Value of ``track`` for TensorBoard event files if TensorBoard is installed."""

TRACKERS = frozenset({"tensorboard", "mlflow", "wandb"})


def _known_trackers(track: str) -> str:
    if track != AUTO_TRACK and (unknown := sorted(set(_names_in(track)) - TRACKERS)):
        raise ValueError(
            f"there is no tracker {unknown[0]!r}; use {AUTO_TRACK!r}, or any of "
            f"{', '.join(sorted(TRACKERS))}, separated by commas; empty for none"
        )
    return track


def names_a_part(exchange: str) -> str:
    """Return a value of ``exchange``; raise `ValueError` if it is empty."""
    if not _names_in(exchange):
        raise ValueError("exchange is empty; use 'all', 'trainable', or patterns of names")
    return exchange


def _names_something(keep: str) -> str:
    if keep and not _names_in(keep):
        raise ValueError("keep names nothing; use patterns of names, or '' for none")
    return keep


def _names_in(text: str) -> list[str]:
    """Return the names in a text that separates them by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


class RunConfig(ConfigModel):
    """Settings that are the same for everyone in a run.

    ``docs/configuration.md`` describes every key for users; the comments here give units.
    """

    # Data
    dataset: str = "digits"
    data_root: str = ""
    contract: str = ""  # as in `dataset`, if the coordinator has data of its own
    image_size: Count = 0  # pixels; 0 keeps the original size
    audio_sample_rate: Annotated[int, Field(ge=1000)] = 16_000  # Hz
    audio_mels: AtLeastOne = 64
    audio_seconds: Positive = 1.0
    text_length: AtLeastOne = 64  # tokens
    vocabulary: str = ""
    vocabulary_size: Annotated[int, Field(ge=0)] = 20_000  # 0 for no limit
    vocabulary_min_count: AtLeastOne = 2
    input_column: Annotated[str, Field(min_length=1)] = "text"
    label_column: Annotated[str, Field(min_length=1)] = "label"
    group_column: str = ""
    hf_subset: str = ""
    hf_test_split: Annotated[str, Field(min_length=1)] = "test"
    max_train_examples: Count = 0  # 0 for all
    max_test_examples: Count = 0
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    num_sites: Count = 0  # 0 for the number of simulated sites
    partition: Literal["iid", "dirichlet", "shards", "size-skew", "natural-id"] = "iid"
    partition_alpha: Positive = 0.3
    partition_shards: AtLeastOne = 2
    partition_size_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 10.0

    # Model and local training
    job: str = CLASSIFICATION_JOB
    model: str = "small-cnn"
    initial_model: str = ""
    exchange: Annotated[str, AfterValidator(names_a_part)] = "all"
    keep: Annotated[str, AfterValidator(_names_something)] = ""  # stays at each site
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    optimizer_state: Literal["reset", "keep"] = "reset"
    weight_decay: NotNegative = 5e-4
    batch_size: AtLeastOne = 32
    micro_batch_size: Count = 0  # examples computed at once; 0 for the whole batch
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: NotNegative = 0.0  # 0 for no clipping
    augment: Literal["none", "crop", "flip", "crop-flip"] = "none"
    precision: Literal["auto", "none", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    device: str = "auto"
    threads_per_site: AtLeastOne = 1
    ranks_per_site: AtLeastOne = 1

    # The method
    lr_max: Positive = 0.05
    lr_min_fraction: Fraction = 0.25
    lr_shape: CycleShape = "exponential"
    lr_max_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    lr_peak: PeakShape = "constant"
    epochs: Literal["ile", "fixed", "spread", "growing", "qsr"] = "ile"
    local_epochs: AtLeastOne = 5
    first_local_epochs: Annotated[float, Field(ge=0.001, allow_inf_nan=False)] = 0.1  # `growing`
    ile_epsilon: NotNegative = 0.02
    ile_max_epochs: AtLeastOne = 40
    qsr_alpha: Positive = 0.1  # unit: learning rate * sqrt(epoch), or sqrt(step)
    local_steps: Count = 0  # optimizer steps per round; 0 to count in epochs
    ile_max_steps: Count = 0  # 0 for no limit
    proximal_mu: NotNegative = 0.0
    num_rounds: Count = 0  # 0 for no limit
    epoch_budget: Count = 60  # local epochs in total; 0 for no limit
    step_budget: Count = 0  # optimizer steps in total; 0 for no limit
    weighting: Literal["examples", "uniform"] = "examples"
    max_site_weight: Annotated[float, Field(gt=0, le=1)] = (
        1.0  # share of the total weight; 1 for no cap
    )
    outer_optimizer: Literal["average", "momentum", "adam", "fedexp"] = "average"
    outer_lr: NotNegative = 0.0  # 0 for the outer optimizer's default
    outer_momentum: OuterMomentum = "auto"
    outer_nesterov: bool = False
    outer_plain_last: Count = 0  # rounds
    outer_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    outer_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    outer_epsilon: Positive = 1e-3
    average_last: Count = 0  # rounds; 0 for no average
    batch_norm: Literal["average", "recalibrate", "local"] = "average"

    # The run
    seed: Count = 1
    site_evaluation: bool = False
    max_relative_update: NotNegative = 0.0  # update norm / model norm; 0 for no limit
    min_sites: Count = 0  # 0 for more than half of the sites
    max_round_retries: Count = 2
    wait_for_sites_s: Positive = 600.0
    quorum_patience_s: Positive = 86400.0
    round_deadline_s: NotNegative = 0.0  # 0 to derive it from the sites' times
    deadline_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3.0
    longest_round_s: Positive = 86400.0
    output_dir: str = "~/mdc-runs/{run-id}"
    resume: bool = False
    max_restarts: Count = 3
    keep_checkpoints: AtLeastOne = 2
    keep_updates: bool = False
    track: Annotated[str, AfterValidator(_known_trackers)] = AUTO_TRACK

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Self:
        check_work(self)
        if self.lr_shape == "exponential" and self.lr_min_fraction == 0:
            raise ValueError("lr-shape 'exponential' needs lr-min-fraction above 0")
        if self.num_sites and self.min_sites > self.num_sites:
            raise ValueError(f"min-sites {self.min_sites} is above num-sites {self.num_sites}")
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0")
        check_outer(self)
        if self.keep and not self.site_evaluation:
            raise ValueError(
                "keep needs site-evaluation = true: only the sites have the whole models, so only "
                "they can evaluate them"
            )
        if self.keep and self.batch_norm != "average":
            raise ValueError(
                f"keep and batch-norm {self.batch_norm!r} exclude each other; to keep the "
                "statistics of BatchNorm at the sites, name them in keep"
            )
        return self

    @property
    def unit(self) -> Unit:
        """Return what the run counts its local work in: epochs, parts of an epoch, or steps."""
        return unit_of(self)

    @property
    def budget(self) -> int:
        """Return the units of work after which the run ends; 0 for no limit."""
        return budget_of(self)

    @property
    def keeps_state(self) -> bool:
        """Return whether sites keep state from round to round."""
        return bool(self.state_keys)

    @property
    def state_keys(self) -> list[str]:
        """Return the keys that let sites keep state."""
        return [
            key
            for key, is_set in (
                ("optimizer-state", self.optimizer_state == "keep"),
                ("keep", bool(self.keep)),
            )
            if is_set
        ]

    def run_dir(self, run_id: int | str) -> Path:
        """Return the run directory of the run with this id."""
        return Path(self.output_dir.replace("{run-id}", str(run_id))).expanduser()

    @property
    def lasting(self) -> dict[str, Any]:
        """Return the values that a resumed run has, too: all but those of `MAY_CHANGE`."""
        return {key: value for key, value in self.to_flower().items() if key not in MAY_CHANGE}

    @property
    def tracker_names(self) -> list[str]:
        """Return the names in ``track``."""
        return _names_in(self.track)

    def quorum(self, num_sites: int) -> int:
        """Return how many updates a round needs: ``min-sites``, or more than half of the sites."""
        return self.min_sites or num_sites // 2 + 1

    def deadline(self) -> Deadline:
        """Return the rule for round deadlines, as the strategy expects it."""
        return Deadline(self.round_deadline_s, self.deadline_factor, self.longest_round_s)

    def reading(self) -> Reading:
        """Return how files become examples, as the data set readers expect it."""
        return Reading(
            image_size=self.image_size,
            audio=AudioReading(self.audio_sample_rate, self.audio_mels, self.audio_seconds),
            text=TextReading(
                self.text_length,
                self.vocabulary,
                self.vocabulary_size,
                self.vocabulary_min_count,
            ),
            columns=Columns(self.input_column, self.label_column, self.group_column),
            hub=HubReading(self.hf_subset, self.hf_test_split),
        )

    def recipe(self) -> Recipe:
        """Return the training method, as the strategy expects it."""
        return Recipe(
            schedule=LrSchedule(
                self.lr_max, self.lr_min_fraction, self.lr_shape, self.lr_max_decay, self.lr_peak
            ),
            controller=controller_of(self),
            horizon=Horizon(self.num_rounds or None, self.budget or None),
            unit=self.unit,
            weighting=WEIGHTINGS[self.weighting],
            max_site_weight=self.max_site_weight,
            proximal_mu=self.proximal_mu,
            outer=outer_of(self),
            plain_last=self.outer_plain_last,
        )


class SiteConfig(OwnKeys):
    """Settings of a single site: its name, where its data are, and what may leave it.

    A real site sets ``site``, and ``data`` unless it uses the run's data set or has a ``command``
    of its own that trains. For the keys of its files see `OwnKeys`; ``ranks`` and the three keys
    after it are those of `mdc_flower.common.launch.Launch`. Flower sets ``partition-id`` and
    ``num-partitions`` for a simulated site.
    """

    site: str = ""
    command: str = ""
    command_folder: str = ""  # empty for the folder of the site's process
    data: str = ""
    data_root: str = ""
    vocabulary: str = ""
    device: str = ""
    threads: Count = 0  # 0 for all cores
    micro_batch_size: Count = 0  # 0 for the run's
    contract: str = ""
    min_examples: Count = 0
    max_examples: Count = 0  # 0 for no limit
    num_examples: Count = 0  # 0 if the site does not report it
    job: str = ""  # empty for the run's
    metrics: str = ""
    modules: str = "*"
    state: str = ""  # empty to keep no files
    ranks: Ranks = 1
    nodes: AtLeastOne = 1
    rendezvous: Rendezvous = ""
    shard: bool = False
    partition_id: Annotated[int, Field(ge=-1)] = -1
    num_partitions: Count = 0

    @model_validator(mode="after")
    def _names_a_site(self) -> Self:
        if not self.site and self.partition_id < 0:
            raise ValueError("a site needs a name: --node-config 'site=\"NAME\"'")
        if unknown := [name for name in self.metric_names if not may_be_metric(name)]:
            raise ValueError(
                f"metrics: there is no metric {unknown[0]!r}; a classification has "
                f"{', '.join(sorted(TRAIN_METRICS))}, other jobs name theirs {TRAIN}NAME and "
                f"{VALIDATION}NAME"
            )
        if self.partition_id >= 0 and self.partition_id >= self.num_partitions:
            raise ValueError(
                f"partition-id {self.partition_id} is not below num-partitions "
                f"{self.num_partitions}"
            )
        return self

    @model_validator(mode="after")
    def _keys_fit_the_command(self) -> Self:
        if self.command:
            if not self.site:
                raise ValueError("only a real site can have a command")
            if self.job:
                raise ValueError("job and command exclude each other: both say how a site trains")
            check_with_command(self)
        return self

    @property
    def name(self) -> str:
        """Return the site's name, which identifies it everywhere."""
        return self.site or f"site-{self.partition_id}"

    @property
    def metric_names(self) -> list[str]:
        """Return the names in ``metrics``; empty for all metrics of the job."""
        return _names_in(self.metrics)

    def shared(self, metrics: Mapping[str, Value]) -> dict[str, Value]:
        """Return the metrics that may leave the site."""
        return {name: value for name, value in metrics.items() if self.shares(name)}

    def shares(self, metric: str) -> bool:
        """Return whether the site sends a metric; it always sends the number of examples."""
        return not self.metric_names or metric in (NUM_EXAMPLES, *self.metric_names)

    def allows(self, module: str) -> bool:
        """Return whether a run may import ``module`` at this site.

        Allowing a package allows every module inside it.
        """
        named = [name.strip() for name in self.modules.split(",")]
        return any(name == "*" or f"{module}.".startswith(f"{name}.") for name in named if name)

    @property
    def is_simulated(self) -> bool:
        """Return whether Flower's simulation created this site."""
        return not self.site

    def shared_config(self) -> Self:
        """Return the config that all simulated sites share; a real site keeps its own."""
        return self.model_copy(update={"partition_id": 0}) if self.is_simulated else self


def check_with_command(site: Any) -> None:
    """Raise `ValueError` if a site with a command has settings that only other sites use.

    Parameters
    ----------
    site
        A node config, or the settings of a site in its kit.
    """
    for key in ("data", "data_root", "vocabulary", "device", "threads", "micro_batch_size"):
        if getattr(site, key):
            raise ValueError(
                f"{key.replace('_', '-')} and command exclude each other: the command reads its "
                "own data, and chooses device and batches"
            )
    launch = getattr(site, "launch", site)
    if launch.ranks != 1 or launch.nodes != 1:
        raise ValueError(
            "ranks and command exclude each other: the command starts its own processes"
        )
    if site.min_examples > 1 and not site.max_examples:
        raise ValueError("min-examples with a command needs max-examples as well")


def read_run_config(values: Mapping[str, Any]) -> RunConfig:
    """Read a run config; see `ConfigModel.read` for errors."""
    return RunConfig.read(values, "run config")


def read_site_config(values: Mapping[str, Any]) -> SiteConfig:
    """Read a node config; see `ConfigModel.read` for errors."""
    return SiteConfig.read(values, "node config")
