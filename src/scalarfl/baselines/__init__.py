"""The baselines by name: local training with whole models, and with compressed updates."""

from scalarfl.baselines.base import Baseline, FedAdagrad, FedAdam, FedAvg, FedYogi, FedZO, Upload
from scalarfl.baselines.compressed import FedAvgInt8, FedAvgLowRank, FedAvgSigns, FedAvgTopK

__all__ = ["BASELINES", "Baseline", "FedAvg", "Upload"]

BASELINES: dict[str, type[Baseline]] = {
    kind.name: kind
    for kind in (FedAvg, FedAdam, FedYogi, FedAdagrad, FedZO, FedAvgTopK, FedAvgSigns, FedAvgLowRank, FedAvgInt8)
}
