"""A site runs the app that it has installed, and no bundle that differs from it in anything."""

import io
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from flwr.cli.build import build_fab_from_disk

from mdc_flower import __version__
from mdc_flower.deployment.site.app_pin import MAX_PROJECT_BYTES, difference, is_own_name
from mdc_flower.engines.app_bundle import stage_app

CODE = "mdc_flower/client_app.py"
Files = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bundle that Flower makes of the installed app."""
    return build_fab_from_disk(stage_app(tmp_path_factory.mktemp("app") / "mdc-flower"))


def files_of(bundle: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def packed(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def with_project(bundle: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    files = dict(files_of(bundle))
    project = tomllib.loads(files["pyproject.toml"].decode())
    change(project)
    return packed([*(files | {"pyproject.toml": tomli_w.dumps(project).encode()}).items()])


def test_the_installed_app_is_accepted(bundle: bytes) -> None:
    assert difference(bundle) is None
    assert difference(packed(files_of(bundle)[::-1])) is None


@pytest.mark.parametrize(
    "name",
    [
        "mdc_flower/client_app.abi3.so",  # goes before client_app.py
        "mdc_flower/client_app.cpython-311-x86_64-linux-gnu.so",
        "mdc_flower/__pycache__/client_app.cpython-311.pyc",  # may be made never to be compared
        "torch.so",
        "torch/__init__.pyc",
        "numpy.py",
        "sitecustomize.py",
        "usercustomize.pyc",
        "evil.pth",
        "mdc_flower/data.json",
        "README.md",
        "../outside.txt",
        "/etc/outside.txt",
        "mdc_flower\\client_app.py",
        "MDC_FLOWER/client_app.py",
        "mdc_flower/client_app.PY",
        "./mdc_flower/client_app.py",
        "mdc_flower//client_app.py",
        "mdc_flower/",
        ".info/other",
    ],
)
def test_a_file_too_many_is_refused(bundle: bytes, name: str) -> None:
    told = difference(packed([*files_of(bundle), (name, b"print('hello')\n")]))
    assert told is not None
    assert told.startswith(f"its code differs from the installed mdc-flower {__version__}: ")


def test_a_changed_or_missing_file_is_named(bundle: bytes) -> None:
    files = dict(files_of(bundle))
    changed = {**files, CODE: files[CODE] + b"\n"}
    assert str(difference(packed([*changed.items()]))).endswith(CODE)
    # As long as the installed one: the size alone does not say it.
    same_size = {**files, CODE: files[CODE][:-1] + b" "}
    assert str(difference(packed([*same_size.items()]))).endswith(CODE)
    missing = {name: content for name, content in files.items() if name != CODE}
    assert str(difference(packed([*missing.items()]))).endswith(CODE)
    two = {**changed, "strategies/common/errors.py": b""}
    assert str(difference(packed([*two.items()]))).endswith(f"{CODE} and 1 more")
    other_license = {**files, "LICENSE": b"none"}
    assert str(difference(packed([*other_license.items()]))).endswith("LICENSE")


@pytest.mark.parametrize("name", [CODE, "pyproject.toml", ".info/CONTENT"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_there_twice_is_refused(bundle: bytes, name: str, first: bool) -> None:
    files = files_of(bundle)
    evil = (name, dict(files)[name] + b"\n")
    assert difference(packed([evil, *files] if first else [*files, evil])) is not None


def test_a_bundle_that_is_unpacked_otherwise_than_it_was_read_is_refused(bundle: bytes) -> None:
    # The directory at the archive's end names CODE, its local header another file.
    name, other = CODE.encode(), b"mdc_flower/client_apx.py"
    at = bundle.index(name)
    told = difference(bundle[:at] + other + bundle[at + len(name) :])
    assert str(told).startswith("it cannot be read: ")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_bundle_is_refused(content: bytes) -> None:
    assert str(difference(content)).startswith("it cannot be read: ")


@pytest.mark.parametrize("project", [b"\xff", b"[project", b"a" * (MAX_PROJECT_BYTES + 1)])
def test_a_project_file_that_cannot_be_read_is_refused(bundle: bytes, project: bytes) -> None:
    files = dict(files_of(bundle)) | {"pyproject.toml": project}
    assert difference(packed([*files.items()])) is not None


def test_a_project_file_whose_tables_are_none_is_refused(bundle: bytes) -> None:
    files = dict(files_of(bundle)) | {"pyproject.toml": b"project = 3\n"}
    assert str(difference(packed([*files.items()]))).startswith("it cannot be read: ")


def test_another_version_is_told_before_its_code(bundle: bytes) -> None:
    other = with_project(bundle, lambda project: project["project"].update(version="9.9"))
    expected = f"it is mdc-flower 9.9, but mdc-flower {__version__} is installed"
    assert difference(other) == expected
    renamed = with_project(bundle, lambda project: project["project"].update(name="other"))
    assert str(difference(renamed)).startswith("it is other ")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda p: p["project"]["dependencies"].append("evil"), "project.dependencies"),
        (lambda p: p["project"].update(scripts={"x": "evil:main"}), "project.scripts.mdc"),
        (lambda p: p["build-system"].update({"backend-path": ["."]}), "build-system.backend-path"),
        (
            lambda p: p["tool"]["flwr"]["app"]["components"].update(clientapp="os:system"),
            "tool.flwr.app.components.clientapp",
        ),
        (
            lambda p: p["tool"]["flwr"]["app"]["components"].update(agentapp="os:system"),
            "tool.flwr.app.components.agentapp",
        ),
        (
            lambda p: p["tool"]["flwr"]["app"].update(publisher="../../x"),
            "tool.flwr.app.publisher",
        ),
        (lambda p: p.pop("tool"), "tool"),
    ],
)
def test_another_project_file_is_refused_with_its_key(
    bundle: bytes, change: Callable[[dict[str, Any]], object], key: str
) -> None:
    told = difference(with_project(bundle, change))
    assert told == f"its pyproject.toml differs from the installed one: {key}"


def test_what_a_coordinator_wrote_is_told_short_and_without_control_characters(
    bundle: bytes,
) -> None:
    name = "\x1b]0;owned\x07" + "x" * 1000 + ".so"
    told = str(difference(packed([*files_of(bundle), (name, b"")])))
    assert told.isprintable()
    assert len(told) < 250


def test_a_huge_file_is_not_unpacked(bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = zipfile.ZipFile.read

    def noted(self: zipfile.ZipFile, name: Any, pwd: bytes | None = None) -> bytes:
        read.append(str(name))
        return original(self, name, pwd)

    bomb = packed([*(dict(files_of(bundle)) | {CODE: bytes(50_000_000)}).items()])
    monkeypatch.setattr(zipfile.ZipFile, "read", noted)
    assert str(difference(bomb)).endswith(CODE)
    assert "pyproject.toml" in read
    assert CODE not in read


def test_a_run_must_call_the_app_by_its_name() -> None:
    assert is_own_name("mdc-flower/mdc-flower", __version__)
    assert not is_own_name("mdc-flower/mdc-flower", f"{__version__}/../../../tmp/evil")
    assert not is_own_name("../mdc-flower", __version__)


def test_the_bundle_of_a_wheel_is_that_of_its_checkout(bundle: bytes, tmp_path: Path) -> None:
    again = build_fab_from_disk(stage_app(tmp_path / "mdc-flower"))
    assert again == bundle
