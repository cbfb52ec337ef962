"""Runs whose sites keep their optimizer's state, with simulated and with real sites."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from mdc_flower import client_app, server_app
from mdc_flower.config import RunConfig, read_run_config
from mdc_flower.console.live_view import RunState
from mdc_flower.engines.in_process import InProcessGrid, run_in_process
from mdc_flower.reports.participation import incidents
from strategies.common.errors import ConfigError
from strategies.exchange.messages import SiteCard
from strategies.storage.run_directory import (
    EVENTS,
    GLOBAL_MODEL,
    SITES,
    read_event,
    read_events,
    read_history,
)
from tests.tiny import KEYS

pytestmark = pytest.mark.usefixtures("identity")

NODES = {"north": 8_243_971_190_237_113_041, "south": 1_557_302_844_917_720_986}


def config(folder: Path, **keys: Any) -> RunConfig:
    values = {
        **KEYS,
        "epoch-budget": 4,
        "num-sites": 2,
        "optimizer-state": "keep",
        "output-dir": str(folder),
    }
    return read_run_config({**values, **{k.replace("_", "-"): v for k, v in keys.items()}})


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / GLOBAL_MODEL).read_bytes()).hexdigest()


def lead(config: RunConfig, *sites: dict[str, Any], run_id: int = 22) -> Path:
    """Lead a run with real sites in this process; return the run directory."""

    def context(node: int, node_config: dict[str, Any]) -> Context:
        return Context(run_id, node, dict(node_config), RecordDict(), dict(config.to_flower()))

    contexts = {NODES[values["site"]]: context(NODES[values["site"]], values) for values in sites}
    server_app.app(InProcessGrid(client_app.app, contexts), context(1, {}))
    return Path(config.output_dir)


def site(name: str, state: Path | str) -> dict[str, Any]:
    return {"site": name, "state": str(state), "threads": 1}


def both(folder: Path) -> list[dict[str, Any]]:
    return [site(name, folder / name) for name in NODES]


def test_the_state_makes_a_difference_and_a_run_repeats_to_the_bit(tmp_path: Path) -> None:
    for name, keys in (("one", {}), ("two", {}), ("reset", {"optimizer_state": "reset"})):
        run_in_process(config(tmp_path / name, **keys), 2)
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two") != sha256(tmp_path / "reset")
    assert not (tmp_path / "reset" / SITES).exists()
    files = sorted((tmp_path / "one" / SITES).glob("*/*.safetensors"))
    assert {path.parent.name for path in files} == {"site-0", "site-1"}
    assert len(files) == 6, "three states of each site: of the last round, and of its checkpoints"


def test_a_run_that_goes_on_later_in_another_place_goes_on_with_its_states(tmp_path: Path) -> None:
    run_in_process(config(tmp_path / "whole"), 2)
    run_in_process(config(tmp_path / "half", epoch_budget=2), 2)
    (tmp_path / "half").rename(tmp_path / "moved")
    run_in_process(config(tmp_path / "moved", resume=True), 2)
    assert sha256(tmp_path / "moved") == sha256(tmp_path / "whole")
    assert all(line["began_anew"] == [] for line in read_history(tmp_path / "moved"))


def test_the_default_folder_of_a_simulated_run_is_that_of_its_first_id(tmp_path: Path) -> None:
    (template := tmp_path / "{run-id}").parent.mkdir(exist_ok=True)
    run_in_process(config(template), 2)
    (run_dir,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert run_dir.name.isdigit()
    assert len(list((run_dir / SITES).iterdir())) == 2


def test_real_sites_keep_it_in_their_own_folders_also_over_a_resume(tmp_path: Path) -> None:
    whole = lead(config(tmp_path / "whole"), *both(tmp_path / "a"))
    lead(config(tmp_path / "cut", epoch_budget=2), *both(tmp_path / "b"))
    # To Flower, a resumed run is another run.
    cut = lead(config(tmp_path / "cut", resume=True), *both(tmp_path / "b"), run_id=23)
    assert sha256(cut) == sha256(whole)
    assert all(line["began_anew"] == [] for line in read_history(cut))
    assert not (cut / SITES).exists()
    assert all(list((tmp_path / "b" / name).glob("*.optimizer.*")) for name in NODES)


def test_a_site_that_lost_its_disk_begins_anew_and_everybody_can_see_it(tmp_path: Path) -> None:
    lead(config(tmp_path / "run", epoch_budget=2), *both(tmp_path))
    shutil.rmtree(tmp_path / "south")
    run_dir = lead(config(tmp_path / "run", resume=True), *both(tmp_path))
    lines = read_history(run_dir)
    assert [line["began_anew"] for line in lines] == [[], [], ["south"], []]
    assert [sorted(line["participants"]) for line in lines] == [["north", "south"]] * 4
    lost = [event for event in read_events(run_dir, "site-answered") if event["dropped"]]
    assert [(event["round"], event["site"]) for event in lost] == [(3, "south")]
    assert "StateMissingError" in lost[0]["dropped"]
    assert str(tmp_path) not in lost[0]["dropped"]

    view = RunState()
    texts = [view.apply(read_event(line)) for line in (run_dir / EVENTS).read_text().splitlines()]
    shown = [text for text in texts if text and "south" in text and "round 3" in text]
    assert "south dropped: the site failed: StateMissingError" in shown[0]
    assert "round 3: 2 of 2 sites, south began anew, " in shown[1]
    assert ("south", "began anew") in [(one.site, one.what) for one in incidents(lines)]


def test_a_real_site_without_a_folder_is_refused_before_round_1(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder in which they could keep") as caught:
        lead(config(tmp_path / "run"), site("north", tmp_path / "north"), site("south", ""))
    assert "no `state` at south" in str(caught.value)
    assert "--node-config" in caught.value.hint
    assert read_events(tmp_path / "run", "round-started") == []


def test_such_a_site_takes_part_in_a_run_without_it(tmp_path: Path) -> None:
    keys = {"optimizer_state": "reset"}
    assert lead(config(tmp_path / "run", **keys), site("north", ""), site("south", ""))


def test_a_resumed_run_goes_on_without_a_site_that_has_no_folder_any_more(tmp_path: Path) -> None:
    lead(config(tmp_path / "run", epoch_budget=2), *both(tmp_path))
    options = {"resume": True, "min_sites": 1}
    resumed = config(tmp_path / "run", **options)
    run_dir = lead(resumed, site("north", tmp_path / "north"), site("south", ""))
    assert [list(line["participants"]) for line in read_history(run_dir)[2:]] == [["north"]] * 2
    assert read_history(run_dir)[2]["causes"] == {"south": "config"}


@pytest.mark.parametrize("resume_from", [1, 2, 3])
def test_from_the_checkpoint_before_a_damaged_one_the_bits_are_the_same(
    tmp_path: Path, resume_from: int, killed: Callable[..., None]
) -> None:
    run_in_process(config(tmp_path / "whole"), 2)
    killed(config(tmp_path / "cut"), resume_from + 1)
    newest = max((tmp_path / "cut" / "checkpoints").glob("*.json"))
    newest.write_bytes(newest.read_bytes()[:-3])
    run_in_process(config(tmp_path / "cut", resume=True), 2)
    assert sha256(tmp_path / "cut") == sha256(tmp_path / "whole")
    assert all(line["began_anew"] == [] for line in read_history(tmp_path / "cut"))


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs until all sites have trained in a round, and then stops."""

    class StoppedError(BaseException):
        pass

    def run(config: RunConfig, number: int) -> None:
        def stop(point: str, **where: Any) -> None:
            if point == "folding" and where["round"] == number:
                raise StoppedError

        with monkeypatch.context() as patch:
            patch.setattr("strategies.exchange.gathering.reach", stop)
            with pytest.raises(StoppedError):
                run_in_process(config, 2)

    return run


def test_the_card_of_a_site_says_whether_it_can_keep_state() -> None:
    card = SiteCard("north", 0, "test", keeps_state=True)
    assert SiteCard.from_content(card.to_content()) == card
    content = card.to_content()
    del content.config_records["site"]["keeps_state"]  # as in earlier versions
    assert not SiteCard.from_content(content).keeps_state
