"""A script in two processes: every rank gets each round, rank 0 reads and sends."""

import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import MessageType, RecordDict

from mdc_flower.site.answering import answer
from mdc_flower.site.own_loop.asking import close_commands
from strategies.exchange.messages import (
    ARRAYS,
    METRICS,
    arrays_to_record,
    record_to_arrays,
    train_content,
)
from tests.mdc_flower.examples import plan

SCRIPT = """
import torch
import torch.distributed as dist
from torch import nn

import mdc_flower

dist.init_process_group("gloo")
model = nn.parallel.DistributedDataParallel(nn.Linear(2, 1))
with mdc_flower.site() as site:
    for round in site.rounds():
        round.load(model)
        optimizer = torch.optim.SGD(model.parameters())
        schedule = round.lr_scheduler(optimizer, 2)
        for _ in range(2):
            optimizer.zero_grad()
            rows = torch.full((1, 2), 1.0 + dist.get_rank())
            model(rows).sum().backward()
            optimizer.step()
            schedule.step()
        total = torch.tensor([float(round.seed("order"))], dtype=torch.float64)
        dist.all_reduce(total)
        assert total == 2 * round.seed("order")
        round.send(model, num_examples=2)
dist.destroy_process_group()
"""


@pytest.mark.integration
def test_two_ranks_train_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
    node = {
        "site": "north",
        "command": f"{torchrun} {tmp_path / 'script.py'}",
        "state": str(tmp_path / "state"),
    }
    model = {"weight": np.array([[1.0, 2.0]], np.float32), "bias": np.zeros(1, np.float32)}
    try:
        for number in (1, 2):
            planned = plan(round=number, lr_max=0.5, lr_min=0.25, shape="linear")
            content = train_content(arrays_to_record(model), planned, 500.0)
            reply = answer(MessageType.TRAIN, content, {"num-sites": 1}, node)
            log = (tmp_path / "state" / "own-loop" / "command.log").read_text()
            assert isinstance(reply, RecordDict), log
            arrays = record_to_arrays(reply.array_records[ARRAYS])
            # The gradient of the weight is the mean over the ranks, 1.5; the rates are 0.5, 0.25.
            assert arrays["weight"].tolist() == [[1 - 0.75 * 1.5, 2 - 0.75 * 1.5]]
            assert arrays["bias"].tolist() == [-0.75]
            assert reply.metric_records[METRICS]["num-steps"] == 2
    finally:
        close_commands()
