"""What each check says, against coordinators of every wrong kind on the loopback interface."""

import json
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mdc_flower import __version__
from mdc_flower.config import read_run_config
from mdc_flower.console.checks import Check
from mdc_flower.deployment.kits.certificates import Credential, new_server_certificate
from mdc_flower.deployment.kits.kits import SiteKit, read_site_kit
from mdc_flower.deployment.site import check as site_check
from mdc_flower.deployment.site.check import ask_coordinator, check_site
from mdc_flower.jobs.run_task import load_run_task
from mdc_flower.models.exchange import base_digests, base_of
from strategies.common.errors import RunError
from tests.mdc_flower.deployment.federations import CONTRACT, HEAD, NOW, Federation

URLOPEN = urllib.request.urlopen  # before the tests' own isolation takes it away
DIGITS = CONTRACT.replace('["ill", "well"]', json.dumps([str(digit) for digit in range(10)]))
SITE = '\n[[site]]\nname = "berlin"\ndata = "digits"\n'
TODAY = (datetime.now(UTC) - NOW) / timedelta(days=1)
GOOD = {"federation": "lungs", "mdc-flower": __version__, "flwr": "1.41.0", "registered": True}


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the checks open connections: everything here is on this machine."""
    monkeypatch.setattr(urllib.request, "urlopen", URLOPEN)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    federation = Federation(tmp_path)
    head = HEAD.replace("coordinator.example.org", "localhost")
    federation.provision(head + DIGITS + SITE, days_later=TODAY)
    return federation


@pytest.fixture
def kit(federation: Federation) -> SiteKit:
    return read_site_kit(federation.kits / "berlin")


def credential(federation: Federation, host: str = "localhost", days_ago: float = 0) -> Credential:
    """Return a certificate of the federation's authority, made some days ago for a month."""
    folder = federation.kits / "authority"
    authority = Credential((folder / "ca.key").read_bytes(), (folder / "ca.pem").read_bytes())
    made = datetime.now(UTC) - timedelta(days=days_ago)
    return new_server_certificate(authority, "lungs", (host,), 31, made)


