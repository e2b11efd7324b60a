//! The checker of `carrick bench check`, in its short form: over the store of one server, and that it finds what is put in.

use crate::bench::Bench;
use carrick_apiserver::check::{Fault, Finding, Options, Outcome, Seeded, StoreAccess, run};
use carrick_apiserver::storage::EngineOptions;

pub async fn judged(bench: &Bench, options: Options) -> Outcome {
    let access = StoreAccess::new(bench.server.store().clone(), "checked-");
    run(std::slice::from_ref(&access), std::slice::from_ref(&access), options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_drop_and_resume_lose_nothing() {
    let bench = Bench::start().await;
    let outcome = judged(&bench, Options { events: 2_000, ..Options::default() }).await;
    assert_eq!(outcome.findings, []);
    assert_eq!((outcome.doubtful, outcome.relists), (0, 0));
    assert!(outcome.changes >= 2_000 && outcome.streams > 50 && outcome.refused > 0, "{outcome:?}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_compaction_sends_back_lose_nothing() {
    let bench = Bench::with(|o| o.engine = EngineOptions { history_changes: 40, ..EngineOptions::default() }).await;
    let outcome = judged(&bench, Options { events: 2_000, lag: 60, stretch: 60, ..Options::default() }).await;
    assert_eq!(outcome.findings, []);
    assert!(outcome.relists > 3, "{outcome:?}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_that_is_put_in_is_found() {
    let bench = Bench::start().await;
    for what in [Seeded::Lose, Seeded::Double, Seeded::Swap, Seeded::Alter] {
        let fault = Some(Fault { what, at: 100 });
        let outcome =
            judged(&bench, Options { events: 400, writers: 4, watchers: 2, fault, ..Options::default() }).await;
        let found = |wanted: fn(&Finding) -> bool| outcome.findings.iter().any(wanted);
        assert!(
            match what {
                Seeded::Lose =>
                    found(|f| matches!(f, Finding::Lost { .. } | Finding::Unfitting { .. } | Finding::Other { .. })),
                Seeded::Double | Seeded::Swap =>
                    found(|f| matches!(f, Finding::Backwards { .. } | Finding::Unfitting { .. })),
                Seeded::Alter => found(|f| matches!(f, Finding::Invented { .. })),
            },
            "{what:?}: {:?}",
            outcome.findings
        );
    }
    bench.stop().await;
}
