//! The columns of the kinds' tables.
//!
//! Invariant: names, order and priorities as in Kubernetes' printers and in Istio's CRDs.

/// One column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer` or `date`.
    pub type_: &'static str,
    /// `name` for the name column, otherwise empty.
    pub format: &'static str,
    /// 0 is always shown, others with `-o wide`.
    pub priority: i32,
    pub description: &'static str,
}

const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "string", format: "", priority: 0, description }
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { priority: 1, ..column(name, description) }
}

const NAME: Column = Column { format: "name", ..column("Name", "Name of the object, unique within its namespace.") };
const AGE: Column = column("Age", "Time since the object was created.");
const CREATED_AT: Column = column("Created At", "Time at which the object was created.");

pub(super) const NAME_AGE: &[Column] = &[NAME, AGE];
pub(super) const NAME_CREATED: &[Column] = &[NAME, CREATED_AT];

pub(super) const POD: &[Column] = &[
    NAME,
    column("Ready", "Containers that are ready, of all."),
    column("Status", "What the pod's containers are doing, in one word."),
    column("Restarts", "How often containers were restarted, and when last."),
    AGE,
    wide("IP", "Address of the pod."),
    wide("Node", "Node that runs the pod."),
    wide("Nominated Node", "Node that the pod is waiting for."),
    wide("Readiness Gates", "Conditions besides the containers that the pod's readiness needs."),
];

pub(super) const SERVICE: &[Column] = &[
    NAME,
    column("Type", "How the service is reached."),
    column("Cluster-IP", "Virtual address inside the cluster."),
    column("External-IP", "Addresses from outside."),
    column("Port(s)", "Ports, with node ports, and protocols."),
    AGE,
    wide("Selector", "Labels of the pods behind the service."),
];

pub(super) const NAMESPACE: &[Column] =
    &[NAME, column("Status", "Active, or Terminating while its content is deleted."), AGE];
pub(super) const CONFIG_MAP: &[Column] = &[NAME, column("Data", "Number of entries."), AGE];
pub(super) const SECRET: &[Column] =
    &[NAME, column("Type", "What the secret is for."), column("Data", "Number of entries."), AGE];
pub(super) const ENDPOINTS: &[Column] = &[NAME, column("Endpoints", "Addresses and ports."), AGE];
pub(super) const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    column("AddressType", "Family of the addresses."),
    column("Ports", "Ports of each endpoint."),
    column("Endpoints", "Addresses."),
    AGE,
];
pub(super) const SIGNING_REQUEST: &[Column] = &[
    NAME,
    AGE,
    column("SignerName", "Who is to sign."),
    column("Requestor", "Who asks."),
    column("RequestedDuration", "Life that is asked for."),
    column("Condition", "What became of it."),
];
pub(super) const LEASE: &[Column] = &[NAME, column("Holder", "Who holds the lease."), AGE];

pub(super) const NODE: &[Column] = &[
    NAME,
    column("Status", "Whether the node takes pods."),
    column("Roles", "Roles given by labels."),
    AGE,
    column("Version", "Version of the node's agent."),
    wide("Internal-IP", "Address inside the cluster."),
    wide("External-IP", "Address from outside."),
    wide("OS-Image", "Operating system."),
    wide("Kernel-Version", "Kernel."),
    wide("Container-Runtime", "What runs the containers."),
];

pub(super) const EVENT: &[Column] = &[
    column("Last Seen", "Time since it last happened."),
    column("Type", "Normal or Warning."),
    column("Reason", "What happened, in one word."),
    column("Object", "What it happened to."),
    wide("Subobject", "Part of the object."),
    wide("Source", "Who reported it."),
    column("Message", "What happened, in a sentence."),
    wide("First Seen", "Time since it first happened."),
    wide("Count", "How often it happened."),
    Column { format: "name", ..wide("Name", "Name of the event.") },
];

pub(super) const POLICY: &[Column] = &[
    NAME,
    count("Validations", "How many rules it has."),
    column("ParamKind", "Kind of the objects that hold its parameters."),
    AGE,
];
pub(super) const POLICY_BINDING: &[Column] =
    &[NAME, column("PolicyName", "The policy that is put in force."), column("ParamRef", "Its parameters."), AGE];

