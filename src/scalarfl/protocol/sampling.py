"""Which clients take part in a round. No torch here."""

from collections.abc import Sequence
from random import SystemRandom

from scalarfl.noise.seeds import generator


def cohort(candidates: Sequence[str], sampled: int, seed: int, round_: int) -> list[str]:
    """The round's clients, drawn without replacement from the candidates, sorted by name."""
    random = generator(seed, "cohort", round_)
    places = random.choice(len(candidates), min(sampled, len(candidates)), replace=False)
    return [candidates[int(place)] for place in places]


class SecretCohorts:
    """Draws a private federation's cohorts, from the operating system's randomness."""

    def __init__(self) -> None:
        self._drawn: list[str] = []
        self._round = -1

    def drawn(self, candidates: Sequence[str], sampled: int, round_: int) -> list[str]:
        """The round's clients, sorted by name.

        A retried round keeps those that it asked before: what they released for it is not lost.
        """
        again = [client for client in self._drawn if client in candidates] if self._round == round_ else []
        others = [client for client in candidates if client not in again]
        missing = min(sampled, len(candidates)) - len(again)
        self._drawn, self._round = sorted([*again, *SystemRandom().sample(others, missing)]), round_
        return self._drawn
