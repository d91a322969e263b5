"""fastac: train classifiers on partly wrong labels, and find those labels.

AutoCleansing gives each training sample learnable offsets α on its logits. They absorb what a wrong label would
have taught the network, are dropped at test time, and rank the labels. See AlphaTable and AutoCleansingLoss.
"""

from fastac import functional
from fastac.dynamics import TrainingDynamics
from fastac.issues import detection_scores, find_label_issues
from fastac.loss import AutoCleansingLoss
from fastac.sharded import ShardedAlphaTable
from fastac.sharded_dynamics import ShardedTrainingDynamics
from fastac.table import AlphaTable
from fastac.version import __version__

__all__ = [
    "AlphaTable",
    "AutoCleansingLoss",
    "ShardedAlphaTable",
    "ShardedTrainingDynamics",
    "TrainingDynamics",
    "__version__",
    "detection_scores",
    "find_label_issues",
    "functional",
]
