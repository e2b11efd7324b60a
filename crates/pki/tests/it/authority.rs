//! What the authority keeps and signs.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use carrick_pki::ca::CaError;
use carrick_pki::{Authority, CaOptions, CertificateInfo, Identity, KeyAlgorithm, Subject, csr, pem};

use crate::lab::{Folder, authority, authority_at, openssl, spiffe};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn openssl_accepts_what_is_signed() {
    for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384, KeyAlgorithm::Rsa2048, KeyAlgorithm::Rsa3072] {
        let folder = Folder::new();
        let ca = authority(&folder, algorithm);
        let (_, request) = csr::new(KeyAlgorithm::EcdsaP256).unwrap();
        let subject = Subject::Workload(spiffe("shop", "web"));
        let issued = ca.sign(&request, &subject, None, SystemTime::now()).unwrap();
        assert_eq!(issued.chain.len(), 1, "a root is not sent");
        let root = folder.write("root.pem", &issued.root_bundle);
        let leaf = folder.write("leaf.pem", &issued.chain[0]);
        let (root, leaf) = (root.to_str().unwrap(), leaf.to_str().unwrap());
        for purpose in ["sslclient", "sslserver"] {
            let (ok, text) = openssl(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile", root, leaf]);
            assert!(ok, "{algorithm} {purpose}: {text}");
        }
        let (_, text) = openssl(&["x509", "-noout", "-text", "-in", leaf]);
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "Subject: X509v3",
            "X509v3 Subject Alternative Name: critical URI:spiffe://cluster.local/ns/shop/sa/web",
            "X509v3 Key Usage: critical Digital Signature, Key Encipherment",
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "CA:FALSE",
        ] {
            // The subject is empty, so the line that follows it differs with the version of OpenSSL.
            let found = if part.starts_with("Subject:") {
                text.contains("Subject: \n") || text.contains("Subject:\n")
            } else {
                flat.contains(part)
            };
            assert!(found, "{part:?} not in {text}");
        }
        let (_, text) = openssl(&["x509", "-noout", "-text", "-in", root]);
        assert!(text.contains("CN = cluster.local") || text.contains("CN=cluster.local"), "{text}");
        assert!(text.contains("Certificate Sign") && text.contains("CA:TRUE"), "{text}");
    }
}

#[test]
fn requests_of_others_are_accepted_and_their_wishes_ignored() {
    let folder = Folder::new();
    let ca = authority(&folder, KeyAlgorithm::EcdsaP256);
    let config = folder.write(
        "req.cnf",
        "[req]\ndistinguished_name=dn\nreq_extensions=ext\nprompt=no\n[dn]\nO=Evil\nCN=root\n[ext]\n\
         subjectAltName=URI:spiffe://cluster.local/ns/istio-system/sa/istiod,DNS:example.com\n\
         basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\nextendedKeyUsage=codeSigning,1.2.3.4.5\n\
         1.2.3.4=ASN1:UTF8String:hello\nsubjectKeyIdentifier=hash\n",
    );
    for new_key in ["rsa:2048", "ec:P-256", "ec:P-384"] {
        let key = folder.path().join("k.pem");
        let out = folder.path().join("r.pem");
        let mut args = vec!["req", "-new", "-nodes", "-config", config.to_str().unwrap()];
        let curve = new_key.strip_prefix("ec:").map(|c| format!("ec_paramgen_curve:{c}"));
        match &curve {
            Some(curve) => args.extend(["-newkey", "ec", "-pkeyopt", curve]),
            None => args.extend(["-newkey", new_key]),
        }
        args.extend(["-keyout", key.to_str().unwrap(), "-out", out.to_str().unwrap()]);
        let (ok, text) = openssl(&args);
        assert!(ok, "{text}");
        let request = std::fs::read_to_string(&out).unwrap();
        let id = spiffe("shop", "web");
        let issued = ca.sign(&request, &Subject::Workload(id.clone()), None, SystemTime::now()).unwrap();
        let chain = pem::certificates(issued.chain.concat().as_bytes()).unwrap();
        let info = CertificateInfo::read(&chain[0]).unwrap();
        assert_eq!((info.uris, info.dns, info.is_ca), (vec![id.to_string()], vec![], false), "{new_key}");
        assert_eq!(info.subject, "", "{new_key}");
        let identity = Identity::from_pem(issued.chain[0].as_bytes(), &std::fs::read(&key).unwrap()).unwrap();
        assert_eq!(identity.spiffe, Some(id));
        assert_eq!(identity.serial, issued.serial);
    }
}

