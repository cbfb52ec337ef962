"""Checks before a site joins, one line each, ordered so that causes come before their effects."""

import base64
import http.client
import json
import math
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil
import torch
from cryptography.hazmat.primitives import serialization

from mdc_flower import __version__
from mdc_flower.common.cores import usable_cores
from mdc_flower.config import read_run_config, read_site_config
from mdc_flower.console.checks import Check, guarded
from mdc_flower.data import DataSet, load_dataset
from mdc_flower.data.cache import cache_dir
from mdc_flower.data.contract import Contract
from mdc_flower.data.readers.options import Reading, TextReading
from mdc_flower.data.registry import makes_vocabulary, no_vocabulary
from mdc_flower.data.remarks import remarks
from mdc_flower.data.survey import survey
from mdc_flower.deployment.coordinator.superlink import ABOUT
from mdc_flower.deployment.kits.kits import KIT, SiteKit
from mdc_flower.deployment.kits.private_files import PRIVATE, write_file
from mdc_flower.deployment.site.node_config import node_config
from mdc_flower.reports.data_page import data_page
from mdc_flower.site.own_loop.asking import check_command
from mdc_flower.training.numerics import (
    device_name,
    number_format,
    pick_autocast_dtype,
    pick_device,
)
from strategies.common.errors import ConfigError, DataError, RunError

MIN_FREE_BYTES = 2 * 1024**3
TIMEOUT_S = 10.0
AHEAD_S, BEHIND_S = 5.0, 300.0
"""Maximum clock skew to the coordinator, in seconds; Flower signs its calls with the time."""

EXPIRES_SOON_DAYS = 30

PAGE = "data-check.html"
"""The page about the site's data, in the kit's folder ``state``."""


def check_site(
    kit: SiteKit,
    on_data: Callable[[int], object] = lambda count: None,
    with_page: bool = False,
) -> Iterator[Check]:
    """Yield the checks of a site's kit and machine; a check whose precondition failed is left out.

    The label histogram is shown only at the site. ``on_data`` is called with the number of training
    examples if the data are what was agreed. ``with_page`` surveys the data first, and writes the
    page of what was found into the kit's folder ``state``.
    """
    yield Check("site", None, f"{kit.site}, of the federation {kit.federation!r}")
    yield guarded("version", lambda: _version(kit))
    yield guarded("keys", lambda: _keys(kit))
    if kit.command:
        yield guarded("command", lambda: _command(kit))
    else:
        if with_page and kit.contract is not None and kit.data:
            yield from _survey_checks(kit, kit.contract)
        yield from _job_checks(kit, on_data) if kit.job else _data_checks(kit, on_data)
    yield guarded("disk", lambda: _disk(kit))
    yield guarded("memory", _memory)
    if not kit.command:
        yield guarded("device", lambda: _device(kit))
    yield from _network_checks(kit)


def _version(kit: SiteKit) -> str:
    if kit.version != __version__:
        raise ConfigError(
            "the installed mdc-flower is not the version that the federation agreed on",
            got=__version__,
            expected=kit.version,
            hint=f"pip install mdc-flower=={kit.version}",
        )
    return f"mdc-flower {__version__}, flwr {version('flwr')}"


def _keys(kit: SiteKit) -> str:
    private = serialization.load_ssh_private_key(kit.key.read_bytes(), None)
    own = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    if own.split()[:2] != kit.public_key.read_bytes().split()[:2]:
        raise ConfigError(
            "the private key and the public key do not match",
            where=str(kit.key),
            hint="Unpack the kit again",
        )
    return "the private key and the public key match"


def _command(kit: SiteKit) -> str:
    program = check_command(kit.command, kit.folder)
    return f"{kit.command} ({program}), in the folder {kit.folder}; it trains with its own data"


