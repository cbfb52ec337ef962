"""What the real processes of a provisioned federation refuse, and with which message."""

import http.server
import os
import shutil
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from mdc_flower.common.config_files import read_toml
from mdc_flower.deployment.coordinator.endpoints import client
from mdc_flower.deployment.kits.certificates import Credential, new_server_certificate
from mdc_flower.deployment.kits.kits import read_coordinator_kit, read_site_kit
from mdc_flower.deployment.site.check import ask_coordinator, check_site
from mdc_flower.deployment.site.node_config import node_config
from mdc_flower.engines.app_bundle import stage_app
from mdc_flower.engines.flower_processes import (
    environment,
    free_port,
    is_healthy,
    run_command,
    script,
)
from tests.integration.conftest import summary_of
from tests.integration.real_sites import REPOSITORY, RealSites, real_sites

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSites]:
    """Yield one federation for all tests, with a running coordinator and no running sites."""
    with real_sites(tmp_path_factory.mktemp("refused"), num_sites=3) as started:
        started.start_coordinator()
        yield started


def changed_kit(sites: RealSites, folder: Path, name: str = "site-0", **keys: Any) -> Path:
    """Return a copy of a kit with changed keys in kit.toml."""
    kit = folder / name
    shutil.copytree(sites.kit(name), kit, ignore=shutil.ignore_patterns("state"))
    values = read_toml(kit / "kit.toml")
    values |= {key.replace("_", "-"): value for key, value in keys.items()}
    (kit / "kit.toml").write_text(tomli_w.dumps(values))
    return kit


def failures(kit: Path) -> dict[str, str]:
    """Return the name and the message of each check that fails at a site."""
    return {
        check.name: check.detail
        for check in check_site(read_site_kit(kit))
        if not check.ok and check.ok is not None
    }


def supernode(sites: RealSites, kit_folder: Path, **config: Any) -> "subprocess.Popen[bytes]":
    """Start Flower's own SuperNode from a kit, without our checks."""
    kit = read_site_kit(kit_folder)
    path = kit_folder / "node-config.toml"
    path.write_text(tomli_w.dumps({**node_config(kit), **config}))
    options = ["--root-certificates", str(kit.ca), "--auth-supernode-private-key", str(kit.key)]
    return flower_supernode(
        sites, [*options, "--node-config", str(path)], kit_folder / "supernode.txt"
    )


def flower_supernode(
    sites: RealSites, options: Sequence[str], log_path: Path
) -> "subprocess.Popen[bytes]":
    """Start `flower-supernode`, with its output and that of its children in a file."""
    command = [script("flower-supernode"), "--superlink", sites.address, "--max-retries", "1"]
    command += ["--port", str(free_port()), *options]
    with log_path.open("wb") as log:
        return subprocess.Popen(
            command, env=sites.environment(), cwd=REPOSITORY, stdout=log, stderr=log
        )


def test_every_check_passes_if_nothing_is_wrong(sites: RealSites) -> None:
    done = sites.mdc("site", "check", str(sites.kit("site-0")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    for line in (
        "data: 1442 training",
        "TLS: certificate",
        "key: registered",
        "labels (not sent)",
    ):
        assert line in done.stdout


def test_an_unknown_key(sites: RealSites, tmp_path: Path) -> None:
    kit = changed_kit(sites, tmp_path)
    (kit / "site.key").unlink()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(kit / "site.key")],
        check=True,
    )
    shutil.move(kit / "site.key.pub", kit / "site.pub")
    assert "it is unknown there or was revoked" in failures(kit)["key"]
    node = supernode(sites, kit)
    assert node.wait(60) != 0
    assert "Failed to activate SuperNode" in (kit / "supernode.txt").read_text()
    done = sites.mdc("site", "start", str(kit))
    assert done.returncode == 1
    assert "FAILED  key: the coordinator does not accept this site's key" in done.stdout


