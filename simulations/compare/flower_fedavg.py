"""The FedAvg class of Flower on the sites of a comparison: a baseline from outside this project.

Its sites are a plain ClientApp that trains with the same loop. Coordinator and sites share this
process, as in other federated arms.
"""

import logging
import time

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from mdc_flower.common.seeded import seeded
from mdc_flower.config import RunConfig
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.initial_model import initialized
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.training.loop import train
from mdc_flower.training.numerics import repeatable
from simulations.compare.baselines import evaluated, metrics_of
from simulations.compare.course import simulated_sites
from simulations.compare.rounds import certain_rounds
from simulations.results.outcome import Outcome, Point
from strategies.common.errors import ConfigError, RunError
from strategies.common.seeds import derive_seed
from strategies.exchange.messages import ARRAYS, DEADLINE, METRICS, NUM_EXAMPLES, ORDERS
from strategies.exchange.records import records_of

ROUND = "server-round"
"""The name that Flower's FedAvg gives to the number of a round."""

AS_FLOWER_DOES = {
    "exchange": "all",
    "keep": "",
    "optimizer-state": "reset",
    "ranks-per-site": 1,
    "weighting": "examples",
    "max-site-weight": 1.0,
    "outer-optimizer": "average",
    "average-last": 0,
    "batch-norm": "average",
}
"""Run-config keys that this baseline does not read, with the values that describe it."""

LENGTHS_KNOWN = ("spread", "fixed", "qsr")
"""Values of ``epochs`` with which the number of a round says how long it is."""


def check_flowers_fedavg(config: RunConfig, where: str) -> None:
    """Check that a config asks for what the FedAvg class of Flower does.

    Parameters
    ----------
    where
        The name of the arm, for the error message.

    Raises
    ------
    ConfigError
        Naming the first key that it does not follow.
    """
    values = config.to_flower()
    for key, value in AS_FLOWER_DOES.items():
        if values[key] != value:
            raise ConfigError(
                "the FedAvg of Flower does not follow this key",
                where=f"{where}, {key}",
                got=values[key],
                expected=repr(value),
                hint="Set it in the file of this arm",
            )
    if config.epochs not in LENGTHS_KNOWN:
        raise ConfigError(
            "the length of each round must be known before, because the FedAvg of Flower tells no "
            "site what the rounds before have shown",
            where=f"{where}, epochs",
            got=config.epochs,
            expected="one of: " + ", ".join(LENGTHS_KNOWN),
        )


def train_with_flowers_fedavg(config: RunConfig) -> Outcome:
    """Train a global model with the FedAvg class of Flower, one site after the other.

    Parameters
    ----------
    config
        The rule for the length of the rounds must not depend on the model, because the plan of a
        round follows from its number alone.

    Raises
    ------
    Exception
        The error of a site, which Flower's class would only log.
    """
    federation = _Federation(config)
    client, server = ClientApp(), ServerApp()
    client.train()(federation.train_at_site)
    server.main()(federation.lead)
    # Flower's class draws the order of the sites, and so of the sums, from the global generator.
    with (
        seeded(derive_seed(config.seed, "order of sites")),
        repeatable(config.threads_per_site, federation.task.device),
    ):
        run_in_process(config, config.num_sites, server, client)
    return Outcome(federation.points)


class _Federation:
    """Coordinator and sites of one run, with what they have done so far."""

    def __init__(self, config: RunConfig) -> None:
        self.started = time.monotonic()
        self.config = config
        self.recipe = config.recipe()
        self.rounds = list(certain_rounds(config))
        self.task = load_run_task(config)
        self.held = self.task.coordinator_job(config.num_sites)
        self.sites = simulated_sites(config)
        self.points: list[Point] = []
        self.errors: list[Exception] = []
        self.sent_bytes = self.received_bytes = self.steps = self.examples = 0
        self.of_this_round: list[int] = []

    def lead(self, grid: Grid, context: Context) -> None:
        """Run all rounds: the ServerApp."""
        # The class warns that sites do not evaluate; the engine resets the level afterwards.
        logging.getLogger("flwr").setLevel(logging.ERROR)
        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_train_nodes=self.config.num_sites,
            min_available_nodes=self.config.num_sites,
            configrecord_key=ORDERS,
        )
        strategy.start(
            grid,
            ArrayRecord(initialized(self.held.model(), self.config).state_dict()),
            len(self.rounds),
            train_config=ConfigRecord({DEADLINE: self.config.longest_round_s}),
            evaluate_fn=self.after_round,
        )

    def train_at_site(self, message: Message, context: Context) -> Message:
        """Train for one round: the ClientApp."""
        try:
            number = int(str(context.node_config["partition-id"]))
            return Message(self._trained(message.content, number), reply_to=message)
        except Exception as error:
            self.errors.append(error)
            raise

    def _trained(self, content: RecordDict, number: int) -> RecordDict:
        (arrays,) = records_of(content, ArrayRecord).values()
        orders = records_of(content, ConfigRecord)[ORDERS]
        plan = self.recipe.plan(self.rounds[int(str(orders[ROUND])) - 1], self.config.seed)
        task, site = self.task, self.sites[number]
        job = task.site_job(site)
        model = job.model()
        model.load_state_dict(arrays.to_torch_state_dict())
        result = train(model, job, plan, task.settings, task.device, site.name)
        trained = ArrayRecord(model.cpu().state_dict())
        self.sent_bytes += arrays.count_bytes()
        self.received_bytes += trained.count_bytes()
        self.of_this_round.append(result.num_steps)
        if plan.local_epochs:
            self.examples += plan.local_epochs * result.num_examples
        else:
            self.examples += result.num_steps * self.config.batch_size
        metrics = MetricRecord({NUM_EXAMPLES: result.num_examples})
        return RecordDict({ARRAYS: trained, METRICS: metrics})

    def after_round(self, number: int, arrays: ArrayRecord) -> None:
        """Evaluate a global model at the coordinator; number 0 is the initial one."""
        if self.errors:
            raise self.errors[0]
        if not number:
            return
        if len(self.of_this_round) < self.config.num_sites:
            raise RunError(
                "not all sites trained in a round of the FedAvg of Flower",
                where=f"round {number}",
                got=len(self.of_this_round),
                expected=str(self.config.num_sites),
                hint="The sites train one after the other: longest-round-s must be long enough",
            )
        state = self.rounds[number - 1]
        length = self.recipe.length(state)
        self.steps += max(self.of_this_round)
        self.of_this_round.clear()
        metrics = self._evaluated(arrays)
        self.points.append(
            Point(
                round=number,
                exchanges=number,
                epochs=state.used + length,
                local_epochs=length,
                lr_max=self.recipe.plan(state, self.config.seed).lr_max,
                relative_change=None,
                validation=metrics.get("validation", {}),
                test=metrics.get("test", {}),
                sent_bytes=self.sent_bytes,
                received_bytes=self.received_bytes,
                seconds=time.monotonic() - self.started,
                steps=self.steps,
                examples=self.examples,
            )
        )

    def _evaluated(self, arrays: ArrayRecord) -> dict[str, dict[str, float]]:
        model = self.held.model()
        model.load_state_dict(arrays.to_torch_state_dict())
        results = evaluated(self.task, self.held, model)
        return {split: metrics_of(result) for split, result in results.items()}
