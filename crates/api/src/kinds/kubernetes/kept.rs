//! Kinds that are kept for those who ask for them, and that nothing here acts on: storage, quotas, ingresses, classes.
//!
//! Invariant: names, short names, subresources and columns are Kubernetes'.

use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::api::node::v1 as node;
use k8s_openapi::api::scheduling::v1 as scheduling;
use k8s_openapi::api::storage::v1 as storage;

use super::{Kind, Printer, kind};
use crate::kinds::{columns, print};
use crate::schema::definitions_of;

const STATUS: &[&str] = &["status"];

pub(super) fn kinds() -> Vec<Kind> {
    let created: Printer = (columns::NAME_CREATED, print::name_created);
    let short = |short_names, kind| Kind { short_names, ..kind };
    let cluster = |kind| Kind { namespaced: false, ..kind };
    let with_status = |kind| Kind { subresources: STATUS, ..kind };
    vec![
        short(&["limits"], kind("", "LimitRange", "limitranges", definitions_of::<core::LimitRange>, created)),
        with_status(short(
            &["pvc"],
            kind(
                "",
                "PersistentVolumeClaim",
                "persistentvolumeclaims",
                definitions_of::<core::PersistentVolumeClaim>,
                (columns::VOLUME_CLAIM, print::volume_claim),
            ),
        )),
        with_status(cluster(short(
            &["pv"],
            kind(
                "",
                "PersistentVolume",
                "persistentvolumes",
                definitions_of::<core::PersistentVolume>,
                (columns::VOLUME, print::volume),
            ),
        ))),
        kind(
            "",
            "PodTemplate",
            "podtemplates",
            definitions_of::<core::PodTemplate>,
            (columns::POD_TEMPLATE, print::pod_template),
        ),
        with_status(short(
            &["quota"],
            kind(
                "",
                "ResourceQuota",
                "resourcequotas",
                definitions_of::<core::ResourceQuota>,
                (columns::QUOTA, print::quota),
            ),
        )),
        kind(
            "apps",
            "ControllerRevision",
            "controllerrevisions",
            definitions_of::<apps::ControllerRevision>,
            (columns::CONTROLLER_REVISION, print::controller_revision),
        ),
        cluster(Kind {
            singular: "ingressclass",
            ..kind(
                "networking.k8s.io",
                "IngressClass",
                "ingressclasses",
                definitions_of::<networking::IngressClass>,
                (columns::INGRESS_CLASS, print::ingress_class),
            )
        }),
        with_status(Kind {
            short_names: &["ing"],
            singular: "ingress",
            ..kind(
                "networking.k8s.io",
                "Ingress",
                "ingresses",
                definitions_of::<networking::Ingress>,
                (columns::INGRESS, print::ingress),
            )
        }),
        cluster(Kind {
            singular: "runtimeclass",
            ..kind(
                "node.k8s.io",
                "RuntimeClass",
                "runtimeclasses",
                definitions_of::<node::RuntimeClass>,
                (columns::RUNTIME_CLASS, print::runtime_class),
            )
        }),
        cluster(Kind {
            short_names: &["pc"],
            singular: "priorityclass",
            ..kind(
                "scheduling.k8s.io",
                "PriorityClass",
                "priorityclasses",
                definitions_of::<scheduling::PriorityClass>,
                (columns::PRIORITY_CLASS, print::priority_class),
            )
        }),
        cluster(Kind {
            short_names: &["sc"],
            singular: "storageclass",
            ..kind(
                "storage.k8s.io",
                "StorageClass",
                "storageclasses",
                definitions_of::<storage::StorageClass>,
                (columns::STORAGE_CLASS, print::storage_class),
            )
        }),
    ]
}
