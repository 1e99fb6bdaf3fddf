//! The vocabulary: ranges, requests, devices, limits, leaves, locks, receipts.
//!
//! Everything above speaks in these types; nothing here does I/O.

pub mod buf;
pub mod container;
pub mod counters;
pub mod device;
pub mod error;
pub mod fate;
pub mod lazy;
pub mod limits;
pub mod lock;
pub mod places;
pub mod range;
pub mod receipt;
pub mod request;
pub mod resolve;
pub mod storage;
pub mod way;

pub use buf::{Buf, BufPool, LendingPool};
pub use container::Container;
pub use counters::{Call, Counters};
pub use device::{Content, CopyPath, Device, Extent, Identity, LeafId, Method, Queue, Scope};
pub use error::{Error, Kind, Result};
pub use fate::{Evidence, Fate, FateBytes, Fates, Must};
pub use lazy::LazyZeroes;
pub use limits::{Limits, LimitsCell, LimitsChange};
pub use lock::{Claim, CopyTicket, CoreLocks, IoTicket, LockDomain};
pub use places::{LeafRun, places};
pub use range::{ByteRange, LEN_MAX};
pub use request::{Completion, CopyReport, CopyRequest, Op, Request, Submitter};
pub use resolve::{Access, Guard, GuardDuty, Leg, LegResult, Piece, Resolution};
pub use storage::{Overlap, Storage};

pub use device::Medium;
pub use resolve::CopyAt;
