#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| polykv_fuzz::run("profile", input));
