"""A run with a job of the user's own: how it is found, checked and refused."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mdc_flower.config import RunConfig, SiteConfig, read_run_config, read_site_config
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.run_task import load_run_task, load_site_run_task
from mdc_flower.jobs.user_task import build_job
from mdc_flower.site.card import code_digests, site_card
from mdc_flower.site.error_replies import error_of
from strategies.common.errors import ConfigError, DataError, MdcError, ModelError

LAB = """
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from mdc_flower.jobs.metrics import JobMetric
from mdc_flower.jobs.torch_job import TorchJob, torch_job
from tests.tiny_jobs import Counting
from strategies.exchange.metrics import Metric, ratio

X = torch.arange(12.0)[:, None]
DATA = TensorDataset(X, X)


def make(**options):
    given = {"model": lambda: nn.Linear(1, 1), "loss": functional.mse_loss, "train": DATA}
    return torch_job(**{**given, **options})


def good(context):
    return make()


def raising(context):
    raise RuntimeError("no scans")


def nothing(context):
    return None


def no_gradient(context):
    return make(loss=lambda outputs, targets: functional.mse_loss(outputs.detach(), targets))


def not_finite(context):
    return make(loss=lambda outputs, targets: functional.mse_loss(outputs, targets) / 0)


def lazy(context):
    return make(model=lambda: nn.LazyLinear(1))


def no_scalar(context):
    return make(loss=lambda outputs, targets: (outputs - targets).square())


def no_examples(context):
    return make(train=TensorDataset(X[:0], X[:0]))


def wrong_batch(context):
    return make(train=TensorDataset(X, X, X))


def failing_loss(context):
    def loss(outputs, targets):
        raise ValueError("labels are above 9")

    return make(loss=loss)


class Undeclared(TorchJob):
    def forward(self, model, batch):
        return replace(super().forward(model, batch), sums={"other": torch.zeros(2)})


def undeclared(context):
    return Undeclared(**vars(make()))


def no_model(context):
    def model():
        raise ValueError("no weights file")

    return make(model=model)


def a_number(context):
    return make(loss=lambda outputs, targets: 1.5)


def wrong_arguments(context):
    def three(outputs, targets):
        raise TypeError("update() takes 3 arguments")

    metric = Metric("mae", "min", ratio, "mae", 2, in_training=False)
    return make(metrics=[JobMetric(metric, three)])


def no_length(context):
    return make(train=Unsized())


class Unsized(torch.utils.data.Dataset):
    def __getitem__(self, row):
        return X[row], X[row]


def finish_fails(context):
    def finish(sums):
        raise ValueError("math domain error")

    return make(metrics=[JobMetric(Metric("mae", "min", finish, "mae", 2), two)])


def list_selects(context):
    metric = Metric("each", "max", list, "each", 2, selects=True)
    return make(metrics=[JobMetric(metric, two)])


def two(outputs, targets):
    return torch.ones(2)


def endless(context):
    return make(train=Counting())


def drawing(context):
    def model():
        made = nn.Linear(1, 1).double()
        made.register_buffer("drawn", torch.rand(1), persistent=False)
        return made

    return make(model=model)


def two_select(context):
    declared = Metric("a", "max", ratio, "loss", 2, selects=True)
    return make(metrics=[declared, replace(declared, name="b")])


def bad_name(context):
    return make(metrics=[Metric("F1 score", "max", ratio, "loss", 2)])


def frozen(context):
    model = nn.Linear(1, 1).requires_grad_(False)
    return make(model=lambda: model)


def unseeded(context):
    weights = iter(range(10))

    def model():
        made = nn.Linear(1, 1)
        nn.init.constant_(made.weight, next(weights))
        return made

    return make(model=model)
