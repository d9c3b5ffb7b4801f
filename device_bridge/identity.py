"""Whether a client's certificate is for what it is started as: asked before the start, since a broker only drops.

A broker with our rules (``mosquitto/secure.conf``) takes the connection of a device that was started under another id,
and then drops everything that it says; with MQTT 3.1.1 it does not even tell. Certificates of another authority, which
name no role of ours, are not judged.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509

EDGE, ANY = "edge", ""


def check_identity(address: BrokerAddress, fleet: str, name: str | None = None, role: str = ANY) -> BrokerAddress:
    """Return the address; ConfigError when its certificate is of another fleet, id (``name``) or ``role``.

    What cannot be read as one of our certificates is left to TLS, which says what is wrong with it.
    """
    from adaptsplit.device_bridge.certificates import ROLES, holder_of

    certificate = _certificate(address)
    if certificate is None:
        return address
    try:
        holder = holder_of(certificate)
    except ConfigError:
        return address
    if holder.role not in ROLES:
        return address
    whose = f"{address.cert}: of {holder.role} {holder.name!r} in fleet {holder.fleet!r}"
    if holder.fleet != fleet:
        raise ConfigError(
            f"{whose}; found --fleet {fleet}, and the broker would drop all of it: say --fleet {holder.fleet}"
        )
    if name is not None and holder.name != name:
        raise ConfigError(
            f"{whose}; found --id {name}, and the broker would drop all of it: say --id {holder.name}, "
            f"or make one with `adaptsplit keys issue {name} --dir DIR`"
        )
    if role != ANY and holder.role != role:
        raise ConfigError(
            f"{whose}; this needs one with the role {role}: `adaptsplit keys issue ID --dir DIR --role {role}`"
        )
    return address


def date_note(address: BrokerAddress, now: datetime) -> str:
    """Return what is wrong with the certificate's dates by this machine's clock, '' for nothing.

    A note and no error: the clock may be wrong, and TLS says only "bad certificate" of one that does not hold yet.
    """
    certificate = _certificate(address)
    if certificate is None or certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        return ""
    early = now < certificate.not_valid_before_utc
    limit = certificate.not_valid_before_utc if early else certificate.not_valid_after_utc
    return (
        f"{address.cert}: {'holds from' if early else 'has expired on'} {limit:%Y-%m-%d %H:%M}, and it is "
        f"{now:%Y-%m-%d %H:%M} (UTC) by this machine's clock: set the clock, or revoke it and issue another"
    )


def _certificate(address: BrokerAddress) -> x509.Certificate | None:
    """Return the client's certificate; None where there is none, or none that can be read."""
    if address.cert is None or not address.cert.is_file():
        return None
    from adaptsplit.device_bridge.certificates import load_certificate

    try:
        return load_certificate(address.cert)
    except ConfigError:
        return None
