"""The ServerApp: our server, its ledger and its rounds, over Flower's Grid. It needs no model and no torch."""

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from scalarfl.errors import InputError
from scalarfl.experiment import spec as specs
from scalarfl.files import located
from scalarfl.protocol.callbacks import Progress
from scalarfl.protocol.rounds import Policy, RoundLoop
from scalarfl.protocol.server import Server
from scalarfl.transports.flower.envelope import configure
from scalarfl.transports.flower.grid import GridTransport
from scalarfl.transports.flower.project import overrides, settings

app = ServerApp()
log = logging.getLogger("scalarfl")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the recipe's rounds, resuming at the end of the folder's ledger if it has one."""
    configure()
    own = settings(context.run_config)
    recipe = overrides(context.run_config)
    if own["spec"]:
        announced = specs.load(located(str(own["spec"])))
        specs.check_same(announced, str(own["spec"]), recipe)
    else:
        announced = specs.load(None, recipe)
    if announced.header.secure_sum:
        raise InputError(
            f"federation.secure_sum = {announced.header.secure_sum}: a Flower app's clients keep nothing between the "
            "messages of a sum. Use `scalarfl server` and `scalarfl client`, or leave it out."
        )
    out = located(str(own["out"]))
    with announced.opened(out) as ledger:
        server = Server(ledger, lr=announced.run.first_lr, sampled=announced.sampled, aggregator=announced.aggregator)
        deadline, again = float(own["deadline"]), float(own["again"])
        policy = Policy(
            announced.run.rounds,
            minimum=announced.sampled,
            deadline=deadline,
            again=again,
            expected=announced.clients,
            evaluate_every=announced.evaluate_every,
            patience=announced.run.patience,
        )
        text = (
            "waiting for %(clients)d clients (a simulation of Flower's has as many as --federation-config "
            "num-supernodes=%(clients)d says)"
        )
        log.info(text, {"clients": announced.clients})
        RoundLoop(server, GridTransport(grid, deadline, again), policy, _said).run()
        log.info("%(rounds)d rounds on record in %(out)s", {"rounds": ledger.rounds, "out": str(out)})
        log.info("ledger head %(head)s", {"head": ledger.head.hex()})


def _said(progress: Progress) -> None:
    """One line a round: Flower shows an app's log as its progress."""
    log.info("round %(round)d of %(rounds)d is on record", {"round": progress.round, "rounds": progress.rounds})