"""


@pytest.fixture(autouse=True, scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "job_lab.py").write_text(LAB)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    build_job.cache_clear()


def config(job: str = "good", **keys: Any) -> RunConfig:
    return read_run_config({"job": f"job_lab:{job}", **keys})


def site(**keys: Any) -> SiteConfig:
    return read_site_config({"site": "berlin", **keys})


def test_a_good_job_passes() -> None:
    load_run_task(config()).check_model()


@pytest.mark.parametrize(
    ("job", "kind", "text"),
    [
        ("raising", ConfigError, "the job cannot be built: RuntimeError: no scans"),
        ("nothing", ConfigError, "the function did not return a job: it has no 'metrics'"),
        ("absent", ConfigError, "has no function 'absent'"),
        ("no_gradient", ConfigError, "the loss has no gradient"),
        ("not_finite", ConfigError, "the loss of the untrained model is not finite"),
        ("no_scalar", ConfigError, "the loss is not one number"),
        ("wrong_batch", ModelError, "the forward pass fails: ValueError: too many values"),
        ("failing_loss", ModelError, "the forward pass fails: ValueError: labels are above 9"),
        (
            "undeclared",
            ConfigError,
            "gives sums of no declared metric (got 'other'",
        ),
        ("two_select", ConfigError, "more than one metric selects the best model"),
        ("bad_name", ConfigError, "'F1 score' must consist of lower-case letters"),
        ("no_model", ModelError, "the model cannot be built: ValueError: no weights file"),
        ("a_number", ConfigError, "the loss is not a tensor (got 'float'"),
        ("wrong_arguments", ModelError, "the evaluation fails: TypeError: update() takes 3"),
        ("no_length", DataError, "the training examples cannot be counted: TypeError"),
        ("finish_fails", ConfigError, "it gives no value: ValueError: math domain"),
        ("list_selects", ConfigError, "it selects the best model, so it must be one number"),
        ("endless", ConfigError, "a stream has no epochs"),
        ("frozen", ModelError, "the model has no parameter to train"),
        ("lazy", ModelError, "a lazy layer has no shape and no weights yet (got 'weight')"),
        ("unseeded", ModelError, "initial weights differ each time"),
    ],
)
def test_a_bad_job_is_refused_before_the_first_round(
    job: str, kind: type[MdcError], text: str
) -> None:
    with pytest.raises(kind) as caught:
        load_run_task(config(job)).check_model()
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_batch_that_fails_is_described() -> None:
    with pytest.raises(ModelError) as caught:
        load_run_task(config("wrong_batch")).check_model()
    assert caught.value.got == "(float32[12, 1], float32[12, 1], float32[12, 1])"


def test_a_coordinator_without_training_examples_checks_the_model_only() -> None:
    load_run_task(config("no_examples")).check_model()


def test_examples_that_give_no_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_run_task(config())
    monkeypatch.setattr("mdc_flower.jobs.torch_job.TorchJob.batches", lambda *args: iter(()))
    with pytest.raises(DataError, match="gives no batch"):
        task.check_model()


@pytest.mark.parametrize("modules", ["", "other", "job_lab.inner"])
def test_a_site_imports_no_job_that_it_does_not_allow(modules: str) -> None:
    with pytest.raises(ConfigError, match="names a module that this site does not allow") as caught:
        load_site_run_task(config(), site(modules=modules))
    assert (caught.value.where, caught.value.got) == ("run config, job", "job_lab")


def test_a_site_may_have_a_job_of_its_own() -> None:
    own = site(modules="", job="job_lab:good")
    task = load_site_run_task(read_run_config({"job": "elsewhere:job"}), own)
    assert task.site_job(own).size("train") == 12


def test_a_site_that_shares_a_metric_which_the_job_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="a metric that the job does not have") as caught:
        load_site_run_task(config(), site(metrics="train-loss,train-accuracy"))
    assert caught.value.got == "train-accuracy"


def test_a_card_has_the_digest_of_the_runs_job_but_not_of_a_sites_own() -> None:
    (digest,) = code_digests(config()).values()
    assert site_card(config(), site()).job_code == digest
    assert site_card(config(), site(job="job_lab:good")).job_code == digest
    assert site_card(config(), site(job="job_lab:drawing")).job_code == ""


def test_simulated_sites_share_the_rows_and_others_have_all() -> None:
    contexts = [JobContext(config(seed=4), partition_id=i, num_partitions=3) for i in range(3)]
    rows = [one.rows(11) for one in contexts]
    assert sorted(np.concatenate(rows).tolist()) == list(range(11))
    assert sorted(map(len, rows)) == [3, 4, 4]
    assert [one.rows(11).tolist() for one in contexts] == [row.tolist() for row in rows]
    assert replace(contexts[0], partition_id=-1).rows(11).tolist() == list(range(11))
    other = JobContext(config(seed=5), partition_id=0, num_partitions=3)
    assert other.rows(11).tolist() != rows[0].tolist()


def test_a_bad_job_ends_the_run_with_nothing_begun(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    keys = {"num-sites": 2, "output-dir": str(folder), "epoch-budget": 1, "local-epochs": 1}
    with pytest.raises(ConfigError, match="the loss has no gradient"):
        run_in_process(config("no_gradient", **keys), 2)
    assert not (folder / "history.jsonl").exists()


def test_a_model_is_the_same_wherever_it_is_built() -> None:
    at_site = load_site_run_task(config("drawing"), site()).site_job(site())
    at_coordinator = load_run_task(config("drawing")).coordinator_job(0)
    buffers = {job.model().drawn.item() for job in (at_site, at_coordinator, at_site)}  # type: ignore[operator]
    assert len(buffers) == 1
    assert {p.dtype for p in at_site.model().parameters()} == {torch.float32}


def test_what_a_users_function_says_does_not_leave_a_real_site() -> None:
    with pytest.raises(ConfigError, match="RuntimeError: no scans") as caught:
        load_site_run_task(config("raising"), site()).site_job(site())
    told = str(error_of(caught.value, private=True).reason)
    assert "the job cannot be built: RuntimeError" in told
    assert "no scans" not in told
    assert "no scans" in str(pickle.loads(pickle.dumps(caught.value)))
