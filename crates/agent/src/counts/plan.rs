//! What a log's name says: whose side it is about, and what is different from Istio's metrics.
//!
//! Invariant: as `render::stats::agent` writes it; anything else is refused, never half understood.

use serde::Deserialize;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    pub reporter: Reporter,
    #[serde(default)]
    metrics: Vec<Change>,
    /// Tags of entries that answer for changed labels.
    #[serde(skip)]
    questions: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reporter {
    #[default]
    Source,
    Destination,
}

/// What is different about one metric.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    name: String,
    drop: bool,
    set: Vec<String>,
    removed: Vec<String>,
}

/// Names and values of labels.
pub(super) type Labels = Vec<(String, String)>;

impl Plan {
    /// Reads a log's name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(name: &str) -> Result<Self, String> {
        let mut plan: Self = serde_json::from_str(name).map_err(|error| format!("log name {name:?}: {error}"))?;
        plan.questions =
            plan.metrics.iter().flat_map(|m| m.set.iter().map(|label| format!("{}/{label}", m.name))).collect();
        Ok(plan)
    }

    /// The tags to be kept, in the order of answers.
    pub fn questions(&self) -> impl Iterator<Item = &str> {
        self.questions.iter().map(String::as_str)
    }

    /// A metric's labels; `None` if it is not kept.
    pub fn labels(&self, metric: &str, standard: &Labels, answers: &[Box<str>]) -> Option<Labels> {
        let mut labels = standard.clone();
        let Some(change) = self.metrics.iter().find(|m| m.name == metric) else { return Some(labels) };
        if change.drop {
            return None;
        }
        labels.retain(|(name, _)| !change.removed.contains(name));
        for label in &change.set {
            let question = format!("{metric}/{label}");
            let answer = self.questions.iter().zip(answers).find(|(asked, _)| **asked == question);
            let value = answer.map(|(_, answer)| &**answer).filter(|a| !a.is_empty()).unwrap_or("unknown").to_owned();
            match labels.iter_mut().find(|(name, _)| name == label) {
                Some((_, old)) => *old = value,
                None => labels.push((label.clone(), value)),
            }
        }
        Some(labels)
    }
}
