"""Follow docs/jobs.md from the script to real sites."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from mdc_flower.engines.flower_processes import free_port
from mdc_flower.jobs.metrics import JobMetric
from mdc_flower.jobs.signature import signature_of
from mdc_flower.jobs.torch_job import torch_job
from mdc_flower.training.loop import TrainSettings, train
from simulations.compare.checks import check
from simulations.compare.comparison_file import read_comparison
from strategies.method.round_plan import RoundPlan
from strategies.storage.run_directory import read_history
from tests.documentation import code_blocks
from tests.integration.machines import Machines, wait_for

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "jobs.md").read_text()
blocks = partial(code_blocks, PAGE)


def write_modules(folder: Path) -> None:
    """Write the script and the job of the page, and the patients that they read."""
    for block in blocks("python")[:2]:
        name = block.splitlines()[0].removeprefix("# ")
        (folder / name).write_text(block)
    inputs, scores = load_diabetes(return_X_y=True)
    rows = [[*(20 * row), score / 100] for row, score in zip(inputs, scores, strict=True)]
    text = "\n".join(",".join(f"{value:.6f}" for value in row) for row in rows)
    (folder / "patients.csv").write_text(text + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("lab")
    write_modules(found)
    return found


def shell(command: str, folder: Path) -> str:
    """Run one of the page's commands, as a user in this folder would."""
    scripts = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ["PATH"]])}
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.integration
def test_the_script_and_the_job_made_from_it(folder: Path) -> None:
    script = shell("python train.py", folder)
    alone = float(script.splitlines()[-1].split()[1]) ** 0.5
    run, report = blocks("sh")[0].splitlines()
    shell(run, folder)
    shell(report, folder)
    (*_, last) = read_history(folder / "runs" / "trial")
    assert sorted(last["participants"]) == ["site-0", "site-1", "site-2"]
    together = last["evaluation"]["validation-rmse"]
    assert together < 1.25 * alone, "as good as the script, within the noise of 88 patients"


@pytest.mark.integration
def test_the_federation_of_the_page(tmp_path: Path) -> None:
    machines = Machines(tmp_path)
    center = machines.center
    text, _ = blocks("toml")
    text = text.replace("coordinator.example.org", "localhost").replace("8443", str(free_port()))
    for name in ("berlin", "lisbon"):
        folder = machines.site(name)
        write_modules(folder)
        text = text.replace(f"/srv/{name}/", f"{folder}/")
    (center / "federation.toml").write_text(text)
    script, job = blocks("python")[:2]
    without_data = blocks("python")[2].removesuffix("    ...\n")
    (center / "train.py").write_text(script)
    (center / "progression.py").write_text(job.replace("def job(context):\n", without_data))
    for name in ("berlin", "lisbon"):
        (machines.site(name) / "progression.py").write_text((center / "progression.py").read_text())
    provision, check = blocks("sh")[1].splitlines()
    try:
        machines.run(provision, center)
        machines.start("mdc coordinator start kits/coordinator", center)
        wait_for("2 sites may take part: berlin, lisbon", center / "log.txt")
        for name in ("berlin", "lisbon"):
            folder = machines.site(name)
            shutil.copytree(center / "kits" / name, folder / name)
            told = machines.run(check.replace("berlin", name), folder)
            assert "354 training and 88 validation examples" in " ".join(told.split())
            machines.start(f"mdc site start {name}", folder)
        machines.run(
            "mdc coordinator run kits/coordinator --set epoch-budget=2 --set local-epochs=1 "
            "--output runs/first",
            center,
        )
    finally:
        machines.close()
    first, second = read_history(center / "runs" / "first")
    assert sorted(second["participants"]) == ["berlin", "lisbon"]
    before, after = (line["start_evaluation"]["validation-rmse"] for line in (first, second))
    assert after < before
    log = (machines.site("berlin") / "log.txt").read_text()
    assert re.search(r"round 2: trained in [0-9.]+ s, loss [0-9.]+, rmse [0-9.]+, mae ", log)


def defined(name: str) -> Any:
    """Return a function that a block of the page defines."""
    for block in blocks("python"):
        if f"def {name}(" in block and "# " not in block.splitlines()[0]:
            scope: dict[str, Any] = {"torch": torch, "nn": nn}
            exec(compile(block, "docs/jobs.md", "exec"), scope)
            return scope[name]
    raise AssertionError(name)


def trained(job: Any, steps: int) -> nn.Module:
    plan = RoundPlan(round=1, local_steps=steps, lr_max=0.1, lr_min=0.1, shape="constant", seed=1)
    model: nn.Module = job.model()
    train(model, job, plan, TrainSettings(), torch.device("cpu"), "north")
    return model


def two_parts() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))


