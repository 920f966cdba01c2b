#![no_main]

mod harness;

libfuzzer_sys::fuzz_target!(init: harness::init(), |input: &[u8]| harness::run("session", input));