def _job_checks(kit: SiteKit, on_data: Callable[[int], object]) -> Iterator[Check]:
    """Check a job of the federation's own: build it here, and train for a step."""

    def work() -> str:
        from mdc_flower.jobs.run_task import load_site_run_task  # imports torch
        from mdc_flower.models.exchange import (
            base_digests,
            base_of,
            check_base,
            exchanged_names,
            kept_names,
        )

        site = read_site_config(node_config(kit))
        part = {"exchange": kit.exchange, "keep": kit.keep, "site-evaluation": True}
        config = read_run_config({"job": kit.job, **part})
        task = load_site_run_task(config, site)
        task.check_model()
        if kit.base:
            model = task.new_model()
            changing = exchanged_names(model, kit.exchange, kit.keep)
            own = base_of(base_digests(model, [*changing, *kept_names(model, kit.keep)]))
            check_base(own, kit.base, "base")
        job = task.site_job(site)
        train, validation = job.size("train"), job.size("validation")
        if train is None:
            return f"{kit.job}: a step of training works; the examples are a stream"
        count = train + (validation or 0)
        fewest, most = kit.min_examples, kit.max_examples
        if count < fewest or (most and count > most):
            raise DataError(
                "the number of examples is not the agreed one",
                got=count,
                expected=f"{fewest} or more" + (f", and at most {most}" if most else ""),
            )
        on_data(count)
        return (
            f"{kit.job}: a step of training works; {train} training and {validation or 0} "
            "validation examples"
        )

    yield guarded("job", work)


def _survey_checks(kit: SiteKit, contract: Contract) -> Iterator[Check]:
    """Survey the data, and write the page, which stays at the site."""
    findings = survey(kit.data, kit.data_root, _reading(kit, contract))
    page = kit.state / PAGE
    write_file(page, data_page(f"{kit.site}: {kit.data}", findings).encode(), PRIVATE)
    for problem in findings.problems:
        yield Check("data found", False, problem)
    for note in findings.notes:
        yield Check("data found", None, note)
    yield Check("page of the data (not sent)", None, str(page))


def _reading(kit: SiteKit, contract: Contract) -> Reading:
    own = kit.reading(Reading(text=TextReading(vocabulary=kit.vocabulary_path)))
    return contract.reading(own)


def _data_checks(kit: SiteKit, on_data: Callable[[int], object]) -> Iterator[Check]:
    found: list[DataSet] = []

    def work() -> str:
        if not kit.data:
            raise ConfigError(
                "no data set is named",
                where="data",
                hint="Give --data, or set data in kit.toml",
            )
        contract = kit.contract
        if contract is None:
            raise ConfigError("there is neither a contract nor a job", where=str(kit.folder / KIT))
        reading = _reading(kit, contract)
        dataset = load_dataset(kit.data, kit.data_root, reading)
        if kit.partition_id < 0 and makes_vocabulary(kit.data, dataset, reading):
            raise no_vocabulary("kit.toml, vocabulary")
        found.append(contract.kept_by(dataset, kit.min_examples, kit.max_examples))
        return (
            f"{len(dataset.train)} training and {len(dataset.test)} test examples of the agreed "
            f"type, shape and classes: {contract.type}{list(contract.shape)}, "
            f"{len(contract.classes)} classes"
        )

    yield guarded("data", work)
    for dataset in found:
        on_data(len(dataset.train))
        yield guarded("classes", lambda dataset=dataset: _classes(dataset))  # type: ignore[misc]
        counts = np.bincount(dataset.train.labels, minlength=dataset.num_classes)
        texts = [f"{n} {c}" for n, c in zip(dataset.class_names, counts, strict=True)]
        yield Check("labels (not sent)", None, ", ".join(texts))
        for remark in remarks(dataset):
            yield Check("remark", None, remark)


def _classes(dataset: DataSet) -> str:
    present = len(np.unique(dataset.train.labels))
    if present < 2:
        raise DataError(
            "all training examples belong to one class",
            got=present,
            hint="Check how the labels are read",
        )
    return f"{present} of the {dataset.num_classes} classes have examples"


