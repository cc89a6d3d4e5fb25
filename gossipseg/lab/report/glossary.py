"""Each method of a comparison in one sentence, for people who treat patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gossipseg.lab.plan import variants
from gossipseg.lab.plan.variants import LONE_PAIR, POOLED

METHODS = {
    "local": "each site trains on its own images, and nothing is exchanged",
    POOLED: "one model is trained on the images of all sites together, as often on those of one site as of "
    "another, which real sites may not do: what could be had if images could travel",
    LONE_PAIR: "each site trains two models on its own images, from different random numbers, and predicts "
    "with both: what two models bring without any exchange",
    "fedavg": "every site trains; one of them, each in turn, averages the models of all, and all go on from "
    "the average",
    "fedprox": "fedavg, with each site held near the global model while it trains",
    "fedavg_finetune": "fedavg, and in the last rounds each site trains alone",
    "fedbn": "fedavg, but the layers that adjust to a site's brightness and contrast stay at the site",
    "ditto": "fedavg, and beside the global model each site trains one of its own near to it, which it uses",
    "gossip_average": "sites send models straight to one another; who receives one averages it with its own",
    "gcml": "sites send models straight to one another; who receives one averages it with its shared model, "
    "which learns from the site's own model, too; the site predicts with both",
    "fedoap": "fedavg, but the parts of the network that tell organs apart stay at the site",
    "fedsca": "only small added layers of the network travel, and each site gets a mixture of those of sites "
    "like it",
    "fedcowpro": "trains together on images without outlines, then copies the outline of a single example",
}


def explained(labels: Sequence[str]) -> list[tuple[str, str]]:
    """(label, sentence) of each method that is known here."""
    return [(label, said) for label in labels if (said := _said(label, labels))]


def _said(label: str, labels: Sequence[str]) -> str:
    variant = variants.read(label)
    known = METHODS.get(variant.name, "")
    if not variant.options:
        return known
    settings = f"with {_in_words(dict(variant.options))}"
    return f"{variant.name} {settings}" if variant.name in labels or not known else f"{known}; but {settings}"


def _in_words(options: Mapping[str, str]) -> str:
    said = [f"{key} = {value}" for key, value in options.items() if key not in EXCHANGE_AT]
    for key, words in EXCHANGE_AT.items():
        if key in options:
            said.insert(0, words.format(options[key]))
    return ", ".join(said)


EXCHANGE_AT = {
    "every_rounds": "an exchange every {} rounds",
    "exchange_at.every_rounds": "an exchange every {} rounds",
    "exchange_at.summed_rate": "an exchange each time the learning rate has summed up to {} of its whole",
}
"""Settings of when models are exchanged, in words."""
TINTS = ("cyan", "orange", "violet", "green", "pink", "blue")
"""Names of evaluation.overlays.COLOURS, in their order."""


def tints(labels: Mapping[str, str]) -> str:
    """The colour of each label of the task (value → name): `cyan: anterior, orange: posterior`."""
    named = {int(value): name for value, name in labels.items() if int(value) > 0}
    return ", ".join(f"{TINTS[(value - 1) % len(TINTS)]}: {named[value]}" for value in sorted(named))
