//! Header blocks written.
//!
//! Invariant: what is sensitive is never put into the table (RFC 7541 §7.1), and of the rest only what has come twice of late, so that
//! values that never come again do not drive out those that do. Texts are not coded: that would cost both ends more than it saves.

use super::{OVERHEAD, integer, statics};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use std::collections::VecDeque;

/// Largest table that we use, whatever the peer allows, bytes.
const MOST: usize = 4096;
/// Places where an entry is looked for by its hash.
const BUCKETS: usize = 256;

/// A field's name as it is looked for.
#[derive(Clone, Copy)]
enum Named<'a> {
    /// By its place in the static table.
    Pseudo(usize),
    Field(&'a HeaderName),
}

struct Entry {
    /// The place of a pseudo-header's name; `None` of others.
    name: Result<HeaderName, usize>,
    value: Box<[u8]>,
    size: usize,
}

impl Entry {
    fn is(&self, name: Named<'_>, value: &[u8]) -> bool {
        let same = match (&self.name, name) {
            (Ok(own), Named::Field(name)) => own == name,
            (Err(own), Named::Pseudo(place)) => *own == place,
            _ => false,
        };
        same && &*self.value == value
    }
}

/// See the module.
pub struct Encoder {
    /// The newest first.
    table: VecDeque<Entry>,
    /// How many have ever been put into it; each has its number.
    added: u32,
    size: usize,
    max: usize,
    /// The smallest and the last size that the peer has asked for since the last block.
    told: Option<(usize, usize)>,
    /// Numbers by hash: of two that share a place the older goes.
    numbers: Vec<[u32; 2]>,
    /// Hashes of what has come once.
    once: Vec<u32>,
    /// What stood at each place of the last message.
    last: Vec<u32>,
    at: usize,
}

impl Default for Encoder {
    fn default() -> Self {
        Encoder {
            table: VecDeque::new(),
            added: 0,
            size: 0,
            max: MOST,
            told: None,
            numbers: Vec::new(),
            once: Vec::new(),
            last: Vec::new(),
            at: 0,
        }
    }
}

impl Encoder {
    /// The peer allows a table of so many bytes.
    pub fn resize(&mut self, max: usize) {
        let max = max.min(MOST);
        if max == self.max && self.told.is_none() {
            return;
        }
        let smallest = self.told.map_or(max, |(smallest, _)| smallest.min(max));
        self.told = Some((smallest, max));
        self.max = max;
        self.shrink(max);
    }

