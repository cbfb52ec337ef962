"""The page of a survey of a data set: one HTML file with its pictures, without scripts."""

import base64
from itertools import groupby

from mdc_flower.data.survey.findings import Findings, Sample
from mdc_flower.reports.html_templates import template


def data_page(title: str, findings: Findings) -> str:
    """Return the page of what a survey has found, as HTML.

    It contains examples of the data, so it must stay where they are.
    """
    classes = [(name, list(of)) for name, of in groupby(findings.samples, lambda one: one.of)]
    return template("data.html").render(
        title=title, findings=findings, classes=classes, address=_address
    )


def _address(sample: Sample) -> str:
    """Return a picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(sample.png).decode()
