"""Kits as their operators get them: what is read, what is refused, and what lies in them."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import mdc_flower
from mdc_flower.config import read_site_config
from mdc_flower.deployment.coordinator.coordinator import run_defaults
from mdc_flower.deployment.kits.certificates import fingerprint
from mdc_flower.deployment.kits.kits import (
    Kit,
    join_address,
    read_coordinator_kit,
    read_site_kit,
)
from mdc_flower.deployment.site.node_config import node_config
from strategies.common.errors import ConfigError
from tests.mdc_flower.deployment.federations import CONTRACT, HEAD, TWO_SITES, Federation


def test_a_site_kit_says_what_its_commands_need(federation: Federation) -> None:
    kit = read_site_kit(federation.kits / "berlin")
    assert (kit.kind, kit.federation, kit.site, kit.version) == (
        "site",
        "lungs",
        "berlin",
        mdc_flower.__version__,
    )
    assert (kit.host, kit.port, kit.address) == (
        "coordinator.example.org",
        8443,
        "coordinator.example.org:8443",
    )
    assert (kit.contact, kit.data) == ("Ada <ada@example.org>", "image-folder:/srv/images")
    assert kit.contract is not None
    assert (kit.contract.name, kit.contract.classes) == ("lungs", ("ill", "well"))
    assert kit.folder == federation.kits / "berlin"
    assert kit.state == kit.folder / "state"
    assert kit.state.is_dir()
    for file in (kit.ca, kit.key, kit.public_key):
        assert file.is_file()


def test_a_coordinator_kit_says_what_its_commands_need(federation: Federation) -> None:
    kit = read_coordinator_kit(federation.kits / "coordinator")
    assert (kit.kind, kit.federation, kit.host, kit.port, kit.listen, kit.version) == (
        "coordinator",
        "lungs",
        "coordinator.example.org",
        8443,
        "0.0.0.0",
        mdc_flower.__version__,
    )
    assert kit.contract is not None
    assert (kit.data, kit.data_root, kit.contract.shape) == ("", "", (1, 8, 8))
    assert kit.state.is_dir()
    for file in (kit.ca, kit.key, kit.certificate):
        assert file.is_file()
    assert list(kit.sites) == ["berlin", "lisbon"]
    berlin = read_site_kit(federation.kits / "berlin").public_key.read_text()
    assert fingerprint(kit.sites["berlin"]) == fingerprint(berlin)
    assert kit.revoked == {}


def test_every_setting_reaches_the_kits(federation: Federation) -> None:
    site = (
        '[[site]]\nname = "x"\ndata-root = "/d"\ndevice = "cuda:1"\nmin-examples = 7\nthreads = 6\n'
        "max-examples = 70\nmicro-batch-size = 8\n"
        'metrics = ["num-examples"]\npartition-id = 1\nnum-partitions = 3\n'
        'vocabulary = "words.txt"\n[site.launch]\nranks = 4\nshard = true\n'
    )
    coordinator = '[coordinator]\ndata = "digits"\ndata-root = "/e"\n'
    head = HEAD + 'port = 443\nlisten = "::"\nmax-site-weight = 0.4\n'
    text = head + CONTRACT + coordinator + site
    federation.provision(text, revoke=["berlin", "lisbon"])
    kit = read_site_kit(federation.kits / "x")
    assert (kit.data_root, kit.device, kit.min_examples) == ("/d", "cuda:1", 7)
    assert kit.threads == node_config(kit, 44)["threads"] == 6
    assert node_config(kit, 44)["max-examples"] == kit.max_examples == 70
    assert node_config(kit, 44)["num-examples"] == 44
    assert (kit.launch.ranks, kit.launch.shard) == (4, True)
    assert read_site_config(node_config(kit)).ranks == 4
    assert read_site_config(node_config(kit)).micro_batch_size == kit.micro_batch_size == 8
    agreed = read_coordinator_kit(federation.kits / "coordinator")
    assert agreed.examples == {"x": (7, 70)}
    assert run_defaults(agreed)["max-site-weight"] == agreed.max_site_weight == 0.4
    assert (kit.metrics, kit.partition_id, kit.num_partitions) == (("num-examples",), 1, 3)
    assert kit.vocabulary_path == node_config(kit)["vocabulary"] == str(kit.folder / "words.txt")
    assert kit.model_copy(update={"vocabulary": "/else/words.txt"}).vocabulary_path == (
        "/else/words.txt"
    )
    assert kit.model_copy(update={"vocabulary": ""}).vocabulary_path == ""
    lead = read_coordinator_kit(federation.kits / "coordinator")
    assert (lead.port, lead.listen, lead.data, lead.data_root) == (443, "::", "digits", "/e")


def test_the_folder_of_a_kit_is_absolute_wherever_it_is_read_from(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(federation.kits)
    assert read_site_kit(Path("lisbon")).folder == federation.kits / "lisbon"


def test_the_coordinator_sees_who_was_added_without_reading_its_kit_again(
    federation: Federation,
) -> None:
    kit = read_coordinator_kit(federation.kits / "coordinator")
    federation.provision(TWO_SITES + '[[site]]\nname = "athens"\n')
    assert list(kit.sites) == ["athens", "berlin", "lisbon"]
    (kit.folder / "sites" / ".being-written.pub").write_text("half a k")
    assert list(kit.sites) == ["athens", "berlin", "lisbon"]


@pytest.mark.parametrize("read", [read_site_kit, read_coordinator_kit])
def test_what_is_no_folder_of_a_kit_is_refused(
    federation: Federation, read: Callable[[Path], Kit]
) -> None:
    for path, message in (
        (federation.kits / "oslo", "there is no such folder"),
        (federation.kits / "berlin" / "kit.toml", "not a folder"),
        (federation.kits / "authority", "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            read(path)
        assert str(path) in caught.value.where


def test_a_kit_of_the_other_kind_is_refused_with_its_commands(federation: Federation) -> None:
    with pytest.raises(ConfigError, match="another kind of kit") as caught:
        read_site_kit(federation.kits / "coordinator")
    assert (caught.value.got, caught.value.expected) == ("coordinator", "'site'")
    assert "mdc coordinator" in caught.value.hint
    with pytest.raises(ConfigError, match="another kind of kit") as caught:
        read_coordinator_kit(federation.kits / "berlin")
    assert (caught.value.got, caught.value.expected) == ("site", "'coordinator'")
    assert "mdc site" in caught.value.hint


@pytest.mark.parametrize("name", ["ca.pem", "site.key", "site.pub"])
def test_a_missing_file_of_a_site_is_named(federation: Federation, name: str) -> None:
    path = federation.kits / "berlin" / name
    path.unlink()
    with pytest.raises(ConfigError, match="a file of the kit is missing") as caught:
        read_site_kit(federation.kits / "berlin")
    assert caught.value.where == str(path)


@pytest.mark.parametrize("name", ["ca.pem", "coordinator.pem", "coordinator.key"])
def test_a_missing_file_of_the_coordinator_is_named(federation: Federation, name: str) -> None:
    path = federation.kits / "coordinator" / name
    path.unlink()
    with pytest.raises(ConfigError, match="a file of the kit is missing") as caught:
        read_coordinator_kit(federation.kits / "coordinator")
    assert caught.value.where == str(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_a_key_that_others_may_read_is_refused_with_the_remedy(
    federation: Federation, mode: int
) -> None:
    key = federation.kits / "berlin" / "site.key"
    key.chmod(mode)
    with pytest.raises(ConfigError, match="other users than the owner") as caught:
        read_site_kit(federation.kits / "berlin")
    assert caught.value.hint == f"chmod 600 {key}"
    key.chmod(0o400)
    read_site_kit(federation.kits / "berlin")
    lead = federation.kits / "coordinator" / "coordinator.key"
    lead.chmod(mode)
    with pytest.raises(ConfigError, match="other users than the owner"):
        read_coordinator_kit(federation.kits / "coordinator")


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("port = 8443", "prot = 8443", ", prot"),
        ("port = 8443", 'port = 8443\nfolder = "/"', ", folder"),
        ("port = 8443", "port = 0", ", port"),
        ('type = "uint8"', 'type = "uint9"', ", [contract], type"),
        ('site = "berlin"', 'site = "../berlin"', ", site"),
    ],
)
def test_a_damaged_kit_is_refused_by_its_key(
    federation: Federation, old: str, new: str, where: str
) -> None:
    file = federation.kits / "berlin" / "kit.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_site_kit(file.parent)
    assert caught.value.where == f"{file}{where}"


def test_an_address_has_brackets_where_it_needs_them() -> None:
    assert join_address("example.org", 1) == "example.org:1"
    assert join_address("10.0.0.5", 1) == "10.0.0.5:1"
    assert join_address("2001:db8::1", 1) == "[2001:db8::1]:1"


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
@pytest.mark.parametrize("name", ["berlin/mdc-site.service", "coordinator/mdc-coordinator.service"])
def test_systemd_finds_nothing_wrong_with_a_unit_but_what_is_not_installed(
    federation: Federation, name: str
) -> None:
    def verdict() -> list[str]:
        result = subprocess.run(
            ["systemd-analyze", "verify", str(federation.kits / name)],
            capture_output=True,
            text=True,
            check=False,
        )
        unit = Path(name).name
        return [line for line in result.stderr.splitlines() if unit in line]

    (missing,) = verdict()
    assert "/opt/mdc-flower/bin/mdc is not executable" in missing
    unit = federation.kits / name
    unit.write_text(unit.read_text().replace("Restart=always", "Restart=allways"))
    assert len(verdict()) == 2  # the verdict is of this file


def unit_lines(federation: Federation, name: str) -> list[str]:
    return federation.read(name).splitlines()


def test_a_unit_gives_the_data_only_where_the_kit_does_not(federation: Federation) -> None:
    start = "ExecStart=/opt/mdc-flower/bin/mdc site start /etc/mdc-flower"
    assert f"{start}/berlin" in unit_lines(federation, "berlin/mdc-site.service")
    assert f"{start}/lisbon --data image-folder:/path/to/images" in unit_lines(
        federation, "lisbon/mdc-site.service"
    )


@pytest.mark.parametrize(
    ("unit", "state"),
    [
        ("berlin/mdc-site.service", "/etc/mdc-flower/berlin/state"),
        ("coordinator/mdc-coordinator.service", "/etc/mdc-flower/coordinator/state"),
    ],
)
def test_a_unit_may_write_to_the_state_alone(federation: Federation, unit: str, state: str) -> None:
    lines = unit_lines(federation, unit)
    assert [line for line in lines if line.startswith("ReadWritePaths")] == [
        f"ReadWritePaths={state}"
    ]
    for setting in ("User=mdc", "Restart=always", "RestartSec=10", "NoNewPrivileges=true"):
        assert setting in lines
    for setting in ("ProtectSystem=strict", "PrivateTmp=true", "UMask=0077"):
        assert setting in lines


@pytest.mark.skipif(importlib.util.find_spec("yaml") is None, reason="PyYAML is not installed")
def test_the_compose_files_mount_the_kit_and_publish_the_coordinator_alone(
    federation: Federation,
) -> None:
    import yaml  # type: ignore[import-untyped]

    (name, lead), *others = yaml.safe_load(federation.read("coordinator/compose.yaml"))[
        "services"
    ].items()
    assert (name, others) == ("coordinator", [])
    assert lead["ports"] == ["8443:8443"]
    assert lead["command"] == ["coordinator", "start", "/kit"]
    assert lead["volumes"] == [{"type": "bind", "source": ".", "target": "/kit"}]
    berlin = yaml.safe_load(federation.read("berlin/compose.yaml"))["services"]["site"]
    lisbon = yaml.safe_load(federation.read("lisbon/compose.yaml"))["services"]["site"]
    for service in (lead, berlin, lisbon):
        assert service["restart"] == "always"
        assert service["user"] == "${MDC_UID:-1000}:${MDC_GID:-1000}"
    assert "ports" not in berlin
    assert berlin["command"] == ["site", "start", "/kit"]
    assert berlin["volumes"][1] == {
        "type": "bind",
        "source": "/srv/images",
        "target": "/srv/images",
        "read_only": True,
    }
    assert lisbon["command"][-2:] == ["--data", "image-folder:/path/to/images"]
    assert len(lisbon["volumes"]) == 1


@pytest.mark.skipif(importlib.util.find_spec("yaml") is None, reason="PyYAML is not installed")
def test_a_strange_path_of_the_data_is_mounted_as_it_is(federation: Federation) -> None:
    import yaml

    strange = TWO_SITES.replace("/srv/images", "/srv/a: $b 'c' # {d}")
    federation.provision(strange)
    berlin = yaml.safe_load(federation.read("berlin/compose.yaml"))["services"]["site"]
    assert berlin["volumes"][1]["source"] == "/srv/a: $$b 'c' # {d}"  # compose reads $$ as $


def test_no_image_can_hold_a_key(federation: Federation) -> None:
    for kit in ("coordinator", "berlin"):
        dockerfile = federation.read(f"{kit}/Dockerfile")
        assert not re.search(r"^(COPY|ADD)", dockerfile, re.MULTILINE)
        assert f"mdc-flower=={mdc_flower.__version__}" in dockerfile
        assert "USER mdc" in dockerfile
        assert federation.read(f"{kit}/.dockerignore").splitlines()[-1] == "*"


def test_the_operators_are_told_what_leaves_and_what_must_be_open(federation: Federation) -> None:
    site = federation.read("berlin/README.md")
    for metric in read_site_kit(federation.kits / "berlin").metrics:
        assert f"- `{metric}`" in site
    assert "Outgoing TCP to `coordinator.example.org:8443`" in site
    assert "No incoming port" in site
    coordinator = federation.read("coordinator/README.md")
    assert "A machine on which you trust all users" in coordinator
    assert "docker compose exec" in coordinator


def test_no_placeholder_is_left_in_any_file(federation: Federation) -> None:
    for path, (_, content) in federation.files().items():
        if not path.endswith(".zip"):
            text = content.decode().replace("$(id -u)", "").replace("$(id -g)", "")
            assert "$" not in re.sub(r"\$\{MDC_[UG]ID:-1000\}", "", text), path


def test_a_readme_of_a_thousand_classes_stays_short(federation: Federation) -> None:
    classes = ", ".join(f'"class-{number}"' for number in range(1000))
    federation.provision(TWO_SITES.replace('"ill", "well"', classes))
    readme = federation.read("berlin/README.md")
    assert "the 1000 classes listed in `kit.toml`" in readme
    assert "class-999" not in readme
    kit = tomllib.loads(federation.read("berlin/kit.toml"))
    assert kit["contract"]["classes"][999] == "class-999"


def test_the_package_of_a_kit_is_read_without_torch() -> None:
    code = (
        "import sys, mdc_flower.deployment.kits.provision, mdc_flower.deployment.kits.kits; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