    /// Begins a block.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        self.at = 0;
        if let Some((smallest, last)) = self.told.take() {
            if smallest < last {
                integer::write(out, 0x20, 5, smallest);
            }
            integer::write(out, 0x20, 5, last);
        }
    }

    /// `:status`
    pub fn status(&mut self, out: &mut Vec<u8>, status: StatusCode) {
        match status.as_u16() {
            200 => out.push(0x88),
            204 => out.push(0x89),
            206 => out.push(0x8a),
            304 => out.push(0x8b),
            400 => out.push(0x8c),
            404 => out.push(0x8d),
            500 => out.push(0x8e),
            _ => self.put(out, Named::Pseudo(statics::STATUS), status.as_str().as_bytes(), false),
        }
    }

    /// `:method`
    pub fn method(&mut self, out: &mut Vec<u8>, method: &Method) {
        match *method {
            Method::GET => out.push(0x82),
            Method::POST => out.push(0x83),
            _ => self.put(out, Named::Pseudo(statics::METHOD), method.as_str().as_bytes(), false),
        }
    }

    /// `:scheme`
    pub fn scheme(&mut self, out: &mut Vec<u8>, scheme: &str) {
        match scheme {
            "http" => out.push(0x86),
            "https" => out.push(0x87),
            _ => self.put(out, Named::Pseudo(statics::SCHEME), scheme.as_bytes(), false),
        }
    }

    /// `:authority`
    pub fn authority(&mut self, out: &mut Vec<u8>, authority: &str) {
        self.put(out, Named::Pseudo(statics::AUTHORITY), authority.as_bytes(), false);
    }

    /// `:path`
    pub fn path(&mut self, out: &mut Vec<u8>, path: &str) {
        match path {
            "/" => out.push(0x84),
            _ => self.put(out, Named::Pseudo(statics::PATH), path.as_bytes(), false),
        }
    }

    /// `:protocol`
    pub fn protocol(&mut self, out: &mut Vec<u8>, protocol: &str) {
        out.push(0);
        text(out, b":protocol");
        text(out, protocol.as_bytes());
    }

    /// Any other field.
    pub fn field(&mut self, out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
        let secret = value.is_sensitive() || is_secret(name, value);
        self.put(out, Named::Field(name), value.as_bytes(), secret);
    }

    fn put(&mut self, out: &mut Vec<u8>, name: Named<'_>, value: &[u8], secret: bool) {
        let at = self.at;
        self.at = at.saturating_add(1);
        if secret {
            return literal(out, 0x10, 4, name, value);
        }
        // Messages of a connection are much alike.
        if let Some(number) = self.last.get(at)
            && let Some(place) = self.place(*number, name, value)
        {
            return integer::write(out, 0x80, 7, place);
        }
        let hash = hash(name, value);
        let bucket = usize::try_from(hash).unwrap_or(0) % BUCKETS;
        let known = self.numbers.get(bucket).copied().unwrap_or_default();
        for number in known {
            if let Some(place) = self.place(number, name, value) {
                self.remember(at, number);
                return integer::write(out, 0x80, 7, place);
            }
        }
        let size = length(name).saturating_add(value.len()).saturating_add(OVERHEAD);
        if size > self.max.saturating_mul(3) / 4 || !self.has_come_before(bucket, hash) {
            return literal(out, 0, 4, name, value);
        }
        literal(out, 0x40, 6, name, value);
        self.add(name, value, size);
        let number = self.added;
        if self.numbers.is_empty() {
            self.numbers = vec![[0; 2]; BUCKETS];
        }
        if let Some(place) = self.numbers.get_mut(bucket) {
            let [newest, _] = known;
            *place = [number, newest];
        }
        self.remember(at, number);
    }

    /// Where an entry of that number stands now, if it is this field.
    fn place(&self, number: u32, name: Named<'_>, value: &[u8]) -> Option<usize> {
        let behind = usize::try_from(self.added.checked_sub(number)?).ok()?;
        let entry = self.table.get(behind)?;
        entry.is(name, value).then(|| behind.saturating_add(statics::COUNT).saturating_add(1))
    }

    fn remember(&mut self, at: usize, number: u32) {
        // Enough for what a message of a mesh has.
        const REMEMBERED: usize = 48;
        match self.last.get_mut(at) {
            Some(last) => *last = number,
            None if at < REMEMBERED => {
                self.last.resize(at, 0);
                self.last.push(number);
            }
            None => {}
        }
    }

    fn has_come_before(&mut self, bucket: usize, hash: u32) -> bool {
        if self.once.is_empty() {
            self.once = vec![0; BUCKETS];
        }
        let hash = hash.max(1);
        self.once.get_mut(bucket).is_some_and(|once| std::mem::replace(once, hash) == hash)
    }

    fn add(&mut self, name: Named<'_>, value: &[u8], size: usize) {
        self.shrink(self.max.saturating_sub(size));
        // A number is only where to look, so it may come to a stand.
        self.added = self.added.saturating_add(1);
        self.size = self.size.saturating_add(size);
        let name = match name {
            Named::Pseudo(place) => Err(place),
            Named::Field(name) => Ok(name.clone()),
        };
        self.table.push_front(Entry { name, value: value.into(), size });
    }

    fn shrink(&mut self, most: usize) {
        while self.size > most
            && let Some(entry) = self.table.pop_back()
        {
            self.size = self.size.saturating_sub(entry.size);
        }
    }
}

/// Fields that nobody between is to keep: guessing them by what they cost must not be possible.
fn is_secret(name: &HeaderName, value: &HeaderValue) -> bool {
    // A short cookie can be guessed (as nghttp2 has it).
    const SHORT: usize = 20;
    match *name {
        header::AUTHORIZATION | header::PROXY_AUTHORIZATION => true,
        header::COOKIE | header::SET_COOKIE => value.len() < SHORT,
        _ => false,
    }
}

fn length(name: Named<'_>) -> usize {
    match name {
        Named::Pseudo(place) => statics::name(place).map_or(0, |(_, length)| length),
        Named::Field(name) => name.as_str().len(),
    }
}

