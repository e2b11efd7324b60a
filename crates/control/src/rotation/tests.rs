//! What is found again after a process was killed, and who counts as a proxy.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use carrick_base::{SpiffeId, TrustDomain};
use carrick_certs::rotation::{Rotation, Step};
use carrick_pki::trust_service::Report;
use carrick_pki::{Authority, CaOptions, SetTexts, Subject};

use super::population::ReportError;
use super::*;

fn open(dir: &Path, plugged: Option<&Path>) -> Result<(Slots, Authority), SlotsError> {
    let opening = Opening {
        dir,
        plugged: plugged.map(Path::to_owned),
        token: None,
        tokens: Tokens::default(),
        options: CaOptions::default(),
    };
    Slots::open(opening, SystemTime::now())
}

#[test]
fn a_process_killed_in_any_step_finds_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let (mut slots, authority) = open(folder.path(), None).unwrap();
    let old = authority.set();
    let new = slots.make(now).unwrap();
    let mut rotation = Rotation::begin(old.id(), &new, Duration::ZERO, now).unwrap();
    for step in Step::ALL {
        rotation.enter(step, now);
        slots.state.rotation = Some(rotation.clone());
        slots.save().unwrap();
        // Killed while the next state was written: the half of it is not read.
        std::fs::write(folder.path().join("state.tmp"), "{\"issuer\":").unwrap();
        let (again, authority) = open(folder.path(), None).unwrap();
        assert_eq!(again.state, slots.state);
        let roots = if matches!(step, Step::Prepare | Step::Retire) { 1 } else { 2 };
        assert_eq!(authority.roots().roots().len(), roots, "{step:?}");
        let signer = if step >= Step::Switch { new.as_str() } else { old.id() };
        assert_eq!(authority.set().id(), signer, "{step:?}");
    }
    let private = |name: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(private("state.json"), 0o600);
    assert_eq!(private(&format!("sets/{new}/ca-key.pem")), 0o600);
    assert!(folder.path().join("ca-key.pem").exists(), "no key is lost");
}

#[test]
fn a_plugged_in_folder_comes_first_and_a_broken_one_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (plugged, own) = (folder.path().join("cacerts"), folder.path().join("ca"));
    let now = SystemTime::now();
    let error = open(&own, Some(&plugged)).unwrap_err();
    assert!(error.to_string().contains("no ca-cert.pem"), "{error}");
    SetTexts::self_signed(&CaOptions::default(), "bank", now).unwrap().write(&plugged).unwrap();
    let (slots, authority) = open(&own, Some(&plugged)).unwrap();
    assert!(authority.set().info().subject.contains("cluster.local bank"));
    assert!(!slots.state.slots[&slots.state.issuer].own);
    // What is in force was copied: the folder may go.
    std::fs::remove_dir_all(&plugged).unwrap();
    let (_, again) = open(&own, Some(&plugged)).unwrap();
    assert_eq!(again.set().id(), authority.set().id());
    // A state that names a set which is not the one on disk signs nothing.
    let sets = own.join("sets").join(authority.set().id());
    SetTexts::self_signed(&CaOptions::default(), "mallory", now).unwrap().write(&sets).unwrap();
    let error = open(&own, None).unwrap_err();
    assert!(error.to_string().contains("is expected"), "{error}");
}

fn report(authority: &Authority, name: &str) -> Report {
    let id = SpiffeId::istio(&TrustDomain::default(), "shop", "web");
    let identity = authority.issue(&Subject::Workload(id), None, SystemTime::now()).unwrap();
    Report {
        name: name.into(),
        trusts: authority.roots().fingerprints().into_iter().collect(),
        chain: identity.chain_pem(),
        engine: "native".into(),
    }
}

#[test]
fn who_leaves_is_remembered_until_its_pod_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (_, authority) = open(folder.path(), None).unwrap();
    let now = SystemTime::now();
    let population = Population::new(Vec::new(), now);
    let (first, second) = (population.stream(), population.stream());
    let roots = authority.roots();
    let take = |stream, name: &str| population.take(stream, "shop", &report(&authority, name), &roots, now);
    assert_eq!(take(first, "web-1").unwrap(), "web-1.shop");
    assert_eq!(take(second, "web-1").unwrap(), "web-1.shop");
    population.left(first, "web-1.shop", now);
    assert_eq!(population.all()[0].away, None, "its newer connection speaks for it");
    population.left(second, "web-1.shop", now);
    assert_eq!(population.all()[0].away, Some(now));
    assert_eq!(population.all()[0].told.as_ref().unwrap().leads_to, roots.fingerprints());
    population.pods(&BTreeSet::from(["web-1.shop".to_owned()]));
    let restarted = Population::new(population.known(), now);
    restarted.pods(&BTreeSet::from(["web-1.shop".to_owned()]));
    assert_eq!(restarted.all().len(), 1);
    restarted.pods(&BTreeSet::new());
    assert!(restarted.all().is_empty(), "it was a pod, and there is none");

    // A machine is no pod: it is waited for until a while after its certificate has ended.
    let vm = population.stream();
    take(vm, "vm-1").unwrap();
    population.left(vm, "vm-1.shop", now);
    population.pods(&BTreeSet::new());
    assert_eq!(population.all().len(), 1);
    population.forget_ended(now + Duration::from_secs(48 * 3600));
    assert!(population.all().is_empty());
}

#[test]
fn who_is_connected_and_says_nothing_counts_too() {
    let now = SystemTime::now();
    let population = Population::new(Vec::new(), now);
    population.silent(&BTreeSet::from(["a.b".to_owned()]), now);
    assert_eq!(population.all()[0].told, None);
    population.silent(&BTreeSet::new(), now);
    assert!(population.all().is_empty());
    let empty = Report::default();
    let roots = carrick_pki::TrustBundle::default();
    assert_eq!(population.take(1, "b", &empty, &roots, now), Err(ReportError::Name));
    let named = Report { name: "a/b".into(), ..empty.clone() };
    assert_eq!(population.take(1, "b", &named, &roots, now), Err(ReportError::Name));
    let bare = Report { name: "a".into(), ..empty };
    assert!(matches!(population.take(1, "b", &bare, &roots, now), Err(ReportError::Certificate(_))));
}

#[test]
fn an_own_root_is_due_when_a_fifth_of_its_life_is_left() {
    let begin = SystemTime::UNIX_EPOCH;
    let at = |days: u64| begin + Duration::from_secs(days * 86_400);
    assert!(!super::driver::is_due(begin, at(3650), at(2900)));
    assert!(super::driver::is_due(begin, at(3650), at(2930)));
    assert!(super::driver::is_due(begin, at(3650), at(4000)));
}
