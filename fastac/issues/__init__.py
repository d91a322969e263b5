"""Wrong labels, ranked: by α, by the area under the margin (AUM), by confidence, or by what measures best.

Sources: "AutoCleansing: Unbiased Estimation of Deep Learning with Mislabeled Data" (ICLR 2021 submission), section 4.2,
Algorithm 2 and Figures 4 to 6. AUM: Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin
Ranking" (2020). Confident learning: Northcutt et al. (2021).

`python -m fastac.issues RUN` ranks the labels of a run of the trainer and exports them.
"""

from fastac.issues.alpha import AlphaStatistics, alpha_statistics, given_label_alpha
from fastac.issues.find import METHODS, find_label_issues
from fastac.issues.kinds import KINDS, issue_kinds
from fastac.issues.scores import detection_scores
from fastac.issues.threshold_samples import ThresholdRuns, draw_threshold_sets, find_threshold_issues

__all__ = [
    "KINDS",
    "METHODS",
    "AlphaStatistics",
    "ThresholdRuns",
    "alpha_statistics",
    "detection_scores",
    "draw_threshold_sets",
    "find_label_issues",
    "find_threshold_issues",
    "given_label_alpha",
    "issue_kinds",
]