#[test]
fn bad_requests_are_refused() {
    let folder = Folder::new();
    let ca = authority(&folder, KeyAlgorithm::EcdsaP256);
    let subject = Subject::Workload(spiffe("a", "b"));
    let (_, good) = csr::new(KeyAlgorithm::EcdsaP256).unwrap();
    let der = {
        use rustls_pki_types::pem::PemObject as _;
        rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().as_ref().to_vec()
    };
    let encode = |der: &[u8]| pem::encode_certificate(der).replace("CERTIFICATE-", "CERTIFICATE REQUEST-");
    assert!(ca.sign(&encode(&der), &subject, None, SystemTime::now()).is_ok(), "the test's own encoding");
    // Every single-byte change of what the signature covers is refused; outside of it there are bits without meaning.
    let signed = {
        use x509_parser::prelude::FromDer as _;
        let (_, request) = x509_parser::prelude::X509CertificationRequest::from_der(&der).unwrap();
        let info = request.certification_request_info.raw;
        let start = der.windows(info.len()).position(|w| w == info).unwrap();
        start..start + info.len()
    };
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 0x01;
        let result = ca.sign(&encode(&changed), &subject, None, SystemTime::now());
        let refused = matches!(result, Err(CaError::Csr(_)));
        assert!(refused || !signed.contains(&at), "byte {at}: {result:?}");
    }
    let weak = folder.path().join("weak.pem");
    let (ok, text) = openssl(&[
        "req",
        "-new",
        "-nodes",
        "-newkey",
        "rsa:1024",
        "-subj",
        "/CN=x",
        "-keyout",
        "/dev/null",
        "-out",
        weak.to_str().unwrap(),
    ]);
    assert!(ok, "{text}");
    let long = format!("{good}{}", " ".repeat(40_000));
    for request in ["", "-----BEGIN CERTIFICATE REQUEST-----", &std::fs::read_to_string(weak).unwrap(), &long] {
        let error = ca.sign(request, &subject, None, SystemTime::now()).unwrap_err();
        assert!(error.is_callers_fault(), "{error}");
    }
}

#[test]
fn lives_of_leaves() {
    let folder = Folder::new();
    let start = SystemTime::UNIX_EPOCH + DAY * 20_000;
    let ca = authority_at(&folder, KeyAlgorithm::EcdsaP256, start);
    let subject = Subject::Workload(spiffe("a", "b"));
    let (_, request) = csr::new(KeyAlgorithm::EcdsaP256).unwrap();
    let end = start + DAY * 3650;
    let life = |ttl, now| ca.sign(&request, &subject, ttl, now).map(|i| i.not_after);

    assert_eq!(life(None, start).unwrap(), start + DAY);
    assert_eq!(life(Some(Duration::ZERO), start).unwrap(), start + DAY);
    assert_eq!(life(Some(HOUR), start).unwrap(), start + HOUR);
    assert_eq!(life(Some(DAY * 90), start).unwrap(), start + DAY * 90);
    assert!(matches!(life(Some(DAY * 90 + Duration::from_secs(1)), start), Err(CaError::Ttl { .. })));
    assert_eq!(life(None, end - HOUR).unwrap(), end, "a leaf does not outlive its signer");
    assert!(matches!(life(None, end), Err(CaError::SignerExpired)));

    // Clocks that are behind: two minutes at least, an hour at most.
    for (ttl, before) in [(60, 120), (3600, 150), (24 * 3600, 3600), (90 * 24 * 3600, 3600)] {
        let ttl = Duration::from_secs(ttl);
        let issued = ca.sign(&request, &subject, Some(ttl), start).unwrap();
        let info = CertificateInfo::read(&pem::certificates(issued.chain[0].as_bytes()).unwrap()[0]).unwrap();
        assert_eq!((info.not_before, info.not_after), (start - Duration::from_secs(before), start + ttl));
    }
    let issued = ca.sign(&request, &subject, Some(HOUR), start).unwrap();
    let again = ca.sign(&request, &subject, Some(HOUR), start).unwrap();
    assert_ne!(issued.serial, again.serial);
    assert_eq!(issued.serial.len(), 32);
}

