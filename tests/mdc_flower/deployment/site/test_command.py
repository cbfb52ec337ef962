"""A site's kit with a command: what the kit says, what the checks say, what is refused."""

import stat
from pathlib import Path

import pytest

from mdc_flower.config import read_site_config
from mdc_flower.console.checks import Check
from mdc_flower.deployment.kits.kits import SiteKit, read_site_kit
from mdc_flower.deployment.site import check as site_check
from mdc_flower.deployment.site.check import check_site
from mdc_flower.deployment.site.node_config import node_config
from strategies.common.errors import ConfigError
from tests.mdc_flower.deployment.federations import CONTRACT, HEAD, Federation

SITE = '\n[[site]]\nname = "berlin"\ncommand = "./train.sh --fast"\n'


@pytest.fixture
def kit(tmp_path: Path) -> SiteKit:
    Federation(tmp_path).provision(HEAD + CONTRACT + SITE)
    return read_site_kit(tmp_path / "kits" / "berlin")


def checks(kit: SiteKit, monkeypatch: pytest.MonkeyPatch) -> dict[str, Check]:
    monkeypatch.setattr(site_check, "_network_checks", lambda kit: iter(()))
    return {check.name: check for check in check_site(kit)}


def test_the_kit_tells_its_operator_the_command_and_asks_for_no_data(kit: SiteKit) -> None:
    assert kit.command == "./train.sh --fast"
    site = read_site_config(node_config(kit))
    assert (site.command, site.command_folder) == ("./train.sh --fast", str(kit.folder))
    text = (kit.folder / "README.md").read_text()
    assert "your own command reads, which trains here: `./train.sh --fast`" in text
    assert "--data" not in (kit.folder / "mdc-site.service").read_text()


def test_the_command_is_checked_in_place_of_data_and_device(
    kit: SiteKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = checks(kit, monkeypatch)["command"]
    assert missing.ok is False
    assert "program does not exist or may not be executed" in missing.detail
    script = kit.folder / "train.sh"
    script.write_text("#!/bin/sh\n")
    assert checks(kit, monkeypatch)["command"].ok is False, "it is not executable"
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    found = checks(kit, monkeypatch)
    assert found["command"].ok is True
    assert "./train.sh --fast" in found["command"].detail
    assert found.keys().isdisjoint({"data", "device"})


def test_a_command_that_is_given_at_the_start_replaces_the_kits(kit: SiteKit) -> None:
    assert kit.with_data("", "", "python other.py").command == "python other.py"
    with pytest.raises(ConfigError, match="the kit of berlin: data and command exclude each other"):
        kit.with_data("digits", "")
