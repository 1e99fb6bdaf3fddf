//! See `blkcopy_fuzz::types::range_list`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| blkcopy_fuzz::types::range_list(input));
