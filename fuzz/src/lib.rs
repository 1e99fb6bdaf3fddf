//! What the fuzz targets do with their input, and first inputs for each. A module for each part of the library.

pub mod tcp;
pub mod types;

/// First inputs of every target: its name, and what they are.
pub fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let mut seeds = types::seeds();
    seeds.extend(tcp::seeds());
    seeds
}
