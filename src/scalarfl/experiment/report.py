"""Tables and plots from results. Every figure comes from the run folder's ledger."""

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from scalarfl.experiment.tables import Stacked
from scalarfl.ledger.store import Ledger
from scalarfl.units import duration, percent, rate, size

Result = dict[str, Any]
Item = TypeVar("Item")


def dense_bytes(result: Result) -> float:
    """What FedAvg would have moved, per client: the float32 model, up and down, whenever the client takes part."""
    participations = result["rounds"] * result["sampled"] / result["clients"]
    return float(2 * 4 * result["dimension"] * participations)


def validated(result: Result) -> bool:
    """Whether the result's curve is of validation examples, and not of the test examples."""
    return result.get("validation_accuracy") is not None


def comparison(results: Sequence[Result]) -> Stacked:
    """One row per result: its score and its cost."""
    title = "Bytes are means per client over the whole run, as serialized. Scores are of the test examples"
    if any(validated(result) for result in results):
        title += ", best of the validation examples"
    heads = ("method", "accuracy", "bytes up", "down", "FedAvg's", "rounds", "best", "loss", "lr", "forward passes")
    return Stacked(
        f"{title}.",
        heads,
        [
            (
                result["method"] + (" (diverged)" if result["diverged"] else ""),
                percent(result["test_accuracy"]),
                size(result["serialized_bytes_up"]),
                size(result["serialized_bytes_down"]),
                size(dense_bytes(result)),
                f"{result['rounds']:,}",
                best(result),
                f"{result['test_loss']:.4f}",
                rate(result["lr"]),
                f"{result['forward_passes']:,}",
            )
            for result in results
        ],
    )


def best(result: Result) -> str:
    """The best score and the round it was measured at; at round 0 no training was done yet."""
    score, at = percent(result["best_accuracy"]), result.get("best_round")
    if at is None or result["best_accuracy"] is None:
        return score
    return f"{score} (untrained)" if at == 0 else f"{score} @ {at:,}"


def overview(ledger: Ledger) -> dict[str, Any]:
    """A run's overview from its ledger. A client's bytes are serialized ones, over all purposes."""
    traffic: dict[tuple[str, str], Counter[str]] = {}
    clients: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for _, audit in ledger.audits():
        for row in audit.traffic:
            amounts = {"messages": row.messages, "payload": row.payload, "serialized": row.serialized}
            traffic.setdefault((row.direction, row.purpose), Counter()).update(amounts)
            clients.setdefault(row.client, Counter()).update({row.direction: row.serialized})
        for participant in audit.participants:
            clients.setdefault(participant.client, Counter()).update(rounds=1)
        for rejection in audit.rejected:
            clients.setdefault(rejection.client, Counter()).update(rejected=rejection.count)
            reasons[rejection.reason] += rejection.count
    header = ledger.header
    return {
        "method": header.method,
        "settings": header.settings,
        "dimension": header.dimension,
        "perturbations": header.perturbations,
        "local_steps": header.local_steps,
        "directions": header.directions,
        "seed": header.seed,
        "rounds": ledger.rounds,
        "ledger_head": ledger.head.hex(),
        "curve": [[score.round, score.accuracy, score.loss] for score in ledger.evaluations()],
        "traffic": [
            {"direction": direction, "purpose": purpose, **amounts}
            for (direction, purpose), amounts in sorted(traffic.items())
        ],
        "clients": {
            name: {key: clients[name][key] for key in ("rounds", "rejected", "up", "down")} for name in sorted(clients)
        },
        "rejections": dict(reasons.most_common()),
        **({} if header.privacy is None else {"privacy": header.privacy}),
    }


def thinned(points: Sequence[Item], most: int = 12) -> list[Item]:
    """Evenly spread ones of a curve's points, including the first and the last."""
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


def planned(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A plan as names and what they are."""
    yield "parameters", f"{plan['parameters']:,}, of which {plan['dimension']:,} are trained"
    parts = ("weights", "state", "scratch", "gradient", "activation", "frozen", "process")
    shown = (part for part in parts if plan[f"{part}_bytes"] or part not in ("gradient", "frozen"))
    shares = [f"{part} {size(plan[f'{part}_bytes'])}" for part in shown]
    yield "memory of a client", f"{size(plan['client_bytes'])}: {', '.join(shares)}"
    yield "", "a simulation of all clients needs the same"
    if plan["frozen_example_bytes"]:
        once = f"at most {size(plan['frozen_example_bytes'])} per example, {size(plan['frozen_bytes'])} in memory"
        yield "frozen layers", f"computed once per example: {once}"
    server = f"{size(plan['server_bytes'])}; starting loads the base model once, for its digest"
    yield "memory of the server", server
    passes = f"{plan['forward_passes_a_round']:,} per round, {plan['forward_passes']:,} in total"
    yield "forward passes", passes
    for way in ("up", "down"):
        a_round, total = size(plan[f"bytes_{way}_a_round"]), size(plan[f"bytes_{way}"])
        yield f"bytes {way}", f"{total} per client in total; {a_round} per round, all clients"
    noise = f"{plan['catch_up_coordinates']:,} coordinates of noise per missed round"
    if plan["seconds"] is None:
        yield "catching up", noise
        yield "time", "give --forward, the measured seconds of one forward pass"
    else:
        yield "catching up", f"{noise}, {plan['catch_up_seconds']:.2g} s"
        yield "time", f"{plan['seconds_a_round']:.2g} s per round, {duration(plan['seconds'])} in total"
    if "privacy" in plan:
        yield from _private(**plan["privacy"])


def _private(**of: Any) -> Iterator[tuple[str, str]]:
    """``private_plan.PrivatePlan`` as names and what they are."""
    promise = "epsilon {epsilon:g} at delta {delta:g} for each {unit}; the smallest client has {examples:,} examples"
    yield "privacy", promise.format(**of)
    noise = "multiplier {sigma:.3g}, sampling rate {rate:.3g}; in a client's scalar {noise_to_clip:.2g} of the clip"
    yield "noise", noise.format(**of)
    rounds = "calibrated for {participations:,} rounds of a client (epsilon {epsilon_then:.3g} then)"
    yield "budget", f"{rounds}, good for {{good_for:,}}".format(**of)


def can_plot() -> bool:
    """Whether matplotlib is installed (the extra ``plot``)."""
    return find_spec("matplotlib") is not None


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw accuracy and loss against rounds, one line a result, to a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for result in results:
        rounds = [point[0] for point in result["curve"]]
        label = f"{result['method']}, lr {rate(result['lr'])}"
        scores = [] if result["accuracy"] is None else [100 * point[1] for point in result["curve"]]
        left.plot(rounds[: len(scores)], scores, label=label)
        right.plot(rounds, [point[2] for point in result["curve"]], label=label)
    rows = "validation" if validated(results[0]) else "test"
    left.set(xlabel="rounds", ylabel=f"{rows} accuracy (%)", title=f"{results[0]['task']}, {results[0]['model']}")
    right.set(xlabel="rounds", ylabel=f"{rows} loss", title=f"d = {results[0]['dimension']:,} parameters")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=130)
