"""How a site with a command answers messages: without PyTorch, and without reading data itself."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, MessageType, RecordDict

from mdc_flower import __version__
from mdc_flower.config import RunConfig, SiteConfig
from mdc_flower.console.site_log import site_event
from mdc_flower.site.own_loop.asking import ask, check_command, working_folder
from mdc_flower.site.own_loop.protocol import EVALUATE, TRAIN
from mdc_flower.site.own_loop.request import Arrays
from mdc_flower.site.own_loop.result import read_trained
from mdc_flower.site.round_files import RoundFiles, round_key
from strategies.common.errors import ConfigError, DataError
from strategies.common.fault_points import reach
from strategies.exchange.messages import (
    ARRAYS,
    NUM_EXAMPLES,
    NUM_VALIDATION,
    PLAN,
    STATISTICS,
    SiteCard,
    deadline_of,
    evaluate_reply_content,
    moved_to_record,
    shortened,
    train_reply_content,
    wants_evaluation,
)
from strategies.exchange.metrics import Value
from strategies.exchange.records import record_views, records_of
from strategies.method.round_plan import RoundPlan


def _hello(content: RecordDict, config: RunConfig, site: SiteConfig) -> RecordDict:
    """Return the site's card; what the command computes on is not known here."""
    _check_config(config)
    check_command(site.command, working_folder(site))
    site_event("hello", site=site.name)
    # The largest number of examples that was agreed, so that the coordinator accepts no more.
    return SiteCard(
        site.name, site.num_partitions, __version__, num_examples=site.max_examples
    ).to_content()


def _train(content: RecordDict, config: RunConfig, site: SiteConfig) -> RecordDict:
    """Let the command train the model in the message; first evaluate it, if the message says so."""
    arrived = time.monotonic()
    _check_config(config)
    plan = RoundPlan.from_config_record(records_of(content, ConfigRecord)[PLAN])
    stop_at = arrived + deadline_of(content)
    reach("training", round=plan.round, site=site.name)
    files = _round_files(content, config, site)
    if files is not None and (kept := files.reply()):
        site_event("sent-again", round=plan.round)
        return shortened(kept)
    arrays = record_views(records_of(content, ArrayRecord)[ARRAYS])
    where = f"site {site.name!r}, round {plan.round}"
    validated = _validate(site, arrays, stop_at, where) if wants_evaluation(content) else {}
    site_event("command-training", **plan.model_dump())
    started = time.monotonic()
    folder, result = ask(site, TRAIN, arrays, plan, stop_at, where)
    trained = read_trained(folder, site.name, arrays)
    metrics: dict[str, Value] = {
        **result.metrics,
        "train-seconds": time.monotonic() - started,
        NUM_EXAMPLES: _agreed(result.num_examples, site),
        **validated,
    }
    site_event("command-trained", round=plan.round, **metrics)
    reply = train_reply_content(moved_to_record(trained), site.shared(metrics), plan.plan_id)
    if files is not None:
        files.keep_reply(reply, plan.plan_id)
    return reply


def _evaluate(content: RecordDict, config: RunConfig, site: SiteConfig) -> RecordDict:
    """Let the command evaluate the model in the message."""
    arrays = record_views(records_of(content, ArrayRecord)[ARRAYS])
    validated = _validate(site, arrays, math.inf, f"site {site.name!r}, evaluation")
    site_event("command-evaluated", **validated)
    return evaluate_reply_content(site.shared(validated))


def _statistics(content: RecordDict, config: RunConfig, site: SiteConfig) -> RecordDict:
    """Refuse: a command computes no BatchNorm statistics."""
    _check_config(config)
    raise ConfigError("a site with a command sends no BatchNorm statistics", where="batch-norm")


HANDLERS: Mapping[str, Callable[[RecordDict, RunConfig, SiteConfig], RecordDict]] = {
    MessageType.QUERY: _hello,
    MessageType.TRAIN: _train,
    MessageType.EVALUATE: _evaluate,
    STATISTICS: _statistics,
}


def _check_config(config: RunConfig) -> None:
    """Refuse a run that asks for what a command does not know."""
    for key, got, possible in (
        ("batch-norm", config.batch_norm, "average"),
        ("proximal-mu", config.proximal_mu, 0.0),
        ("exchange", config.exchange, "all"),
        ("keep", config.keep, ""),
    ):
        if got != possible:
            raise ConfigError(
                "this site trains with a command of its own, which does not know this setting",
                where=key,
                got=got,
                expected=repr(possible),
            )


def _validate(site: SiteConfig, arrays: Arrays, stop_at: float, where: str) -> dict[str, Value]:
    """Return the metrics of a model on the site's validation examples; empty without examples."""
    _, result = ask(site, EVALUATE, arrays, None, stop_at, where)
    if result.num_examples == 0:
        return {}
    return {NUM_VALIDATION: result.num_examples, **result.metrics}


def _agreed(num_examples: int, site: SiteConfig) -> int:
    """Return a number of training examples; it must be one that the sites have agreed on."""
    fewest, most = max(1, site.min_examples), site.max_examples
    if num_examples < fewest or 0 < most < num_examples:
        raise DataError(
            "the command trained on another number of examples than agreed",
            where=f"site {site.name!r}, result.json, num_examples",
            got=num_examples,
            expected=f"{fewest} or more" + (f", and at most {most}" if most else ""),
        )
    return num_examples


def _round_files(content: RecordDict, config: RunConfig, site: SiteConfig) -> RoundFiles | None:
    """Return the files of the round in a train message; None if the site keeps none."""
    if not site.state:
        return None
    return RoundFiles(Path(site.state), round_key(content, [config.lasting, site.to_flower()]))
