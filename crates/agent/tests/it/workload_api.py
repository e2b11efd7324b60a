"""An application that wants its identity itself, by the `spiffe` package of PyPI: the socket is the argument.

Prints a line of JSON for each identity that it is told: SPIFFE ID, serial number, and whether the key is the certificate's; the bundle's
root must have signed it. When its input ends it asks for a token, prints what came of it and ends.
"""

import json
import sys

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import WorkloadApiClient


def public(key):
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def told(context):
    svid = context.default_svid
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    [root] = bundle.x509_authorities
    svid.leaf.verify_directly_issued_by(root)
    key = public(svid.private_key.public_key()) == public(svid.leaf.public_key())
    print(json.dumps({"id": str(svid.spiffe_id), "serial": f"{svid.leaf.serial_number:x}", "key": key}), flush=True)


def failed(error):
    print(json.dumps({"error": repr(error)}), flush=True)


with WorkloadApiClient(socket_path="unix://" + sys.argv[1]) as client:
    stream = client.stream_x509_contexts(told, failed)
    sys.stdin.read()
    stream.cancel()
    try:
        client.fetch_jwt_svid(audience={"shop"}, timeout=10)
        print(json.dumps({"jwt": "a token"}), flush=True)
    except Exception as error:
        print(json.dumps({"jwt": type(error).__name__}), flush=True)
