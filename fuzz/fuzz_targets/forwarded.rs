#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| overlane_tests::fuzz::forwarded::check(input));
