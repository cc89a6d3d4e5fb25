"""The list in peers.yaml is the only authority: what TLS and the server do with keys that are not on it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from grpc import aio

from gossipseg.core.messages import Ack, Ping
from gossipseg.errors import ConfigError, PeerUnreachable, PeerUntrusted
from gossipseg.trust import Identity, create_identity
from gossipseg.wire.codec import messages as codec
from gossipseg.wire.grpc_transport import GrpcTransport
from gossipseg.wire.probe import seen_certificate
from gossipseg.wire.transport import PeerEndpoint
from tests.wire.harness import INFO, SITES, StoreHandler, federation

PING = Ping((), INFO)


def certificate(key, name: str, *, issuer=None, ca: bool = False, days: int = 30) -> x509.Certificate:
    """A certificate as somebody else's tools would make it; `issuer` is (certificate, key) of who signs."""
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer[1] if issuer else key
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )


def identity_of(folder: Path, key, cert: x509.Certificate, *, now: float | None = None) -> Identity:
    folder.mkdir()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(pem)
    (folder / "key.pem").chmod(0o600)
    (folder / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    return Identity.load(folder / "key.pem", folder / "cert.pem", now=now)


def minted(folder: Path, issuer: Identity, name: str) -> Identity:
    """A leaf in `name`'s name, signed with the issuer's key."""
    signer = x509.load_pem_x509_certificate(issuer.certificate_pem)
    signing_key = serialization.load_pem_private_key(issuer.key_pem, None)
    key = ec.generate_private_key(ec.SECP256R1())
    return identity_of(folder, key, certificate(key, name, issuer=(signer, signing_key)))


def ca_identity(folder: Path, name: str) -> Identity:
    """Somebody who listed a certificate that may sign others (openssl's default)."""
    key = ec.generate_private_key(ec.SECP256R1())
    return identity_of(folder, key, certificate(key, name, ca=True))


def endpoint(site: str, address: str, *identities: Identity) -> PeerEndpoint:
    return PeerEndpoint(site, address, tuple(i.certificate_pem for i in identities))


async def raw_ping(address: str, name: str, roots: bytes, key: bytes | None, chain: bytes | None) -> bytes:
    """A Ping from a client that is not ours. Raises AioRpcError."""
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    options = [("grpc.ssl_target_name_override", name)]
    async with aio.secure_channel(address, credentials, options) as channel:
        return await channel.unary_unary("/gossipseg.wire.Peer/Ping")(codec.encode_request(PING), timeout=5.0)


def test_an_unlisted_certificate_fails_the_handshake(over_grpc, tmp_path):
    async def body():
        async with over_grpc() as f:
            stranger = create_identity("north", tmp_path / "stranger")
            north = f.endpoints["north"]
            with pytest.raises(aio.AioRpcError) as e:
                await raw_ping(
                    north.address, "north", north.certificates[0], stranger.key_pem, stranger.certificate_pem
                )
            assert e.value.code() is grpc.StatusCode.UNAVAILABLE
            assert f.handlers["north"].requests == []

    asyncio.run(body())


def test_a_caller_without_a_certificate_fails_the_handshake(over_grpc):
    async def body():
        async with over_grpc() as f:
            north = f.endpoints["north"]
            with pytest.raises(aio.AioRpcError) as e:
                await raw_ping(north.address, "north", north.certificates[0], None, None)
            assert e.value.code() is grpc.StatusCode.UNAVAILABLE
            assert f.handlers["north"].requests == []

    asyncio.run(body())


@pytest.mark.parametrize("may_sign", [False, True], ids=["of_gossipctl_init", "that_may_sign"])
def test_a_leaf_minted_with_a_listed_certificate_in_anothers_name_is_never_accepted(
    over_grpc, tmp_path, identities, may_sign
):
    async def body():
        listed = ca_identity(tmp_path / "ca", "south-2") if may_sign else identities["south-2"]
        impostor = minted(tmp_path / "minted", listed, "chase_db1")
        async with over_grpc() as f:
            f.endpoints["south-2"] = endpoint("south-2", f.endpoints["south-2"].address, listed)
            f.relist("north", ["chase_db1", "south-2"])
            north = f.endpoints["north"]
            chain = impostor.certificate_pem + listed.certificate_pem
            with pytest.raises(aio.AioRpcError) as e:
                await raw_ping(north.address, "north", north.certificates[0], impostor.key_pem, chain)
            # A certificate that may sign passes the handshake, and the key is refused at the call.
            expected = grpc.StatusCode.PERMISSION_DENIED if may_sign else grpc.StatusCode.UNAVAILABLE
            assert e.value.code() is expected
            assert f.handlers["north"].requests == []
            if may_sign:
                assert impostor.site_id in e.value.details()

    asyncio.run(body())


@pytest.mark.parametrize("may_sign", [False, True], ids=["of_gossipctl_init", "that_may_sign"])
def test_a_listed_site_that_serves_a_minted_certificate_as_another_is_rejected(
    tmp_path, identities, may_sign
):
    async def body():
        liar = ca_identity(tmp_path / "ca", "south-2") if may_sign else identities["south-2"]
        impostor = minted(tmp_path / "minted", liar, "north")
        handler = StoreHandler(None)
        serving = GrpcTransport(
            "north",
            listen="127.0.0.1:0",
            identity=impostor,
            peers={"a": endpoint("a", "", identities["chase_db1"])},
        )
        await serving.start(handler)
        calling = GrpcTransport(
            "chase_db1",
            listen="127.0.0.1:0",
            identity=identities["chase_db1"],
            peers={
                "north": endpoint("north", serving.address, identities["north"]),
                "south-2": endpoint("south-2", "127.0.0.1:1", liar),
            },
        )
        try:
            with pytest.raises(PeerUntrusted) as e:
                await calling.request("north", PING, 5.0)
            assert impostor.site_id in e.value.detail
            assert identities["north"].site_id in e.value.detail
            assert handler.requests == []
        finally:
            await calling.close()
            await serving.close()

    asyncio.run(body())


def test_a_removed_site_is_denied_on_its_open_channel(over_grpc, caplog):
    async def body():
        async with over_grpc() as f:
            a = f.transports["chase_db1"]
            assert await a.request("north", PING, 5.0) == Ack((), INFO)
            f.relist("north", ["south-2"])
            with caplog.at_level(logging.WARNING, "gossipseg.wire"), pytest.raises(PeerUntrusted) as e:
                await a.request("north", PING, 5.0)
            # The server said so: no new handshake was needed.
            assert e.value.detail == f"north does not list the key {f.identities['chase_db1'].site_id}"
            assert f.identities["chase_db1"].site_id in caplog.text

    asyncio.run(body())


def test_a_site_that_took_another_ones_name_is_known_by_its_key(over_grpc, tmp_path):
    async def body():
        async with over_grpc() as f:  # north lists, as south-2, a certificate that says chase_db1
            named = create_identity("chase_db1", tmp_path / "named")
            f.endpoints["south-2"] = endpoint("south-2", f.endpoints["south-2"].address, named)
            f.relist("north", ["south-2"])
            north = f.endpoints["north"]
            await raw_ping(
                north.address, "north", north.certificates[0], named.key_pem, named.certificate_pem
            )
            assert f.handlers["north"].requests == [("south-2", PING)]

    asyncio.run(body())


def test_the_old_and_the_new_certificate_both_hold_during_a_rotation(over_grpc, tmp_path):
    async def body():
        async with over_grpc() as f:
            new = create_identity("chase_db1", tmp_path / "new")
            both = endpoint("chase_db1", f.endpoints["chase_db1"].address, f.identities["chase_db1"], new)
            f.endpoints["chase_db1"] = both
            f.relist("north", ["chase_db1", "south-2"])
            assert await f.transports["chase_db1"].request("north", PING, 5.0)
            assert await f.transports["north"].request("chase_db1", PING, 5.0)
            await f.transports["chase_db1"].close()
            renewed = GrpcTransport(
                "chase_db1",
                listen=f.transports["chase_db1"].address,
                identity=new,
                peers=f.endpoints,
                reconnect_max_s=0.05,
            )
            f.made.append(renewed)
            await renewed.start(f.handlers["chase_db1"])
            assert await renewed.request("north", PING, 5.0)
            assert {peer for peer, _ in f.handlers["north"].requests} == {"chase_db1"}
            while not await _reached(f.transports["north"], "chase_db1"):
                pass

    asyncio.run(body())


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_a_leaf_of_a_hospital_pki_is_pinned_like_any_other(tmp_path, identities, kind):
    """Its issuer is on no list, and another leaf of the same issuer is nobody."""

    async def body():
        ca_key = ec.generate_private_key(ec.SECP384R1())
        ca = certificate(ca_key, "Hospital CA", ca=True)

        def leaf(name):
            key = (
                rsa.generate_private_key(65537, 2048)
                if kind == "rsa"
                else ec.generate_private_key(ec.SECP256R1())
            )
            return identity_of(tmp_path / name, key, certificate(key, name, issuer=(ca, ca_key)))

        theirs, other = leaf("gpu3.hospital.example"), leaf("printer.hospital.example")
        mine = identities["chase_db1"]
        handler = StoreHandler(None)
        north = GrpcTransport(
            "north",
            listen="127.0.0.1:0",
            identity=theirs,
            peers={"chase_db1": endpoint("chase_db1", "", mine)},
        )
        await north.start(handler)
        here = GrpcTransport(
            "chase_db1",
            listen="127.0.0.1:0",
            identity=mine,
            peers={"north": endpoint("north", north.address, theirs)},
        )
        await here.start(handler)
        try:
            assert await here.request("north", PING, 5.0)
            north.set_peers({"chase_db1": endpoint("chase_db1", here.address, mine)})
            assert await north.request("chase_db1", PING, 5.0)
            assert [peer for peer, _ in handler.requests] == ["chase_db1", "north"]
            with pytest.raises(aio.AioRpcError):
                await raw_ping(
                    here.address, "chase_db1", mine.certificate_pem, other.key_pem, other.certificate_pem
                )
        finally:
            await here.close()
            await north.close()

    asyncio.run(body())


def test_an_expired_certificate_is_not_accepted_and_the_error_says_so(tmp_path, identities):
    async def body():
        key = ec.generate_private_key(ec.SECP256R1())
        old = certificate(key, "north", days=-1)
        theirs = identity_of(tmp_path / "old", key, old, now=old.not_valid_before_utc.timestamp() + 1)
        north = GrpcTransport("north", listen="127.0.0.1:0", identity=theirs, peers={})
        await north.start(StoreHandler(None))
        here = GrpcTransport(
            "chase_db1",
            listen="127.0.0.1:0",
            identity=identities["chase_db1"],
            peers={"north": endpoint("north", north.address, theirs)},
        )
        try:
            with pytest.raises(PeerUntrusted, match="expired"):
                await here.request("north", PING, 5.0)
        finally:
            await here.close()
            await north.close()

    asyncio.run(body())


def test_the_error_of_a_site_that_does_not_list_us_names_our_key(over_grpc, tmp_path):
    async def body():
        async with over_grpc(names=("north", "south-2")) as f:
            ours = create_identity("newcomer", tmp_path / "newcomer")
            here = GrpcTransport(
                "newcomer", listen="127.0.0.1:0", identity=ours, peers={"north": f.endpoints["north"]}
            )
            f.made.append(here)
            with pytest.raises(PeerUntrusted) as e:
                await here.request("north", PING, 5.0)
            assert f"does not accept this site's key {ours.site_id}" in e.value.detail

    asyncio.run(body())


# ---------------------------------------------------------------- plaintext


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.1:7443", "[::]:0", "example.org:7443"])
def test_plaintext_listens_on_loopback_only(listen):
    with pytest.raises(ConfigError, match="loopback"):
        GrpcTransport("north", listen=listen, identity=None, peers={}, insecure=True)


def test_plaintext_calls_loopback_only():
    listed = {"south": PeerEndpoint("south", "198.51.100.7:7443")}
    with pytest.raises(ConfigError, match="loopback"):
        GrpcTransport("north", listen="127.0.0.1:0", identity=None, peers=listed, insecure=True)


def test_without_insecure_an_identity_is_needed():
    with pytest.raises(ConfigError, match="no identity"):
        GrpcTransport("north", listen="127.0.0.1:0", identity=None, peers={})


def test_plaintext_between_loopback_addresses_knows_sites_by_their_word(tmp_path):
    async def body():
        handler, names = StoreHandler(None), ("north", "south", "east")
        sites = {}
        for name in names:
            sites[name] = GrpcTransport(name, listen="[::1]:0", identity=None, peers={}, insecure=True)
            await sites[name].start(handler)
        listed = {name: PeerEndpoint(name, sites[name].address) for name in names}
        try:
            for transport in sites.values():
                transport.set_peers(listed)
            assert await sites["north"].request("south", PING, 5.0)
            assert handler.requests == [("north", PING)]
            sites["north"].hint_address("south", "192.0.2.9:7443")
            assert sites["north"].links["south"].addresses == [listed["south"].address]
            sites["south"].set_peers({})
            with pytest.raises(PeerUntrusted):
                await sites["north"].request("south", PING, 5.0)
            assert await sites["north"].request("east", PING, 5.0)
            swapped = {"south": dataclasses.replace(listed["south"], address=sites["east"].address)}
            sites["north"].set_peers(swapped)  # the port of another site: it says that it is not meant
            with pytest.raises(PeerUntrusted):
                await sites["north"].request("south", PING, 5.0)
        finally:
            for transport in sites.values():
                await transport.close()

    asyncio.run(body())


def test_a_plaintext_caller_does_not_get_through_to_a_secure_site(over_grpc):
    async def body():
        async with over_grpc() as f:
            async with aio.insecure_channel(f.endpoints["north"].address) as channel:
                with pytest.raises(aio.AioRpcError) as e:
                    metadata = (("gossipseg-site", "chase_db1"), ("gossipseg-to", "north"))
                    call = channel.unary_unary("/gossipseg.wire.Peer/Ping")
                    await call(codec.encode_request(PING), timeout=5.0, metadata=metadata)
                assert e.value.code() is grpc.StatusCode.UNAVAILABLE
            assert f.handlers["north"].requests == []

    asyncio.run(body())


# ---------------------------------------------------------------- a look by hand


def test_a_look_at_an_address_tells_the_id_and_whether_we_are_accepted(tmp_path, identities):
    async def body():
        async with federation("grpc", tmp_path, identities) as f:
            north = f.endpoints["north"]
            look = asyncio.to_thread
            seen = await look(seen_certificate, north.address, f.identities["chase_db1"])
            assert seen.reached and seen.accepted and seen.id == f.identities["north"].site_id
            stranger = create_identity("stranger", tmp_path / "stranger")
            seen = await look(seen_certificate, north.address, stranger)
            assert seen.reached and seen.accepted is False and seen.id == f.identities["north"].site_id
            seen = await look(seen_certificate, north.address)
            assert seen.reached and seen.accepted is None
            seen = await look(seen_certificate, "127.0.0.1:1")
            assert not seen.reached and "refused" in seen.detail
            with pytest.raises(ConfigError):
                seen_certificate("nonsense")

    asyncio.run(body())


def test_the_names_used_here_are_ones_that_tls_might_stumble_over():
    assert "chase_db1" in SITES and "south-2" in SITES


async def _reached(transport: GrpcTransport, site: str) -> bool:
    try:
        await transport.request(site, PING, 1.0)
    except (PeerUnreachable, PeerUntrusted):
        return False
    return True
