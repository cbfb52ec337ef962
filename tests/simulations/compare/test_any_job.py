"""Comparisons of jobs that are no classifications: their data, metrics, directions and words."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.regression import regression
from mdc_flower.jobs.torch_job import TorchJob
from simulations.cli import COMPARISONS_DIR
from simulations.compare.arm import ARMS_DIR, Arm, load_arm
from simulations.compare.baselines import train_without_exchange
from simulations.compare.checks import check
from simulations.compare.comparison_file import Comparison, Tuning, read_comparison
from simulations.compare.data_digest import data_digest
from simulations.compare.jobs import Job, run_job
from simulations.compare.per_step import per_step_bytes
from simulations.compare.runner import Compared, results_of, run_comparison
from simulations.pages.report import write_report
from simulations.results.result_files import mean_validation, read_results, write_results
from strategies.common.errors import ConfigError
from tests import tiny_jobs

ARMS = ("centralized", "co-learning", "fedavg", "one-site")
CONFIG: dict[str, Any] = {
    "job": "tests.tiny_jobs:line",
    "num-sites": 3,
    "epoch-budget": 3,
    "local-epochs": 1,
    "lr-max": 0.05,
}
HERE = "tests.simulations.compare.test_any_job"


def comparison_of(*arms: str, config: dict[str, Any] = CONFIG, **changes: Any) -> Comparison:
    return Comparison(name="a line", arms=list(arms), num_seeds=2, config=config, **changes)


def loaded(comparison: Comparison) -> list[Arm]:
    return [load_arm(arm, ARMS_DIR, {}) for arm in comparison.arms]


def job_in(folder: Path, arm: str, **keys: Any) -> Job:
    one = load_arm(arm, ARMS_DIR, {})
    config = one.config(CONFIG, seed=1, output_dir=str(folder), **keys)
    return Job(one, 1, config, folder)


@contextmanager
def in_this_process(*_: object) -> Iterator[Executor]:
    """Yield what runs jobs here; a process of its own would import PyTorch for seconds."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@dataclass(frozen=True)
class Done:
    """A finished comparison of a regression, and the folder with its two files."""

    compared: Compared
    folder: Path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Tune and run four arms; a learning rate of 1e-9 teaches nothing."""
    folder = tmp_path_factory.mktemp("comparison")
    tuning = Tuning(num_seeds=1, grid={"lr-max": [1e-9, 0.05]})
    comparison = comparison_of(*ARMS, tuning=tuning)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.compare.runner.worker_pool", in_this_process)
        compared = run_comparison(
            comparison, loaded(comparison), folder / "jobs", split="validation"
        )
    results = results_of(comparison, loaded(comparison), compared, "validation")
    write_results(folder, results)
    return Done(compared, folder)


def test_every_arm_has_the_metrics_of_the_job_and_the_whole_budget(done: Done) -> None:
    results = read_results(done.folder)
    assert list(results.outcomes) == list(ARMS)
    for by_seed in results.outcomes.values():
        for outcome in by_seed.values():
            assert outcome.final.epochs == 3
            assert set(outcome.final.validation) == {"loss", "rmse", "mae", "r2"}
            assert outcome.final.test == {}, "the job has no test examples"
    assert results.facts.metric.name == "rmse"
    assert results.facts.metric.better == "min"


def test_where_lower_is_better_the_candidate_with_the_lowest_mean_is_chosen(done: Done) -> None:
    for tuning in done.compared.tuning.values():
        slow, fast = (mean_validation(by_seed) for by_seed in tuning.validation)
        assert slow > fast
        assert tuning.values == {"lr-max": 0.05}


def test_tables_and_page_say_which_metric_in_which_unit_and_which_way_is_better(
    done: Done,
) -> None:
    page = write_report(done.folder).read_text()
    table = (done.folder / "table.md").read_text()
    assert table.splitlines()[2].startswith(
        "| arm | validation rmse, m (lower is better) "
        "| difference from centralized, m (below 0 is better) "
        "| mae, m (lower is better) | r2 | time, steps | work, examples | exchanges |"
    )
    assert (
        (done.folder / "table.csv")
        .read_text()
        .startswith(
            "arm,rmse,rmse_ci95,difference,difference_ci95,mae,mae_ci95,r2,r2_ci95,steps,examples,"
        )
    )
    tuning = (done.folder / "tuning.md").read_text()
    assert tuning.startswith("| arm | candidates: validation rmse, m (lower is better) |")
    assert "by rmse on the validation split (lower is better)" in page
    assert "Rmse over passes" in page
    for text in (table, tuning, page, *(path.read_text() for path in done.folder.glob("*.json*"))):
        assert "ccuracy" not in text


# What is trained and evaluated on

seen: dict[str, list[list[float]]] = {"train": [], "validation": []}
"""The inputs of each batch of `noting`, in training and in evaluation."""


class Noting(nn.Linear):
    """A linear model that notes its inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        kind = "train" if torch.is_grad_enabled() else "validation"
        seen[kind].append(inputs[:, 0].tolist())
        return super().forward(inputs)


