"""The gRPC server of the checks: grpcio with methods of every kind, messages as plain bytes.

What it leaves to others: TLS and policy, which are the sidecar's.
"""

import argparse
import signal
import threading
import time
from concurrent import futures

import grpc

CANCELLED = {}
LOCK = threading.Lock()


def told(context, name):
    """Answers with who serves and with the caller's own x- metadata, then fails if the caller wants that."""
    asked = context.invocation_metadata()
    context.send_initial_metadata([("x-service", name)] + [(k, v) for k, v in asked if k.startswith("x-back")])
    context.set_trailing_metadata([("x-trailer", "end"), ("x-trailer-bin", bytes(range(256)))])


def fail(context):
    for key, value in context.invocation_metadata():
        if key == "x-fail":
            context.abort(grpc.StatusCode[value], "told to: \u00e4\u00f6\u00fc 100%")


class Echo:
    def __init__(self, name):
        self.name = name

    def unary(self, message, context):
        fail(context)
        told(context, self.name)
        return message

    def repeat(self, message, context):
        fail(context)
        told(context, self.name)
        count, size = (int(number) for number in message.split())
        for number in range(count):
            yield bytes([number % 251]) * size

    def collect(self, messages, context):
        told(context, self.name)
        count = size = 0
        for message in messages:
            count, size = count + 1, size + len(message)
        return b"%d %d" % (count, size)

    def chat(self, messages, context):
        told(context, self.name)
        for message in messages:
            if message == b"fail":
                context.abort(grpc.StatusCode.DATA_LOSS, "in the middle")
            yield message

    def squeeze(self, message, context):
        context.set_compression(grpc.Compression.Gzip)
        told(context, self.name)
        return message

    def wait(self, message, context):
        """Waits until the caller has gone, and keeps in mind that it has."""
        key = bytes(message)
        gone = threading.Event()
        context.add_callback(gone.set)
        told(context, self.name)
        yield b"waiting"
        if gone.wait(10):
            with LOCK:
                CANCELLED[key] = True

    def gone(self, message, context):
        """Whether the caller of that wait has gone; the callers ask both servers."""
        time.sleep(0.1)
        with LOCK:
            return b"yes" if bytes(message) in CANCELLED else b"no"


def handlers(echo):
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(echo.unary),
        "Repeat": grpc.unary_stream_rpc_method_handler(echo.repeat),
        "Collect": grpc.stream_unary_rpc_method_handler(echo.collect),
        "Chat": grpc.stream_stream_rpc_method_handler(echo.chat),
        "Squeeze": grpc.unary_unary_rpc_method_handler(echo.squeeze),
        "Wait": grpc.unary_stream_rpc_method_handler(echo.wait),
        "Gone": grpc.unary_unary_rpc_method_handler(echo.gone),
    }
    return grpc.method_handlers_generic_handler("carrick.demo.Echo", methods)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=8082)
    options = parser.parse_args()
    largest = [("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 16 << 20)]
    server = grpc.server(futures.ThreadPoolExecutor(64), options=largest)
    server.add_generic_rpc_handlers([handlers(Echo(options.name))])
    server.add_insecure_port(f"0.0.0.0:{options.port}")
    server.start()
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    stop.wait()
    server.stop(1).wait()


if __name__ == "__main__":
    main()
