"""The shared-prefix forward: it computes the prompt of a preference pair once instead of twice."""

from prefopt.models.shared_prefix.choice import share_prompts
from prefopt.models.shared_prefix.engine import LAYOUT, SharedPrefix, find_obstacle, verify
from prefopt.models.shared_prefix.layout import PairLayout

__all__ = ["LAYOUT", "PairLayout", "SharedPrefix", "find_obstacle", "share_prompts", "verify"]
