"""The client's side of TLS: its files, its context, and which broker addresses are taken without TLS.

The broker's certificate and name are always checked; there is no option to leave that out. TLS 1.2 is the oldest
version. With TLS 1.3 the broker judges the client's certificate only after the client's handshake is done (RFC 8446,
section 4.4.2.4), so a refusal comes as an alert at the first read: ``TlsContext.fault`` keeps it for the message.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptsplit.errors import ConfigError
from adaptsplit.files import check_private

if TYPE_CHECKING:
    from adaptsplit.device_bridge.transport import BrokerAddress

_WAITS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
_CUTS = (ssl.SSLEOFError, ssl.SSLZeroReturnError)  # the network, not a judgement


class TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails (paho would leak it) and tells its context why TLS was refused."""

    def do_handshake(self, block: bool = False) -> None:
        """See ``ssl.SSLSocket``."""
        try:
            super().do_handshake(block)
        except _WAITS:
            raise
        except OSError as error:
            self._tell(error)
            self.close()
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """See ``ssl.SSLSocket``."""
        try:
            return super().recv(buflen, flags)
        except _WAITS:
            raise
        except ssl.SSLError as error:
            self._tell(error)
            raise

    def _tell(self, error: OSError) -> None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, _CUTS) and isinstance(self.context, TlsContext):
            self.context.fault = _words(error)


class TlsContext(ssl.SSLContext):
    """A client's context; ``fault`` is what TLS was last refused for ('' when it was not)."""

    sslsocket_class = TlsSocket
    fault: str = ""


def _words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is refused: {error.verify_message}"
    return f"the broker refuses this client: {(error.reason or str(error)).replace('_', ' ').lower()}"


def client_context(ca: Path | None, cert: Path | None, key: Path | None) -> TlsContext:
    """Return a context that trusts ``ca`` (None: the system's authorities) and shows ``cert`` with ``key``.

    Raises:
        ConfigError: a file is missing or is no PEM file, the key is not the certificate's, or others may read it.
    """
    if (cert is None) != (key is None):
        raise ConfigError("a client certificate needs both --cert and --key")
    context = TlsContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is None:
        context.load_default_certs()
    else:
        _load(ca, lambda: context.load_verify_locations(ca))
    if cert is not None and key is not None:
        check_private(key)
        _load(cert, lambda: context.load_cert_chain(cert, key, password=lambda: b""))  # else it asks at a terminal
    return context


def _load(path: Path, load: Any) -> None:
    try:
        load()
    except ssl.SSLError as error:
        why = error.reason or str(error)
        raise ConfigError(
            f"{path}: not usable for TLS ({why}); expected PEM files of `adaptsplit keys issue`"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a file of `adaptsplit keys`") from error


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    """Add --ca, --cert, --key and --insecure, for the broker's address."""
    parser.add_argument("--ca", type=Path, help="authority that the broker's certificate is checked by (ca.crt)")
    parser.add_argument("--cert", type=Path, help="this client's certificate (ID.crt)")
    parser.add_argument("--key", type=Path, help="this client's private key (ID.key)")
    parser.add_argument("--insecure", action="store_true", help="take mqtt:// beyond the loopback interface")


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine's loopback interface, by its name or address (no look-up)."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_address(address: BrokerAddress) -> BrokerAddress:
    """Return the address if it may be used: TLS, loopback, or ``insecure``; ConfigError otherwise."""
    if address.tls or address.insecure or is_loopback(address.host):
        return address
    raise ConfigError(
        f"broker mqtt://{address.host}:{address.port}: without TLS only the loopback interface is used; take "
        f"mqtts://{address.host}:8883 with --ca, --cert and --key, or say --insecure: then anybody may listen and speak"
    )
