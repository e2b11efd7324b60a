//! A view as text, short enough to be read in a review.
//!
//! Invariant: whatever decides traffic is in the text; what only repeats names is not.

use std::fmt::Write as _;

use carrick_mesh::view::{
    ClientSocket, Cluster, ClusterKind, GatewayListener, Inbound, InboundTarget, Load, MeshTls, ModeSource,
    OutboundListener, PortClass, Rest, Route, RouteTable, TcpForward, UserTls, View,
    gateway::{GatewayPayload, Topology},
    route::{Action, Condition, HeaderChanges, PathRewrite, PathTest, RedirectPath, Retries, TextTest},
};
use carrick_mesh::{
    Security,
    model::authz::{Attribute, AuthorizerKind, AuthzRule, Term, Text, Value},
    security::Custom,
};

/// The sections to show; `clusters=b.` shows those whose name holds `b.`.
pub fn view(view: &View, sections: &[String]) -> String {
    let mut out = String::new();
    for section in sections {
        let (section, part) = section.split_once('=').unwrap_or((section, ""));
        let holds = |name: &str| name.contains(part);
        match section {
            "in" => inbound(&mut out, &view.inbound),
            "security" => security(&mut out, &view.inbound.security),
            "clusters" => {
                view.outbound.clusters.iter().filter(|c| holds(&c.name)).for_each(|c| cluster(&mut out, c));
            }
            "traffic" => view.outbound.clusters.iter().filter(|c| holds(&c.name)).for_each(|c| traffic(&mut out, c)),
            "loads" => view.loads.iter().filter(|l| holds(&l.cluster)).for_each(|l| load(&mut out, l)),
            "listeners" => {
                let _ = writeln!(out, "  15001 {:?} rest to {}", view.outbound.listen_port, view.outbound.rest);
                view.outbound.listeners.iter().filter(|l| holds(&l.name)).for_each(|l| listener(&mut out, l));
            }
            "routes" => view.outbound.routes.iter().filter(|t| holds(&t.name)).for_each(|t| table(&mut out, t)),
            "gateway" => view.gateway.iter().flat_map(|g| &g.listeners).for_each(|l| gateway_listener(&mut out, l)),
            "secrets" => view.secrets.iter().for_each(|s| out.push_str(&format!("  {s:?}\n"))),
            other => panic!("no such section: {other}"),
        }
    }
    out
}

fn source(from: &ModeSource) -> String {
    match from {
        ModeSource::Default => "default".to_owned(),
        ModeSource::Mesh(name) => format!("mesh {name}"),
        ModeSource::Namespace(name) => format!("namespace {name}"),
        ModeSource::Workload(name) => format!("workload {name}"),
        ModeSource::Port(name) => format!("port of {name}"),
        ModeSource::Service(name) => format!("service's {name}"),
    }
}

fn security(out: &mut String, all: &Security) {
    match &all.custom {
        Custom::Nothing => {}
        Custom::Refuse => out.push_str("  custom refuses\n"),
        Custom::Ask(a) => {
            let kind = if a.kind == AuthorizerKind::Grpc { "grpc" } else { "http" };
            let _ = writeln!(out, "  custom asks {} by {kind} at {} within {}ms", a.name, a.cluster, a.timeout);
        }
    }
    for policy in all.custom_policies.iter().chain(&all.audit).chain(&all.deny).chain(&all.allow) {
        let dry = match (policy.dry_run, policy.requests_only) {
            (true, _) => " (dry)",
            (false, true) => " (requests only)",
            (false, false) => "",
        };
        let _ = writeln!(out, "  {} {}{dry}", policy.action.as_str(), policy.origin.name);
        for rule in &policy.rules {
            let _ = writeln!(out, "    {}", rule_text(rule));
            match rule.for_tcp(policy.action).filter(|_| !policy.requests_only) {
                Some(tcp) if tcp == *rule => {}
                Some(tcp) => {
                    let _ = writeln!(out, "      tcp {}", rule_text(&tcp));
                }
                None => out.push_str("      tcp none\n"),
            }
        }
    }
    for rule in &all.jwt {
        let _ = write!(out, "  JWT {} keys={}", rule.issuer, rule.jwks.matches("kty").count());
        if !rule.audiences.is_empty() {
            let _ = write!(out, " aud={}", rule.audiences.join(","));
        }
        for (name, prefix) in &rule.from_headers {
            let _ = write!(out, " header={name}:{prefix:?}");
        }
        rule.from_params.iter().for_each(|p| out.push_str(&format!(" param={p}")));
        rule.from_cookies.iter().for_each(|c| out.push_str(&format!(" cookie={c}")));
        if rule.forward {
            out.push_str(" forward");
        }
        if !rule.payload_header.is_empty() {
            let _ = write!(out, " payload->{}", rule.payload_header);
        }
        for (header, claim) in &rule.claim_headers {
            let _ = write!(out, " {claim}->{header}");
        }
        let _ = writeln!(out, " lists={}", rule.space_delimited.join(","));
    }
}