def noting(context: JobContext) -> TorchJob:
    """Return a regression on the numbers from 0 to 35, of which the last 12 are held out."""
    x = torch.arange(36.0)[:, None]
    return regression(lambda: Noting(1, 1), **tiny_jobs.splits(context, x, x))


@pytest.mark.parametrize("arm", ["centralized", "one-site", "co-learning"])
def test_all_arms_are_evaluated_on_the_same_examples_and_trained_on_the_sites(
    tmp_path: Path, arm: str
) -> None:
    job = job_in(tmp_path / "job", arm, job=f"{HERE}:noting", lr_max=1e-6)
    for batches in seen.values():
        batches.clear()
    run_job(job)
    trained = {row for batch in seen["train"] for row in batch}
    mine = JobContext(job.config, "site-0", partition_id=0, num_partitions=3).rows(24)
    assert trained == ({*map(float, mine)} if arm == "one-site" else {*map(float, range(24))})
    # The trial of the model before a run evaluates a batch of training examples, too.
    held = {row for batch in seen["validation"] for row in batch if row >= 24}
    assert held == {*map(float, range(24, 36))}


def test_bytes_of_averaging_each_step_are_counted_from_the_jobs_own_batches() -> None:
    config = load_arm("fedavg", ARMS_DIR, {}).config(CONFIG, num_rounds=1)
    # 24 examples in batches of 4 are 6 steps, which 3 sites share: 2 in each of 3 passes. Three
    # weights and a bias of 4 bytes go to and from 3 sites.
    assert per_step_bytes(config) == 2 * 3 * (4 * 4) * 2 * 3


def test_bytes_of_averaging_each_step_are_those_of_the_exchanged_part() -> None:
    keys = {"job": "tests.tiny_jobs:adapted", "exchange": "trainable"}
    config = load_arm("fedavg", ARMS_DIR, {}).config({**CONFIG, **keys}, num_rounds=1)
    assert per_step_bytes(config) == 2 * 3 * ((4 * 2 + 2) * 4) * 2 * 3


# What is refused


def late_cut(context: JobContext) -> TorchJob:
    """Return a job whose sites hold examples out of their own rows: others at each place."""
    x = torch.arange(26.0)[:, None]
    rows = context.rows(26).tolist()
    data, half = TensorDataset(x, x), len(rows) // 2
    return regression(
        lambda: nn.Linear(1, 1),
        train=Subset(data, rows[half:]),
        validation=Subset(data, rows[:half]),
    )


def not_pooled(context: JobContext) -> TorchJob:
    """Return a job without training examples at the coordinator."""
    job = tiny_jobs.line(context)
    kept = job.splits if context.site else {"validation": job.splits["validation"]}
    return replace(job, splits=kept)


@pytest.mark.parametrize(
    ("arm", "job", "split", "message"),
    [
        ("ensemble", "tests.tiny_jobs:line", "validation", "averages the probabilities of classes"),
        ("fedavg-each-epoch", "tests.tiny_jobs:line", "test", "no test examples at the coord"),
        ("fedavg-each-epoch", f"{HERE}:not_pooled", "validation", "no training examples at the"),
        ("fedavg-each-epoch", f"{HERE}:late_cut", "validation", "sites together do not have the"),
    ],
)
def test_an_arm_that_does_not_suit_the_job_is_refused_before_training(
    arm: str, job: str, split: str, message: str
) -> None:
    comparison = comparison_of(arm, config={**CONFIG, "job": job})
    with pytest.raises(ConfigError, match=message) as caught:
        check(comparison, loaded(comparison), split)
    assert caught.value.exit_code == 2


def test_an_arm_or_candidate_that_sets_what_the_job_does_not_read_is_refused() -> None:
    diloco = comparison_of("co-learning", "diloco")
    with pytest.raises(ConfigError, match="the job does not read this key") as caught:
        check(diloco, loaded(diloco), "validation")
    assert (caught.value.where, caught.value.got) == ("arm diloco, optimizer", "adamw")
    tried = comparison_of("fedavg-each-epoch", tuning=Tuning(grid={"weight-decay": [5e-4, 0.1]}))
    with pytest.raises(ConfigError, match="the job does not read this key") as caught:
        check(tried, loaded(tried), "validation")
    assert (caught.value.where, caught.value.got) == ("arm fedavg-each-epoch, weight-decay", 0.1)


