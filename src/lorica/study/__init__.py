"""Reading runs: what a finished run has to say, on one page."""

from lorica.study.report import Measure, Report, Sample, html

__all__ = ["Measure", "Report", "Sample", "html"]
