"""The app bundle has exactly the intended files, and runs without the installed project."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from mdc_flower.engines.flower_processes import environment, script

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

RUN_FROM_BUNDLE = """
import sys
bundle, site_packages, output = sys.argv[1:]
sys.path[:0] = [bundle]
sys.path.append(site_packages)
import mdc_flower, strategies
from importlib.util import find_spec
assert mdc_flower.__file__.startswith(bundle), mdc_flower.__file__
assert strategies.__file__.startswith(bundle), strategies.__file__
assert find_spec("simulations") is None
from mdc_flower.config import read_run_config
from mdc_flower.engines.in_process import run_in_process
run_in_process(
    read_run_config({"model": "mlp", "epoch-budget": 1, "local-epochs": 1, "output-dir": output}), 2
)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the bundle with `flwr build` in a separate folder."""
    folder = tmp_path_factory.mktemp("bundle")
    done = subprocess.run(
        [script("flwr"), "build", "--app", str(ROOT)],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.fab")
    return zipfile.ZipFile(file)


def test_the_bundle_has_exactly_the_intended_files(bundle: zipfile.ZipFile) -> None:
    intended = {"pyproject.toml", "LICENSE", ".info/CONTENT"} | {
        str(file.relative_to(ROOT))
        for package in ("mdc_flower", "strategies")
        for file in (ROOT / package).rglob("*.py")
    }
    assert set(bundle.namelist()) == intended


def test_the_bundle_runs_where_the_project_is_not_installed(
    bundle: zipfile.ZipFile, tmp_path: Path
) -> None:
    unpacked, output = tmp_path / "app", tmp_path / "run"
    bundle.extractall(unpacked)
    # -S disables site-packages, and with it the link of an editable install. The script adds the
    # folder itself again, so that only the libraries are found.
    command = [sys.executable, "-S", "-c", RUN_FROM_BUNDLE]
    command += [str(unpacked), sysconfig.get_path("purelib"), str(output)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (output / "global-model.safetensors").is_file()
