//! What the analyzers have found so far.
//!
//! Invariant: a message is on an object that somebody gave, never on a stand-in; the same message is kept once.

use carrick_api::timestamp::Timestamp;
use carrick_base::Severity;

use crate::lines;
use crate::message::{Message, level};
use crate::objects::{Object, Objects};

/// Collects messages.
pub(crate) struct Report<'a> {
    pub(crate) objects: &'a Objects,
    pub(crate) now: Timestamp,
    messages: Vec<Message>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(objects: &'a Objects, now: Timestamp) -> Self {
        Self { objects, now, messages: Vec::new() }
    }

    /// A message on an object. `field`: the path that it is about, to tell its line; empty for the object itself.
    pub(crate) fn add(&mut self, code: &'static str, object: &Object, field: &str, text: impl Into<String>) {
        self.add_as(code, level(code), object, field, text);
    }

    /// A message with another level than its code has.
    pub(crate) fn add_as(
        &mut self,
        code: &'static str,
        level: Severity,
        object: &Object,
        field: &str,
        text: impl Into<String>,
    ) {
        if object.stand_in {
            return;
        }
        let line = match &object.text {
            Some(document) if !field.is_empty() => lines::find(document, field).map(|line| object.origin.line + line),
            _ => None,
        };
        let origin = object.origin.clone();
        self.messages.push(Message { code, level, origin, line: line.unwrap_or(0), text: text.into() });
    }

    /// A reference that leads nowhere.
    pub(crate) fn not_found(&mut self, object: &Object, field: &str, what: &str, name: &str) {
        self.add("IST0101", object, field, format!("Referenced {what} not found: {name:?}"));
    }

    /// All messages, worst first.
    pub(crate) fn finish(mut self) -> Vec<Message> {
        self.messages.sort_by(|a, b| {
            (std::cmp::Reverse(a.level), a.code, &a.origin, a.line, &a.text).cmp(&(
                std::cmp::Reverse(b.level),
                b.code,
                &b.origin,
                b.line,
                &b.text,
            ))
        });
        self.messages.dedup();
        self.messages
    }
}

/// A list as Go prints it: `[a b]`.
pub(crate) fn bracketed<T: ToString>(list: impl IntoIterator<Item = T>) -> String {
    let words: Vec<String> = list.into_iter().map(|item| item.to_string()).collect();
    format!("[{}]", words.join(" "))
}
