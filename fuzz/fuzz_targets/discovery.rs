//! See `blkcopy_fuzz::types::discovery`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| blkcopy_fuzz::types::discovery(input));
