//! Reading and writing the objects of certificates.
//!
//! Invariant: what is decided on was read for that decision, from the API; what is written carries the version that was read,
//! so that nobody's change is lost. An object that is not there is `None`, not an error.

use std::sync::Arc;

use carrick_api::cert_manager::{Certificate, CertificateRequest, GROUP, Issuer, IssuerRef};
use carrick_pki::journal::{Journal, MaybeJournal};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::queue::Key;

/// The group of gateways and routes.
pub(crate) const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// A kind that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    ClusterIssuer,
    Issuer,
    Certificate,
    Request,
    Secret,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::ClusterIssuer, Self::Issuer, Self::Certificate, Self::Request, Self::Secret];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClusterIssuer => "ClusterIssuer",
            Self::Issuer => "Issuer",
            Self::Certificate => "Certificate",
            Self::Request => "CertificateRequest",
            Self::Secret => "Secret",
        }
    }

    /// Group and version.
    pub(crate) fn api_version(self) -> &'static str {
        if self == Self::Secret { "v1" } else { "cert-manager.io/v1" }
    }

    fn resource(self) -> ApiResource {
        let (group, plural) = match self {
            Self::ClusterIssuer => (GROUP, "clusterissuers"),
            Self::Issuer => (GROUP, "issuers"),
            Self::Certificate => (GROUP, "certificates"),
            Self::Request => (GROUP, "certificaterequests"),
            Self::Secret => ("", "secrets"),
        };
        ApiResource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            api_version: self.api_version().to_owned(),
            kind: self.name().to_owned(),
            plural: plural.to_owned(),
        }
    }
}

/// Why an object could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    /// The API refused, or did not answer.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The object is not what its kind says.
    #[error("unreadable: {0}")]
    Read(String),
}

/// The API.
#[derive(Clone)]
pub(crate) struct Objects {
    client: Client,
    root_namespace: String,
    journal: MaybeJournal,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects").field("root_namespace", &self.root_namespace).finish_non_exhaustive()
    }
}

impl Objects {
    pub(crate) fn new(client: Client, root_namespace: &str) -> Self {
        Self { client, root_namespace: root_namespace.to_owned(), journal: None }
    }

    pub(crate) fn record_in(&mut self, journal: Arc<dyn Journal>) {
        self.journal = Some(journal);
    }

    /// Where certificates are written down.
    pub(crate) fn journal(&self) -> Option<&Arc<dyn Journal>> {
        self.journal.as_ref()
    }

