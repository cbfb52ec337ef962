"""The page of a survey of a data set: one HTML file with its pictures, without scripts."""

import base64
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined

from mdc_flower.data.survey.findings import Findings, Sample


def data_page(title: str, findings: Findings) -> str:
    """Return the page of what a survey has found, as HTML.

    It contains examples of the data, so it must stay where they are.
    """
    environment = Environment(
        loader=PackageLoader("mdc_flower.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    classes = [(name, list(of)) for name, of in groupby(findings.samples, lambda one: one.of)]
    template = environment.get_template("data.html")
    return template.render(title=title, findings=findings, classes=classes, address=_address)


def _address(sample: Sample) -> str:
    """Return a picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(sample.png).decode()
