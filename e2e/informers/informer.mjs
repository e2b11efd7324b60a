// An informer of @kubernetes/client-node that tells on its output what it sees: one JSON line for each event. It judges nothing; run.py does.
import * as k8s from '@kubernetes/client-node';

const namespace = process.argv[2];
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const list = () => {
  tell({ event: 'list' });
  return core.listNamespacedConfigMap({ namespace });
};
const informer = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/configmaps`, list);
const seen = (event) => (o) => tell({ event, name: o.metadata.name, n: o.data?.n, rv: o.metadata.resourceVersion });
informer.on('add', seen('put'));
informer.on('update', seen('put'));
informer.on('delete', seen('gone'));
// The library's own advice: after an error, start again a moment later.
informer.on('error', (error) => {
  tell({ event: 'error', error: String(error) });
  setTimeout(() => informer.start(), 1000);
});
informer.start();
