"""Where a run takes place: in this process, or on Ray through a SuperLink of its own.

Both run the same ServerApp and ClientApp, and give the same bits for the same config.
"""

from mdc_flower.engines.in_process import run_in_process
from mdc_flower.engines.ray_superlink import run_on_ray
from mdc_flower.engines.submission import end_orphaned_coordinator
from mdc_flower.engines.supervisor import supervise

__all__ = ["end_orphaned_coordinator", "run_in_process", "run_on_ray", "supervise"]
