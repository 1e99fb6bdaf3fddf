//! One device from several, or from one that may owe its zeroes.
//!
//! A kind of map is a layout ([`mapping::Mapping`]); [`Layer`] makes a device of it. Plain requests (read, write, zero,
//! discard, compare, flush) go through a map's queue, which fans them out. Copies do not: they go to the leaves that
//! `resolve` names, and what happened there comes back through the guard.

mod fan;
mod guard;
pub mod layer;
pub mod lazy;
mod legs;
pub mod linear;
pub mod mapping;
pub mod mirror;
mod queue;
pub mod stripe;

pub use layer::Layer;
pub use lazy::LazyDevice;
pub use linear::Linear;
pub use mirror::Mirror;
pub use stripe::Stripe;
