//! What a device's bytes are bound to, so that a name made of it ends with them.
//!
//! A path outlives the bytes behind it: a file is replaced, memory goes with its process. What the bytes are *in* does
//! not: the inode since its birth, the disk by its serial number. Why: `docs/notes/008-identity.md`.

use std::fmt;

/// The thing that holds a device's bytes, in words: the same words as long as it is the same thing, never again
/// afterwards.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Container(String);

impl Container {
    /// The thing that these words describe.
    pub fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }

    /// Something that exists only as long as this process, or of which nothing lasting is known: `random` makes it one
    /// of its kind.
    pub fn passing(kind: &str, random: [u8; 16]) -> Self {
        Self(format!("{kind} {:032x}", u128::from_be_bytes(random)))
    }

    /// The words.
    pub fn words(&self) -> &str {
        &self.0
    }

    /// It as a number: what targets serve, and what two devices have in common that are in one thing.
    pub fn generation(&self) -> [u8; 16] {
        generation_of(&self.0)
    }

    /// The part of it from `offset` on.
    #[must_use]
    pub fn part(&self, offset: u64, len: u64) -> Self {
        Self(format!("{} from {offset} for {len}", self.0))
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a container with these words.
pub fn generation_of(words: &str) -> [u8; 16] {
    identifier("generation", &[words])
}

/// 16 bytes that are the same as long as all `parts` are, for one `kind` of use.
pub fn identifier(kind: &str, parts: &[&str]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("blkcopy namespace identifier 1");
    for part in std::iter::once(&kind).chain(parts) {
        // Lengths first, so that no two lists of parts give the same bytes.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_tell_lists_apart() {
        let one = identifier("nguid", &["a", "bc"]);
        assert_eq!(one, identifier("nguid", &["a", "bc"]));
        for other in
            [identifier("uuid", &["a", "bc"]), identifier("nguid", &["ab", "c"]), identifier("nguid", &["a"])]
        {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn a_passing_thing_is_one_of_its_kind() {
        assert_ne!(Container::passing("memory", [1; 16]), Container::passing("memory", [2; 16]));
        let whole = Container::new("disk x");
        assert_ne!(whole.part(0, 10), whole.part(10, 10));
    }
}
