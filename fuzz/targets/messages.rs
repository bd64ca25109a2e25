#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hooklane_fuzz::messages(data));
