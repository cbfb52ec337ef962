import io

import pytest
from rich.console import Console

from mdc_flower.console.checks import Check, guarded, show
from strategies.common.errors import DataError, MdcError


def raising(error: Exception) -> Check:
    def work() -> str:
        raise error

    return guarded("data", work)


def test_work_that_returns_passes_and_work_that_raises_fails() -> None:
    assert guarded("data", lambda: "all there") == Check("data", True, "all there")
    assert raising(DataError("is empty", where="data")) == Check("data", False, "data: is empty")
    assert raising(OSError("no such host")) == Check("data", False, "no such host")
    # A user's own loader may raise an error whose text alone says nothing.
    assert raising(KeyError("label")) == Check("data", False, "KeyError: 'label'")


def shown(checks: list[Check]) -> str:
    text = io.StringIO()
    show(checks, Console(file=text, soft_wrap=True), "mdc site check berlin")
    return text.getvalue()


def test_a_line_each_as_it_is_written() -> None:
    checks = [Check("site", None, "berlin"), Check("disk", True, "[bold]10 GiB[/bold] free")]
    assert shown(checks) == "        site: berlin\nok      disk: [bold]10 GiB[/bold] free\n"
    assert shown([]) == ""


@pytest.mark.parametrize(("num", "text"), [(1, "1 check failed"), (2, "2 checks failed")])
def test_every_check_is_shown_before_the_failures_are_told(num: int, text: str) -> None:
    console = Console(file=io.StringIO())
    failed = [Check("disk", False, "full")] * num
    with pytest.raises(MdcError, match=f"^mdc site check berlin: {text}$"):
        show([*failed, Check("memory", True, "enough")], console, "mdc site check berlin")
    assert "memory: enough" in console.file.getvalue()  # type: ignore[attr-defined]
