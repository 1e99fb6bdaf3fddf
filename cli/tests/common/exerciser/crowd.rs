//! Many threads on the same volumes at once: blocks carry stamps, and each stamp read must be one that some order allows.

pub(crate) const PLACEHOLDER: () = ();
