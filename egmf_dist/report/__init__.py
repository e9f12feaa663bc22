"""Pictures of a run: curves, confusion, predicted against true, gate weights, the cost of a missing modality."""

from egmf_dist.report.write import write_report

__all__ = ["write_report"]
