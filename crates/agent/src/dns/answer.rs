//! One question and the table → what to say (spec §21.2, §21.3).
//!
//! Invariant: pure. A name of the table is never asked elsewhere: a record of another kind or family is an empty answer, so that a resolver
//! goes on to ask for the other family.

use std::collections::BTreeMap;
use std::net::IpAddr;

use carrick_dns::reply_to;
use carrick_xds::name_table::NameTable;
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};

/// Seconds that an answer may be kept.
const TTL: u32 = 30;

/// Addresses by name, in small letters and without the final dot; one that begins with `*.` stands for all below.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Table {
    names: BTreeMap<String, Vec<IpAddr>>,
}

impl Table {
    /// The table for a machine of a namespace, with the short names that services have there.
    pub fn of(told: &NameTable, namespace: &str) -> Self {
        let mut names: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        let mut short: Vec<(String, Vec<IpAddr>)> = Vec::new();
        for (host, info) in &told.table {
            let addresses: Vec<IpAddr> = info.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
            if info.registry == "Kubernetes" && !info.shortname.is_empty() {
                let (name, of) = (&info.shortname, &info.namespace);
                short.push((format!("{name}.{of}"), addresses.clone()));
                short.push((format!("{name}.{of}.svc"), addresses.clone()));
                if of == namespace {
                    short.push((name.clone(), addresses.clone()));
                }
            }
            names.insert(host.to_ascii_lowercase(), addresses);
        }
        for (name, addresses) in short {
            // A host that is called so in full comes first.
            names.entry(name.to_ascii_lowercase()).or_insert(addresses);
        }
        Self { names }
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn addresses(&self, name: &str) -> Option<&Vec<IpAddr>> {
        let below = || {
            let suffixes = name.match_indices('.').filter_map(|(at, _)| name.get(at..));
            suffixes.map(|suffix| format!("*{suffix}")).find_map(|wild| self.names.get(&wild))
        };
        self.names.get(name).or_else(below)
    }
}

/// What to do with a question.
#[derive(Debug)]
pub enum Outcome {
    /// Say this.
    Reply(Message),
    /// Ask the machine's servers.
    Forward,
}

/// Decides; `shuffle` is a random number that turns the order of several addresses.
pub fn answer(table: &Table, query: &Message, shuffle: usize) -> Outcome {
    let (OpCode::Query, MessageType::Query, [question]) =
        (query.metadata.op_code, query.metadata.message_type, query.queries.as_slice())
    else {
        let code = if query.metadata.op_code == OpCode::Query { ResponseCode::FormErr } else { ResponseCode::NotImp };
        return Outcome::Reply(reply_to(query, code));
    };
    let name = question.name().to_ascii().to_ascii_lowercase();
    let known = table.addresses(name.trim_end_matches('.')).filter(|_| question.query_class() == DNSClass::IN);
    let Some(addresses) = known else { return Outcome::Forward };
    let kind = question.query_type();
    let mut records: Vec<RData> = addresses
        .iter()
        .filter_map(|ip| match (ip, kind) {
            (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => Some(RData::A(A(*ip))),
            (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(*ip))),
            _ => None,
        })
        .collect();
    if let Some(turn) = shuffle.checked_rem(records.len()) {
        records.rotate_left(turn);
    }
    let mut reply = reply_to(query, ResponseCode::NoError);
    reply.metadata.authoritative = true;
    reply.add_answers(records.into_iter().map(|data| Record::from_rdata(question.name().clone(), TTL, data)));
    Outcome::Reply(reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use carrick_xds::name_table::NameInfo;
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;

    fn table() -> Table {
        let service = |name: &str, namespace: &str, ips: &[&str]| NameInfo {
            ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
            registry: "Kubernetes".into(),
            shortname: name.into(),
            namespace: namespace.into(),
        };
        let external = NameInfo { ips: vec!["240.240.0.9".into()], registry: "External".into(), ..Default::default() };
        let told = NameTable {
            table: [
                ("ledger.gopay.svc.cluster.local".to_owned(), service("ledger", "gopay", &["10.96.0.7", "10.96.0.8"])),
                ("web.shop.svc.cluster.local".to_owned(), service("web", "shop", &["2001:db8::7"])),
                ("Api.Example.com".to_owned(), external.clone()),
                ("*.wild.example.com".to_owned(), external),
            ]
            .into(),
        };
        Table::of(&told, "gopay")
    }

    fn ask(name: &str, kind: RecordType, shuffle: usize) -> Option<Vec<String>> {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        match answer(&table(), &query, shuffle) {
            Outcome::Reply(reply) => {
                assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
                Some(reply.answers.iter().map(|record| record.data.to_string()).collect())
            }
            Outcome::Forward => None,
        }
    }

    #[test]
    fn names_of_the_mesh_and_others() {
        for (name, kind, expected) in [
            ("ledger.gopay.svc.cluster.local.", RecordType::A, Some(vec!["10.96.0.7", "10.96.0.8"])),
            ("LEDGER.gopay.svc.", RecordType::A, Some(vec!["10.96.0.7", "10.96.0.8"])),
            ("ledger.gopay", RecordType::A, Some(vec!["10.96.0.7", "10.96.0.8"])),
            ("ledger", RecordType::A, Some(vec!["10.96.0.7", "10.96.0.8"])),
            ("ledger", RecordType::AAAA, Some(vec![])),
            ("ledger", RecordType::MX, Some(vec![])),
            ("web", RecordType::AAAA, None),
            ("web.shop", RecordType::AAAA, Some(vec!["2001:db8::7"])),
            ("api.example.com", RecordType::A, Some(vec!["240.240.0.9"])),
            ("a.b.wild.example.com", RecordType::A, Some(vec!["240.240.0.9"])),
            ("wild.example.com", RecordType::A, None),
            ("example.com", RecordType::A, None),
        ] {
            let expected: Option<Vec<String>> = expected.map(|all| all.into_iter().map(str::to_owned).collect());
            assert_eq!(ask(name, kind, 0), expected, "{name} {kind}");
        }
        assert_eq!(ask("ledger", RecordType::A, 3), Some(vec!["10.96.0.8".to_owned(), "10.96.0.7".to_owned()]));
    }
}
