"""Judges chains as a server judges a client's: a JSON list of them and the time, one line of `good` or a reason for each."""

import datetime
import json
import sys

from cryptography import x509
from cryptography.x509 import verification


def judge(chain, time):
    certificate = lambda pem: x509.load_pem_x509_certificate(pem.encode())
    store = verification.Store([certificate(chain["root"])])
    verifier = verification.PolicyBuilder().store(store).time(time).build_client_verifier()
    try:
        verifier.verify(certificate(chain["leaf"]), [certificate(pem) for pem in chain["between"]])
    except verification.VerificationError as error:
        return " ".join(str(error).split())
    return "good"


time = datetime.datetime.fromtimestamp(int(sys.argv[2]), datetime.timezone.utc)
with open(sys.argv[1]) as cases:
    for case in json.load(cases):
        print(judge(case, time))