def _disk(kit: SiteKit) -> str:
    parts = []
    for name, folder in (("kit", kit.folder), ("cache", cache_dir())):
        free = psutil.disk_usage(str(folder)).free
        if free < MIN_FREE_BYTES:
            raise OSError(
                f"{folder}: only {_gib(free)} free, {_gib(MIN_FREE_BYTES)} are needed. "
                "Free some space, or set MDC_CACHE_DIR"
            )
        parts.append(f"{_gib(free)} free for the {name}")
    return ", ".join(parts)


def _memory() -> str:
    free = psutil.virtual_memory().available
    if free < MIN_FREE_BYTES:
        raise OSError(f"only {_gib(free)} free, {_gib(MIN_FREE_BYTES)} are needed")
    return f"{_gib(free)} free"


def _gib(count: float) -> str:
    return f"{count / 1024**3:.1f} GiB"


def _device(kit: SiteKit) -> str:
    device = pick_device(kit.device or "auto")
    kind = number_format(pick_autocast_dtype("auto", device))
    threads = kit.threads or usable_cores()
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    ranks = kit.launch.on_machine(gpus)
    if device.type == "cuda" and ranks > gpus:
        raise ConfigError(
            "there are fewer GPUs than processes",
            where="launch.ranks",
            got=ranks,
            expected=f"{gpus} or less",
        )
    found = f"{device} ({device_name(device)}), computes in {kind}, CPU threads: {threads}"
    return found if ranks == 1 else f"{found}, processes: {ranks}"


def _network_checks(kit: SiteKit) -> Iterator[Check]:
    for name, work in (("name resolution", _resolve), ("connection", _connect), ("TLS", _tls)):
        check = guarded(name, lambda work=work: work(kit))  # type: ignore[misc]
        yield check
        if not check.ok:
            return
    try:
        about, skew_s = ask_coordinator(kit)
    except RunError as error:
        yield Check("coordinator", False, str(error))
        return
    yield guarded("coordinator", lambda: _coordinator(kit, about))
    yield guarded("clock", lambda: _clock(skew_s))
    yield guarded("key", lambda: _registered(about))


