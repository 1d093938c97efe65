"""The report: one self-contained HTML page on a video and a question, methods side by side."""

from __future__ import annotations

from cacovid.viz.report.page import (
    Report,
    ReportCondition,
    ReportMethod,
    check_report_path,
    write_report,
)

__all__ = ["Report", "ReportCondition", "ReportMethod", "check_report_path", "write_report"]
