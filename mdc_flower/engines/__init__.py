"""The engines that simulate a run: in this process, or on Ray through a private SuperLink.

Both run the same ServerApp and ClientApp, and the same config gives the same bits on both.
"""

from mdc_flower.engines.in_process import run_in_process
from mdc_flower.engines.ray_superlink import run_on_ray
from mdc_flower.engines.submission import end_orphaned_coordinator
from mdc_flower.engines.supervisor import supervise

__all__ = ["end_orphaned_coordinator", "run_in_process", "run_on_ray", "supervise"]
