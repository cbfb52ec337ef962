"""An installation without the extras: that of a real site, and of a coordinator.

The environment holds links to the libraries of this one, except those that only an extra brings.
"""

import subprocess
import sys
import sysconfig
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from mdc_flower.engines.flower_processes import environment
from tests.integration.real_sites import real_sites
from tests.tiny import KEYS

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
EXTRA = {
    "flwr-datasets", "matplotlib", "ray", "scikit-learn", "scipy", "seaborn", "soundfile",
    "mlflow-skinny", "tensorboard", "timm", "torchaudio", "wandb",
}  # fmt: skip
TINY = [text for key, value in KEYS.items() for text in ("--set", f"{key}={value}")]
INSTALL = "pip install 'mdc-flower[simulation]'"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of commands of an environment without the extras."""
    folder = tmp_path_factory.mktemp("lean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (libraries,) = folder.glob("lib/python*/site-packages")
    owners = packages_distributions()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        name = path.name.removesuffix(".py")
        if path.suffix == ".dist-info":
            of_extra = path.name.split("-")[0].replace("_", "-").lower() in EXTRA
        else:
            of_extra = name in owners and set(owners[name]) <= EXTRA
        if not of_extra:
            (libraries / path.name).symlink_to(path)
    python = folder / "bin" / "python"
    for path in Path(sysconfig.get_path("scripts")).iterdir():
        script, target = path.read_bytes(), python.parent / path.name
        if script.startswith(b"#!") and not target.exists():
            target.write_bytes(f"#!{python}\n".encode() + script.split(b"\n", 1)[1])
            target.chmod(0o755)
    return python.parent


def mdc(commands: Path, home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(commands / "mdc"), *arguments],
        cwd=REPOSITORY,
        env={**environment(home), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_the_environment_has_none_of_them(commands: Path) -> None:
    modules = "ray sklearn scipy matplotlib flwr_datasets torchaudio timm"
    code = f"import importlib.util as u; print([m for m in '{modules}'.split() if u.find_spec(m)])"
    done = subprocess.run([commands / "python", "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_a_real_site_trains(commands: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with real_sites(
        tmp_path, num_sites=1, data="tests.tiny:vectors", mdc=commands / "mdc"
    ) as sites:
        sites.start_coordinator()
        for name in sites.names:
            sites.start_site(name)
        done = sites.mdc(
            "coordinator", "run", str(sites.kit("coordinator")),
            *TINY[4:], "--set", "model=tests.tiny:linear", "--set", "epoch-budget=1",
            "--output", str(run_dir),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr + sites.log("site-0")
    assert (run_dir / "global-model.safetensors").is_file()


def test_a_run_in_this_process_ends_without_a_picture_and_says_why(
    commands: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    done = mdc(
        commands, tmp_path, "run", "--engine", "in-process", "--sites", "2", *TINY,
        "--output", str(run_dir),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert INSTALL in done.stdout + done.stderr
    assert (run_dir / "global-model.safetensors").is_file()
    assert not (run_dir / "report.png").exists()

    page = mdc(commands, tmp_path, "report", str(run_dir))
    assert (page.returncode, INSTALL in page.stderr) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", *TINY),
        ("run", "--engine", "in-process", *TINY, "--set", "partition=dirichlet"),
        ("run", "--engine", "in-process"),
        ("compare", "digits"),
    ],
    ids=["ray", "partition", "digits", "compare"],
)
def test_what_needs_an_extra_says_which(
    commands: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = mdc(commands, tmp_path, *arguments, "--output", str(tmp_path / "run"))
    assert (done.returncode, INSTALL in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "run").exists()


def test_the_doctor_finds_nothing_wrong(commands: Path, tmp_path: Path) -> None:
    done = mdc(commands, tmp_path, "doctor")
    assert done.returncode == 0, done.stdout
    assert INSTALL in done.stdout.replace("\n", " ")
