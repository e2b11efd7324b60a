//! One question and the table → what to say (the names of Kubernetes' DNS specification).
//!
//! Invariant: pure; a name of the cluster is never asked elsewhere, any other name never answered from the table. A name that exists
//! without a record of the asked type is an empty NOERROR, so that a resolver goes on to ask for the other address family (spec §21.3).

use std::net::Ipv4Addr;

use carrick_dns::reply_to;
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, PTR, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::table::{DnsService, DnsTable};

/// Seconds that an answer may be kept; short, since a headless service's answers are its pods.
const TTL: u32 = 5;

/// What to do with a question.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Say this.
    Reply(Message),
    /// Ask the host's servers.
    Forward,
    /// Say this, with the answers that the host's servers have for the name it points to.
    Alias(Message, Name),
}

/// Decides. `shuffle` is a random number that turns the order of several addresses; `mesh` is the namespace whose ServiceEntries count, if
/// any do: a pod without a sidecar cannot reach their automatic addresses, and a sidecar itself asks for the real ones.
pub(crate) fn answer(
    table: Option<&DnsTable>,
    domain: &str,
    query: &Message,
    shuffle: usize,
    mesh: Option<&str>,
) -> Outcome {
    let mut reply = reply_to(query, ResponseCode::NoError);
    let (OpCode::Query, MessageType::Query, [question]) =
        (query.metadata.op_code, query.metadata.message_type, query.queries.as_slice())
    else {
        let code = if query.metadata.op_code == OpCode::Query { ResponseCode::FormErr } else { ResponseCode::NotImp };
        return Outcome::Reply(reply_to(query, code));
    };
    if question.query_class() != DNSClass::IN {
        return Outcome::Reply(reply_to(query, ResponseCode::Refused));
    }
    let text = question.name().to_ascii().to_ascii_lowercase();
    let text = text.trim_end_matches('.');
    if let Some(ip) = reverse(text) {
        // An address of no service may well have a name outside.
        let Some(target) = table.and_then(|table| owner(table, ip, domain)) else { return Outcome::Forward };
        if question.query_type() == RecordType::PTR {
            reply.add_answer(Record::from_rdata(question.name().clone(), TTL, RData::PTR(PTR(target))));
        }
        return Outcome::Reply(authoritative(reply));
    }
    let entry = || table.zip(mesh).and_then(|(table, namespace)| table.host(text, namespace));
    let entry = || entry().map(|host| Found::Addresses(host.ips.clone()));
    let found = match (within(text, domain), table) {
        (None, _) => match entry() {
            Some(found) => found,
            None => return Outcome::Forward,
        },
        (Some(_), None) => return Outcome::Reply(reply_to(query, ResponseCode::ServFail)),
        (Some(inside), Some(table)) => match lookup(table, inside, domain).or_else(entry) {
            Some(found) => found,
            None => return Outcome::Reply(authoritative(reply_to(query, ResponseCode::NXDomain))),
        },
    };
    let name = question.name().clone();
    let kind = question.query_type();
    match found {
        Found::Nothing => {}
        Found::Addresses(mut ips) if matches!(kind, RecordType::A | RecordType::ANY) => {
            if !ips.is_empty() {
                let turn = shuffle % ips.len();
                ips.rotate_left(turn);
            }
            reply.add_answers(ips.into_iter().map(|ip| Record::from_rdata(name.clone(), TTL, RData::A(A(ip)))));
        }
        Found::Addresses(_) => {}
        Found::Ports(records) if matches!(kind, RecordType::SRV | RecordType::ANY) => {
            for (target, port, ip) in records {
                let weight = SRV::new(0, 100, port, target.clone());
                reply.add_answer(Record::from_rdata(name.clone(), TTL, RData::SRV(weight)));
                reply.add_additional(Record::from_rdata(target, TTL, RData::A(A(ip))));
            }
        }
        Found::Ports(_) => {}
        Found::Other(target) => {
            reply.add_answer(Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.clone()))));
            if kind == RecordType::CNAME {
                return Outcome::Reply(authoritative(reply));
            }
            let text = target.to_ascii().to_ascii_lowercase();
            let inside = within(text.trim_end_matches('.'), domain);
            let Some(inside) = inside else { return Outcome::Alias(authoritative(reply), target) };
            // The host's servers do not know the cluster's own names. One step: a name that stands for another is not followed further.
            if let Some(Found::Addresses(ips)) = table.and_then(|table| lookup(table, inside, domain))
                && matches!(kind, RecordType::A | RecordType::ANY)
            {
                reply.add_answers(ips.into_iter().map(|ip| Record::from_rdata(target.clone(), TTL, RData::A(A(ip)))));
            }
        }
    }
    Outcome::Reply(authoritative(reply))
}

fn authoritative(mut reply: Message) -> Message {
    reply.metadata.authoritative = true;
    reply
}