@contextmanager
def coordinator(folder: Path, own: Credential | None, answer: bytes = b"") -> Iterator[int]:
    """Serve one answer, with this certificate or without TLS; yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(HTTPServer):
        def handle_error(self, *arguments: object) -> None:
            pass  # a caller who does not trust us hangs up

    server = Server(("127.0.0.1", 0), Handler)
    if own is not None:
        (folder / "server.pem").write_bytes(own.certificate)
        (folder / "server.key").write_bytes(own.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(**changes: Any) -> bytes:
    told = {**GOOD, "time": time.time(), "online": False, **changes}
    body = json.dumps({key: value for key, value in told.items() if value is not None})
    return b"HTTP/1.0 200 OK\r\n\r\n" + body.encode()


def network(kit: SiteKit, port: int) -> dict[str, Check]:
    """Return the checks from the name of the coordinator on, by name."""
    checks = list(check_site(kit.model_copy(update={"port": port})))
    names = [check.name for check in checks]
    return {check.name: check for check in checks[names.index("name resolution") :]}


def test_a_site_in_order(federation: Federation, kit: SiteKit, tmp_path: Path) -> None:
    with coordinator(tmp_path, credential(federation, days_ago=20), answer()) as port:
        checks = list(check_site(kit.model_copy(update={"port": port})))
    assert [check.name for check in checks if check.ok] == [
        "version", "keys", "data", "classes", "disk", "memory", "device", "name resolution",
        "connection", "TLS", "coordinator", "clock", "key",
    ]  # fmt: skip
    facts = {check.name: check.detail for check in checks if check.ok is None}
    assert facts["site"] == "berlin, of the federation 'lungs'"
    counts = [int(text.split()[1]) for text in facts["labels (not sent)"].split(", ")]
    assert (len(counts), sum(counts) > 1000) == (10, True)
    told = {check.name: check.detail for check in checks}
    assert told["TLS"].endswith("for 10 more days; it expires soon: remind the coordinator")
    assert told["key"] == "registered with the coordinator"


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        ({"federation": "other"}, "coordinator", "another federation (got 'other'"),
        ({"mdc-flower": "9"}, "coordinator", f"(got '9', expected {__version__}, as here). Ins"),
        ({"registered": False}, "key", "unknown there or was revoked. Ask the coordinator"),
        ({"online": True}, "key", "is already online. Stop it first"),
        ({"time": time.time() + 3600}, "clock", "s behind the coordinator's (expected at most 5 s"),
        ({"time": time.time() - 3600}, "clock", "s ahead of the coordinator's"),
        ({"time": None}, "coordinator", "does not answer like an mdc-flower coordinator"),
        ({"time": []}, "coordinator", "does not answer like an mdc-flower coordinator"),
    ],
)
def test_what_the_coordinator_says(
    federation: Federation,
    kit: SiteKit,
    tmp_path: Path,
    changes: dict[str, Any],
    name: str,
    text: str,
) -> None:
    with coordinator(tmp_path, credential(federation), answer(**changes)) as port:
        failed = {n: check.detail for n, check in network(kit, port).items() if not check.ok}
    assert failed.keys() == {name}
    assert text in failed[name]


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.0 404 Not Found\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n<html>",
        b"HTTP/1.0 200 OK\r\n\r\n5",
        b"HTTP/1.0 200 OK\r\n\r\n[1]",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 99\r\n\r\n{",
        b"",
    ],
)
def test_who_is_no_coordinator(
    federation: Federation, kit: SiteKit, tmp_path: Path, raw: bytes
) -> None:
    with coordinator(tmp_path, credential(federation), raw) as port:
        told = network(kit, port)["coordinator"].detail
    assert told.startswith(f"localhost:{port}: it does not answer like an mdc-flower coordinator")
    assert told.endswith("It must be started with `mdc coordinator start`")


@pytest.mark.parametrize(
    ("host", "days_ago", "text"),
    [
        ("localhost", 40, "certificate has expired. The coordinator must renew it"),
        ("localhost", -5, "is not valid yet. Check this machine's clock"),
        ("elsewhere.example.org", 0, "certificate is for another name"),
        ("127.0.0.1", 0, "certificate is for another name"),
    ],
)
def test_certificates_that_do_not_hold(
    federation: Federation, kit: SiteKit, tmp_path: Path, host: str, days_ago: float, text: str
) -> None:
    with coordinator(tmp_path, credential(federation, host, days_ago)) as port:
        found = network(kit, port)
    assert text in found["TLS"].detail
    assert list(found) == ["name resolution", "connection", "TLS"], "no more is asked"


def test_another_authority(federation: Federation, kit: SiteKit, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Federation(tmp_path / "other")
    other.provision(HEAD + DIGITS + SITE, days_later=TODAY)
    with coordinator(tmp_path, credential(other)) as port:
        told = network(kit, port)["TLS"].detail
    assert "is not from the federation's authority" in told
    assert "Do not join" in told


def test_what_does_not_speak_tls(kit: SiteKit, tmp_path: Path) -> None:
    with coordinator(tmp_path, None, answer()) as port:
        assert "does not speak TLS" in network(kit, port)["TLS"].detail
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()

        def hang_up() -> None:
            for _ in range(2):  # the check of the connection, and that of TLS
                deaf.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        told = network(kit, deaf.getsockname()[1])["TLS"].detail
        thread.join()
    assert "TLS" in told
    assert "Another program may listen there" in told


def test_nobody_there(kit: SiteKit) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        found = network(kit, held.getsockname()[1])
    assert "cannot be reached" in found["connection"].detail
    assert "allows outgoing TCP to port" in found["connection"].detail
    found = network(kit.model_copy(update={"host": "no-such-host.invalid"}), 1)
    assert [*found] == ["name resolution"]
    assert found["name resolution"].detail.endswith("Ask the coordinator for its DNS entry")


def test_a_damaged_authority_is_told_and_raises_nothing_else(kit: SiteKit) -> None:
    kit.ca.write_text("damaged")
    with pytest.raises(RunError, match="the authority's certificate cannot be read") as caught:
        ask_coordinator(kit)
    assert str(caught.value).endswith("Unpack the kit again")


def test_a_damaged_public_key_is_told(kit: SiteKit) -> None:
    kit.public_key.write_text("damaged")
    with pytest.raises(RunError, match="public key cannot be read"):
        ask_coordinator(kit)


def local(kit: SiteKit, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what one of the checks of this machine says when it fails."""
    monkeypatch.setattr(site_check, "_network_checks", lambda kit: iter(()))
    (check,) = [check for check in check_site(kit) if check.name == name]
    assert check.ok is False, check
    return check.detail


def test_another_version_than_was_agreed(kit: SiteKit, monkeypatch: pytest.MonkeyPatch) -> None:
    told = local(kit.model_copy(update={"version": "9.9"}), "version", monkeypatch)
    assert told.endswith("pip install mdc-flower==9.9")


