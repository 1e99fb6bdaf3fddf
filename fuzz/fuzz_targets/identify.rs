//! See `blkcopy_fuzz::types::identify`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| blkcopy_fuzz::types::identify(input));