STEPS: dict[str, Any] = {
    **CONFIG,
    "job": "tests.simulations.streams:endless",
    "epoch-budget": 0,
    "step-budget": 6,
    "local-steps": 2,
}
ON_A_STREAM = (
    "centralized",
    "centralized-equal-steps",
    "centralized-equal-time",
    "co-learning",
    "fedavg",
    "flower-fedavg",
    "one-site",
)


def test_arms_of_every_kind_but_an_ensemble_are_compared_on_a_stream_in_steps(
    tmp_path: Path,
) -> None:
    comparison = comparison_of(*ON_A_STREAM, config={**STEPS, "batch-size": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.compare.runner.worker_pool", in_this_process)
        compared = run_comparison(comparison, loaded(comparison), tmp_path, split="validation")
    results = results_of(comparison, loaded(comparison), compared, "validation")
    write_results(tmp_path, results)
    finals = {key: by_seed[1].final for key, by_seed in read_results(tmp_path).outcomes.items()}
    # Three sites take six steps each, in batches of four.
    assert {key: (final.steps, final.examples) for key, final in finals.items()} == {
        "centralized": (18, 72),
        "centralized-equal-steps": (6, 72),
        "centralized-equal-time": (6, 24),
        "co-learning": (6, 72),
        "fedavg": (6, 72),
        "flower-fedavg": (6, 72),
        "one-site": (6, 24),
    }
    # The weight and the bias of four bytes, to and from three sites, after each of six steps.
    assert {arm.per_step_bytes for arm in results.facts.arms} == {2 * 3 * 8 * 6}
    table = (write_report(tmp_path).parent / "table.md").read_text()
    assert "Every site takes the same number of optimizer steps in every arm" in table


def test_a_stream_needs_a_budget_in_steps() -> None:
    stream = comparison_of("fedavg-each-epoch", config={**CONFIG, "job": STEPS["job"]})
    with pytest.raises(ConfigError, match="a stream has no epochs"):
        check(stream, loaded(stream), "validation")


def test_a_job_that_makes_batches_of_its_own_size_has_no_larger_ones() -> None:
    config = {**STEPS, "job": "tests.simulations.streams:stubborn"}
    stubborn = comparison_of("centralized-equal-steps", config=config)
    with pytest.raises(ConfigError, match="does not make batches of batch-size") as caught:
        check(stubborn, loaded(stubborn), "validation")
    assert caught.value.where == "arm centralized-equal-steps, protocol"
    # The default batch-size is 32.
    assert (caught.value.got, caught.value.expected) == ("4 examples in a batch", "96")


def test_arms_whose_models_only_the_sites_have_are_refused() -> None:
    kept = comparison_of("fedavg", config={**CONFIG, "keep": "bias", "site-evaluation": True})
    with pytest.raises(ConfigError, match="no whole model") as caught:
        check(kept, loaded(kept), "validation")
    assert caught.value.where == "arm fedavg, keep"


def moved(context: JobContext) -> TorchJob:
    """Return the job `noting` with another validation example."""
    x = torch.arange(36.0)[:, None]
    x[-1] += 1
    return regression(lambda: nn.Linear(1, 1), **tiny_jobs.splits(context, x, x))


def test_another_validation_example_is_other_data() -> None:
    def digest(job: str, **keys: Any) -> str:
        return data_digest(job_in(Path("/unused"), "centralized", job=job, **keys).config)

    assert digest(f"{HERE}:noting") == digest(f"{HERE}:noting", lr_max=0.5)
    assert digest(f"{HERE}:noting") != digest(f"{HERE}:moved")


# The one that is shipped


def test_the_comparison_of_diabetes_is_sound_and_its_job_learns() -> None:
    comparison, arms = read_comparison(COMPARISONS_DIR / "diabetes.toml")
    check(comparison, arms, "test")
    config = arms[0].config(comparison.config, lr_max=0.03, epoch_budget=10)
    curve: Sequence[Any] = train_without_exchange(config, "centralized").points
    # To predict the mean is an error of one standard deviation, 77 points.
    assert curve[-1].test["rmse"] < 63
    assert curve[-1].test["rmse"] < curve[0].test["rmse"]
