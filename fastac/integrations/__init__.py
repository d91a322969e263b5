"""AutoCleansing in other people's trainers, without a change to their loops.

cleansing.py  table, dynamics and loss of one run, with one state to save: what all of them share
issues_file.py  what a callback writes when training ends
ids.py        sample ids that travel inside the labels, for trainers that hand a loss nothing but labels
optimizers.py α beside an optimizer that is not SGD
lightning.py, transformers.py, accelerate.py   each imports its package; the others do not
"""

from fastac.integrations.cleansing import Cleansing
from fastac.integrations.ids import WithIds, decode, encode
from fastac.integrations.optimizers import follow

__all__ = ["Cleansing", "WithIds", "decode", "encode", "follow"]
