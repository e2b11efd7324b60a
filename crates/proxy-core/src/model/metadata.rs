//! Free-form metadata (`google.protobuf.Struct` by namespace) in plain types.
//!
//! Invariant: nesting is bounded at build time. Maps are small, and there are some for each cluster and endpoint known: they take no more
//! memory than what is in them.

use super::Name;

/// Namespace → object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(pub Map<Map<Value>>);

/// Values by name, in the names' order.
#[derive(Debug, Clone, PartialEq)]
pub struct Map<V>(Vec<(Name, V)>);

impl<V> Map<V> {
    fn place(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| (**known).cmp(name))
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&V> {
        self.0.get(self.place(name).ok()?).map(|(_, value)| value)
    }

    /// The value of a name, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut V> {
        let place = self.place(name).ok()?;
        self.0.get_mut(place).map(|(_, value)| value)
    }

    /// Sets the value of a name.
    pub fn insert(&mut self, name: Name, value: V) {
        match self.place(&name) {
            Ok(place) => {
                if let Some((_, known)) = self.0.get_mut(place) {
                    *known = value;
                }
            }
            Err(place) => {
                self.0.reserve_exact(1);
                self.0.insert(place, (name, value));
            }
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names with their values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &V)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// The names, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Name> {
        self.0.iter().map(|(name, _)| name)
    }
}

impl<V> Default for Map<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> Extend<(Name, V)> for Map<V> {
    fn extend<I: IntoIterator<Item = (Name, V)>>(&mut self, values: I) {
        *self = std::mem::take(self).into_iter().chain(values).collect();
    }
}

impl<V> FromIterator<(Name, V)> for Map<V> {
    fn from_iter<I: IntoIterator<Item = (Name, V)>>(values: I) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        // Of several values of a name the last one counts.
        values.reverse();
        values.sort_by(|(a, _), (b, _)| a.cmp(b));
        values.dedup_by(|(a, _), (b, _)| a == b);
        values.shrink_to_fit();
        Self(values)
    }
}

impl<V, const N: usize> From<[(Name, V); N]> for Map<V> {
    fn from(values: [(Name, V); N]) -> Self {
        values.into_iter().collect()
    }
}

impl<V> IntoIterator for Map<V> {
    type Item = (Name, V);
    type IntoIter = std::vec::IntoIter<(Name, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// A JSON-like value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// null
    Null,
    /// A truth value.
    Bool(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(Name),
    /// A list.
    List(Vec<Value>),
    /// An object.
    Object(Map<Value>),
}

impl Metadata {
    /// The object of a namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&Map<Value>> {
        self.0.get(name)
    }

    /// Adds to a namespace.
    pub fn learn(&mut self, namespace: &str, values: Map<Value>) {
        match self.0.get_mut(namespace) {
            Some(known) => known.extend(values),
            None => self.0.insert(namespace.into(), values),
        }
    }

    /// The value at a path below a namespace.
    #[must_use]
    pub fn at(&self, namespace: &str, path: &[Name]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get(namespace)?.get(first)?, |value, key| match value {
            Value::Object(object) => object.get(key),
            _ => None,
        })
    }

    /// A text at `namespace.key`.
    #[must_use]
    pub fn text(&self, namespace: &str, key: &str) -> Option<&str> {
        match self.0.get(namespace)?.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_name_counts_and_names_are_in_order() {
        let mut map: Map<u32> = [("b", 1), ("a", 2), ("b", 3)].map(|(k, v)| (k.into(), v)).into();
        map.extend([("c".into(), 4), ("a".into(), 5)]);
        map.insert("ab".into(), 6);
        map.insert("c".into(), 7);
        let all: Vec<_> = map.iter().map(|(name, value)| (&**name, *value)).collect();
        assert_eq!(all, [("a", 5), ("ab", 6), ("b", 3), ("c", 7)]);
        assert_eq!((map.get("ab"), map.get("x"), map.keys().count()), (Some(&6), None, 4));
        let mut metadata = Metadata::default();
        metadata.learn("n", [("a".into(), Value::Bool(true))].into());
        metadata.learn("n", [("b".into(), Value::Null), ("a".into(), Value::Bool(false))].into());
        assert_eq!(metadata.namespace("n").and_then(|n| n.get("a")), Some(&Value::Bool(false)));
        assert_eq!(metadata.namespace("n").map(|n| n.iter().count()), Some(2));
    }
}
