"""`OwnKeys`: how a site's own files are read, where they differ from those of the run."""

from dataclasses import replace

from mdc_flower.common.config_model import ConfigModel
from mdc_flower.data.readers.options import Columns, HubReading, Reading


class OwnKeys(ConfigModel):
    """Columns, subset and split of a site's own data; empty values keep the run's.

    Attributes
    ----------
    input_column, label_column, group_column
        See `Columns`.
    hf_subset, hf_test_split
        See `HubReading`.
    """

    input_column: str = ""
    label_column: str = ""
    group_column: str = ""
    hf_subset: str = ""
    hf_test_split: str = ""

    def reading(self, base: Reading) -> Reading:
        """Return how the site's files are read; ``base`` gives what it does not set."""
        columns, hub = base.columns, base.hub
        return replace(
            base,
            columns=Columns(
                self.input_column or columns.inputs,
                self.label_column or columns.labels,
                self.group_column or columns.groups,
            ),
            hub=HubReading(self.hf_subset or hub.subset, self.hf_test_split or hub.test_split),
        )
