//! From one root to another without a failed request: the steps, what each waits for, and the ways back.
//!
//! Invariant: whatever two proxies meet at whatever moment, each trusts the root of the other's certificate. So nothing is
//! signed by the new set before every proxy says that it trusts it ([`Step::Prove`]), and the old roots are not withdrawn
//! before every proxy says that its certificate leads to a new one ([`Step::Drain`]). A proxy that says nothing holds up
//! the next step; only a person may decide to leave it behind, by name and until a date.
//!
//! A rotation is a value: it is written down before its step takes effect, and a process that finds it does what the step
//! says, however often. Who connects, what is signed and what is published is done elsewhere; time is an argument.

mod gate;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

pub use gate::{Holdup, Proxy, Told};

/// How long a gate has to stay open before it is walked through: workers of a proxy may lag behind what it said.
pub const SETTLE: Duration = Duration::from_millis(500);

/// What tells a root from others.
pub type Fingerprint = String;

/// Where a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The new set is being checked and kept. Nobody knows of it.
    Prepare,
    /// The new roots are published beside the old ones.
    Publish,
    /// Waiting for every proxy to say that it trusts the new roots.
    Prove,
    /// The new set signs.
    Switch,
    /// Waiting for every proxy to say that its certificate leads to a new root; renewals are asked for.
    Drain,
    /// The old roots are withdrawn; waiting for every proxy to say so.
    Retire,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [Self::Prepare, Self::Publish, Self::Prove, Self::Switch, Self::Drain, Self::Retire];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Publish => "publish",
            Self::Prove => "prove",
            Self::Switch => "switch",
            Self::Drain => "drain",
            Self::Retire => "retire",
        }
    }

    fn next(self) -> Option<Self> {
        Self::ALL.iter().copied().find(|step| *step > self)
    }
}

/// A proxy that is not waited for, by decision of a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiver {
    /// `name.namespace`.
    pub proxy: String,
    /// From then on it is waited for again.
    pub until: SystemTime,
}

/// Which roots are to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Those of the old set.
    From,
    /// Those of both.
    Both,
    /// Those of the new set.
    To,
}

/// A rotation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// The set that signed when it began.
    pub from: String,
    /// The set that is to sign.
    pub to: String,
    /// Where it is.
    pub step: Step,
    /// Since when it is there.
    pub since: SystemTime,
    /// When it began.
    pub started: SystemTime,
    /// Stays where it is.
    pub paused: bool,
    /// On its way back: `from` and `to` have changed places.
    pub back: bool,
    /// The least time in each step that waits for proxies, for the sake of those who are not asked (files, partners).
    pub soak: Duration,
    /// Who is not waited for.
    pub waivers: Vec<Waiver>,
    /// Since when the gate has been open.
    #[serde(skip)]
    open: Option<SystemTime>,
}

/// What the step in force is measured by.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// The roots of the new set.
    pub roots: &'a BTreeSet<Fingerprint>,
    /// Every proxy that there is.
    pub proxies: &'a [Proxy],
    /// What the step does by itself (keeping, publishing, switching) is done.
    pub done: bool,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It was told to stay.
    Paused,
    /// The step's own work is not done.
    Working,
    /// Proxies hold it up.
    Held(Vec<Holdup>),
    /// Nothing holds it up; it goes on at this time.
    Until(SystemTime),
    /// Go to this step.
    Go(Step),
    /// Done: the new set signs, and only its roots are trusted.
    Finished,
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// It goes back already.
    #[error("the rotation is on its way back already")]
    Back,
    /// The new set is the old one.
    #[error("the signing set {0} is in force already")]
    Same(String),
}

impl Rotation {
    /// Begins.
    ///
    /// # Errors
    /// Both sets are one.
    pub fn begin(from: &str, to: &str, soak: Duration, now: SystemTime) -> Result<Self, RotationError> {
        if from == to {
            return Err(RotationError::Same(to.to_owned()));
        }
        Ok(Self {
            from: from.to_owned(),
            to: to.to_owned(),
            step: Step::Prepare,
            since: now,
            started: now,
            paused: false,
            back: false,
            soak,
            waivers: Vec::new(),
            open: None,
        })
    }

    /// Which roots are published in this step.
    pub fn trust(&self) -> Trust {
        match self.step {
            Step::Prepare => Trust::From,
            Step::Publish | Step::Prove | Step::Switch | Step::Drain => Trust::Both,
            Step::Retire => Trust::To,
        }
    }

    /// The set that signs in this step.
    pub fn signer(&self) -> &str {
        if self.step >= Step::Switch { &self.to } else { &self.from }
    }

    /// Whether proxies are asked to renew now.
    pub fn asks_for_renewal(&self) -> bool {
        self.step == Step::Drain && !self.paused
    }

    /// What comes next. A gate has to be found open twice, [`SETTLE`] apart.
    pub fn next(&mut self, world: World<'_>, now: SystemTime) -> Next {
        if self.paused {
            self.open = None;
            return Next::Paused;
        }
        if !world.done {
            self.open = None;
            return Next::Working;
        }
        let held = self.held_by(world, now);
        if !held.is_empty() {
            self.open = None;
            return Next::Held(held);
        }
        let waits = matches!(self.step, Step::Prove | Step::Drain | Step::Retire);
        if waits {
            let open = *self.open.get_or_insert(now);
            let due = (open + SETTLE).max(self.since + self.soak);
            if now < due {
                return Next::Until(due);
            }
        }
        match self.step.next() {
            Some(step) => Next::Go(step),
            None => Next::Finished,
        }
    }

    /// Who holds the step up.
    pub fn held_by(&self, world: World<'_>, now: SystemTime) -> Vec<Holdup> {
        let waived = |proxy: &Proxy| self.waivers.iter().any(|w| w.proxy == proxy.name && now < w.until);
        let held = world.proxies.iter().filter(|proxy| !waived(proxy));
        held.filter_map(|proxy| gate::holdup(self.step, proxy, world.roots, self.since, now)).collect()
    }

    /// Goes to a step.
    pub fn enter(&mut self, step: Step, now: SystemTime) {
        self.step = step;
        self.since = now;
        self.open = None;
    }

    /// Turns round: the set that signed at the beginning is to be alone again. What was published stays so until nobody
    /// needs it any more.
    ///
    /// # Errors
    /// It is on its way back.
    pub fn roll_back(&mut self, now: SystemTime) -> Result<(), RotationError> {
        if self.back {
            return Err(RotationError::Back);
        }
        std::mem::swap(&mut self.from, &mut self.to);
        self.back = true;
        self.paused = false;
        let step = match self.step {
            // Nothing was signed by the new set: its roots are withdrawn.
            Step::Prepare | Step::Publish | Step::Prove => Step::Retire,
            // Both are trusted by everybody, and some certificates have to come back.
            Step::Switch | Step::Drain => Step::Prove,
            // Some have forgotten the old roots.
            Step::Retire => Step::Publish,
        };
        self.enter(step, now);
        Ok(())
    }

    /// Does not wait for a proxy until a date; takes the place of an earlier waiver for it.
    pub fn waive(&mut self, proxy: &str, until: SystemTime) {
        self.waivers.retain(|w| w.proxy != proxy);
        self.waivers.push(Waiver { proxy: proxy.to_owned(), until });
    }
}

#[cfg(test)]
mod tests;
