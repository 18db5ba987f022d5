"""Instruments: findings about networks, as values that can be written down and plotted."""

from torchstone.instruments.description import ModelDescription
from torchstone.instruments.latency import Latencies, LatencyProgress, Timing, measure_latencies
from torchstone.instruments.layers import Layer
from torchstone.instruments.macs import MacCount, count_macs, count_parameters
from torchstone.instruments.memory import TrainingProbe, measure_memory, probe_training_step
from torchstone.instruments.processes import warm_server
from torchstone.instruments.profile import Profile, profile, profile_all
from torchstone.instruments.running import Conditions, deploy_form

__all__ = [
    "Conditions",
    "Latencies",
    "LatencyProgress",
    "Layer",
    "MacCount",
    "ModelDescription",
    "Profile",
    "Timing",
    "TrainingProbe",
    "count_macs",
    "count_parameters",
    "deploy_form",
    "measure_latencies",
    "measure_memory",
    "probe_training_step",
    "profile",
    "profile_all",
    "warm_server",
]