def test_a_parameter_group_with_a_scale_of_its_own() -> None:
    one = torch.utils.data.TensorDataset(torch.ones(4, 1), torch.ones(4, 1))
    job = torch_job(
        model=two_parts, loss=nn.functional.mse_loss, train=one, optimizer=defined("optimizer")
    )
    groups = job.optimizer(two_parts()).param_groups
    assert [group.get("lr_scale", 1.0) for group in groups] == [0.1, 1.0]
    trained(job, 2)


def test_a_warm_up_scales_the_plans_rate() -> None:
    rates: list[float] = []

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        sgd = torch.optim.SGD(model.parameters())
        warmed: torch.optim.Optimizer = defined("with_warm_up")(sgd, 4)
        warmed.register_step_pre_hook(lambda made, *_: rates.append(made.param_groups[0]["lr"]))
        return warmed

    one = torch.utils.data.TensorDataset(torch.ones(4, 1), torch.ones(4, 1))
    trained(
        torch_job(
            model=lambda: nn.Linear(1, 1), loss=nn.functional.mse_loss, train=one,
            optimizer=optimizer,
        ),
        6,
    )  # fmt: skip
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_a_forward_function_for_batches_that_are_mappings() -> None:
    class Both(nn.Module):
        def forward(self, image: Tensor, age: Tensor) -> Tensor:
            return image + age

    batch = {"image": torch.ones(2), "age": torch.ones(2), "diagnosis": torch.zeros(2)}
    outputs, targets = defined("forward")(Both(), batch)
    assert (outputs.tolist(), targets.tolist()) == ([2.0, 2.0], [0.0, 0.0])


def test_the_metrics_of_the_page() -> None:
    (block,) = (one for one in blocks("python") if "from_torchmetrics(" in one)
    scope: dict[str, Any] = {}
    exec(compile(block, "docs/jobs.md", "exec"), scope)
    found: list[JobMetric] = scope["metrics"]
    outputs, targets = torch.tensor([-1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 0.0])
    values = {
        one.metric.name: one.metric.finish(one.sums(outputs, targets).tolist()) for one in found
    }
    assert values["mae"] == pytest.approx(5 / 3)
    assert 0 <= float(str(values["auroc"])) <= 1


def test_a_frozen_backbone_stays_in_evaluation_mode() -> None:
    (block,) = (one for one in blocks("python") if "class Backbone" in one)
    scope: dict[str, Any] = {"nn": nn}
    exec(compile(block, "docs/jobs.md", "exec"), scope)
    norm = nn.BatchNorm1d(2)
    model = nn.Sequential(scope["Backbone"](norm), nn.Linear(2, 1)).train()
    model(torch.ones(4, 2))
    assert (norm.training, model[1].training) == (False, True)
    assert norm.num_batches_tracked == 0


def test_the_signature_of_the_page(tmp_path: Path) -> None:
    (file := tmp_path / "tokenizer.json").write_text("{}")
    found = signature_of(
        torch_job(
            model=lambda: nn.Linear(1, 1),
            loss=nn.MSELoss(),
            signature=defined("signature")(file, ["no", "yes"]),
        )
    )
    assert found["tokenizer"] == hashlib.sha256(b"{}").hexdigest()
    assert found["labels"] == "no, yes"


@pytest.mark.integration
def test_the_adapters_of_the_page(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs" / "examples" / "lora" / "adapters.py", tmp_path)
    (tmp_path / "text.txt").write_text(PAGE)
    run, report = blocks("sh")[2].splitlines()
    shell(run, tmp_path)
    first, last = read_history(tmp_path / "runs" / "lora")
    losses = [line["training"]["train-loss"] for line in (first, last)]
    assert losses[1] < losses[0]
    gaps = [gap for line in (first, last) for gap in line["adapter_gaps"].values()]
    assert len(gaps) == 4, "two layers in two rounds"
    assert all(0 < gap < 1 for gap in gaps)
    shell(report, tmp_path)
    assert (
        "Gap of the averaged adapters" in (tmp_path / "runs" / "lora" / "report.html").read_text()
    )


def test_the_units_of_the_page_are_those_of_each_example() -> None:
    (block,) = (one for one in blocks("python") if "def units(" in one)
    page: dict[str, Any] = {}
    exec(block, page)
    labels = torch.tensor([[1, -100, 2], [-100, -100, 3]])
    assert page["units"]((labels, labels)).tolist() == [2, 1]


def test_the_comparison_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("train", "progression"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    _, text = blocks("toml")
    path = tmp_path / "progression.toml"
    path.write_text(text.replace("/srv/", f"{tmp_path}/"))
    comparison, arms = read_comparison(path)
    assert len(arms) == 6
    check(comparison, arms, "validation")


def test_every_block_is_followed_here() -> None:
    assert len(blocks("sh")) == 3
    assert len(blocks("toml")) == 2
    assert len(blocks("python")) == 10, "the third is a variant of the second"