def test_keys_of_two_sites(
    federation: Federation, kit: SiteKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = kit.public_key.read_bytes()
    federation.provision(renew=["berlin"], days_later=TODAY)
    kit.public_key.write_bytes(old)
    assert "do not match" in local(kit, "keys", monkeypatch)
    kit.key.write_text("damaged")
    assert "ValueError" in local(kit, "keys", monkeypatch)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": ""}, "no data set is named. Give --data, or set data in kit.toml"),
        ({"data": "image-folder:/no/such/folder"}, "/no/such/folder"),
        ({"data": "no-such-data"}, "no-such-data"),
        ({"min_examples": 99999}, "fewer training examples than the site has promised"),
        ({"max_examples": 3}, "more training examples than the sites have agreed on"),
    ],
)
def test_data_that_are_not_as_agreed(
    kit: SiteKit, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], text: str
) -> None:
    assert text in local(kit.model_copy(update=changes), "data", monkeypatch)


def test_who_counts_the_examples_is_given_their_number(
    kit: SiteKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdc_flower.deployment.site.check._network_checks", lambda kit: iter(()))
    counts: list[int] = []
    found = {check.name: check for check in check_site(kit, counts.append)}
    assert found["data"].detail.startswith(f"{counts[0]} training and ")
    assert len(counts) == 1


PART = {"exchange": "trainable"}


def of_job(kit: SiteKit, job: str, **changes: Any) -> SiteKit:
    module = job.partition(":")[0]
    own = {"contract": None, "job": job, "modules": (module,), "metrics": ()}
    return kit.model_copy(update={**own, "partition_id": -1, "num_partitions": 0, **changes})


def test_a_job_of_the_federations_own_is_built_and_tried(
    kit: SiteKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdc_flower.deployment.site.check._network_checks", lambda kit: iter(()))
    counts: list[int] = []
    own = of_job(kit, "tests.tiny_jobs:classification")
    found = {check.name: check for check in check_site(own, counts.append)}
    assert found["job"].ok, found["job"].detail
    assert found["job"].detail.endswith("24 training and 12 validation examples")
    assert counts == [36]
    assert "data" not in found


def test_the_agreed_base_is_the_sites_own(kit: SiteKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdc_flower.deployment.site.check._network_checks", lambda kit: iter(()))
    task = load_run_task(read_run_config({"job": "tests.tiny_jobs:adapted"}))
    base = base_of(base_digests(task.new_model(), ["2.weight", "2.bias"]))
    for keep in ("", "2.bias"):
        own = of_job(kit, "tests.tiny_jobs:adapted", **PART, keep=keep, base=base)
        (found,) = (check for check in check_site(own) if check.name == "job")
        assert found.ok, found.detail


@pytest.mark.parametrize(
    ("job", "changes", "text"),
    [
        ("tests.tiny_jobs:absent", {}, "has no function 'absent'"),
        ("tests.tiny_jobs:numbers", {}, "the job cannot be built"),
        ("tests.tiny_jobs:line", {"min_examples": 37}, "is not the agreed one (got 36"),
        ("tests.tiny_jobs:line", {"metrics": ("train-f1",)}, "metric that the job does not have"),
        ("tests.tiny_jobs:adapted", PART | {"base": "0" * 64}, "not the same here"),
        ("tests.tiny_jobs:drifting", PART, "'0.running_mean', the first of 3 that changed"),
        ("tests.tiny_jobs:line", {"exchange": "wieght"}, "weight"),
    ],
)
def test_a_job_that_does_not_work_here(
    kit: SiteKit, monkeypatch: pytest.MonkeyPatch, job: str, changes: dict[str, Any], text: str
) -> None:
    assert text in local(of_job(kit, job, **changes), "job", monkeypatch)


@pytest.mark.parametrize("name", ["disk", "memory"])
def test_a_machine_that_is_too_small(
    kit: SiteKit, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    small = SimpleNamespace(free=1024**3, available=1024**3)
    usage: Callable[..., Any] = lambda *_: small  # noqa: E731
    monkeypatch.setattr(
        site_check, "psutil", SimpleNamespace(disk_usage=usage, virtual_memory=usage)
    )
    assert "only 1.0 GiB free, 2.0 GiB are needed" in local(kit, name, monkeypatch)


def test_a_page_about_the_data_stays_at_the_site(kit: SiteKit) -> None:
    checks = {check.name: check for check in check_site(kit, with_page=True)}
    page = Path(checks["page of the data (not sent)"].detail)
    assert page == kit.state / "data-check.html"
    assert page.stat().st_mode & 0o777 == 0o600
    assert "data:image/png;base64," in page.read_text()
    assert checks["data"].ok
    wrong = kit.model_copy(update={"data": "image-folder:/nowhere"})
    found = [check for check in check_site(wrong, with_page=True) if check.name == "data found"]
    assert "the folder train/ is missing in /nowhere" in [check.detail for check in found]