#[test]
fn the_folder_survives_and_is_private() {
    let folder = Folder::new();
    let first = authority(&folder, KeyAlgorithm::EcdsaP256);
    let dir = folder.path().join("ca");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for name in ["ca-key.pem", "ca-cert.pem", "root-cert.pem"] {
        assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
    }
    // An opened-up key is closed again; the authority is the same.
    std::fs::set_permissions(dir.join("ca-key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let second = authority(&folder, KeyAlgorithm::Rsa2048);
    assert_eq!(second.roots(), first.roots());
    assert_eq!(mode(&dir.join("ca-key.pem")), 0o600);
    assert!(!format!("{second:?}").contains("BEGIN"));
}

#[test]
fn damaged_folders() {
    let open =
        |folder: &Folder| Authority::load_or_create(&folder.path().join("ca"), CaOptions::default(), SystemTime::now());
    // Stopped between the key and the certificate: finished with the same key.
    let folder = Folder::new();
    authority(&folder, KeyAlgorithm::EcdsaP256);
    let dir = folder.path().join("ca");
    let key = std::fs::read(dir.join("ca-key.pem")).unwrap();
    std::fs::remove_file(dir.join("ca-cert.pem")).unwrap();
    std::fs::write(dir.join("ca-cert.tmp"), "half").unwrap();
    assert!(open(&folder).is_ok());
    assert_eq!(std::fs::read(dir.join("ca-key.pem")).unwrap(), key);

    // Anything else is not repaired by guessing.
    let other = Folder::new();
    authority(&other, KeyAlgorithm::EcdsaP256);
    let theirs = |name: &str| std::fs::read(other.path().join("ca").join(name)).unwrap();
    for (name, content) in [
        ("ca-key.pem", Some(theirs("ca-key.pem"))),
        ("ca-key.pem", Some(b"junk".to_vec())),
        ("ca-key.pem", None),
        ("ca-cert.pem", Some(theirs("ca-cert.pem"))),
        ("ca-cert.pem", Some(Vec::new())),
        ("root-cert.pem", Some(theirs("root-cert.pem"))),
        ("root-cert.pem", None),
    ] {
        let folder = Folder::new();
        authority(&folder, KeyAlgorithm::EcdsaP256);
        let path = folder.path().join("ca").join(name);
        match &content {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let error = open(&folder).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(".pem"), "{name}: {error}");
    }
}

#[test]
fn a_plugged_in_intermediate_is_sent_along() {
    let folder = Folder::new();
    let dir = folder.path().join("ca");
    std::fs::create_dir_all(&dir).unwrap();
    let p = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let root_key = folder.path().join("root-key.pem").to_str().unwrap().to_owned();
    let csr_path = folder.path().join("int.csr").to_str().unwrap().to_owned();
    let ext = folder.write("ext", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n");
    for args in [
        vec![
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "rsa:2048",
            "-subj",
            "/O=Bank/CN=root",
            "-days",
            "9",
            "-keyout",
            &root_key,
            "-out",
            &p("root-cert.pem"),
        ],
        vec![
            "req",
            "-new",
            "-nodes",
            "-newkey",
            "rsa:2048",
            "-subj",
            "/O=Bank/CN=mesh",
            "-keyout",
            &p("ca-key.pem"),
            "-out",
            &csr_path,
        ],
        vec![
            "x509",
            "-req",
            "-in",
            &csr_path,
            "-CA",
            &p("root-cert.pem"),
            "-CAkey",
            &root_key,
            "-CAcreateserial",
            "-days",
            "8",
            "-extfile",
            ext.to_str().unwrap(),
            "-out",
            &p("ca-cert.pem"),
        ],
    ] {
        let (ok, text) = openssl(&args);
        assert!(ok, "{text}");
    }
    let ca = authority(&folder, KeyAlgorithm::EcdsaP256);
    let (_, request) = csr::new(KeyAlgorithm::EcdsaP256).unwrap();
    let issued = ca.sign(&request, &Subject::Workload(spiffe("a", "b")), Some(DAY * 30), SystemTime::now()).unwrap();
    assert_eq!(issued.chain.len(), 2);
    assert_eq!(issued.not_after, ca.not_after(), "clamped to the intermediate");
    let leaf = folder.write("leaf.pem", &issued.chain[0]);
    let intermediate = folder.write("int.pem", &issued.chain[1]);
    let (ok, text) = openssl(&[
        "verify",
        "-CAfile",
        &p("root-cert.pem"),
        "-untrusted",
        intermediate.to_str().unwrap(),
        leaf.to_str().unwrap(),
    ]);
    assert!(ok, "{text}");
}

#[test]
fn servers_of_our_own() {
    let folder = Folder::new();
    let ca = authority(&folder, KeyAlgorithm::EcdsaP256);
    let subject = Subject::Server { dns: vec!["istiod.istio-system.svc".into()], ips: vec![[10, 244, 0, 1].into()] };
    let identity = ca.issue(&subject, None, SystemTime::now()).unwrap();
    let info = CertificateInfo::read(&identity.chain[0]).unwrap();
    assert_eq!(info.dns, ["istiod.istio-system.svc"]);
    assert_eq!(info.ips, [std::net::IpAddr::from([10, 244, 0, 1])]);
    assert_eq!(identity.spiffe, None);
    assert!(!format!("{identity:?}").contains("PRIVATE"));
    let nobody = Subject::Server { dns: vec![], ips: vec![] };
    assert!(matches!(ca.issue(&nobody, None, SystemTime::now()), Err(CaError::Name(_))));
}
