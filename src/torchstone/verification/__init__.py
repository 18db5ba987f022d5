"""Proof that our systems are the published ones: recorded cases, released layouts, and ``verify``."""

from torchstone.verification.cases import Case, RecordedCase, TensorSpec, read_case
from torchstone.verification.parity import Check, check, load_state, record
from torchstone.verification.verify import VerifyReport, verify

__all__ = [
    "Case",
    "Check",
    "RecordedCase",
    "TensorSpec",
    "VerifyReport",
    "check",
    "load_state",
    "read_case",
    "record",
    "verify",
]
