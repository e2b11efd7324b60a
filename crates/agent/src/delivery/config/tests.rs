//! The file as people write it, and what is said of mistakes.

use super::*;

const GOOD: &str = r#"
metrics: 127.0.0.1:15026
askEvery: 5m
certificates:
- secret: web-tls
  directory: /etc/nginx/certs
  group: www-data
  files:
  - {content: chain, name: tls.crt}
  - {content: key, name: tls.key, mode: "0640"}
  - {content: ca, name: ca.crt, owner: 0}
  reload: {command: [nginx, -s, reload], timeout: 10s}
  proof: {address: "127.0.0.1:443", serverName: web.example.com, period: 30s}
- name: balancer
  secret: web-tls
  files: [{content: combined, path: /etc/haproxy/web.pem}]
  proof: {address: "[::1]:5432", startTls: postgres}
"#;

#[test]
fn what_is_written_is_what_is_meant() {
    let config = parse(GOOD).unwrap();
    let [web, balancer] = config.certificates.as_slice() else { panic!("two") };
    assert_eq!((web.name.as_str(), config.ask_every.as_secs()), ("web-tls", 300));
    let modes: Vec<u32> = web.files.iter().map(|f| f.mode).collect();
    assert_eq!(modes, [0o644, 0o640, 0o644]);
    let group = Some(Account::Name("www-data".into()));
    assert!(web.files.iter().all(|f| f.group == group));
    assert_eq!(web.files[2].owner, Some(Account::Id(0)));
    assert_eq!(web.path(&web.files[1]), Some("/etc/nginx/certs/tls.key".into()));
    assert_eq!(balancer.files[0].mode, 0o600, "a private key's default");
    let proof = balancer.proof.as_ref().unwrap();
    assert_eq!((proof.server_name.as_str(), proof.start_tls), ("::1", Some(StartTls::Postgres)));
    assert_eq!(proof.period.as_secs(), 60);
}

#[test]
fn mistakes_name_their_field() {
    let one = |spec: &str| parse(&format!("certificates:\n- {spec}\n")).unwrap_err().join("; ");
    for (spec, wants) in [
        ("{files: [{content: ca, path: /a}]}", "certificates[0].secret: missing"),
        ("{secret: a}", "certificates[0].files: missing"),
        ("{secret: a, files: []}", "certificates[0].files: must be a list that is not empty"),
        ("{secret: a, colour: red, files: [{content: ca, path: /a}]}", "certificates[0].colour: unknown field"),
        ("{secret: A_, files: [{content: ca, path: /a}]}", "certificates[0].secret: \"A_\" is no name"),
        ("{secret: a, files: [{content: pem, path: /a}]}", "certificates[0].files[0].content: \"pem\" is none of"),
        ("{secret: a, files: [{content: ca, path: a}]}", "files[0].path: \"a\" is no absolute path"),
        ("{secret: a, files: [{content: ca, path: /x/../y}]}", "files[0].path: \"/x/../y\" is no absolute path"),
        ("{secret: a, files: [{content: ca, name: x}]}", "files[0].name: needs a directory"),
        ("{secret: a, files: [{content: ca}]}", "files[0]: needs a name in the directory, or a path"),
        ("{secret: a, directory: /d, files: [{content: ca, name: ..x}]}", "files[0].name: \"..x\" is no file's name"),
        ("{secret: a, directory: /d, files: [{content: ca, name: x, path: /x}]}", "not both"),
        ("{secret: a, files: [{content: key, path: /k, mode: \"0644\"}]}", "files[0].mode: 0644 lets everybody at"),
        ("{secret: a, files: [{content: ca, path: /k, mode: \"9\"}]}", "files[0].mode: \"9\" is no mode"),
        (
            "{secret: a, files: [{content: key, path: /k}, {content: chain, path: /c}]}",
            "files: key and certificate must be replaced together",
        ),
        ("{secret: a, files: [{content: ca, path: /a}, {content: chain, path: /a}]}", "/a is written twice"),
        ("{secret: a, files: [{content: ca, path: /a}], reload: {command: x}}", "reload.command: must be a list"),
        ("{secret: a, files: [{content: ca, path: /a}], proof: {address: x}}", "proof.address: \"x\" is no host:port"),
        (
            "{secret: a, files: [{content: ca, path: /a}], proof: {address: 'x:1', period: 10ms}}",
            "proof.period: \"10ms\" is less than a second",
        ),
        ("{secret: a, files: [{content: ca, path: /a}], proof: {address: 'x:1', startTls: smtp}}", "is not postgres"),
    ] {
        let told = one(spec);
        assert!(told.contains(wants), "{spec}: {told}");
    }
    assert!(parse("- a").unwrap_err()[0].contains("must be a mapping"));
    assert!(parse("a: b: c").unwrap_err()[0].starts_with("not YAML"));
    let twice = "certificates:\n- {secret: a, files: [{content: ca, path: /a}]}\n- {secret: a, files: [{content: ca, path: /b}]}";
    assert!(parse(twice).unwrap_err()[0].contains("is the name of another one too"));
}
