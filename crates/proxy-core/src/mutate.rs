//! Header mutations and filter state of a matched route.
//!
//! Invariant: weighted cluster, route, virtual host, table, in this order (so that the table has the last word), or the reverse with
//! `most_specific_header_mutations_wins`; within a level removals come first, then what replaces, then what is added. A value that names a
//! header reads it as it is after the removals of its level. Values that are no legal header value are dropped.

use http::header::{HeaderMap, HeaderValue};

use crate::facts::{either, header};
use crate::format::Values;
use crate::model::Name;
use crate::model::filter::{FilterStateKey, FilterStateSet, HttpFilter, Step, StepHere, UpstreamOverrides};
use crate::model::format::{HeaderKey, Operator};
use crate::model::headers::{AppendAction, HeaderOps};
use crate::model::route::{PerFilter, Route, RouteTable, VirtualHost, WeightedCluster};

/// Whose headers are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A request's.
    Request,
    /// A response's.
    Response,
}

/// Values in which the headers that are being changed are as they are by now.
struct Current<'a> {
    side: Side,
    headers: &'a HeaderMap,
    others: &'a dyn Values,
}

impl Values for Current<'_> {
    fn write(&self, op: &Operator, out: &mut String) -> bool {
        let (side, first, second): (_, _, &Option<HeaderKey>) = match op {
            Operator::Req(first, second) => (Side::Request, first, second),
            Operator::Resp(first, second) => (Side::Response, first, second),
            _ => return self.others.write(op, out),
        };
        if side != self.side {
            return self.others.write(op, out);
        }
        let alone = |key: &HeaderKey| match side {
            Side::Request => Operator::Req(key.clone(), None),
            Side::Response => Operator::Resp(key.clone(), None),
        };
        either(first, second.as_ref(), |key| match key {
            HeaderKey::Name(_) => header(Some(self.headers), key, out),
            _ => self.others.write(&alone(key), out),
        })
    }
}

impl HeaderOps {
    /// Applies this level: what is removed goes first, then what replaces, then what is added, each in its order. As in Envoy all values
    /// and conditions are looked at before the first of them changes anything.
    pub fn apply(&self, side: Side, headers: &mut HeaderMap, values: &dyn Values) {
        for name in &self.remove {
            headers.remove(name);
        }
        let mut made = Vec::with_capacity(self.add.len());
        let current = Current { side, headers, others: values };
        for add in &self.add {
            let text = add.value.text(&current);
            if text.is_empty() && !add.keep_empty {
                continue;
            }
            let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) else { continue };
            let present = headers.contains_key(&add.name);
            match add.action {
                AppendAction::AddIfAbsent if present => {}
                AppendAction::OverwriteIfExists if !present => {}
                AppendAction::AppendOrAdd | AppendAction::AddIfAbsent => made.push((false, &add.name, value)),
                AppendAction::Overwrite | AppendAction::OverwriteIfExists => made.push((true, &add.name, value)),
            }
        }
        for (_, name, value) in made.iter().filter(|(replaces, ..)| *replaces) {
            headers.insert(*name, value.clone());
        }
        for (_, name, value) in made.into_iter().filter(|(replaces, ..)| !replaces) {
            headers.append(name, value);
        }
    }
}

/// The levels of a matched route.
#[derive(Debug, Clone, Copy)]
pub struct Levels<'a> {
    /// Route table.
    pub table: &'a RouteTable,
    /// Virtual host.
    pub virtual_host: &'a VirtualHost,
    /// Route.
    pub route: &'a Route,
    /// Weighted cluster, if one was chosen.
    pub weighted: Option<&'a WeightedCluster>,
}

