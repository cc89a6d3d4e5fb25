"""Hello: what is compared, what a refusal says, and when another one is due."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossipseg.core import effects as fx
from gossipseg.core import messages as ms
from gossipseg.core.membership.handshake import refusal
from gossipseg.core.types import PROTOCOL_MAX, PROTOCOL_MIN, Phase, fingerprint
from tests.core.rig import OPEN, SIGNED, TRAINING, Rig, alive, model

STARTING = replace(TRAINING, phase=Phase.STARTING, contract="")
OTHER = tuple((k, "0.01" if k == "training.lr" else v) for k, v in SIGNED)


def hello(contract: tuple[tuple[str, str], ...] = SIGNED, **changes: object) -> ms.Hello:
    base = ms.Hello(1, 1, "f", contract, replace(TRAINING, contract=fingerprint(contract)))
    return replace(base, **changes)  # type: ignore[arg-type]


def reply(contract: tuple[tuple[str, str], ...] = SIGNED) -> ms.HelloReply:
    return ms.HelloReply(1, 1, "f", contract, replace(TRAINING, contract=fingerprint(contract)))


# ---------------------------------------------------------------- the comparison


def test_equal_contracts_agree() -> None:
    assert refusal(hello(), hello()) == ""


def test_a_refusal_names_the_first_differing_keys_with_both_values() -> None:
    assert refusal(hello(), hello(OTHER)) == "training.lr: 0.003 here, 0.01 there"
    endless = (("federation", '"f"'), ("training.lr", "9" * 60_000))
    assert len(refusal(hello(), hello(endless))) < 1000, "it goes into logs and documents"


def test_a_key_only_one_side_has_is_named() -> None:
    assert refusal(hello(), hello((*SIGNED, ("zzz", "1")))) == "zzz: not set here, 1 there"


def test_a_site_without_swaps_is_told_of_in_words() -> None:
    """An older version does not know them, and its contract lacks the field."""
    ours = hello((*SIGNED, ("gossip.exchange", '"swap"')))
    said = refusal(ours, hello())
    assert said == (
        'gossip.exchange: "swap" here, '
        "not set there: a version that makes no swaps, or `gossip.exchange: push`"
    )
    assert refusal(hello(), ours) == 'gossip.exchange: not set here, "swap" there'


def test_many_differences_are_counted() -> None:
    ours = tuple((f"k{i}", "1") for i in range(6))
    theirs = tuple((f"k{i}", "2") for i in range(6))
    assert refusal(hello(ours), hello(theirs)).endswith("; and 3 more")


def test_an_unknown_network_signature_is_left_open_and_nothing_else_is() -> None:
    assert refusal(hello(OPEN), hello(SIGNED)) == ""
    assert refusal(hello(OPEN), hello(OTHER)) == "training.lr: 0.003 here, 0.01 there"


def test_known_signatures_must_be_equal() -> None:
    wide = tuple((k, '"wide"' if k == "network.signature" else v) for k, v in SIGNED)
    assert refusal(hello(), hello(wide)) == 'network.signature: "net" here, "wide" there'


@pytest.mark.parametrize(("low", "high", "ok"), [(1, 1, True), (1, 9, True), (2, 3, False), (0, 0, False)])
def test_only_disjoint_protocol_ranges_are_refused(low: int, high: int, ok: bool) -> None:
    text = refusal(hello(), hello(protocol_min=low, protocol_max=high))
    assert (text == "") is ok
    assert ok or text == f"protocol: 1-1 here, {low}-{high} there"


def test_another_federation_is_refused() -> None:
    assert refusal(hello(), hello(federation="g")) == "federation: 'f' here, 'g' there"


# ---------------------------------------------------------------- when


def test_a_site_is_greeted_on_meeting_it_and_then_not_again() -> None:
    rig = Rig().start()
    rig.hears("b", alive("b"))
    greeting = rig.request(ms.Hello, to="b")
    assert greeting.body.contract == OPEN
    rig.answer(greeting, reply())
    rig.hears("b")
    assert not rig.requests(ms.Hello)


def test_a_lost_hello_is_repeated_at_the_next_contact() -> None:
    rig = Rig().start()
    rig.hears("b", alive("b"))
    rig.fail(rig.request(ms.Hello))
    rig.hears("b")
    assert rig.requests(ms.Hello, to="b")


def test_who_was_greeted_need_not_greet_back() -> None:
    rig = Rig().start()
    rig.asks("b", hello())
    assert rig.reply() == ms.HelloReply(PROTOCOL_MIN, PROTOCOL_MAX, "f", OPEN, rig.node.info)
    rig.hears("b", alive("b"))
    assert not rig.requests(ms.Hello)


def test_a_restarted_site_is_greeted_anew() -> None:
    rig = Rig().start().meet("b")
    rig.hears("b", alive("b", 2, nonce=99))
    assert rig.requests(ms.Hello, to="b")


def test_a_signature_that_turns_out_to_differ_is_found_and_named() -> None:
    rig = Rig().start()
    rig.ready()
    rig.meet("b", info=STARTING)
    assert rig.node.members["b"].agreed
    wide = tuple((k, '"wide"' if k == "network.signature" else v) for k, v in SIGNED)
    rig.hears("b", info=replace(TRAINING, contract=fingerprint(wide)))
    rig.answer(rig.request(ms.Hello, to="b"), reply(wide))
    member = rig.node.members["b"]
    assert member.refused == 'network.signature: "net" here, "wide" there'
    assert [n.reason for n in rig.notes("peer_refused")] == [member.refused]
    assert rig.state("b") == "alive", "a refused site stays a member"


def test_a_refused_site_is_not_greeted_again_while_nothing_changed() -> None:
    rig = Rig().start()
    rig.ready()
    rig.hears("b", alive("b"))
    rig.answer(rig.request(ms.Hello, to="b"), reply(OTHER))
    for _ in range(3):
        rig.hears("b", info=replace(TRAINING, contract=fingerprint(OTHER)))
        assert not rig.requests(ms.Hello)


def test_a_refused_site_that_corrected_its_file_is_accepted() -> None:
    rig = Rig().start()
    rig.ready()
    rig.asks("b", hello(OTHER))
    assert "training.lr" in rig.node.members["b"].refused
    rig.hears("b", alive("b", 2, nonce=99))
    rig.answer(rig.request(ms.Hello, to="b"), reply())
    assert rig.node.members["b"].refused == ""


def test_in_a_large_federation_only_contracts_that_differ_are_greeted_on_meeting() -> None:
    rig = Rig([f"s{i}" for i in range(100)]).start()
    rig.ready()
    rig.hears("s1", alive("s1"))
    assert not rig.requests(ms.Hello)
    rig.hears("s2", alive("s2"), info=replace(TRAINING, contract=fingerprint(OTHER)))
    assert rig.requests(ms.Hello, to="s2")


def test_no_weights_move_while_a_signature_is_unknown() -> None:
    rig = Rig().start()
    rig.meet("b")
    rig.asks("b", ms.Offer(model()))
    assert rig.reply() == ms.OfferReply("reject", "not_ready")
    rig.ready()
    rig.asks("b", ms.Offer(model()))
    assert rig.reply().verdict == "accept"
    rig.meet("c", info=STARTING)
    rig.asks("c", ms.Offer(model("c")))
    assert rig.reply() == ms.OfferReply("reject", "not_ready")


def test_no_weights_come_from_a_refused_site() -> None:
    rig = Rig().start()
    rig.ready()
    rig.hears("b", alive("b"))
    rig.asks("b", hello(OTHER))
    rig.asks("b", ms.Offer(model()))
    assert rig.reply() == ms.OfferReply("reject", "contract_mismatch")
    assert isinstance(rig.out[-1], fx.Respond)
