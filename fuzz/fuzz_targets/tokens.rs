#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| overlane_tests::fuzz::tokens::check(input));
