"""gRPC through whatever lies between: grpcio as the client, one line for each check, exit code 1 when one fails.

Each check is a function; what it asserts is what the library says, so nothing here knows of proxies.
"""

import argparse
import collections
import os
import queue
import sys
import time
import traceback

import grpc

SERVICE = "/carrick.demo.Echo/"
CHECKS = []
PATIENCE = 10


def check(function):
    CHECKS.append(function)
    return function


class Calls:
    """The service's methods on one channel."""

    def __init__(self, channel):
        self.unary = channel.unary_unary(SERVICE + "Unary")
        self.repeat = channel.unary_stream(SERVICE + "Repeat")
        self.collect = channel.stream_unary(SERVICE + "Collect")
        self.chat = channel.stream_stream(SERVICE + "Chat")
        self.squeeze = channel.unary_unary(SERVICE + "Squeeze")
        self.wait = channel.unary_stream(SERVICE + "Wait")
        self.gone = channel.unary_unary(SERVICE + "Gone")
        self.unknown = channel.unary_unary(SERVICE + "Unknown")


def equal(got, wanted):
    assert got == wanted, f"want {str(wanted)[:80]}, got {str(got)[:80]}"


def refused(call, code):
    """The error that a call must end with."""
    try:
        list(call())
    except grpc.RpcError as error:
        equal(error.code(), code)
        return error
    raise AssertionError(f"no error, want {code}")


@check
def unary(calls):
    equal(calls.unary(b"hello", timeout=PATIENCE), b"hello")
    equal(calls.unary(b"", timeout=PATIENCE), b"")


@check
def server_streams(calls):
    equal([len(m) for m in calls.repeat(b"100 1000", timeout=PATIENCE)], [1000] * 100)


@check
def client_streams(calls):
    equal(calls.collect(iter([b"x" * 1000] * 100), timeout=PATIENCE), b"100 100000")
    equal(calls.collect(iter([]), timeout=PATIENCE), b"0 0")


@check
def both_stream_in_turns(calls):
    sent = queue.Queue()
    answers = calls.chat(iter(sent.get, None), timeout=PATIENCE)
    for number in range(50):
        sent.put(b"%d" % number)
        equal(next(answers), b"%d" % number)
    sent.put(None)
    equal(list(answers), [])
    equal(answers.code(), grpc.StatusCode.OK)


@check
def both_stream_at_once(calls):
    messages = [bytes([n % 251]) * 3000 for n in range(500)]
    equal(list(calls.chat(iter(messages), timeout=PATIENCE)), messages)


@check
def large_messages(calls):
    message = os.urandom(4 << 20)
    assert calls.unary(message, timeout=PATIENCE) == message, "4 MiB came back as others"
    equal([len(m) for m in calls.repeat(b"3 2000000", timeout=PATIENCE)], [2000000] * 3)


@check
def metadata(calls):
    sent = [("x-back-text", "a b, c"), ("x-back-bin", bytes(range(256))), ("x-back-twice", "1"), ("x-back-twice", "2")]
    answer, call = calls.unary.with_call(b"m", metadata=sent, timeout=PATIENCE)
    got = collections.defaultdict(list)
    for key, value in call.initial_metadata():
        got[key].append(value)
    equal(got["x-back-text"], ["a b, c"])
    equal(got["x-back-bin"], [bytes(range(256))])
    equal(",".join(got["x-back-twice"]).replace(" ", ""), "1,2")
    trailers = dict(call.trailing_metadata())
    equal(trailers["x-trailer"], "end")
    equal(trailers["x-trailer-bin"], bytes(range(256)))
    assert got["x-service"], "no name of the server"


@check
def error_in_place_of_an_answer(calls):
    for code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED):
        error = refused(lambda: calls.unary(b"", metadata=[("x-fail", code.name)], timeout=PATIENCE), code)
        equal(error.details(), "told to: \u00e4\u00f6\u00fc 100%")
    refused(lambda: calls.repeat(b"1 1", metadata=[("x-fail", "ABORTED")], timeout=PATIENCE), grpc.StatusCode.ABORTED)


@check
def error_after_messages(calls):
    answers = calls.chat(iter([b"a", b"b", b"fail"]), timeout=PATIENCE)
    equal([next(answers), next(answers)], [b"a", b"b"])
    error = refused(lambda: answers, grpc.StatusCode.DATA_LOSS)
    equal(error.details(), "in the middle")