/// What a name in the cluster stands for.
enum Found {
    /// It exists, as a node of the tree.
    Nothing,
    Addresses(Vec<Ipv4Addr>),
    Ports(Vec<(Name, u16, Ipv4Addr)>),
    Other(Name),
}

/// The labels before the domain; an empty string is the domain itself.
fn within<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() { Some("") } else { rest.strip_suffix('.') }
}

fn lookup(table: &DnsTable, inside: &str, domain: &str) -> Option<Found> {
    let labels: Vec<&str> = inside.split('.').collect();
    match labels.as_slice() {
        [""] | ["svc"] | ["pod"] => Some(Found::Nothing),
        [namespace, "svc" | "pod"] => {
            let suffix = format!(".{namespace}");
            table.services.keys().any(|key| key.ends_with(&suffix)).then_some(Found::Nothing)
        }
        [dashed, _namespace, "pod"] => dashed.replace('-', ".").parse().ok().map(|ip| Found::Addresses(vec![ip])),
        [name, namespace, "svc"] => service(table.services.get(&format!("{name}.{namespace}"))?),
        [label, name, namespace, "svc"] => {
            let service = table.services.get(&format!("{name}.{namespace}"))?;
            if matches!(*label, "_tcp" | "_udp") {
                return Some(Found::Nothing);
            }
            let of: Vec<Ipv4Addr> =
                service.endpoints.iter().filter(|end| end.label() == *label).map(|end| end.ip).collect();
            (!of.is_empty()).then_some(Found::Addresses(of))
        }
        [port, protocol, name, namespace, "svc"] => {
            let (port, protocol) = (port.strip_prefix('_')?, protocol.strip_prefix('_')?);
            let service = table.services.get(&format!("{name}.{namespace}"))?;
            ports(service, &format!("{name}.{namespace}.svc.{domain}."), port, protocol)
        }
        _ => None,
    }
}

fn service(service: &DnsService) -> Option<Found> {
    if let Some(other) = &service.external_name {
        return Name::from_ascii(format!("{}.", other.trim_end_matches('.'))).ok().map(Found::Other);
    }
    let ips: Vec<Ipv4Addr> = service.ips.iter().copied().chain(service.endpoints.iter().map(|end| end.ip)).collect();
    Some(Found::Addresses(ips))
}

fn ports(service: &DnsService, host: &str, port: &str, protocol: &str) -> Option<Found> {
    let number = service.ports.iter().find(|known| known.name == port && known.protocol == protocol)?.port;
    let mut records = Vec::new();
    if let Ok(target) = Name::from_ascii(host) {
        records.extend(service.ips.iter().map(|ip| (target.clone(), number, *ip)));
    }
    for end in &service.endpoints {
        if let (Some(number), Ok(target)) = (end.ports.get(port), Name::from_ascii(format!("{}.{host}", end.label()))) {
            records.push((target, *number, end.ip));
        }
    }
    Some(Found::Ports(records))
}

fn reverse(name: &str) -> Option<Ipv4Addr> {
    let mut octets: Vec<&str> = name.strip_suffix(".in-addr.arpa")?.split('.').collect();
    octets.reverse();
    octets.join(".").parse().ok()
}

