"""gRPC settings, in one place, with the reason for each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from gossipseg.trust import Identity
from gossipseg.wire.codec.messages import MAX_MESSAGE_BYTES

CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 10.0
HANDSHAKE_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 512
"""Connections to this site's port, handshakes included. Each peer holds two."""
IDLE_S = 600.0
"""A connection without a call is closed after this time: no site is to hold those of others for ever."""
AGE_S = 3600.0
"""So is one of this age, once its calls are done. So a site that was taken off the list goes."""
Options = list[tuple[str, Any]]

_COMMON: Options = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A connection without answers is given up after two of these, so that a healed peer is dialled afresh
    # and not waited for until TCP's own, ever rarer, retransmissions get through.
    ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_S * 1000)),
    ("grpc.http2.max_pings_without_data", 0),
    # Weights are sent uncompressed. A compressed message could expand a thousand times: it is
    # neither accepted nor unpacked.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.per_message_decompression", 0),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.absolute_max_metadata_size", 32 << 10),
]


def server_options() -> Options:
    """Options of the server that answers peers."""
    return [
        *_COMMON,
        ("grpc.so_reuseport", 0),  # or a second daemon would share the port without notice
        ("grpc.max_concurrent_streams", 64),
        # Strangers may try, but not forever, and not in numbers that use up the daemon's file descriptors.
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_TIMEOUT_S * 1000)),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.max_connection_idle_ms", int(IDLE_S * 1000)),
        ("grpc.max_connection_age_ms", int(AGE_S * 1000)),
        ("grpc.http2.min_ping_interval_without_data_ms", int(KEEPALIVE_S * 500)),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def channel_options(name: str | None, reconnect_max_s: float) -> Options:
    """Options of a channel to one site; `name` is what its certificate carries (None: plaintext)."""
    reconnect_ms = max(1, int(reconnect_max_s * 1000))
    options = [
        *_COMMON,
        ("grpc.keepalive_permit_without_calls", 1),
        # A channel of its own: control messages must not wait behind a model on a shared connection.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", min(1000, reconnect_ms)),
        ("grpc.max_reconnect_backoff_ms", reconnect_ms),
        # The name is a misnomer: it is how long one attempt to connect may take (default 20 s).
        ("grpc.min_reconnect_backoff_ms", int(max(CONNECT_TIMEOUT_S, reconnect_max_s) * 1000)),
        ("grpc.dns_min_time_between_resolutions_ms", max(1000, reconnect_ms)),
        # Listed addresses are dialled directly, whatever http_proxy says.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
    ]
    if name is not None:
        options.append(("grpc.ssl_target_name_override", name))
    return options


def channel_credentials(identity: Identity, certificates: Iterable[bytes]) -> grpc.ChannelCredentials:
    """TLS that shows our certificate and accepts only these certificates."""
    return grpc.ssl_channel_credentials(b"\n".join(certificates), identity.key_pem, identity.certificate_pem)


def server_credentials(
    own: Callable[[], Identity], listed: Callable[[], Iterable[bytes]]
) -> grpc.ServerCredentials:
    """TLS that shows the identity `own()` and asks each caller for a certificate. It admits the keys in
    `listed()` to the handshake. Both are read at that time.

    Our own certificate is among the roots, because gRPC wants at least one; it belongs to no listed site.
    """

    shown: tuple[bytes, bytes, bytes] | None = None
    lock = threading.Lock()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """The configuration for the next handshake, or None if it has not changed. Several threads call this
        at every handshake. An unchanged one must not be given again: gRPC frees the configuration that it
        replaces while other handshakes still use it (its issue 36693). A few hundred strangers at once would
        then crash the daemon."""
        nonlocal shown
        identity = own()
        now = (identity.key_pem, identity.certificate_pem, b"\n".join([identity.certificate_pem, *listed()]))
        with lock:
            if now == shown:
                return None
            shown = now
        key, certificate, roots = now
        return grpc.ssl_server_certificate_configuration([(key, certificate)], roots)

    return grpc.dynamic_ssl_server_credentials(changed(), changed, True)