/// In full, its name by its place if it has one.
fn literal(out: &mut Vec<u8>, kind: u8, bits: u32, name: Named<'_>, value: &[u8]) {
    let place = match name {
        Named::Pseudo(place) => Some(place),
        Named::Field(name) => statics::place(name),
    };
    match (place, name) {
        (Some(place), _) => integer::write(out, kind, bits, place),
        (None, Named::Field(name)) => {
            out.push(kind);
            text(out, name.as_str().as_bytes());
        }
        (None, Named::Pseudo(_)) => {}
    }
    text(out, value);
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    integer::write(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

/// Of the beginning and the end of a value, which is where values differ. Who makes two alike only makes them longer on the wire.
fn hash(name: Named<'_>, value: &[u8]) -> u32 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let word = |bytes: Option<&[u8; 8]>| bytes.map(|b| u64::from_le_bytes(*b));
    let ends = |bytes: &[u8]| match (word(bytes.first_chunk()), word(bytes.last_chunk())) {
        (Some(first), Some(last)) => (first, last),
        _ => (bytes.iter().fold(0_u64, |all, b| all.wrapping_shl(8) | u64::from(*b)), 0),
    };
    let (a, b) = ends(value);
    let (c, d) = match name {
        Named::Pseudo(place) => (u64::try_from(place).unwrap_or(0), 0),
        Named::Field(name) => ends(name.as_str().as_bytes()),
    };
    let length = u64::try_from(value.len()).unwrap_or(0);
    let mut all = length;
    for word in [a, b, c, d] {
        all = (all.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
    u32::try_from(all.wrapping_shr(32)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::Field;
    use super::super::decode::{Decoder, TABLE};
    use super::*;
    use proptest::prelude::*;

    fn both(encoder: &mut Encoder, decoder: &mut Decoder, fields: &[(&str, &str)]) -> (Vec<String>, usize) {
        let mut out = Vec::new();
        encoder.begin(&mut out);
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            encoder.field(&mut out, &name, &HeaderValue::from_str(value).unwrap());
        }
        let mut seen = Vec::new();
        let each = |field: Field, _| match field {
            Field::Other(name, value) => seen.push(format!("{name}: {}", value.to_str().unwrap())),
            other => panic!("{other:?}"),
        };
        decoder.decode(&out, each).unwrap();
        (seen, out.len())
    }

    #[test]
    fn what_comes_again_costs_a_byte_and_what_is_secret_never_does() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(TABLE));
        let fields = [("x-known", "as ever"), ("content-type", "application/grpc"), ("te", "trailers")];
        let lengths: Vec<usize> = (0..4).map(|_| both(&mut encoder, &mut decoder, &fields).1).collect();
        assert_eq!(lengths[2..], [3, 3], "{lengths:?}");
        let before = encoder.table.len();
        for n in 0..100 {
            let id = format!("{n}");
            both(&mut encoder, &mut decoder, &[("x-request-id", &id), fields[0], fields[1]]);
            let secrets = [("authorization", "Bearer x"), ("cookie", "a=b"), ("proxy-authorization", "y")];
            both(&mut encoder, &mut decoder, &secrets);
        }
        assert_eq!(encoder.table.len(), before);
        let mut out = Vec::new();
        encoder.field(&mut out, &header::AUTHORIZATION, &HeaderValue::from_static("z"));
        assert_eq!(out, [0x1f, 8, 1, b'z']);
    }

    #[test]
    fn a_table_changes_its_size_as_asked() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(TABLE));
        let fields = [("x-a", "1"), ("x-b", "2")];
        for size in [0, 40, 100_000, 0, 64] {
            for _ in 0..3 {
                assert_eq!(both(&mut encoder, &mut decoder, &fields).0, ["x-a: 1", "x-b: 2"]);
            }
            encoder.resize(size);
            assert!(encoder.size <= size);
        }
        encoder.resize(0);
        encoder.resize(4096);
        assert_eq!(both(&mut encoder, &mut decoder, &fields).0, ["x-a: 1", "x-b: 2"]);
    }

    #[test]
    fn pseudo_headers_come_back() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(TABLE));
        for _ in 0..4 {
            let mut out = Vec::new();
            encoder.begin(&mut out);
            encoder.method(&mut out, &Method::PUT);
            encoder.scheme(&mut out, "https");
            encoder.authority(&mut out, "a.test");
            encoder.path(&mut out, "/x?y");
            encoder.protocol(&mut out, "websocket");
            encoder.status(&mut out, StatusCode::IM_A_TEAPOT);
            let mut seen = Vec::new();
            decoder.decode(&out, |field, _| seen.push(field)).unwrap();
            let wanted = [
                Field::Method(Method::PUT),
                Field::Scheme(http::uri::Scheme::HTTPS),
                Field::Authority("a.test".parse().unwrap()),
                Field::Path("/x?y".parse().unwrap()),
                Field::Protocol("websocket".into()),
                Field::Status(StatusCode::IM_A_TEAPOT),
            ];
            assert_eq!(seen, wanted);
        }
    }

    proptest! {
        #[test]
        fn any_message_comes_back(
            messages in prop::collection::vec(prop::collection::vec((0_usize..20, 0_usize..30), 0..12), 1..40),
            sizes in prop::collection::vec(0_usize..5000, 40),
        ) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(TABLE));
            for (message, size) in messages.iter().zip(sizes) {
                // Some names, and values of all lengths.
                let text = |(n, v): &(usize, usize)| (format!("x-{n}"), "v".repeat(v * v / (n + 1)));
                let texts: Vec<(String, String)> = message.iter().map(text).collect();
                let fields: Vec<(&str, &str)> = texts.iter().map(|(n, v)| (&**n, &**v)).collect();
                let wanted: Vec<String> = texts.iter().map(|(n, v)| format!("{n}: {v}")).collect();
                prop_assert_eq!(both(&mut encoder, &mut decoder, &fields).0, wanted);
                if size < 1000 {
                    encoder.resize(size * 5);
                }
            }
        }
    }
}