def test_a_revoked_key_is_disconnected_while_its_site_is_online(sites: RealSites) -> None:
    key = sites.folder / "kept" / "site-2"
    shutil.copytree(sites.kit("site-2"), key, ignore=shutil.ignore_patterns("state"))
    site = sites.start("site-2", "site", "start", str(key))
    sites.wait(lambda: "joins federation 'digits-trial'" in sites.log("site-2"), 60, "site-2")
    gone = sites.federation["site"].pop()
    lines = sites.provision(revoke=["site-2"])
    assert any("site-2" in line and "revoked" in line for line in lines), lines
    sites.wait(
        lambda: "its key is no longer accepted" in sites.log("coordinator"), 30, "coordinator"
    )
    assert site.wait(90) == 1
    assert "the coordinator no longer accepts this site's key" in sites.log("site-2")
    assert "it is unknown there or was revoked" in failures(key)["key"]
    # When the site is added again, it gets a new key; the old key stays revoked.
    sites.federation["site"].append(gone)
    sites.provision()
    sites.wait(lambda: failures(sites.kit("site-2")) == {}, 30, "coordinator")
    assert "key" in failures(key)


def test_a_key_that_others_may_read(sites: RealSites, tmp_path: Path) -> None:
    kit = changed_kit(sites, tmp_path)
    (kit / "site.key").chmod(0o644)
    done = sites.mdc("site", "check", str(kit))
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def test_another_authority(sites: RealSites, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = RealSites(tmp_path / "other")
    kit = changed_kit(sites, tmp_path)
    shutil.copy(other.kit("site-0") / "ca.pem", kit / "ca.pem")
    assert "is not from the federation's authority" in failures(kit)["TLS"]
    node = supernode(sites, kit)
    assert node.wait(60) != 0
    assert "CERTIFICATE_VERIFY_FAILED" in (kit / "supernode.txt").read_text()


def test_an_expired_certificate(sites: RealSites, tmp_path: Path) -> None:
    certificate, key = certificate_of(sites, tmp_path, "localhost", days_ago=400)
    with server(certificate, key) as port:
        told = failures(changed_kit(sites, tmp_path, port=port))["TLS"]
    assert told.endswith("certificate has expired. The coordinator must renew it")


def test_a_host_name_that_does_not_match(sites: RealSites, tmp_path: Path) -> None:
    certificate, key = certificate_of(sites, tmp_path, "elsewhere.example.org", days_ago=0)
    with server(certificate, key) as port:
        told = failures(changed_kit(sites, tmp_path, port=port))["TLS"]
    assert "the coordinator's certificate is for another name" in told


def test_plain_http(sites: RealSites, tmp_path: Path) -> None:
    with server(None, None) as port:
        kit = changed_kit(sites, tmp_path, port=port)
        assert "the coordinator does not speak TLS" in failures(kit)["TLS"]
    options = ["--insecure", "--node-config", 'site="site-0"']
    node = flower_supernode(sites, options, tmp_path / "plain.txt")
    assert node.wait(60) != 0
    assert "Failed to initialize the connection" in (tmp_path / "plain.txt").read_text()


def test_a_port_without_a_server_and_an_unknown_host(sites: RealSites, tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        kit = changed_kit(sites, tmp_path / "a", port=held.getsockname()[1])
        assert "cannot be reached" in failures(kit)["connection"]
    kit = changed_kit(sites, tmp_path / "b", host="no-such-host.invalid")
    assert "for its DNS entry" in failures(kit)["name resolution"]


def test_data_that_violate_the_contract(sites: RealSites, tmp_path: Path) -> None:
    kit = changed_kit(sites, tmp_path, min_examples=5000)
    done = sites.mdc("site", "start", str(kit))
    assert done.returncode == 1
    assert "fewer training examples than the site has promised" in done.stdout
    other = read_toml(kit / "kit.toml")["contract"]
    other["classes"] = [*other["classes"][1:], "another"]
    kit = changed_kit(sites, tmp_path / "other", contract=other)
    assert "a class that is not in the contract" in failures(kit)["data"]


NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        client_max_body_size 64m;
        location / {{
            proxy_pass https://127.0.0.1:{behind};
            proxy_set_header X-Forwarded-For 127.0.0.1;
        }}
    }}
}}
"""


@pytest.fixture
def proxy(sites: RealSites, tmp_path: Path) -> Iterator[int]:
    """Yield the port of a reverse proxy on the coordinator's machine."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    kit, port = read_coordinator_kit(sites.kit("coordinator")), free_port()
    config = NGINX.format(
        folder=tmp_path, port=port, behind=kit.port, certificate=kit.certificate, key=kit.key
    )
    (tmp_path / "nginx.conf").write_text(config)
    with subprocess.Popen([nginx, "-e", "stderr", "-c", str(tmp_path / "nginx.conf")]) as process:
        sites.wait(lambda: is_healthy(f"127.0.0.1:{port}", kit.ca), 60, "coordinator")
        yield port
        process.terminate()


