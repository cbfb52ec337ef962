"""Data sets: their type (`DataSet`), their readers, and their partition into sites.

`load_dataset` takes the name from the run config: a built-in data set, ``image-folder:PATH``, or
``module:function``.
"""

from mdc_flower.data.contract import Contract
from mdc_flower.data.dataset import DataSet, Examples, Part
from mdc_flower.data.registry import load_dataset
from mdc_flower.data.splits import CoordinatorData, SiteData, coordinator_data, site_data

__all__ = [
    "Contract",
    "CoordinatorData",
    "DataSet",
    "Examples",
    "Part",
    "SiteData",
    "coordinator_data",
    "load_dataset",
    "site_data",
]
