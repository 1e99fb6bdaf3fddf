//! Tests of the types: bytes against layouts that do not come from this room, round trips, and parsers that take
//! nothing wrong.

mod commands;
mod errors;
#[rustfmt::skip] // tables
mod layouts;
mod pages;
mod strict;