const CONTAINERS: Column = wide("Containers", "Names of the containers.");
const IMAGES: Column = wide("Images", "Images of the containers.");
const SELECTOR: Column = wide("Selector", "Labels by which pods are found.");
const READY: Column = column("Ready", "Pods that are ready, of those wanted.");

const fn count(name: &'static str, description: &'static str) -> Column {
    Column { type_: "integer", ..column(name, description) }
}

pub(super) const DEPLOYMENT: &[Column] = &[
    NAME,
    READY,
    count("Up-to-date", "Pods of the newest template."),
    count("Available", "Pods that have been ready for long enough."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const REPLICA_SET: &[Column] = &[
    NAME,
    count("Desired", "Pods that are wanted."),
    count("Current", "Pods that there are."),
    count("Ready", "Pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const STATEFUL_SET: &[Column] = &[NAME, READY, AGE, CONTAINERS, IMAGES];
pub(super) const DAEMON_SET: &[Column] = &[
    NAME,
    count("Desired", "Nodes that should run a pod."),
    count("Current", "Nodes that run one."),
    count("Ready", "Nodes whose pod is ready."),
    count("Up-to-date", "Nodes whose pod is of the newest template."),
    count("Available", "Nodes whose pod has been ready for long enough."),
    column("Node Selector", "Labels of the nodes."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const JOB: &[Column] = &[
    NAME,
    column("Status", "What has become of it."),
    column("Completions", "Pods that have done their work, of those wanted."),
    column("Duration", "How long it took."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const CRON_JOB: &[Column] = &[
    NAME,
    column("Schedule", "When it runs."),
    column("Timezone", "Whose clock that means."),
    column("Suspend", "Whether it is held back."),
    count("Active", "Jobs that run."),
    column("Last Schedule", "When it ran last."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const AUTOSCALER: &[Column] = &[
    NAME,
    column("Reference", "What is scaled."),
    column("Targets", "What is measured, and what it should be."),
    column("MinPods", "Fewest pods."),
    column("MaxPods", "Most pods."),
    count("Replicas", "Pods that there are."),
    AGE,
];
pub(super) const DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    column("Min Available", "Pods that must stay."),
    column("Max Unavailable", "Pods that may be away."),
    count("Allowed Disruptions", "Pods that may be taken away now."),
    AGE,
];
pub(super) const NETWORK_POLICY: &[Column] = &[NAME, column("Pod-Selector", "Labels of the pods it is about."), AGE];
pub(super) const WEBHOOKS: &[Column] = &[NAME, count("Webhooks", "How many there are."), AGE];

pub(super) const ROLE_BINDING: &[Column] = &[
    NAME,
    column("Role", "What is granted."),
    AGE,
    wide("Users", "Users it is granted to."),
    wide("Groups", "Groups it is granted to."),
    wide("ServiceAccounts", "Service accounts it is granted to."),
];

pub(super) const VIRTUAL_SERVICE: &[Column] = &[
    NAME,
    column("Gateways", "Gateways and sidecars that apply these routes."),
    column("Hosts", "Hosts that traffic is sent to."),
    AGE,
];
pub(super) const DESTINATION_RULE: &[Column] = &[NAME, column("Host", "Host that the rule is about."), AGE];
pub(super) const SERVICE_ENTRY: &[Column] = &[
    NAME,
    column("Hosts", "Hosts of the entry."),
    column("Location", "Whether it is part of the mesh."),
    column("Resolution", "How endpoints are found."),
    AGE,
];
pub(super) const WORKLOAD_ENTRY: &[Column] = &[NAME, AGE, column("Address", "Address of the workload.")];
pub(super) const PEER_AUTHENTICATION: &[Column] = &[NAME, column("Mode", "Mutual TLS mode of the whole policy."), AGE];
pub(super) const AUTHORIZATION_POLICY: &[Column] =
    &[NAME, column("Action", "What the policy does when it matches."), AGE];

pub(super) const GATEWAY_CLASS: &[Column] = &[
    NAME,
    column("Controller", "Who runs gateways of this class."),
    column("Accepted", "Whether the controller takes the class."),
    AGE,
    wide("Description", "What the class is for."),
];

pub(super) const K8S_GATEWAY: &[Column] = &[
    NAME,
    column("Class", "Class of the gateway."),
    column("Address", "Where the gateway is reached."),
    column("Programmed", "Whether the proxies have the configuration."),
    AGE,
];

pub(super) const ROUTE_HOSTS: &[Column] = &[NAME, column("Hostnames", "Hosts that the route is for."), AGE];

pub(super) const LISTENER_SET: &[Column] = &[
    NAME,
    column("Accepted", "Whether the gateway takes the listeners."),
    column("Programmed", "Whether the proxies have the configuration."),
    AGE,
];

pub(super) const CM_CERTIFICATE: &[Column] = &[
    NAME,
    column("Ready", "Whether the secret holds a certificate as asked for."),
    column("Secret", "Secret that holds it."),
    wide("Delivered", "Whether agents have put it where it is asked for."),
    wide("Served", "Whether those who use it show it to their clients."),
    wide("Issuer", "Who signs it."),
    wide("Status", "What the controller says."),
    AGE,
];

pub(super) const CM_CERTIFICATE_REQUEST: &[Column] = &[
    NAME,
    column("Approved", "Whether it may be signed."),
    column("Denied", "Whether signing was refused."),
    column("Ready", "Whether it is signed."),
    column("Issuer", "Who is asked."),
    column("Requester", "Who asks."),
    wide("Status", "What the issuer says."),
    AGE,
];

pub(super) const CM_ISSUER: &[Column] =
    &[NAME, column("Ready", "Whether it can sign."), wide("Status", "What the controller says."), AGE];

pub(super) const VOLUME_CLAIM: &[Column] = &[
    NAME,
    column("Status", "What the claim is waiting for."),
    column("Volume", "The volume it has."),
    column("Capacity", "Bytes of the volume."),
    column("Access Modes", "Who may use it at the same time."),
    column("StorageClass", "What the volume is made by."),
    column("VolumeAttributesClass", "How it behaves."),
    AGE,
    wide("VolumeMode", "Files or blocks."),
];
pub(super) const VOLUME: &[Column] = &[
    NAME,
    column("Capacity", "Bytes."),
    column("Access Modes", "Who may use it at the same time."),
    column("Reclaim Policy", "What becomes of it after its claim."),
    column("Status", "Whether a claim has it."),
    column("Claim", "The claim that has it."),
    column("StorageClass", "What it was made by."),
    column("VolumeAttributesClass", "How it behaves."),
    column("Reason", "Why it is in its status."),
    AGE,
    wide("VolumeMode", "Files or blocks."),
];
pub(super) const POD_TEMPLATE: &[Column] = &[
    NAME,
    column("Containers", "Names of the containers."),
    column("Images", "Images of the containers."),
    column("Pod Labels", "Labels of the pods."),
];
pub(super) const QUOTA: &[Column] = &[
    NAME,
    column("Request", "What is asked for, of what may be."),
    column("Limit", "Limits that were set, of those that may be."),
    AGE,
];
pub(super) const CONTROLLER_REVISION: &[Column] =
    &[NAME, column("Controller", "Whose state it is."), column("Revision", "Its number."), AGE];
pub(super) const INGRESS: &[Column] = &[
    NAME,
    column("Class", "Who serves it."),
    column("Hosts", "Names that it is for."),
    column("Address", "Where it is served."),
    column("Ports", "Ports that it is served at."),
    AGE,
];
pub(super) const INGRESS_CLASS: &[Column] = &[
    NAME,
    column("Controller", "Who serves ingresses of this class."),
    column("Parameters", "Object with more about it."),
    AGE,
];
pub(super) const RUNTIME_CLASS: &[Column] = &[NAME, column("Handler", "What runs the pods."), AGE];
pub(super) const PRIORITY_CLASS: &[Column] = &[
    NAME,
    count("Value", "The priority of pods of this class."),
    Column { type_: "boolean", ..column("Global-Default", "Whether pods without a class have this one.") },
    AGE,
    column("PreemptionPolicy", "Whether its pods drive others out."),
];
pub(super) const STORAGE_CLASS: &[Column] = &[
    NAME,
    column("Provisioner", "What makes the volumes."),
    column("ReclaimPolicy", "What becomes of volumes after their claims."),
    column("VolumeBindingMode", "When a claim gets its volume."),
    Column { type_: "boolean", ..column("AllowVolumeExpansion", "Whether claims may grow.") },
    AGE,
];
