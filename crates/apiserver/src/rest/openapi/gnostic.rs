//! OpenAPI v2 on the wire: the messages of `openapi.v2` (gnostic), which kubectl before 1.27 asks for.
//!
//! Invariant: what is not in the messages below is left out; numbers of fields are those of `OpenAPIv2.proto`.

use serde_json::{Map, Value};

#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn bytes(&mut self, field: u64, content: &[u8]) -> &mut Self {
        self.varint(field << 3 | 2);
        self.varint(content.len() as u64);
        self.0.extend_from_slice(content);
        self
    }

    fn text(&mut self, field: u64, content: Option<&Value>) -> &mut Self {
        if let Some(content) = content.and_then(Value::as_str).filter(|c| !c.is_empty()) {
            self.bytes(field, content.as_bytes());
        }
        self
    }

    fn message(&mut self, field: u64, content: Message) -> &mut Self {
        self.bytes(field, &content.0)
    }
}

fn named(name: &str, value: Message) -> Message {
    let mut message = Message::default();
    message.bytes(1, name.as_bytes()).message(2, value);
    message
}

fn fields(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flatten()
}

/// `Any`, as YAML; JSON is YAML.
fn any(value: &Value) -> Message {
    let mut message = Message::default();
    message.bytes(2, value.to_string().as_bytes());
    message
}

/// The document.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut info = Message::default();
    info.text(1, document.pointer("/info/title")).text(2, document.pointer("/info/version"));
    let mut paths = Message::default();
    for (path, item) in fields(document.get("paths")) {
        let mut encoded = Message::default();
        if let Some(patch) = item.get("patch") {
            encoded.message(8, operation(patch));
        }
        paths.message(2, named(path, encoded));
    }
    let mut definitions = Message::default();
    for (name, definition) in fields(document.get("definitions")) {
        definitions.message(1, named(name, schema(definition)));
    }
    let mut whole = Message::default();
    whole.text(1, document.get("swagger")).message(2, info).message(8, paths).message(9, definitions);
    whole.0
}

fn operation(from: &Value) -> Message {
    let mut message = Message::default();
    for parameter in from.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        let mut query = Message::default();
        query.text(2, parameter.get("in")).text(4, parameter.get("name")).text(6, parameter.get("type"));
        let (mut plain, mut one, mut item) = (Message::default(), Message::default(), Message::default());
        plain.message(3, query);
        one.message(2, plain);
        item.message(1, one);
        message.message(8, item);
    }
    let mut responses = Message::default();
    for (code, response) in fields(from.get("responses")) {
        let (mut content, mut value) = (Message::default(), Message::default());
        content.text(1, response.get("description"));
        value.message(1, content);
        responses.message(1, named(code, value));
    }
    message.message(9, responses);
    extensions(&mut message, 13, from.as_object());
    message
}

fn extensions(message: &mut Message, field: u64, from: Option<&Map<String, Value>>) {
    for (name, value) in from.into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        message.message(field, named(name, any(value)));
    }
}

fn schema(from: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, from.get("$ref")).text(2, from.get("format")).text(4, from.get("description"));
    if let Some(default) = from.get("default") {
        message.message(5, any(default));
    }
    for name in from.get("required").and_then(Value::as_array).into_iter().flatten() {
        message.text(19, Some(name));
    }
    for value in from.get("enum").and_then(Value::as_array).into_iter().flatten() {
        message.message(20, any(value));
    }
    if let Some(values) = from.get("additionalProperties") {
        let mut item = Message::default();
        item.message(1, schema(values));
        message.message(21, item);
    }
    if from.get("type").is_some() {
        let mut item = Message::default();
        item.text(1, from.get("type"));
        message.message(22, item);
    }
    if let Some(items) = from.get("items") {
        let mut item = Message::default();
        item.message(1, schema(items));
        message.message(23, item);
    }
    if from.get("properties").is_some() {
        let mut properties = Message::default();
        for (name, property) in fields(from.get("properties")) {
            properties.message(1, named(name, schema(property)));
        }
        message.message(25, properties);
    }
    extensions(&mut message, 31, from.as_object());
    message
}
