"""The code of a user's module, by its digest: equal where the files are, and nowhere else."""

from hashlib import sha256
from pathlib import Path

import pytest

from mdc_flower.config import read_run_config
from mdc_flower.site.card import code_digest, code_digests

RELU = "from torch import nn\n\ndef net(shape, classes):\n    return nn.ReLU()\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in which Python finds modules; each test names its own."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_another_line_of_a_module_is_another_digest_and_other_line_ends_are_not(
    folder: Path,
) -> None:
    file = folder / "card_lab.py"
    file.write_bytes(RELU.encode())
    digest = code_digest("card_lab")
    file.write_bytes(RELU.replace("\n", "\r\n").encode())
    assert code_digest("card_lab") == digest
    file.write_bytes(RELU.replace("ReLU", "Hardsigmoid").encode())
    assert code_digest("card_lab") != digest
    assert len(digest) == len(sha256().hexdigest())


def test_a_module_is_not_run_to_have_its_digest(folder: Path) -> None:
    (folder / "card_bomb.py").write_text("raise SystemExit\n")
    assert code_digest("card_bomb")


def test_the_digest_of_a_package_covers_every_file_of_it(folder: Path) -> None:
    (folder / "card_pack" / "inner").mkdir(parents=True)
    for name in ("__init__.py", "layers.py", "inner/deep.py", "inner/notes.txt"):
        (folder / "card_pack" / name).write_text("x = 1\n")
    seen = {code_digest("card_pack")}
    (folder / "card_pack" / "inner" / "notes.txt").write_text("x = 2\n")
    assert code_digest("card_pack") in seen
    for name in ("__init__.py", "layers.py", "inner/deep.py"):
        (folder / "card_pack" / name).write_text("x = 2\n")
        seen.add(code_digest("card_pack"))
    (folder / "card_pack" / "layers.py").rename(folder / "card_pack" / "parts.py")
    seen.add(code_digest("card_pack"))
    assert len(seen) == 5


@pytest.mark.parametrize("module", ["card_nowhere", "card_nowhere.inner", "sys", "", ".card"])
def test_a_module_without_a_file_has_no_digest(module: str) -> None:
    assert code_digest(module) == ""


def test_a_run_has_the_digests_of_the_modules_that_it_names(folder: Path) -> None:
    (folder / "card_model.py").write_text(RELU)
    (folder / "card_data.py").write_text("def load():\n    ...\n")
    run = {"model": "card_model:net", "dataset": "card_data:load"}
    digests = {"model": code_digest("card_model"), "dataset": code_digest("card_data")}
    assert code_digests(read_run_config(run)) == digests
    assert code_digests(read_run_config({"model": "mlp", "dataset": "image-folder:/data"})) == {}
