"""The notebooks define no functions, run in a clean kernel, and are committed with outputs."""

import ast
import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.text import Text

from mdc_flower.reports.plotting import png
from simulations.notebooks.begin import BUDGET, RESULTS
from simulations.notebooks.execute import NOTEBOOKS, execute, plain, read_notebook, write_notebook
from simulations.pages.published import ROOT
from simulations.results.committed import only, read_comparisons, read_splits
from simulations.results.summary import summary_table
from simulations.results.tables import markdown_table

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
COMMITTED_RESULTS = ROOT / "docs" / "results"
FILE_MAGIC = "%%writefile "
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:bin|etc|home|mnt|opt|root|srv|tmp|Users|usr|var|work)/\S*")
PNG = b"\x89PNG"


def notebook_of(name: str) -> Any:
    return read_notebook(NOTEBOOKS / f"{name}.ipynb")


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def own_code(notebook: Any) -> Iterator[ast.Module]:
    """Yield the notebook's code without magics and without the files that it writes."""
    for cell in code_cells(notebook):
        if not cell.source.startswith(FILE_MAGIC):
            lines = cell.source.splitlines()
            yield ast.parse("\n".join(line for line in lines if not line.startswith("%")))


def written_files(notebook: Any) -> dict[str, str]:
    """Return the contents of the files that the notebook writes, by file name."""
    sources = [cell.source for cell in code_cells(notebook) if cell.source.startswith(FILE_MAGIC)]
    pairs = [source.split("\n", 1) for source in sources]
    return {head.removeprefix(FILE_MAGIC).strip(): body.strip() for head, body in pairs}


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def texts(notebook: Any) -> str:
    """Return all text in the outputs."""
    found = [output.get("text", "") for output in outputs(notebook)]
    for output in outputs(notebook):
        found += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(found)


def pictures(notebook: Any) -> list[bytes]:
    datas = [output.get("data", {}) for output in outputs(notebook)]
    return [base64.b64decode(data["image/png"]) for data in datas if "image/png" in data]


def check_executed(notebook: Any, least_pictures: int) -> None:
    """Check that a notebook was executed completely, in a clean kernel, without warnings."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = [output.output_type for output in outputs(notebook)]
    assert "error" not in kinds
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert not re.search(r"warning", texts(notebook), re.IGNORECASE)
    assert not ABSOLUTE.findall(texts(notebook))
    assert len(pictures(notebook)) >= least_pictures
    assert all(picture.startswith(PNG) for picture in pictures(notebook))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_calls_functions_and_defines_none(name: str) -> None:
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    modules = list(own_code(notebook_of(name)))
    assert modules
    for module in modules:
        assert not [node for node in ast.walk(module) if isinstance(node, defining)]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_no_absolute_path(name: str) -> None:
    assert not ABSOLUTE.findall("\n".join(cell.source for cell in notebook_of(name).cells))


@pytest.mark.parametrize("name", NAMES)
def test_links_between_files_work(name: str) -> None:
    prose = "\n".join(c.source for c in notebook_of(name).cells if c.cell_type == "markdown")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", prose)
    assert links
    assert not [link for link in links if not (NOTEBOOKS / link).exists()]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_with_outputs(name: str) -> None:
    notebook = notebook_of(name)
    check_executed(notebook, least_pictures=2)
    assert notebook == plain(notebook_of(name)), "the metadata depend on the machine or the time"


def test_committed_tables_are_those_of_the_committed_results() -> None:
    names = ["digits-arms", "fashion-mnist", "cifar10", "spoken-digits", "sst2"]
    comparisons = read_comparisons(COMMITTED_RESULTS, names)
    shown = texts(notebook_of("02_decentralized_vs_centralized"))
    assert summary_table(comparisons) in shown
    assert all(markdown_table(results) in shown for results in comparisons)
    shown = texts(notebook_of("03_schedules_and_epochs"))
    halves = ["co-learning", "clr-only", "ile-only", "fedavg", "fedavg-global-cosine"]
    assert all(
        markdown_table(results) in shown for results in only(comparisons, ["centralized", *halves])
    )
    shown = texts(notebook_of("04_uneven_data"))
    assert all(markdown_table(results) in shown for results in read_splits(COMMITTED_RESULTS))


def test_the_users_own_files_are_the_recipes_of_contributing() -> None:
    blocks = re.findall(
        r"^```python\n# (\w+\.py)\n(.*?)^```$",
        (ROOT / "CONTRIBUTING.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert len(blocks) == 2
    written = written_files(notebook_of("05_your_data_and_model"))
    assert {name: written.get(name) for name, _ in blocks} == {n: b.strip() for n, b in blocks}


def displayed(notebook: Any) -> Iterator[Any]:
    """Run the notebook's code here, without magics; yield what its cells display."""
    names: dict[str, Any] = {}
    for module in own_code(notebook):
        last = module.body.pop() if isinstance(module.body[-1], ast.Expr) else None
        exec(compile(module, "notebook", "exec"), names)
        if isinstance(last, ast.Expr):
            yield eval(compile(ast.Expression(last.value), "notebook", "eval"), names)


# In this process: a kernel of each would need many seconds more.
@pytest.mark.parametrize(
    "name",
    ["02_decentralized_vs_centralized", "03_schedules_and_epochs", "04_uneven_data"],
)
def test_a_notebook_of_results_shows_those_of_any_job(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(COMMITTED_RESULTS / "diabetes", tmp_path / "results" / "mine")
    monkeypatch.chdir(tmp_path)  # and back from where the notebook goes
    monkeypatch.setenv(RESULTS, str(tmp_path / "results"))
    shown = list(displayed(notebook_of(name)))
    figures = [one for one in shown if isinstance(one, Figure)]
    texts = [text.get_text() for figure in figures for text in figure.findobj(Text)]
    texts += [one.data for one in shown if isinstance(one, Markdown)]
    assert len(figures) >= 2
    assert all(png(figure) for figure in figures)
    assert any("rmse" in text and "points" in text for text in texts)
    assert not [text for text in texts if "ccuracy" in text]


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_in_a_clean_kernel(
    name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv(BUDGET, "small")
    if name == "04_uneven_data":
        monkeypatch.setenv(RESULTS, str(request.getfixturevalue("split_results")))
    else:
        monkeypatch.delenv(RESULTS, raising=False)
    check_executed(execute(notebook_of(name)), least_pictures=2)


def tiny(folder: Path, source: str) -> Path:
    """Write a notebook with one cell of this source and with extra metadata; return its path."""
    notebook = notebook_of(NAMES[0])
    notebook.cells = code_cells(notebook)[:1]
    notebook.cells[0] |= {"source": source, "outputs": [], "metadata": {"a": 1}}
    path = folder / "tiny.ipynb"
    write_notebook(path, notebook)
    return path


@pytest.mark.integration
def test_executing_writes_outputs_in_place_and_the_same_bytes_again(tmp_path: Path) -> None:
    from simulations.notebooks.execute import main

    path = tiny(tmp_path, "print(6 * 7)")
    main([str(path)])
    first = path.read_bytes()
    main([str(path)])
    assert path.read_bytes() == first
    assert texts(read_notebook(path)) == "42\n"
    assert read_notebook(path).cells[0].metadata == {}


@pytest.mark.integration
def test_a_notebook_that_fails_is_not_changed(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    from simulations.notebooks.execute import main

    path = tiny(tmp_path, "1 / 0")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        main([str(path)])
    assert path.read_bytes() == before