fn owner(table: &DnsTable, ip: Ipv4Addr, domain: &str) -> Option<Name> {
    table.services.iter().find_map(|(key, service)| {
        if service.ips.contains(&ip) {
            return Name::from_ascii(format!("{key}.svc.{domain}.")).ok();
        }
        let end = service.endpoints.iter().find(|end| end.ip == ip)?;
        Name::from_ascii(format!("{}.{key}.svc.{domain}.", end.label())).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use serde_json::json;

    fn table() -> DnsTable {
        serde_json::from_value(json!({"services": {
            "kyc.basic": {"ips": ["10.96.1.2"], "ports": [{"name": "http", "protocol": "tcp", "port": 80}]},
            "db.basic": {"endpoints": [
                {"ip": "10.244.0.5", "host_name": "db-0", "ports": {"pg": 5432}},
                {"ip": "10.244.0.6", "host_name": null, "ports": {"pg": 5433}},
            ], "ports": [{"name": "pg", "protocol": "tcp", "port": 1}]},
            "idle.basic": {},
            "out.basic": {"external_name": "example.com"},
            "nick.basic": {"external_name": "kyc.basic.svc.cluster.local"},
        }, "hosts": {
            "api.partner.com": [{"namespace": "other", "ips": ["240.240.0.9"]}, {"namespace": "basic", "ips": ["240.240.0.1"]}],
            "*.wild.com": [{"namespace": "other", "ips": ["192.0.2.1"]}],
            "hidden.com": [{"namespace": "other", "visible_in": ["other"], "ips": ["240.240.0.2"]}],
            "old.basic.svc.cluster.local": [{"namespace": "basic", "ips": ["240.240.0.3"]}],
            "kyc.basic.svc.cluster.local": [{"namespace": "basic", "ips": ["240.240.0.4"]}],
        }}))
        .unwrap()
    }

    /// Code and answers as text, or where else to ask.
    fn ask(name: &str, kind: RecordType) -> String {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        match answer(Some(&table()), "cluster.local", &query, 0, Some("basic")) {
            Outcome::Forward => "forward".into(),
            Outcome::Alias(_, name) => format!("alias {name}"),
            Outcome::Reply(reply) => {
                assert_eq!(reply.metadata.id, query.metadata.id);
                assert_eq!(reply.queries, query.queries);
                let answers: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
                format!("{:?} {}", reply.metadata.response_code, answers.join(", "))
            }
        }
    }

    #[test]
    fn names() {
        use RecordType as T;
        for (name, kind, expected) in [
            ("nick.basic.svc.cluster.local.", T::A, "NoError kyc.basic.svc.cluster.local., 10.96.1.2"),
            ("nick.basic.svc.cluster.local.", T::AAAA, "NoError kyc.basic.svc.cluster.local."),
            ("api.partner.com.", T::A, "NoError 240.240.0.1"),
            ("API.partner.com.", T::AAAA, "NoError "),
            ("a.b.wild.com.", T::A, "NoError 192.0.2.1"),
            ("wild.com.", T::A, "forward"),
            ("hidden.com.", T::A, "forward"),
            ("old.basic.svc.cluster.local.", T::A, "NoError 240.240.0.3"),
            ("kyc.basic.svc.cluster.local.", T::A, "NoError 10.96.1.2"),
            ("KYC.Basic.svc.cluster.local.", T::A, "NoError 10.96.1.2"),
            ("kyc.basic.svc.cluster.local.", T::AAAA, "NoError "),
            ("kyc.basic.svc.cluster.local.", T::TXT, "NoError "),
            ("db.basic.svc.cluster.local.", T::A, "NoError 10.244.0.5, 10.244.0.6"),
            ("db-0.db.basic.svc.cluster.local.", T::A, "NoError 10.244.0.5"),
            ("10-244-0-6.db.basic.svc.cluster.local.", T::A, "NoError 10.244.0.6"),
            ("db-7.db.basic.svc.cluster.local.", T::A, "NXDomain "),
            ("idle.basic.svc.cluster.local.", T::A, "NoError "),
            ("nobody.basic.svc.cluster.local.", T::A, "NXDomain "),
            ("nobody.basic.svc.cluster.local.", T::AAAA, "NXDomain "),
            ("basic.svc.cluster.local.", T::A, "NoError "),
            ("nowhere.svc.cluster.local.", T::A, "NXDomain "),
            ("kyc.basic.cluster.local.", T::A, "NXDomain "),
            ("_http._tcp.kyc.basic.svc.cluster.local.", T::SRV, "NoError 0 100 80 kyc.basic.svc.cluster.local."),
            ("_http._udp.kyc.basic.svc.cluster.local.", T::SRV, "NXDomain "),
            (
                "_pg._tcp.db.basic.svc.cluster.local.",
                T::SRV,
                "NoError 0 100 5432 db-0.db.basic.svc.cluster.local., 0 100 5433 10-244-0-6.db.basic.svc.cluster.local.",
            ),
            ("10-244-9-9.basic.pod.cluster.local.", T::A, "NoError 10.244.9.9"),
            ("2.1.96.10.in-addr.arpa.", T::PTR, "NoError kyc.basic.svc.cluster.local."),
            ("5.0.244.10.in-addr.arpa.", T::PTR, "NoError db-0.db.basic.svc.cluster.local."),
            ("1.1.1.1.in-addr.arpa.", T::PTR, "forward"),
            ("out.basic.svc.cluster.local.", T::A, "alias example.com."),
            ("example.com.", T::A, "forward"),
            ("notcluster.local.", T::A, "forward"),
        ] {
            assert_eq!(ask(name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn without_a_table_the_cluster_is_unknown_and_the_world_is_not() {
        for (name, expected) in [("a.b.svc.cluster.local.", "ServFail"), ("example.com.", "forward")] {
            let mut query = Message::query();
            query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
            let said = match answer(None, "cluster.local", &query, 0, Some("basic")) {
                Outcome::Reply(reply) => format!("{:?}", reply.metadata.response_code),
                Outcome::Forward => "forward".into(),
                Outcome::Alias(..) => "alias".into(),
            };
            assert_eq!(said, expected, "{name}");
        }
    }

    #[test]
    fn several_addresses_take_turns() {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii("db.basic.svc.cluster.local.").unwrap(), RecordType::A));
        let first = |shuffle| match answer(Some(&table()), "cluster.local", &query, shuffle, None) {
            Outcome::Reply(reply) => reply.answers[0].data.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!([first(0), first(1), first(2)], ["10.244.0.5", "10.244.0.6", "10.244.0.5"]);
    }
}
