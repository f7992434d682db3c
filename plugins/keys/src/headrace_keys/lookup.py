"""Whose key is this? Asked of the database, without a running gateway."""

from __future__ import annotations

from headrace.config import Secret
from headrace.errors import Unauthenticated

from .record import Record
from .ring import KeyRing, WrongKey
from .store import Place, Store


def whose(database: Place, key: Secret, *, development: bool = False) -> Record:
    """The record of a whole key, if it is in force. Blocks on the disk or the network.

    Args:
        development: whether development keys count, as in the configuration.

    Raises:
        Unauthenticated: why it is not valid, in words for whoever holds it.
        PluginError: the database cannot be used.
    """
    with Store.open(database) as store:
        records = store.records()
    ring = KeyRing()
    ring.replace(records, development=development)
    principal = ring.authenticate([(b"x-api-key", key.reveal().strip().encode("utf-8", "replace"))])
    if principal is None:
        raise Unauthenticated("This is no key of Headrace: they begin with hr-.")
    for record in records:
        if record.id == principal.id:
            return record
    raise WrongKey("The API key is not valid.")
