"""Runs the prefill rules of PolyKV plan files through kvpress."""

from .errors import PlanError
from .plan import PlanFile
from .press import LayerPress, PlanPress

__all__ = ["LayerPress", "PlanError", "PlanFile", "PlanPress"]