    /// Objects of a kind, in a namespace or everywhere.
    pub(crate) fn api(&self, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind.resource()),
            None => Api::all_with(self.client.clone(), &kind.resource()),
        }
    }

    fn of(&self, kind: Kind, key: &Key) -> Api<DynamicObject> {
        self.api(kind, Some(key.0.as_str()).filter(|ns| !ns.is_empty()))
    }

    async fn get<T: DeserializeOwned>(&self, kind: Kind, key: &Key) -> Result<Option<T>, ObjectError> {
        let Some(object) = self.of(kind, key).get_opt(&key.1).await? else { return Ok(None) };
        let value = serde_json::to_value(object).map_err(|e| ObjectError::Read(e.to_string()))?;
        carrick_api::from_value(&value).map(Some).map_err(|e| ObjectError::Read(e.message))
    }

    pub(crate) async fn certificate(&self, key: &Key) -> Result<Option<Certificate>, ObjectError> {
        self.get(Kind::Certificate, key).await
    }

    pub(crate) async fn request(&self, key: &Key) -> Result<Option<CertificateRequest>, ObjectError> {
        self.get(Kind::Request, key).await
    }

    pub(crate) async fn issuer(&self, kind: Kind, key: &Key) -> Result<Option<Issuer>, ObjectError> {
        self.get(kind, key).await
    }

    /// The issuer that somebody in a namespace refers to, and the namespace of its secrets.
    pub(crate) async fn issuer_of(
        &self,
        reference: &IssuerRef,
        namespace: &str,
    ) -> Result<Option<(Issuer, String)>, ObjectError> {
        let (kind, key, secrets) = match reference.kind() {
            "ClusterIssuer" => {
                (Kind::ClusterIssuer, (String::new(), reference.name.clone()), self.root_namespace.clone())
            }
            _ => (Kind::Issuer, (namespace.to_owned(), reference.name.clone()), namespace.to_owned()),
        };
        Ok(self.issuer(kind, &key).await?.map(|issuer| (issuer, secrets)))
    }

    /// Where the secrets of an issuer are.
    pub(crate) fn secrets_of(&self, kind: Kind, key: &Key) -> String {
        if kind == Kind::ClusterIssuer { self.root_namespace.clone() } else { key.0.clone() }
    }

    pub(crate) async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ObjectError> {
        Ok(self.secrets(namespace).get_opt(name).await?)
    }

    pub(crate) fn secrets(&self, namespace: &str) -> Api<Secret> {
        self.typed(namespace)
    }

    /// Objects of one of Kubernetes' own kinds.
    pub(crate) fn typed<T>(&self, namespace: &str) -> Api<T>
    where
        T: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        T::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The control plane's namespace.
    pub(crate) fn root_namespace(&self) -> &str {
        &self.root_namespace
    }

    /// The names of all objects of a kind.
    pub(crate) async fn names(&self, kind: Kind) -> Result<Vec<Key>, ObjectError> {
        let list = self.api(kind, None).list(&ListParams::default()).await?;
        Ok(list.items.into_iter().map(|o| (o.namespace().unwrap_or_default(), o.name_any())).collect())
    }

    /// The objects of a kind in a namespace.
    pub(crate) async fn requests_in(&self, namespace: &str) -> Result<Vec<CertificateRequest>, ObjectError> {
        let list = self.api(Kind::Request, Some(namespace)).list(&ListParams::default()).await?;
        let read = |object: DynamicObject| {
            let value = serde_json::to_value(object).ok()?;
            carrick_api::from_value(&value).ok()
        };
        Ok(list.items.into_iter().filter_map(read).collect())
    }

    /// Makes an object of a kind that is not looked at here; one of the same name that is there already is left as it is.
    pub(crate) async fn create_any(
        &self,
        (group, version, kind): (&str, &str, &str),
        namespace: &str,
        object: Value,
    ) -> Result<(), ObjectError> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        let object: DynamicObject = serde_json::from_value(object).map_err(|e| ObjectError::Read(e.to_string()))?;
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            Err(error) if is_code(&error, 409) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// An object of a kind that is not looked at here; an empty namespace is none.
    pub(crate) async fn get_any(
        &self,
        (group, version, kind): (&str, &str, &str),
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, ObjectError> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        Ok(api.get_opt(name).await?.map(|object| object.data))
    }

    /// Deletes an object of a kind that is not looked at here; one that is gone already is fine.
    pub(crate) async fn delete_any(
        &self,
        (group, version, kind): (&str, &str, &str),
        namespace: &str,
        name: &str,
    ) -> Result<(), ObjectError> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(error) if is_code(&error, 404) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Posts to a path of the API, such as an API service behind it.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, ObjectError> {
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(body.to_string().into_bytes()).map_err(|e| ObjectError::Read(e.to_string()))?;
        Ok(self.client.request(request).await?)
    }

    /// A token of a service account.
    pub(crate) async fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
        audiences: &[String],
    ) -> Result<String, ObjectError> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": audiences, "expirationSeconds": 600}});
        let answer = self.post(&path, &body).await?;
        let token = answer.pointer("/status/token").and_then(Value::as_str);
        token.map(str::to_owned).ok_or_else(|| ObjectError::Read("the API gave no token".to_owned()))
    }

    /// Notes something on an object.
    pub(crate) async fn annotate(&self, kind: Kind, key: &Key, note: &str, value: &str) -> Result<(), ObjectError> {
        let patch = json!({"metadata": {"annotations": {note: value}}});
        self.of(kind, key).patch(&key.1, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Makes an object; one of the same name that is there already is left as it is.
    pub(crate) async fn create(&self, kind: Kind, namespace: &str, object: Value) -> Result<(), ObjectError> {
        let object: DynamicObject = serde_json::from_value(object).map_err(|e| ObjectError::Read(e.to_string()))?;
        match self.api(kind, Some(namespace)).create(&PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            Err(error) if is_code(&error, 409) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a status over the one that was read. Returns false when the object has changed since, or is gone.
    pub(crate) async fn set_status(
        &self,
        kind: Kind,
        key: &Key,
        version: &str,
        status: &Value,
    ) -> Result<bool, ObjectError> {
        let mut patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        // What is not said any more is taken away.
        if let (Kind::Certificate, Some(fields)) = (kind, patch.get_mut("status").and_then(Value::as_object_mut)) {
            for field in CLEARED {
                fields.entry(field).or_insert(Value::Null);
            }
        }
        let patched = self.of(kind, key).patch_status(&key.1, &PatchParams::default(), &Patch::Merge(patch)).await;
        match patched {
            Ok(_) => Ok(true),
            Err(error) if is_code(&error, 409) || is_code(&error, 404) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes an object; one that is gone already is fine.
    pub(crate) async fn delete(&self, kind: Kind, key: &Key) -> Result<(), ObjectError> {
        match self.of(kind, key).delete(&key.1, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(error) if is_code(&error, 404) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Fields of a Certificate's status that come and go.
const CLEARED: [&str; 3] = ["lastFailureTime", "nextPrivateKeySecretName", "failedIssuanceAttempts"];

/// Whether the API answered with this code.
pub(crate) fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
