"""Identities, site IDs and the list of keys."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from gossipseg.config import ListedSite
from gossipseg.errors import ConfigError, LocalError
from gossipseg.trust import (
    Identity,
    TrustList,
    check_listed_ids,
    check_own_certificate,
    create_identity,
    id_of_public_key,
    name_in_certificates,
    parse_site_id,
    public_key_of,
    short_id,
    site_id,
    trust_list,
)

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
SOME_ID = id_of_public_key(b"some key")


@pytest.fixture(scope="module")
def north(tmp_path_factory) -> Identity:
    return create_identity("north", tmp_path_factory.mktemp("north"))


@pytest.fixture(scope="module")
def south(tmp_path_factory) -> Identity:
    return create_identity("south_2", tmp_path_factory.mktemp("south"), hosts=["gpu.example.org", "::1"])


def pem(identity: Identity) -> str:
    return identity.certificate_pem.decode()


def self_signed(key, name: str = "x", algorithm=None) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
    builder = builder.public_key(key.public_key()).serial_number(7)
    builder = builder.not_valid_before(datetime(2024, 1, 1)).not_valid_after(datetime(2044, 1, 1))
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


# ---------------------------------------------------------------- site IDs


def test_an_id_is_eight_groups_of_seven_and_survives_typing():
    groups = SOME_ID.split("-")
    assert [len(g) for g in groups] == [7] * 8
    assert set("".join(groups)) <= set(ALPHABET)
    assert short_id(SOME_ID) == groups[0]
    for typed in (SOME_ID, SOME_ID.lower(), SOME_ID.replace("-", ""), " ".join(groups) + "\n"):
        assert parse_site_id(typed) == SOME_ID
    assert parse_site_id(SOME_ID.replace("O", "0").replace("I", "1").replace("B", "8")) == SOME_ID


def test_an_id_depends_on_the_key_alone(north, south, tmp_path):
    key = serialization.load_pem_private_key(north.key_pem, None)
    assert (
        site_id(self_signed(key, "renewed", hashes.SHA256()))
        == north.site_id
        == site_id(north.certificate_pem)
    )
    assert north.site_id != south.site_id
    assert north.site_id == id_of_public_key(public_key_of(north.certificate_pem))


@given(st.binary(min_size=1, max_size=8), st.integers(0, 55), st.sampled_from(ALPHABET))
def test_every_single_wrong_character_is_noticed_and_the_groups_named(key, place, character):
    text = id_of_public_key(key).replace("-", "")
    wrong = text[:place] + character + text[place + 1 :]
    if wrong == text:
        assert parse_site_id(wrong) == id_of_public_key(key)
        return
    block = place // 14
    with pytest.raises(ConfigError, match=rf"groups {2 * block + 1} and {2 * block + 2}"):
        parse_site_id(wrong)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "has 0"),
        (SOME_ID[:-1], "has 55"),
        (SOME_ID + "A", "has 57"),
        ("9" + SOME_ID[1:], "not 9"),
        ("ä" + SOME_ID[1:], "not Ä"),
    ],
)
def test_what_is_no_id_is_said_to_be_none(text, what):
    with pytest.raises(ConfigError, match=what):
        parse_site_id(text)


# ---------------------------------------------------------------- identities


def test_a_new_identity_is_private_loads_again_and_is_not_overwritten(tmp_path):
    made = create_identity("chase_db1", tmp_path / "a" / "identity")
    assert made.key_path.stat().st_mode & 0o777 == 0o600
    assert made.key_path.parent.stat().st_mode & 0o077 == 0
    loaded = Identity.load(made.key_path, made.certificate_path)
    assert (loaded.site_id, loaded.certificate_pem) == (made.site_id, made.certificate_pem)
    before = made.key_path.read_bytes()
    with pytest.raises(LocalError, match="not overwritten"):
        create_identity("chase_db1", made.key_path.parent)
    made.certificate_path.unlink()
    with pytest.raises(LocalError, match="not overwritten"):
        create_identity("chase_db1", made.key_path.parent)
    assert made.key_path.read_bytes() == before


def test_the_certificate_says_who_it_is_and_may_sign_no_other(south):
    certificate = x509.load_pem_x509_certificate(south.certificate_pem)
    extensions = certificate.extensions
    san = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["south_2", "gpu.example.org"]
    assert [str(ip) for ip in san.get_values_for_type(x509.IPAddress)] == ["::1"]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is False
    own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == own
    assert isinstance(certificate.public_key().curve, ec.SECP256R1)


def test_the_key_is_in_no_text_of_the_identity(north):
    assert "PRIVATE" not in repr(north) + str(north)


def test_days_left_count_down_to_the_end_of_the_certificate(tmp_path):
    made = create_identity("x", tmp_path, days=30)
    end = made.not_after.timestamp()
    assert made.days_left(end) == 0
    assert made.days_left(end - 86400 * 2.5) == 2.5
    assert made.days_left(end + 86400) == -1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    made = create_identity("x", tmp_path)
    made.key_path.chmod(mode)
    with pytest.raises(LocalError, match=r"other users.*chmod 600"):
        Identity.load(made.key_path, made.certificate_path)
    made.key_path.chmod(0o400)
    assert Identity.load(made.key_path, made.certificate_path)


def test_a_credential_of_systemd_shows_its_access_list_in_the_groups_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = create_identity("north", tmp_path / "identity")
    made.key_path.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "elsewhere"))
    with pytest.raises(LocalError, match="other users"):
        Identity.load(made.key_path, made.certificate_path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "identity"))
    assert Identity.load(made.key_path, made.certificate_path).site_id == made.site_id
    made.key_path.chmod(0o444)
    with pytest.raises(LocalError, match="other users"):
        Identity.load(made.key_path, made.certificate_path)


def test_files_that_are_missing_or_something_else(tmp_path, north):
    with pytest.raises(LocalError, match="gossipctl init"):
        Identity.load(tmp_path / "key.pem", north.certificate_path)
    with pytest.raises(LocalError, match="no certificate"):
        Identity.load(north.key_path, tmp_path / "cert.pem")
    junk = tmp_path / "junk.pem"
    junk.write_text("not PEM")
    junk.chmod(0o600)
    with pytest.raises(ConfigError, match=f"{junk}: this is not an unencrypted PEM private key"):
        Identity.load(junk, north.certificate_path)
    with pytest.raises(ConfigError, match=f"{junk}: this is not a PEM certificate"):
        Identity.load(north.key_path, junk)
    with pytest.raises(ConfigError, match="PRIVATE KEY"):
        Identity.load(north.key_path, north.key_path)


def test_an_encrypted_key_is_refused(tmp_path, north):
    key = serialization.load_pem_private_key(north.key_pem, None)
    file = tmp_path / "key.pem"
    encryption = serialization.BestAvailableEncryption(b"secret")
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="unencrypted"):
        Identity.load(file, north.certificate_path)


def test_a_key_and_a_certificate_of_two_pairs_are_refused(north, south):
    with pytest.raises(ConfigError, match="does not belong to the key"):
        Identity.load(north.key_path, south.certificate_path)


def test_an_expired_certificate_and_a_wrong_clock_are_told_apart(tmp_path):
    made = create_identity("x", tmp_path, days=30)
    end = made.not_after.timestamp()
    with pytest.raises(LocalError, match="expired on"):
        Identity.load(made.key_path, made.certificate_path, now=end + 1)
    with pytest.raises(LocalError, match="Set the clock"):
        Identity.load(made.key_path, made.certificate_path, now=0.0)
    assert Identity.load(made.key_path, made.certificate_path, now=end - 1)


# ---------------------------------------------------------------- the list


def test_a_listed_key_is_known_and_another_is_nobody(north, south):
    trust = TrustList.from_sites({"north": [pem(north)], "late": []})
    assert trust.site_of_public_key(public_key_of(north.certificate_pem)) == "north"
    assert trust.site_of_public_key(public_key_of(south.certificate_pem)) is None
    assert trust.site_of_public_key(b"") is None
    assert trust.sites == {"north", "late"}
    assert trust.ids_of("north") == (north.site_id,)
    assert trust.ids_of("late") == trust.ids_of("nobody") == ()


def test_signatures_hold_for_their_signer_and_text_only(north, south):
    trust = TrustList.from_sites({"north": [pem(north)], "south_2": [pem(south)]})
    signature = north.sign(b"alive 4")
    for _ in range(2):  # the second time from memory
        assert trust.verify("north", b"alive 4", signature)
        assert not trust.verify("south_2", b"alive 4", signature)
        assert not trust.verify("north", b"alive 5", signature)
        assert not trust.verify("north", b"alive 4", signature[:-1] + bytes([signature[-1] ^ 1]))
        assert not trust.verify("north", b"alive 4", b"")
        assert not trust.verify("nobody", b"alive 4", signature)


def test_either_key_signs_during_a_rotation(north, south):
    trust = TrustList.from_sites({"north": [pem(north), pem(south)]})
    assert trust.verify("north", b"x", north.sign(b"x"))
    assert trust.verify("north", b"x", south.sign(b"x"))


def test_an_rsa_key_of_a_hospital_signs_too(tmp_path):
    key = rsa.generate_private_key(65537, 2048)
    (tmp_path / "cert.pem").write_bytes(self_signed(key, algorithm=hashes.SHA256()))
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(text)
    (tmp_path / "key.pem").chmod(0o600)
    identity = Identity.load(tmp_path / "key.pem", tmp_path / "cert.pem")
    trust = TrustList.from_sites({"x": [identity.certificate_pem]})
    assert trust.verify("x", b"payload", identity.sign(b"payload"))
    assert not trust.verify("x", b"other", identity.sign(b"payload"))


def test_the_memory_of_signatures_is_bounded(north, monkeypatch):
    monkeypatch.setattr("gossipseg.trust.trustlist._SIGNATURE_CACHE", 4)
    trust = TrustList.from_sites({"north": [pem(north)]})
    for i in range(10):
        trust.verify("north", bytes([i]), b"junk")
    assert len(trust._seen) == 4


def test_one_key_for_two_sites_is_refused(north):
    with pytest.raises(ConfigError, match="north and twin are listed with the same key"):
        TrustList.from_sites({"north": [pem(north)], "twin": [pem(north)]})


@pytest.mark.parametrize(
    "key",
    [ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 1024)],
    ids=["ed25519", "rsa1024"],
)
def test_keys_that_tls_or_prudence_does_not_take_are_refused(key):
    algorithm = hashes.SHA256() if isinstance(key, rsa.RSAPrivateKey) else None
    with pytest.raises(ConfigError, match="not of a supported kind"):
        TrustList.from_sites({"x": [self_signed(key, algorithm=algorithm)]})


def test_a_private_key_in_the_list_is_pointed_out(north):
    with pytest.raises(ConfigError, match="PRIVATE KEY"):
        TrustList.from_sites({"north": [north.key_pem + north.certificate_pem]})


def test_a_chain_in_place_of_a_certificate_is_refused(north, south):
    with pytest.raises(ConfigError, match="2 certificates"):
        TrustList.from_sites({"north": [pem(north) + pem(south)]})


def test_without_keys_only_listed_names_are_believed():
    trust = TrustList.unsigned(["north"])
    assert trust.verify("north", b"x", b"")
    assert not trust.verify("nobody", b"x", b"")
    assert not TrustList.from_sites({"north": []}).verify("north", b"x", b"")


def test_the_name_to_expect_in_a_handshake(north, south):
    assert name_in_certificates("north", [north.certificate_pem]) == "north"
    assert name_in_certificates("imaging", [south.certificate_pem]) == "south_2"
    assert name_in_certificates("south_2", [south.certificate_pem] * 2) == "south_2"
    with pytest.raises(ConfigError, match="share no name"):
        name_in_certificates("north", [north.certificate_pem, south.certificate_pem])


# ---------------------------------------------------------------- peers.yaml


@pytest.fixture
def listed(north, south) -> list[ListedSite]:
    return [
        ListedSite("north", "a:1", [pem(north)], id=north.site_id.lower()),
        ListedSite("south_2", "b:1", [pem(south)]),
    ]


def test_a_sound_list_passes(listed, north):
    check_listed_ids(listed, Path("peers.yaml"))
    check_own_certificate(north, listed[0], Path("peers.yaml"))
    assert trust_list(listed, Path("peers.yaml")).sites == {"north", "south_2"}


def test_an_id_that_is_not_the_certificates_is_refused_with_file_and_key(listed, south, north):
    listed[1] = replace(listed[1], id=north.site_id)
    with pytest.raises(ConfigError) as e:
        check_listed_ids(listed, Path("peers.yaml"))
    text = str(e.value)
    assert text.startswith(f"peers.yaml: sites.1.id = '{north.site_id}': ")
    assert south.site_id in text


def test_a_mistyped_id_is_refused_with_file_and_key(listed):
    listed[0] = replace(listed[0], id=("A" if listed[0].id[0] != "a" else "b") + listed[0].id[1:])
    with pytest.raises(ConfigError, match=r"^peers\.yaml: sites\.0\.id = .*groups 1 and 2"):
        check_listed_ids(listed, Path("peers.yaml"))


def test_an_id_without_a_certificate_is_refused(listed):
    listed[0] = replace(listed[0], certificate=[])
    with pytest.raises(ConfigError, match="none listed"):
        check_listed_ids(listed, Path("peers.yaml"))


def test_another_key_than_the_listed_one_is_noticed_at_home(listed, south):
    with pytest.raises(ConfigError, match="north is listed with another key"):
        check_own_certificate(south, listed[0], Path("peers.yaml"))


def test_the_faulty_entry_of_a_list_is_named(listed, north):
    path = Path("peers.yaml")
    with pytest.raises(ConfigError, match=r"^peers\.yaml: sites\.1\.certificate: north and south_2"):
        trust_list([listed[0], replace(listed[1], certificate=[pem(north)])], path)
    with pytest.raises(ConfigError, match=r"^peers\.yaml: sites\.1\.certificate: this is not a PEM"):
        trust_list([listed[0], replace(listed[1], certificate=["-----BEGIN nonsense"])], path)
    with pytest.raises(ConfigError, match=r"^peers\.yaml: sites\.0\.certificate: no certificate"):
        trust_list([replace(listed[0], certificate=""), listed[1]], path)


def test_trust_needs_neither_grpc_nor_torch():
    code = "import sys, gossipseg.trust; print([m for m in ('grpc', 'torch', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
