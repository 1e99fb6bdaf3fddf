//! What the measuring programs share.

/// The arguments, without the `--bench` that `cargo bench` adds.
pub(crate) fn args() -> impl Iterator<Item = String> {
    std::env::args().skip(1).filter(|arg| arg != "--bench")
}