impl Levels<'_> {
    /// Whether requests need no mutation at all.
    #[must_use]
    pub fn request_is_plain(&self) -> bool {
        self.table.request.is_empty()
            && self.virtual_host.request.is_empty()
            && self.route.request.is_empty()
            && self.weighted.is_none_or(|w| w.request.is_empty())
    }

    /// Whether responses need no mutation at all.
    #[must_use]
    pub fn response_is_plain(&self) -> bool {
        self.table.response.is_empty()
            && self.virtual_host.response.is_empty()
            && self.route.response.is_empty()
            && self.weighted.is_none_or(|w| w.response.is_empty())
    }

    /// Mutates a request.
    pub fn mutate_request(&self, headers: &mut HeaderMap, values: &dyn Values) {
        let weighted = self.weighted.map(|w| &w.request);
        self.run(
            [weighted, Some(&self.route.request), Some(&self.virtual_host.request), Some(&self.table.request)],
            Side::Request,
            headers,
            values,
        );
    }

    /// Mutates a response.
    pub fn mutate_response(&self, headers: &mut HeaderMap, values: &dyn Values) {
        let weighted = self.weighted.map(|w| &w.response);
        self.run(
            [weighted, Some(&self.route.response), Some(&self.virtual_host.response), Some(&self.table.response)],
            Side::Response,
            headers,
            values,
        );
    }

    fn run(&self, mut levels: [Option<&HeaderOps>; 4], side: Side, headers: &mut HeaderMap, values: &dyn Values) {
        if self.table.most_specific_wins {
            levels.reverse();
        }
        for ops in levels.into_iter().flatten() {
            ops.apply(side, headers, values);
        }
    }

    /// Filter state of a request: each `set_filter_state` filter's own values, then those of virtual host, route, weighted cluster.
    #[must_use]
    pub fn upstream_overrides(&self, filters: &[HttpFilter], values: &dyn Values) -> UpstreamOverrides {
        let mut overrides = UpstreamOverrides::default();
        for filter in filters {
            let HttpFilter::SetFilterState { name, on_request } = filter else { continue };
            if self.filter_disabled(name) {
                continue;
            }
            overrides.apply(on_request, values);
            for level in self.per_filter() {
                for (_, sets) in level.set_filter_state.iter().filter(|(filter, _)| filter == name) {
                    overrides.apply(sets, values);
                }
            }
        }
        overrides
    }

    /// Least specific first.
    fn per_filter(&self) -> impl DoubleEndedIterator<Item = &PerFilter> {
        let three = [&self.table.per_filter, &self.virtual_host.per_filter, &self.route.per_filter];
        three.into_iter().chain(self.weighted.map(|w| &w.per_filter))
    }

    /// Whether a filter is switched off for this route: the most specific level that speaks of it decides.
    #[must_use]
    pub fn filter_disabled(&self, name: &Name) -> bool {
        self.switch(name) == Some(false)
    }

    /// Whether a step runs here.
    #[must_use]
    pub fn runs(&self, step: &Step) -> bool {
        self.switch(&step.name).unwrap_or(!step.disabled) && !matches!(self.here(&step.name), Some(StepHere::Off))
    }

    fn switch(&self, name: &Name) -> Option<bool> {
        self.per_filter().rev().find_map(|p| {
            if p.disabled.contains(name) { Some(false) } else { p.steps.iter().any(|(n, _)| n == name).then_some(true) }
        })
    }

    /// The most specific configuration of a step.
    #[must_use]
    pub fn here(&self, name: &Name) -> Option<&StepHere> {
        self.per_filter().rev().find_map(|p| p.steps.iter().find(|(n, _)| n == name).map(|(_, here)| here))
    }

    /// All configurations of a step, the most specific first.
    pub fn all_here<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a StepHere> {
        self.per_filter().rev().filter_map(move |p| p.steps.iter().find(|(n, _)| n == name).map(|(_, here)| here))
    }
}

impl UpstreamOverrides {
    /// Sets what `sets` say. Sharing with upstream is about internal listeners, which there are none of.
    pub fn apply(&mut self, sets: &[FilterStateSet], values: &dyn Values) {
        for set in sets {
            let text = set.value.text(values);
            if text.is_empty() && set.skip_if_empty {
                continue;
            }
            let list = || text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(Name::from).collect::<Vec<_>>();
            match &set.key {
                FilterStateKey::TcpCluster => self.tcp_cluster = Some(text.as_str().into()),
                FilterStateKey::ApplicationProtocols => self.alpn = Some(list()),
                FilterStateKey::UpstreamServerName => self.sni = Some(text.as_str().into()),
                FilterStateKey::UpstreamSubjectAltNames => self.sans = Some(list()),
                FilterStateKey::Text(_) => {}
            }
        }
    }
}