fn rule_text(rule: &AuthzRule) -> String {
    let terms = |terms: &[Term]| {
        let all: Vec<_> = terms.iter().map(term_text).collect();
        if all.is_empty() { "anything".to_owned() } else { all.join(" & ") }
    };
    let alternatives = |all: &[Vec<Term>]| all.iter().map(|t| terms(t)).collect::<Vec<_>>().join(" | ");
    let mut out = format!("[{}]", rule.index);
    for (name, part) in [("from", &rule.from), ("to", &rule.to)] {
        if !part.is_empty() {
            let _ = write!(out, " {name} {}", alternatives(part));
        }
    }
    if !rule.when.is_empty() {
        let _ = write!(out, " when {}", terms(&rule.when));
    }
    out
}

fn term_text(term: &Term) -> String {
    let values = |all: &[Value]| format!("({})", all.iter().map(value_text).collect::<Vec<_>>().join(" "));
    let name = match &term.attribute {
        Attribute::Claim(path) => format!("claim {}", path.join(".")),
        Attribute::Header(name) => format!("header {name}"),
        Attribute::FilterMetadata { filter, key } => format!("{filter} {key}"),
        other => format!("{other:?}"),
    };
    let any = if term.any.is_empty() { String::new() } else { format!(" in {}", values(&term.any)) };
    let none = if term.none.is_empty() { String::new() } else { format!(" not in {}", values(&term.none)) };
    format!("{name}{any}{none}")
}

fn value_text(value: &Value) -> String {
    let text = |text: &Text| match text {
        Text::Exact(text) => format!("={text}"),
        Text::Prefix(text) => format!("{text}.."),
        Text::Suffix(text) => format!("..{text}"),
        Text::Present => "something".to_owned(),
    };
    match value {
        Value::Text(value) => text(value),
        Value::Network(range) => format!("{}/{}", range.ip, range.length),
        Value::Port(port) => port.to_string(),
        Value::Template(template) => format!("template {template}"),
        Value::Namespace(name) => name.to_string(),
        Value::Account { namespace, name } => format!("{namespace}/{name}"),
        Value::Element(value) => format!("element {}", text(value)),
        Value::Subject { issuer, subject } => format!("{}+{}", text(issuer), text(subject)),
    }
}

fn class(class: PortClass) -> &'static str {
    match class {
        PortClass::Auto => "auto",
        PortClass::Http { h2: false } => "http",
        PortClass::Http { h2: true } => "http2",
        PortClass::Tcp => "tcp",
    }
}

fn inbound(out: &mut String, view: &Inbound) {
    let _ = writeln!(out, "  in * {} ({})", view.mode.as_str(), source(&view.mode_from));
    for port in &view.ports {
        let _ = write!(out, "  in {} {} {}", port.target, class(port.class), port.mode.as_str());
        let _ = write!(out, " ({}) for {}:{}", source(&port.mode_from), port.service, port.service_port);
        if let Some(pool) = &port.cluster.pool {
            let _ = write!(out, " max_connections={:?}", pool.max_connections);
        }
        match &port.cluster.to {
            InboundTarget::AsSent => {}
            InboundTarget::Loopback(port) => drop(write!(out, " to localhost:{port}")),
            InboundTarget::Pod(ip, port) => drop(write!(out, " to {ip}:{port}")),
            InboundTarget::Unix(path) => drop(write!(out, " to {path}")),
            InboundTarget::Nowhere => out.push_str(" to nowhere"),
        }
        if let Some(tls) = &port.tls {
            let roots = tls.roots.as_deref().unwrap_or("none");
            let _ = write!(out, " own tls {} clients={:?} roots={roots}", tls.certificate, tls.clients);
        }
        if let Some(ip) = &port.bind {
            let _ = write!(out, " bound at {ip}");
        }
        out.push('\n');
    }
    for port in &view.passthrough_ports {
        let mode = port.mode.as_str();
        let _ = writeln!(out, "  in {} passthrough {mode} ({})", port.port, source(&port.mode_from));
    }
    let domains: Vec<_> = view.tls.trust_domains.iter().map(|d| &**d).collect();
    if domains != ["cluster.local"] {
        let _ = writeln!(out, "  in trusts {}", domains.join(","));
    }
}

