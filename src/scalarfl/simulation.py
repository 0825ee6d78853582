"""All clients in one process on one copy of the weights, with the network's clients, server and messages."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import nn

from scalarfl import picture
from scalarfl.errors import InputError, LedgerError, VerificationError
from scalarfl.ledger.accounting import backward_passes, displaced_passes, final_lr, forward_passes, traffic
from scalarfl.ledger.entries import Evaluation
from scalarfl.ledger.header import Header
from scalarfl.ledger.store import Ledger
from scalarfl.model import frozen
from scalarfl.model.gradients import Local
from scalarfl.model.probe import Probe
from scalarfl.model.replica import Replica
from scalarfl.model.selection import Trainable
from scalarfl.progress import following
from scalarfl.protocol import arguments
from scalarfl.protocol.aggregation import check_attackers
from scalarfl.protocol.attacks import Attackers
from scalarfl.protocol.callbacks import Callbacks, together
from scalarfl.protocol.client import Dataset
from scalarfl.protocol.cohort import Cohort
from scalarfl.protocol.config import FederationConfig, Keywords, RunConfig, configured, described
from scalarfl.protocol.party import Party
from scalarfl.protocol.private import budget, check_evaluation, participated
from scalarfl.protocol.private_client import make_client
from scalarfl.protocol.rounds import Policy, RoundLoop
from scalarfl.protocol.secure import check_cohort
from scalarfl.protocol.secure_client import public_keys
from scalarfl.protocol.secure_server import make_server
from scalarfl.tasks.objective import Evaluate, Loss, as_score

REPLAY_AT_ONCE = 1_000  # rounds; bounds the records held in memory while a ledger is replayed


Opener = Callable[[Header], Ledger]
"""Opens or creates the run's ledger for this header."""