def test_a_proxy_on_the_same_machine_exposes_only_what_sites_need(
    sites: RealSites, proxy: int, tmp_path: Path
) -> None:
    """The coordinator sees every caller at the loopback address; sites can still join."""
    kit = read_site_kit(changed_kit(sites, tmp_path, "site-2", port=proxy))
    context = ssl.create_default_context(cafile=kit.ca)
    for path in ("v1/control/start-run", "v1/control/list-runs", "v1/runtime/pull-task-input", ""):
        for method in ("GET", "POST"):
            call = urllib.request.Request(f"https://127.0.0.1:{proxy}/{path}", method=method)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(call, context=context, timeout=30)
            assert caught.value.code == 403, path
    assert failures(kit.folder) == {}
    node = sites.start("proxied", "site", "start", str(kit.folder))
    try:
        sites.wait(lambda: ask_coordinator(kit)[0].get("online"), 120, "proxied")
    finally:
        node.terminate()
        node.wait(30)


def test_a_site_that_claims_the_name_of_another(sites: RealSites, tmp_path: Path) -> None:
    kit = changed_kit(sites, tmp_path)
    node = supernode(sites, kit, site="site-1")
    try:
        done = sites.mdc(
            "coordinator", "run", str(sites.kit("coordinator")), "--set", "model=mlp",
            "--set", "epoch-budget=1", "--set", "local-epochs=1", "--set", "num-sites=1",
            "--set", "wait-for-sites-s=60.0", "--output", str(tmp_path / "run"),
        )  # fmt: skip
    finally:
        node.terminate()
        node.wait(30)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "it claims this name, but its key is registered for 'site-0'" in done.stderr


def test_another_version_of_the_app(sites: RealSites, tmp_path: Path) -> None:
    app = stage_app(tmp_path / "app" / "mdc-flower")
    code = app / "mdc_flower" / "client_app.py"
    code.write_text(code.read_text() + "\n# one line more\n")
    kit = read_coordinator_kit(sites.kit("coordinator"))
    joined = sites.start_site("site-1")
    sites.wait(lambda: "joins federation 'digits-trial'" in sites.log("site-1"), 60, "site-1")
    keys = (
        f'output-dir="{tmp_path / "run"}" num-sites=1 epoch-budget=1 local-epochs=1 model="mlp" '
        "wait-for-sites-s=15.0"
    )
    with client(kit) as home:
        done = subprocess.run(
            run_command(app, "--run-config", keys), env=environment(home), cwd=home,
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
    told = summary_of(tmp_path / "run")["error"]
    assert "the site runs only its installed app and refuses this one" in told
    assert "mdc_flower/client_app.py" in told, done.stdout
    assert "this site refuses to run the coordinator's app: its code differs" in sites.log("site-1")
    joined.terminate()
    joined.wait(60)


def certificate_of(sites: RealSites, folder: Path, host: str, days_ago: int) -> tuple[Path, Path]:
    """Return a certificate signed by the federation's own authority, and its key."""
    authority = Credential(
        (sites.kits / "authority" / "ca.key").read_bytes(),
        (sites.kits / "authority" / "ca.pem").read_bytes(),
    )
    then = datetime.now(UTC) - timedelta(days=days_ago)
    made = new_server_certificate(authority, "digits-trial", (host,), 365, then)
    certificate, key = folder / "server.pem", folder / "server.key"
    certificate.write_bytes(made.certificate)
    key.write_bytes(made.key)
    return certificate, key


@contextmanager
def server(certificate: Path | None, key: Path | None) -> Iterator[int]:
    """Serve HTTP, or HTTPS with this certificate, on the loopback interface; yield the port."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield httpd.server_address[1]
    finally:
        httpd.shutdown()
        httpd.server_close()