fn cluster(out: &mut String, cluster: &Cluster) {
    let kind = match cluster.kind {
        ClusterKind::Eds => "",
        ClusterKind::OriginalDst => " original-dst",
        ClusterKind::StrictDns => " strict-dns",
        ClusterKind::LogicalDns => " logical-dns",
        ClusterKind::DynamicForward => " dynamic",
    };
    let _ = write!(out, "  {}{kind} {}", cluster.name, socket(&cluster.socket));
    if let Some(rule) = &cluster.rule {
        let _ = write!(out, " by {rule}");
    }
    out.push('\n');
    if let Some(endpoints) = &cluster.endpoints {
        load(out, endpoints);
    }
}

fn socket(socket: &ClientSocket) -> String {
    match socket {
        ClientSocket::Plain(reason) => format!("plain ({reason:?})"),
        ClientSocket::Refused(reason) => format!("refused ({reason})"),
        ClientSocket::Auto(tls) => format!("auto {}", mesh(tls)),
        ClientSocket::Mesh(tls) => format!("mesh {}", mesh(tls)),
        ClientSocket::User(tls) => user(tls),
    }
}

fn mesh(tls: &MeshTls) -> String {
    let sans: Vec<_> = tls.sans.iter().map(|s| s.strip_prefix("spiffe://").unwrap_or(s)).collect();
    let files = tls.files.as_ref().map_or(String::new(), |f| format!(" files={}", f.chain));
    format!("sni={} sans=[{}] alpn={:?}{files}", tls.sni, sans.join(" "), tls.alpn)
}

fn user(tls: &UserTls) -> String {
    let mut out =
        format!("user sni={} auto_sni={} auto_san={}", tls.sni.as_deref().unwrap_or("-"), tls.auto_sni, tls.auto_san);
    let _ = write!(out, " sans=[{}]", tls.sans.join(" "));
    let _ = write!(out, " roots={}", tls.roots.as_deref().unwrap_or("none"));
    let _ = write!(out, " cert={}", tls.certificate.as_deref().unwrap_or("none"));
    if let Some(crl) = &tls.crl {
        let _ = write!(out, " crl={crl}");
    }
    out
}

fn traffic(out: &mut String, cluster: &Cluster) {
    let pool = &cluster.limits.pool;
    let _ = write!(out, "  {} lb={:?} http={:?}", cluster.name, cluster.load_balancer, cluster.http);
    let _ = write!(out, " timeout={}ms max_connections={:?}", cluster.limits.connect_timeout, pool.max_connections);
    if let Some(most) = pool.max_requests_per_connection {
        let _ = write!(out, " max_requests_per_connection={most}");
    }
    if let Some(outlier) = &cluster.outlier_detection {
        let _ = write!(out, " outlier=5xx:{:?}/{}%", outlier.consecutive_5xx, outlier.max_ejection_percent);
    }
    if let Some(warmup) = &cluster.warmup {
        let _ = write!(out, " warmup={}ms/{}%", warmup.duration, warmup.minimum_percent.0);
    }
    if let Some(budget) = &cluster.retry_budget {
        let _ = write!(out, " retries={}%/{}", budget.percent.0, budget.minimum);
    }
    if let Some(header) = &cluster.proxy_header {
        let _ = write!(out, " proxy={header:?}");
    }
    if let Some(tunnel) = &cluster.tunnel {
        let _ = write!(out, " tunnel={}:{} post={}", tunnel.host, tunnel.port, tunnel.post);
    }
    let tls = match cluster.socket {
        ClientSocket::Plain(_) => "plain",
        ClientSocket::Auto(_) => "auto",
        ClientSocket::Mesh(_) => "mesh",
        ClientSocket::User(_) => "user",
        ClientSocket::Refused(_) => "refused",
    };
    let _ = writeln!(out, " tls={tls}");
}

