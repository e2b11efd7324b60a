//! A long list, made while it is sent.
//!
//! Invariant: besides the stored bytes, which all lists share, a list costs one frame of memory, however long it is and
//! however slowly it is read. Its content is of one revision.
//! What it leaves to others: short lists, and those through selectors or as tables (`objects`).

use super::negotiate::Form;
use super::respond::{self, Answer};
use super::table::{ListMeta, Shape};
use crate::catalog::Resource;
use crate::storage::Record;
use crate::store::decode_record;
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

/// Lists of more objects than this are made while they are sent.
pub const LONG: usize = 500;
/// About the size of a frame.
const FRAME: usize = 64 << 10;

struct Listing {
    resource: Arc<Resource>,
    version: String,
    now: SystemTime,
    records: std::vec::IntoIter<Record>,
    /// What comes before the first object, later a comma.
    before: Vec<u8>,
    ended: bool,
}

/// The answer with `records` in the order given, in the plain form.
pub fn answer(
    resource: Arc<Resource>,
    version: &str,
    now: SystemTime,
    records: Vec<Record>,
    meta: &ListMeta,
) -> Answer {
    let shape = Shape { resource: &resource, version, form: Form::Plain, include: None, now };
    let mut empty = shape.list(Vec::new(), meta);
    if let Some(map) = empty.as_object_mut() {
        map.shift_remove("items");
    }
    let mut before = respond::line(&empty);
    // What closes the map, and the line's end.
    before.truncate(before.len().saturating_sub(2));
    before.extend_from_slice(br#","items":["#);
    let version = version.to_owned();
    let listing = Listing { resource, version, now, records: records.into_iter(), before, ended: false };
    let frames = futures_util::stream::unfold(listing, |mut listing| async move {
        let bytes = listing.frame()?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), listing))
    });
    let mut answer = respond::raw(200, "application/json", Bytes::new());
    *answer.body_mut() = StreamBody::new(frames).boxed_unsync();
    answer
}

impl Listing {
    fn frame(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::with_capacity(FRAME);
        let shape =
            Shape { resource: &self.resource, version: &self.version, form: Form::Plain, include: None, now: self.now };
        while out.len() < FRAME {
            let Some(record) = self.records.next() else {
                out.append(&mut self.before);
                if out.last() == Some(&b',') {
                    out.pop();
                }
                out.extend_from_slice(b"]}\n");
                self.ended = true;
                break;
            };
            let Some(object) = decode_record(&record) else { continue };
            let object: Value = shape.item(object);
            out.append(&mut self.before);
            out.extend(serde_json::to_vec(&object).unwrap_or_default());
            self.before.push(b',');
        }
        Some(Bytes::from(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use serde_json::json;

    #[tokio::test]
    async fn a_long_list_is_the_same_as_a_short_one() {
        let catalog = Catalog::of(carrick_api::kinds::registry());
        let resource = catalog.get("configmaps").unwrap();
        let meta = || ListMeta { revision: 9, next: Some("token".into()), remaining: Some(3) };
        for count in [0_u64, 1, 2, 3000] {
            let value =
                |n: u64| json!({"metadata": {"name": format!("a{n}")}, "data": {"x": "y".repeat(50)}}).to_string();
            let records: Vec<Record> = (0..count).map(|n| Record { revision: n + 1, value: value(n).into() }).collect();
            let shape = Shape {
                resource: &resource,
                version: "v1",
                form: Form::Plain,
                include: None,
                now: SystemTime::UNIX_EPOCH,
            };
            let short = shape.list(records.iter().filter_map(decode_record).collect(), &meta());
            let long = answer(resource.clone(), "v1", SystemTime::UNIX_EPOCH, records, &meta());
            let bytes = long.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), short, "{count}");
        }
    }
}