@dataclass
class Run:
    """A finished simulation."""

    replica: Replica
    evaluations: list[Evaluation]
    rounds: int
    head: str
    """The ledger's head, hexadecimal: a hash over all entries."""
    seconds: float
    """Seconds of this process; of a resumed run, since the resumption."""
    diverged: bool
    """Whether the run ended early because no client had a finite loss."""
    traffic: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """(direction, purpose) -> bytes of (payload, serialized), all clients together, over the whole run."""
    forward_passes: int = 0
    """Forward passes of one batch, over all clients and the whole run; a backward pass counts as two."""
    backward_passes: int = 0
    """Backward passes of one batch among them."""
    displaced_passes: int = 0
    """Those of the forward passes that displace each example along its own direction."""
    stopped: bool = False
    """Whether a callback ended the run."""
    lr_final: float | None = None
    """With lr = "auto": the learning rate of the last step."""
    warnings: list[str] = field(default_factory=list)
    """Likely problems of the run, with remedies."""
    epsilon: float | None = None
    """What the run cost the client that it cost most; None without differential privacy."""

    @property
    def model(self) -> nn.Module:
        """The fine-tuned model."""
        return self.replica.model

    @property
    def dimension(self) -> int:
        """d, trained parameters."""
        return self.replica.layout.dimension

    @property
    def digest(self) -> str:
        """The final replica's digest, hexadecimal."""
        return self.replica.digest()

    @property
    def accuracy(self) -> float | None:
        """The last measured accuracy."""
        return self.evaluations[-1].accuracy if self.evaluations else None

    def __repr__(self) -> str:
        return f"Run({', '.join(f'{name}={value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        """The curve and a small table, for notebooks."""
        curve = [(score.round, score.accuracy, score.loss) for score in self.evaluations]
        return picture.html(self._facts(), picture.course({self.replica.method.name: curve}))

    def _facts(self) -> dict[str, str]:
        """The main facts, as text."""
        facts = {"method": self.replica.method.name, "rounds": str(self.rounds), "dimension": f"{self.dimension:,}"}
        if self.evaluations:
            first, last = self.evaluations[0], self.evaluations[-1]
            facts["loss"] = f"{first.loss:.4g} -> {last.loss:.4g}"
            if first.accuracy is not None and last.accuracy is not None:
                facts["accuracy"] = f"{first.accuracy:.4g} -> {last.accuracy:.4g}"
        facts |= {"seconds": f"{self.seconds:.1f}", "digest": f"{self.digest[:16]}…"}
        facts |= {name: "True" for name in ("diverged", "stopped") if getattr(self, name)}
        return facts | ({"warnings": " ".join(self.warnings)} if self.warnings else {})


def simulate(
    model: nn.Module,
    clients: Sequence[Dataset] | Mapping[str, Dataset],
    loss: Loss,
    config: FederationConfig | None = None,
    run: RunConfig | None = None,
    *,
    trainable: Trainable = "all",
    evaluate: Evaluate | Mapping[str, Evaluate] | None = None,
    ledger: Path | str | Opener | None = None,
    resume: bool = False,
    callbacks: Callbacks = None,
    progress: bool | Literal["auto"] = "auto",
    order: Callable[[list[str]], list[str]] = list,
    **keywords: Unpack[Keywords],
) -> Run:
    """Fine-tune ``model``, in place, across simulated clients that exchange only scalars.

    Arguments:
        model: the base model; it becomes the fine-tuned one.
        clients: each client's training data, by position or by name: a list of examples, a torch or Hugging Face
            dataset, or a DataLoader, of which the dataset and the ``collate_fn`` are used.
        loss: (model, batch) -> the mean loss, or one loss per example, which are averaged; called in eval mode without
            autograd.
        config: what all parties must agree on.
        run: this run's settings.
        trainable: ``all``, ``norms``, ``head`` (the output layer), ``last:N`` (the last N layers and everything after
            them), patterns of parameter names, or a ``Sparse`` mask. Frozen parameters (``requires_grad = False``) are
            trained only if a pattern names them.
        evaluate: evaluates the model before the first round, every ``evaluate_every`` rounds and at the end. A dict of
            one function per client name evaluates at the clients, which send only two numbers.
        ledger: file for the ledger; in memory if None. ``resume`` continues an existing one as if it had never been
            interrupted; all arguments must be unchanged except ``rounds``, which may grow. Or a function that opens
            the ledger for a header.
        callbacks: one or more functions to call after every round; returning True or raising ``StopRun`` ends the run,
            which can be resumed.
        progress: a bar with the time left, on standard error. ``auto`` shows it in terminals and notebooks; True also
            writes plain lines elsewhere.
        order: the order in which the cohort's clients are simulated; does not affect the result.
        keywords: keys of ``FederationConfig`` and ``RunConfig``, instead of these objects or to change them:

    Raises InputError for invalid arguments, LedgerError for an unusable ledger.
    """
    named = arguments.named_clients(clients)
    config, run = configured(config, run, keywords)
    by_clients = evaluate if isinstance(evaluate, Mapping) else {}
    evaluate = None if isinstance(evaluate, Mapping) else evaluate
    arguments.check(model, named, run.sampled, loss, evaluate, by_clients)
    check_evaluation(config.privacy is not None, bool(by_clients))
    lr, rounds, evaluate_every = run.lr, run.rounds, run.evaluate_every
    sampled = len(named) if run.sampled is None else run.sampled
    check_attackers(config.aggregation, config.attackers, sampled, attacked=run.attack is not None)
    check_cohort(config.secure_sum, sampled, lr)
    watch = together(callbacks)
    shown = following(progress, config.method.name)
    started = time.perf_counter()
    replica = Replica(model, config.method, trainable, noise=config.generator)
    header = config.header(replica.base, replica.layout.digest(), replica.layout.dimension, lr)
    settings = {
        "lr": lr,
        "rounds": rounds,
        "sampled": sampled,
        "evaluate": "clients" if by_clients else "nobody" if evaluate is None else "server",
        "evaluate_every": evaluate_every,
        "clients": len(named),
        **({} if config.privacy else {f"clients.{name}": len(data) for name, data in named.items()}),
    }
    if run.lr_start is not None:
        settings["lr_start"] = run.lr_start
    if run.patience:
        settings["patience"] = run.patience
        if evaluate is None and not by_clients:
            raise InputError(f"patience = {run.patience}: it needs evaluate, which gives the score.")
    local = Local(run.local_lr, run.local_optimizer)
    if config.slopes == "training":
        settings |= {f"local.{key}": value for key, value in local._asdict().items()}
    if run.attack is not None and config.secure_sum:
        raise InputError(f"attack = '{run.attack}': attackers know every honest reply; leave secure_sum out.")
    attackers = None if run.attack is None else Attackers(run.attack, named, sampled, header)
    if attackers is not None:
        named = attackers.poisoned(named)
        settings |= {"attack": attackers.attack.name}
    with ExitStack() as stack:
        if not frozen.covers(model, replica.parameters):
            frozen.attach(model, trainable, run.frozen_cache, calls=True)
            stack.callback(frozen.detach, model)
        if callable(ledger):
            book = ledger(header)
        else:
            path = None if ledger is None else Path(ledger)
            if path is not None and path.exists() and not resume:
                raise LedgerError(
                    f"{path}: there is a ledger already. Continue it with resume=True and the base model, built or "
                    "loaded again, or name another file."
                )
            book = Ledger.resume(path, header, settings) if resume else Ledger.create(path, header, settings)
        stack.enter_context(book)
        replay(replica, book)
        probe = Probe(replica, _noting(loss, replica))
        done = participated(book) if config.privacy else Counter[str]()
        budgets = {
            name: budget(header, len(own), rounds, sampled, len(named), None, done[name]) for name, own in named.items()
        }
        parties = {
            name: Party(
                make_client(
                    name, own, probe, header, config.batch_size, by_clients.get(name), local, budget=budgets[name]
                )
            )
            for name, own in named.items()
        }
        cohort = Cohort(parties, probe, order, attackers)
        every = evaluate_every if by_clients or evaluate else 0
        keys = public_keys(party.client for party in parties.values())
        server = make_server(book, keys, lr=run.first_lr, sampled=sampled, shared=True, aggregator=config.aggregation)
        loop = RoundLoop(
            server,
            cohort,
            Policy(rounds, minimum=len(named), deadline=math.inf, evaluate_every=every, patience=run.patience),
            [one for one in (stack.enter_context(shown), watch) if one is not None],
            evaluate=None if evaluate is None else partial(_scored, evaluate, replica, book),
            measuring=by_clients,
            loss=lambda: cohort.loss,
        )
        loop.run()
        return Run(
            replica=replica,
            evaluations=loop.evaluations,
            rounds=book.rounds,
            head=book.head.hex(),
            seconds=time.perf_counter() - started,
            diverged=loop.diverged,
            stopped=loop.stopped,
            warnings=loop.warnings,
            traffic=traffic(book),
            forward_passes=forward_passes(book),
            backward_passes=backward_passes(book),
            displaced_passes=displaced_passes(book),
            lr_final=final_lr(book),
            epsilon=max((one.epsilon for one in budgets.values() if one is not None), default=None),
        )


if simulate.__doc__:  # Python's option -OO takes it away
    simulate.__doc__ = simulate.__doc__.replace("to change them:\n", f"to change them:\n{described()}\n")


@torch.no_grad()
def _scored(evaluate: Evaluate, replica: Replica, ledger: Ledger) -> Evaluation:
    """Evaluate the model and record the result."""
    score = as_score(evaluate(replica.model))
    digest = bytes.fromhex(replica.digest())
    found = Evaluation(replica.position, score.accuracy, float(score.loss), score.examples, digest)
    ledger.append_evaluation(found)
    return found


def _noting(loss: Loss, replica: Replica) -> Loss:
    """The loss, which adds the round to an exception."""

    def noting(model: nn.Module, batch: object) -> torch.Tensor | float:
        try:
            return loss(model, batch)
        except Exception as error:
            error.add_note(f"scalarfl: while a client's loss was evaluated in round {replica.position}")
            raise

    return noting


def replay(replica: Replica, ledger: Ledger, until: int | None = None) -> None:
    """Bring a replica forward along a ledger, to ``until`` rounds or to its end.

    Raises VerificationError if the replica's digest differs from the recorded one.
    """
    end = ledger.rounds if until is None else until
    if replica.position == 0:
        replica.begin(ledger.header.digest())
    while replica.position < end:
        stop = min(end, replica.position + REPLAY_AT_ONCE)
        replica.apply(list(ledger.updates(replica.position, stop)))
    last = ledger.evaluations(replica.position)
    if last and last[-1].digest and last[-1].digest.hex() != replica.digest():  # empty: no client's reply counted
        raise VerificationError(
            f"replaying {replica.position} rounds gives the digest {replica.digest()[:16]}…, "
            f"the ledger says {last[-1].digest.hex()[:16]}…."
        )
