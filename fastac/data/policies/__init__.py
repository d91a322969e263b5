"""Augmentation policies on whole batches: AutoAugment, Fast AutoAugment, PBA, RandAugment, TrivialAugment."""

from fastac.data.policies.apply import apply_policy
from fastac.data.policies.catalogue import POLICY_NAMES, check_policy, find_policy
from fastac.data.policies.sampling import Policy

__all__ = ["POLICY_NAMES", "Policy", "apply_policy", "check_policy", "find_policy"]
