"""The rate that Lightning's and Hugging Face's trainers use at every step is the plan's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.mdc_flower.site.own_loop.test_rounds import new_round

EXAMPLES, BATCH, EPOCHS, STEPS = 10, 4, 3, 9


def recording(optimizer: torch.optim.Optimizer, used: list[float]) -> torch.optim.Optimizer:
    """Return the optimizer; each of its steps appends the rate with which it is made."""
    optimizer.register_step_pre_hook(
        lambda made, args, kwargs: used.append(made.param_groups[0]["lr"])
    )
    return optimizer


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from mdc_flower.site.own_loop.lightning import RoundCallback

    used: list[float] = []

    class Module(lightning.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch: Any, number: int) -> Any:
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            optimizer = recording(torch.optim.SGD(self.parameters(), lr=7.0), used)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    round, plan = new_round(tmp_path, shape="cosine", local_epochs=EPOCHS)
    callback = RoundCallback(round)
    trainer = lightning.Trainer(
        max_steps=round.steps(STEPS // EPOCHS),
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), DataLoader(TensorDataset(torch.ones(EXAMPLES, 2)), BATCH))
    assert used == callback.rates == [plan.lr_at(k / (STEPS - 1)) for k in range(STEPS)]


def test_hugging_face(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from mdc_flower.site.own_loop.transformers import RoundCallback

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, rows: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.layer(rows) - labels).square().mean()}

    used: list[float] = []
    round, plan = new_round(tmp_path, shape="cosine", local_epochs=EPOCHS)
    callback, model = RoundCallback(round), Model()
    optimizer = recording(torch.optim.SGD(model.parameters(), lr=7.0), used)
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path / "output"),
            max_steps=round.steps(STEPS // EPOCHS),
            per_device_train_batch_size=BATCH,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
        ),
        train_dataset=[{"rows": torch.ones(2), "labels": torch.ones(1)}] * EXAMPLES,
        optimizers=(optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)),
        callbacks=[callback],
    )
    trainer.train()
    assert used == callback.rates == [plan.lr_at(k / (STEPS - 1)) for k in range(STEPS)]