fn load(out: &mut String, load: &Load) {
    let _ = write!(out, "  {} ->", load.cluster);
    for group in &load.groups {
        let place = group.locality.to_string();
        if !place.is_empty() || group.priority > 0 {
            let _ = write!(out, " [{place} priority {}", group.priority);
            if let Some(share) = group.share {
                let _ = write!(out, " share {share}");
            }
            out.push(']');
        }
        for endpoint in &group.endpoints {
            let _ = write!(out, " {}", endpoint.address);
            if endpoint.weight != 1 {
                let _ = write!(out, "({})", endpoint.weight);
            }
            if endpoint.mtls {
                out.push('*');
            }
        }
    }
    out.push_str(if load.groups.is_empty() { " -\n" } else { "\n" });
}

fn forward(to: &TcpForward) -> String {
    let mut out = to.clusters.iter().map(|(c, _)| &**c).collect::<Vec<_>>().join("+");
    if let Some((target, _)) = &to.tunnel {
        let _ = write!(out, " through a tunnel to {target}");
    }
    if to.source_hash {
        out.push_str(" by source");
    }
    out
}

fn listener(out: &mut String, listener: &OutboundListener) {
    let target = match (&listener.http, &listener.tcp) {
        (Some(routes), None) => format!("http by {routes}"),
        (Some(routes), Some(to)) => format!("http by {routes}, else {}", forward(to)),
        (None, Some(to)) => format!("tcp to {}", forward(to)),
        (None, None) => format!("rest to {}", listener.rest),
    };
    let bound = if listener.bound { " bound" } else { "" };
    let _ = writeln!(out, "  {}{bound} {target}", listener.name);
    for chain in &listener.chains {
        let prefixes: Vec<_> = chain.prefixes.iter().map(|p| format!("{}/{}", p.ip, p.length)).collect();
        let names = chain.server_names.join(",");
        let _ = writeln!(out, "    [{names}] [{}] to {}", prefixes.join(","), forward(&chain.forward));
    }
}

fn table(out: &mut String, table: &RouteTable) {
    let rest = match &table.rest {
        Some(Rest::Forward(cluster)) if **cluster == *"PassthroughCluster" => "rest passes".to_owned(),
        Some(Rest::Forward(cluster)) => format!("rest to {cluster}"),
        Some(Rest::Refuse) => "rest is refused".to_owned(),
        None => "no rest".to_owned(),
    };
    let _ = writeln!(out, "  {} ({rest})", table.name);
    for host in &table.hosts {
        let domains = host.domains.join(" ");
        if host.require_tls || host.routes.is_empty() {
            let what = if host.require_tls { "https only" } else { "404" };
            let _ = writeln!(out, "    {domains} {what}");
        }
        for route in &host.routes {
            let _ = writeln!(out, "    {domains}{} {}", condition(&route.condition), action(&route.action));
            rest_of_route(out, route);
        }
    }
}

fn test(test: &TextTest) -> String {
    match test {
        TextTest::Present => "?".to_owned(),
        TextTest::Exact(text) => format!("={text}"),
        TextTest::Prefix(text) => format!("={text}*"),
        TextTest::Regex(text) => format!("~{text}"),
    }
}

fn condition(from: &Condition) -> String {
    let mut out = match &from.path {
        PathTest::Any => String::new(),
        PathTest::Exact(path) => format!(" path={path}"),
        PathTest::Prefix(path) => format!(" path={path}*"),
        PathTest::Regex(path) => format!(" path~{path}"),
    };
    if from.ignore_case {
        out.push_str(" any-case");
    }
    for header in &from.headers {
        let _ = write!(out, " {}{}{}", if header.inverted { "!" } else { "" }, header.name, test(&header.test));
    }
    for (name, value) in &from.query {
        let _ = write!(out, " ?{name}{}", test(value));
    }
    for claim in &from.claims {
        let _ =
            write!(out, " {}jwt:{}{}", if claim.inverted { "!" } else { "" }, claim.path.join("/"), test(&claim.test));
    }
    out
}