def _resolve(kit: SiteKit) -> str:
    try:
        found = socket.getaddrinfo(kit.host, kit.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(
            f"the name {kit.host} cannot be resolved ({error}). Ask the coordinator for its DNS "
            "entry"
        ) from None
    return f"{kit.host} is {', '.join(sorted({str(entry[4][0]) for entry in found}))}"


def _connect(kit: SiteKit) -> str:
    started = time.monotonic()
    try:
        with socket.create_connection((kit.host, kit.port), TIMEOUT_S):
            return f"{kit.address} answers after {1000 * (time.monotonic() - started):.0f} ms"
    except OSError as error:
        raise OSError(
            f"{kit.address} cannot be reached ({error}). Check that the coordinator runs and that "
            f"the firewall allows outgoing TCP to port {kit.port}"
        ) from None


def _tls(kit: SiteKit) -> str:
    context = _trust(kit)
    try:
        with (
            socket.create_connection((kit.host, kit.port), TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname=kit.host) as secure,
        ):
            certificate: dict[str, Any] = dict(secure.getpeercert() or {})
    except ssl.SSLCertVerificationError as error:
        raise RunError(_certificate_reason(error), where=kit.address) from None
    except ssl.SSLError as error:
        raise RunError(
            f"the coordinator does not speak TLS ({error.reason})",
            where=kit.address,
            hint="Another program may listen there, or the coordinator without TLS. Do not join",
        ) from None
    except OSError as error:
        raise RunError(
            f"the connection ended during the TLS handshake ({error})",
            where=kit.address,
            hint="Another program may listen there, or a firewall may inspect connections",
        ) from None
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    days = (expires - datetime.now(UTC)).days
    soon = "; it expires soon: remind the coordinator" if days < EXPIRES_SOON_DAYS else ""
    return f"certificate of the federation's authority, valid for {days} more days{soon}"


def _trust(kit: SiteKit) -> ssl.SSLContext:
    """Return a TLS context that trusts only the federation's authority."""
    try:
        return ssl.create_default_context(cafile=kit.ca)
    except OSError as error:  # ssl.SSLError is one
        raise RunError(
            f"the authority's certificate cannot be read ({error})",
            where=str(kit.ca),
            hint="Unpack the kit again",
        ) from None


def _certificate_reason(error: ssl.SSLCertVerificationError) -> str:
    """Return what is wrong with a certificate, and what to do."""
    text = error.verify_message.rstrip(".")
    if "expired" in text:
        return "the coordinator's certificate has expired. The coordinator must renew it"
    if "not yet valid" in text:
        return "the coordinator's certificate is not valid yet. Check this machine's clock"
    if "ostname" in text or "IP address" in text:
        return f"the coordinator's certificate is for another name ({text})"
    return (
        f"the coordinator's certificate is not from the federation's authority ({text}). "
        "Do not join: ask the coordinator, or unpack the kit again"
    )


def ask_coordinator(kit: SiteKit) -> tuple[dict[str, Any], float]:
    """Return the coordinator's information on itself and on this site's key, and the clock skew.

    The clock skew, in seconds, is positive if this machine's clock is ahead.

    Raises
    ------
    RunError
        If it does not answer like an mdc-flower coordinator, or a file of the kit is damaged.
    """
    try:
        public = serialization.load_ssh_public_key(kit.public_key.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(
            f"this site's public key cannot be read ({error})",
            where=str(kit.public_key),
            hint="Unpack the kit again",
        ) from None
    sent = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    key = base64.urlsafe_b64encode(sent).decode()
    url = f"https://{kit.address}{ABOUT}?key={quote(key)}"
    context = _trust(kit)
    before = time.time()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as response:
            about = dict(json.loads(response.read()))
            skew_s = (before + time.time()) / 2 - float(about["time"])
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        raise RunError(
            f"it does not answer like an mdc-flower coordinator ({error})",
            where=kit.address,
            hint="It must be started with `mdc coordinator start`",
        ) from None
    return about, skew_s


def _coordinator(kit: SiteKit, about: dict[str, Any]) -> str:
    if about.get("federation") != kit.federation:
        raise RunError(
            "it is the coordinator of another federation",
            got=about.get("federation"),
            expected=kit.federation,
        )
    if about.get("mdc-flower") != __version__:
        raise RunError(
            "it runs another version of mdc-flower",
            got=about.get("mdc-flower"),
            expected=f"{__version__}, as here",
            hint="Install the same version at both ends",
        )
    return f"mdc-flower {about['mdc-flower']}, flwr {about.get('flwr')}"


def _clock(skew_s: float) -> str:
    if not -BEHIND_S < skew_s < AHEAD_S:
        side = "ahead of" if skew_s > 0 else "behind"
        raise RunError(
            f"this machine's clock is {math.fabs(skew_s):.0f} s {side} the coordinator's",
            expected=f"at most {AHEAD_S:g} s ahead and {BEHIND_S:g} s behind",
            hint="Start a time service (chrony, systemd-timesyncd)",
        )
    return f"{skew_s:+.1f} s from the coordinator's"


def _registered(about: dict[str, Any]) -> str:
    if not about.get("registered"):
        raise RunError(
            "the coordinator does not accept this site's key: it is unknown there or was revoked",
            hint="Ask the coordinator; after a renewal, unpack the new kit",
        )
    if about.get("online"):
        raise RunError(
            "a SuperNode with this site's key is already online",
            hint="Stop it first; a killed SuperNode counts as online for a minute",
        )
    return "registered with the coordinator"
