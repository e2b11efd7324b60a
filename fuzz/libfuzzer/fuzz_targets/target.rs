//! All targets under libFuzzer: `CARRICK_FUZZ_TARGET=client_hello cargo +nightly fuzz run target ../corpus/client_hello`.

#![no_main]

use std::sync::OnceLock;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static RUN: OnceLock<fn(&[u8])> = OnceLock::new();
    let run = RUN.get_or_init(|| {
        let name = std::env::var("CARRICK_FUZZ_TARGET").unwrap_or_default();
        carrick_fuzz::target(&name).unwrap_or_else(|| panic!("CARRICK_FUZZ_TARGET={name:?} names no target")).run
    });
    run(data);
});
