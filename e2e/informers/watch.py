"""Python's client that tells on its output what it sees, one JSON line for each event: `watch` (its Watch, in a loop as its documents show)
or `informer` (its SharedInformer). It judges nothing; run.py does."""

import json
import sys
import time

from kubernetes import client, config, watch

how, namespace = sys.argv[1:]
config.load_kube_config()
core = client.CoreV1Api()


def tell(**line):
    print(json.dumps(line), flush=True)


def seen(event, o):
    tell(event=event, name=o.metadata.name, n=(o.data or {}).get("n"), rv=o.metadata.resource_version)


def watching():
    at = None
    while True:
        if at is None:
            tell(event="list")
            listed = core.list_namespaced_config_map(namespace)
            for item in listed.items:
                seen("put", item)
            at = listed.metadata.resource_version
        stream = watch.Watch()
        try:
            for event in stream.stream(core.list_namespaced_config_map, namespace, resource_version=at, timeout_seconds=240):
                seen("gone" if event["type"] == "DELETED" else "put", event["object"])
                at = event["object"].metadata.resource_version
        except client.ApiException as error:
            tell(event="error", error=f"{error.status} {error.reason}")
            at = None if error.status == 410 else at
            time.sleep(1)
        except Exception as error:  # a connection that broke: go on where we were
            tell(event="error", error=repr(error))
            time.sleep(1)


def informing():
    from kubernetes.informer import ADDED, DELETED, ERROR, MODIFIED, SharedInformer

    class Told(SharedInformer):
        def _initial_list(self):
            tell(event="list")
            super()._initial_list()

    informer = Told(list_func=core.list_namespaced_config_map, namespace=namespace)
    for kind in (ADDED, MODIFIED):
        informer.add_event_handler(kind, lambda o: seen("put", o))
    informer.add_event_handler(DELETED, lambda o: seen("gone", o))
    informer.add_event_handler(ERROR, lambda e: tell(event="error", error=repr(e)))
    informer.start()
    while True:
        time.sleep(3600)


watching() if how == "watch" else informing()
