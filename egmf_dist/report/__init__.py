"""A run on one page and in pictures: curves, answers, gate weights, what a missing modality costs."""

from egmf_dist.report.write import write_report

__all__ = ["write_report"]
