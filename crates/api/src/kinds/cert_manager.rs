//! The kinds of cert-manager's API (cert-manager.io/v1): who signs, what is wanted, what was asked.
//!
//! Invariant: names, short names and columns are those of the published CRDs.

use std::sync::OnceLock;

use super::columns::{self, Column};
use super::istio::TextShape;
use super::{Kind, Shape, print};
use crate::cert_manager::GROUP;
use crate::timestamp::Timestamp;
use serde_json::Value;

type Printer = (&'static [Column], fn(&Value, Timestamp) -> Vec<Value>);

pub(super) fn kinds() -> Vec<Kind> {
    let issuer: Printer = (columns::CM_ISSUER, print::cm_issuer);
    vec![
        kind(
            "Certificate",
            ["certificates", "certificate"],
            &["cert", "certs"],
            ("CmCertificate", "CmCertificateStatus"),
            (columns::CM_CERTIFICATE, print::cm_certificate),
        ),
        kind(
            "CertificateRequest",
            ["certificaterequests", "certificaterequest"],
            &["cr", "crs"],
            ("CmCertificateRequest", "CmCertificateRequestStatus"),
            (columns::CM_CERTIFICATE_REQUEST, print::cm_certificate_request),
        ),
        kind("Issuer", ["issuers", "issuer"], &["iss"], ("CmIssuer", "CmIssuerStatus"), issuer),
        Kind {
            namespaced: false,
            ..kind(
                "ClusterIssuer",
                ["clusterissuers", "clusterissuer"],
                &["ciss"],
                ("CmIssuer", "CmIssuerStatus"),
                issuer,
            )
        },
    ]
}

fn kind(
    name: &'static str,
    [plural, singular]: [&'static str; 2],
    short_names: &'static [&'static str],
    (spec, status): (&'static str, &'static str),
    (columns, cells): Printer,
) -> Kind {
    Kind {
        group: GROUP,
        versions: &["v1"],
        kind: name,
        plural,
        singular,
        short_names,
        categories: &["cert-manager"],
        namespaced: true,
        stored: true,
        custom: true,
        convert: None,
        subresources: &["status"],
        columns,
        shape: Shape::Text(TextShape { root: "io.cert-manager", spec, status: Some(status) }),
        cells,
        schemas: OnceLock::new(),
    }
}
