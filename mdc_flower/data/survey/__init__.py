"""A survey of a data set: all that is wrong at once, counts, and some examples."""

from mdc_flower.data.survey.findings import Findings
from mdc_flower.data.survey.survey import survey

__all__ = ["Findings", "survey"]