fn changes(from: &HeaderChanges) -> String {
    let mut out = String::new();
    for (side, change) in [(">", &from.request), ("<", &from.response)] {
        change.set.iter().for_each(|(k, v)| out.push_str(&format!(" {side}{k}:={v}")));
        change.add.iter().for_each(|(k, v)| out.push_str(&format!(" {side}{k}:+{v}")));
        change.remove.iter().for_each(|k| out.push_str(&format!(" {side}-{k}")));
    }
    out
}

fn action(from: &Action) -> String {
    let forward = match from {
        Action::Direct { status, body } => return format!("answers {status} {}", String::from_utf8_lossy(body)),
        Action::Redirect(to) => {
            let path = match &to.path {
                None => String::new(),
                Some(RedirectPath::Whole(path)) => path.to_string(),
                Some(RedirectPath::Matched(path)) => format!("{path}…"),
            };
            let port = to.port.map_or(String::new(), |p| format!(":{p}"));
            return format!("redirects {} {}://{}{port}{path}", to.status, to.scheme, to.authority);
        }
        Action::Forward(forward) => forward,
    };
    let alone = forward.destinations.len() == 1;
    let each = forward.destinations.iter().map(|d| {
        let weight = if alone { String::new() } else { format!("{}*", d.weight) };
        let alpn = d.alpn.map_or(String::new(), |a| format!(" alpn={a:?}"));
        let authority = d.authority.as_ref().map_or(String::new(), |a| format!(" as {a}"));
        format!("{weight}{}{alpn}{authority}{}", d.cluster, changes(&d.headers))
    });
    let mut out = format!("-> {}", each.collect::<Vec<_>>().join(" | "));
    if forward.timeout > 0 {
        let _ = write!(out, " timeout={}", forward.timeout);
    }
    match &forward.retries {
        None => out.push_str(" no-retries"),
        Some(retries) if *retries != Retries::standard(true) => {
            let _ = write!(out, " {retries:?}");
        }
        Some(_) => {}
    }
    match &forward.path {
        None => {}
        Some(PathRewrite::Matched(path)) => out.push_str(&format!(" rewrites matched to {path}")),
        Some(PathRewrite::Whole(path)) => out.push_str(&format!(" rewrites path to {path}")),
        Some(PathRewrite::Regex { pattern, with }) => out.push_str(&format!(" rewrites {pattern} to {with}")),
    }
    if let Some(authority) = &forward.authority {
        let _ = write!(out, " authority={authority}");
    }
    for (cluster, share) in &forward.mirrors {
        let _ = write!(out, " mirror={cluster}/{share}");
    }
    if let Some(hash) = &forward.hash {
        let _ = write!(out, " hash={hash:?}");
    }
    out
}

fn rest_of_route(out: &mut String, route: &Route) {
    let changes = changes(&route.headers);
    let mut line = |text: String| out.push_str(&format!("      {text}\n"));
    if !changes.is_empty() {
        line(format!("headers{changes}"));
    }
    if let Some(fault) = &route.fault {
        line(format!("{fault:?}"));
    }
    if let Some(cors) = &route.cors {
        line(format!("{cors:?}"));
    }
    if !route.stat_prefix.is_empty() || (*route.name != *"default" && !route.name.is_empty()) {
        line(format!("name={} stat={} operation={}", route.name, route.stat_prefix, route.operation));
    }
}

fn gateway_listener(out: &mut String, listener: &GatewayListener) {
    let plain = listener.topology == Topology::default();
    let topology = if plain { String::new() } else { format!(" {:?}", listener.topology) };
    let _ = writeln!(out, "  {}{topology}", listener.name);
    for chain in &listener.chains {
        let networks: Vec<_> = chain.networks.iter().map(|n| format!(" {}/{}", n.ip, n.length)).collect();
        let names = if chain.server_names.is_empty() { "*".to_owned() } else { chain.server_names.join(" ") };
        let payload = match &chain.payload {
            GatewayPayload::Http { routes } => format!("http by {routes}"),
            GatewayPayload::Tcp { to, judged: true } => format!("tcp to {}", forward(to)),
            GatewayPayload::Tcp { to, judged: false } => format!("tcp unjudged to {}", forward(to)),
        };
        let _ = writeln!(out, "    {names}{} {payload}", networks.concat());
        if let Some(tls) = &chain.tls {
            let _ = writeln!(out, "      {tls:?}");
        }
    }
}