@check
def unknown_method(calls):
    refused(lambda: calls.unknown(b"", timeout=PATIENCE), grpc.StatusCode.UNIMPLEMENTED)


def server_noticed(calls, key):
    for _ in range(40):
        if calls.gone(key, timeout=PATIENCE) == b"yes":
            return
    raise AssertionError("the server was not told that its caller has gone")


@check
def deadline(calls):
    key = os.urandom(8)
    start = time.monotonic()
    try:
        list(calls.wait(key, timeout=0.5))
        raise AssertionError("it did not end")
    except grpc.RpcError as error:
        # A proxy that is first to see the deadline resets the stream, since an answer has begun; the library calls that INTERNAL.
        assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL), error
    assert time.monotonic() - start < 3, "late"
    server_noticed(calls, key)


@check
def cancelled_by_the_client(calls):
    key = os.urandom(8)
    call = calls.wait(key, timeout=PATIENCE)
    equal(next(call), b"waiting")
    call.cancel()
    server_noticed(calls, key)


@check
def compressed(calls):
    message = b"squeeze me " * 10000
    equal(calls.squeeze(message, compression=grpc.Compression.Gzip, timeout=PATIENCE), message)
    equal(calls.unary(message, compression=grpc.Compression.Deflate, timeout=PATIENCE), message)


@check
def many_at_once(calls):
    pending = [calls.unary.future(b"%d" % n, timeout=PATIENCE) for n in range(200)]
    equal([future.result() for future in pending], [b"%d" % n for n in range(200)])


@check
def a_stream_beside_others(calls):
    sent = queue.Queue()
    answers = calls.chat(iter(sent.get, None), timeout=PATIENCE)
    sent.put(b"open")
    equal(next(answers), b"open")
    for number in range(20):
        equal(calls.unary(b"%d" % number, timeout=PATIENCE), b"%d" % number)
    sent.put(b"still")
    equal(next(answers), b"still")
    sent.put(None)
    equal(list(answers), [])


def shared_out(calls, servers):
    """Each of the calls of one connection goes to a server of its own choice."""
    counts = collections.Counter()
    for _ in range(60):
        _, call = calls.unary.with_call(b"", timeout=PATIENCE)
        counts[dict(call.initial_metadata())["x-service"]] += 1
    assert len(counts) == servers and min(counts.values()) >= 60 // servers // 4, f"shares: {dict(counts)}"


def served(calls, servers):
    """Waits until every server has answered; configuration and endpoints may still be on their way."""
    seen, end = set(), time.monotonic() + 30
    while len(seen) < servers:
        try:
            _, call = calls.unary.with_call(b"", timeout=PATIENCE)
            seen.add(dict(call.initial_metadata()).get("x-service"))
        except grpc.RpcError as error:
            last = error
            time.sleep(0.1)
            assert time.monotonic() < end, f"not served: {last}"
        assert time.monotonic() < end, f"only by {seen}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--ca", help="speak TLS, and believe this authority")
    parser.add_argument("--xds-credentials", action="store_true", help="speak TLS as the control plane says")
    parser.add_argument("--name", help="the server's name in TLS and as authority")
    options = parser.parse_args()
    arguments = [("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 16 << 20)]
    if options.name:
        arguments += [("grpc.ssl_target_name_override", options.name), ("grpc.default_authority", options.name)]
    if options.ca:
        with open(options.ca, "rb") as file:
            credentials = grpc.ssl_channel_credentials(file.read())
        channel = grpc.secure_channel(options.target, credentials, options=arguments)
    elif options.xds_credentials:
        # There is nothing to fall back to, so what gets through is what the control plane said.
        nobody = grpc.ssl_channel_credentials(b"")
        channel = grpc.secure_channel(options.target, grpc.xds_channel_credentials(nobody), options=arguments)
    else:
        channel = grpc.insecure_channel(options.target, options=arguments)
    calls = Calls(channel)
    served(calls, options.servers)
    CHECKS.append(lambda calls: shared_out(calls, options.servers))
    CHECKS[-1].__name__ = "shared_out"
    failed = 0
    for function in CHECKS:
        start = time.monotonic()
        try:
            function(calls)
            result = "ok"
        except Exception as error:  # one failing check must not hide the others
            failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1].lineno
            result = f"FAIL {type(error).__name__} line {where}: {str(error)[:400]}"
        print(f"{function.__name__} {result} ({time.monotonic() - start:.1f} s)", flush=True)
    channel.close()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
