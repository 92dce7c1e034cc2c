"""The report of a run: one self-contained HTML page with a motion player, pictures, a film, and every number as JSON.

``write_report(data, folder)`` takes a ReportData (plain numbers and arrays) and writes everything; nothing here imports
torch. ``write_training_report`` does the same for the logs of post-trainings.
"""

from __future__ import annotations

from mgrpo.report.data import ReportData
from mgrpo.report.json_form import read_report
from mgrpo.report.write import ReportFiles, write_report, write_training_report

__all__ = ["ReportData", "ReportFiles", "read_report", "write_report", "write_training_report"]
