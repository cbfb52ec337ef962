"""The code blocks of a page in Markdown."""

import re


def code_blocks(page: str, language: str) -> list[str]:
    """Return a page's fenced code blocks in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
