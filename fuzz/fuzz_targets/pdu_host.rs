//! See `blkcopy_fuzz::tcp::pdu_host`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| blkcopy_fuzz::tcp::pdu_host(input));
