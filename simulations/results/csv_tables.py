"""Make a CSV table from results."""

import csv
import io
from collections.abc import Mapping

from simulations.results.intervals import Interval
from simulations.results.result_files import Results
from simulations.results.rows import table_rows


def csv_table(results: Results) -> str:
    """Return the table as CSV, with metrics as the job computes them: shares are in [0, 1]."""
    name = results.facts.metric.name
    lines = [
        {
            "arm": row.arm,
            **_csv_cells({name: row.score, "difference": row.difference, **row.others}),
            "steps": row.steps,
            "examples": row.examples,
            "exchanges": row.exchanges,
            "sent_megabytes": row.sent_megabytes,
            "received_megabytes": row.received_megabytes,
            "share_of_per_step_bytes": row.per_step,
            "seconds": round(row.seconds, 3),
        }
        for row in table_rows(results)
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _csv_cells(intervals: Mapping[str, Interval]) -> dict[str, float]:
    cells: dict[str, float] = {}
    for name, interval in intervals.items():
        column = name.replace("-", "_")
        cells |= {column: interval.mean, f"{column}_ci95": interval.half_width}
    return cells
