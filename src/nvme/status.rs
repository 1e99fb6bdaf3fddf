//! Statuses of completed commands, and how they stand to [`crate::block::Error`]: one table for both ways.

use crate::block::{Error, Kind};
use std::fmt;
use std::mem::discriminant;

/// A status: code type and code, and whether a retry is pointless. Bit layout of [`Status::bits`]: the CQE's status
/// field without the phase bit (SC 7:0, SCT 10:8, MORE 13, DNR 14), as Linux prints it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(u16);

const DNR: u16 = 1 << 14;

impl Status {
    /// A status from code type (0 to 7) and code, do-not-retry set for any error.
    pub const fn new(code_type: u8, code: u8) -> Self {
        let bits = (code_type as u16 & 7) << 8 | code as u16;
        Self(if bits == 0 { 0 } else { bits | DNR })
    }

    /// The same without do-not-retry: trying again may help.
    #[must_use]
    pub const fn retryable(self) -> Self {
        Self(self.0 & !DNR)
    }

    /// From the 15 bits of a CQE (phase shifted out).
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & 0x7fff)
    }

    /// The 15 bits of a CQE.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Status code type: 0 generic, 1 command specific, 2 media and data integrity, 3 path related.
    pub const fn code_type(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Status code within its type.
    pub const fn code(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// True when the controller says that a retry is pointless.
    pub const fn do_not_retry(self) -> bool {
        self.0 & DNR != 0
    }

    /// True when the command succeeded.
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// Equal code type and code, whatever the other bits.
    pub const fn is(self, other: Self) -> bool {
        self.0 & 0x7ff == other.0 & 0x7ff
    }

    /// Which of the controller's three retry delays applies: 1 to 3; 0 for none (CRD, bits 12:11).
    pub const fn retry_delay(self) -> usize {
        (self.0 >> 11) as usize & 3
    }
}

/// What a host makes of a command that ended with a status: Base Specification 2.1, 4.2.3 (do-not-retry), 8.1.1
/// (asymmetric access).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// The answer stands.
    Never,
    /// It may have been an accident: a few times.
    AFewTimes,
    /// The command was not carried out because of something that passes: for as long as the host has patience.
    UntilItPasses,
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $sct:literal / $sc:literal, $text:literal;)*) => {
        #[allow(missing_docs)] // each is the standard's status of that name
        impl Status {
            $($(#[$doc])* pub const $name: Self = Self::new($sct, $sc);)*

            /// The standard's words for it; `None` for one that is not in the table.
            pub fn text(self) -> Option<&'static str> {
                match (self.code_type(), self.code()) {
                    $(($sct, $sc) => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    SUCCESS = 0x0 / 0x00, "Successful Completion";
    INVALID_OPCODE = 0x0 / 0x01, "Invalid Command Opcode";
    INVALID_FIELD = 0x0 / 0x02, "Invalid Field in Command";
    COMMAND_ID_CONFLICT = 0x0 / 0x03, "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0x0 / 0x04, "Data Transfer Error";
    ABORTED_POWER_LOSS = 0x0 / 0x05, "Commands Aborted due to Power Loss Notification";
    INTERNAL_ERROR = 0x0 / 0x06, "Internal Error";
    ABORT_REQUESTED = 0x0 / 0x07, "Command Abort Requested";
    ABORTED_SQ_DELETION = 0x0 / 0x08, "Command Aborted due to SQ Deletion";
    ABORTED_FAILED_FUSED = 0x0 / 0x09, "Command Aborted due to Failed Fused Command";
    ABORTED_MISSING_FUSED = 0x0 / 0x0a, "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE = 0x0 / 0x0b, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = 0x0 / 0x0c, "Command Sequence Error";
    INVALID_SGL_DESCRIPTOR = 0x0 / 0x0d, "Invalid SGL Segment Descriptor";
    INVALID_SGL_COUNT = 0x0 / 0x0e, "Invalid Number of SGL Descriptors";
    SGL_LENGTH_INVALID = 0x0 / 0x0f, "Data SGL Length Invalid";
    METADATA_SGL_LENGTH_INVALID = 0x0 / 0x10, "Metadata SGL Length Invalid";
    SGL_TYPE_INVALID = 0x0 / 0x11, "SGL Descriptor Type Invalid";
    OPERATION_DENIED = 0x0 / 0x15, "Operation Denied";
    SGL_OFFSET_INVALID = 0x0 / 0x16, "SGL Offset Invalid";
    HOST_IDENTIFIER_INCONSISTENT = 0x0 / 0x18, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_TIMER_EXPIRED = 0x0 / 0x19, "Keep Alive Timer Expired";
    KEEP_ALIVE_TIMEOUT_INVALID = 0x0 / 0x1a, "Keep Alive Timeout Invalid";
    ABORTED_PREEMPT = 0x0 / 0x1b, "Command Aborted due to Preempt and Abort";
    SANITIZE_FAILED = 0x0 / 0x1c, "Sanitize Failed";
    SANITIZE_IN_PROGRESS = 0x0 / 0x1d, "Sanitize In Progress";
    SGL_GRANULARITY_INVALID = 0x0 / 0x1e, "SGL Data Block Granularity Invalid";
    NAMESPACE_WRITE_PROTECTED = 0x0 / 0x20, "Namespace is Write Protected";
    COMMAND_INTERRUPTED = 0x0 / 0x21, "Command Interrupted";
    TRANSIENT_TRANSPORT_ERROR = 0x0 / 0x22, "Transient Transport Error";
    PROHIBITED_BY_LOCKDOWN = 0x0 / 0x23, "Command Prohibited by Command and Feature Lockdown";
    MEDIA_NOT_READY = 0x0 / 0x24, "Admin Command Media Not Ready";
    LBA_OUT_OF_RANGE = 0x0 / 0x80, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0x0 / 0x81, "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0x0 / 0x82, "Namespace Not Ready";
    RESERVATION_CONFLICT = 0x0 / 0x83, "Reservation Conflict";
    FORMAT_IN_PROGRESS = 0x0 / 0x84, "Format in Progress";
    INVALID_COMPLETION_QUEUE = 0x1 / 0x00, "Completion Queue Invalid";
    INVALID_QUEUE_IDENTIFIER = 0x1 / 0x01, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 0x1 / 0x02, "Invalid Queue Size";
    ABORT_LIMIT_EXCEEDED = 0x1 / 0x03, "Abort Command Limit Exceeded";
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x1 / 0x05, "Asynchronous Event Request Limit Exceeded";
    INVALID_LOG_PAGE = 0x1 / 0x09, "Invalid Log Page";
    INVALID_FORMAT = 0x1 / 0x0a, "Invalid Format";
    FEATURE_NOT_SAVEABLE = 0x1 / 0x0d, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 0x1 / 0x0e, "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x1 / 0x0f, "Feature Not Namespace Specific";
    NAMESPACE_NOT_ATTACHED = 0x1 / 0x1a, "Namespace Not Attached";
    INVALID_CONTROLLER_IDENTIFIER = 0x1 / 0x1f, "Invalid Controller Identifier";
    COMMAND_SET_NOT_SUPPORTED = 0x1 / 0x29, "I/O Command Set Not Supported";
    COMMAND_SET_NOT_ENABLED = 0x1 / 0x2a, "I/O Command Set Not Enabled";
    CONNECT_INCOMPATIBLE_FORMAT = 0x1 / 0x80, "Incompatible Format (Connect); Conflicting Attributes (I/O)";
    CONNECT_CONTROLLER_BUSY = 0x1 / 0x81, "Controller Busy (Connect); Invalid Protection Information (I/O)";
    CONNECT_INVALID_PARAMETERS = 0x1 / 0x82, "Connect Invalid Parameters; Attempted Write to Read Only Range (I/O)";
    COPY_SIZE_LIMIT_EXCEEDED = 0x1 / 0x83, "Command Size Limit Exceeded (I/O); Connect Restart Discovery";
    CONNECT_INVALID_HOST = 0x1 / 0x84, "Connect Invalid Host";
    INCOMPATIBLE_NAMESPACE = 0x1 / 0x85, "Incompatible Namespace or Format";
    FAST_COPY_NOT_POSSIBLE = 0x1 / 0x86, "Fast Copy Not Possible";
    OVERLAPPING_IO_RANGE = 0x1 / 0x87, "Overlapping I/O Range";
    NAMESPACE_NOT_REACHABLE = 0x1 / 0x88, "Namespace Not Reachable";
    INSUFFICIENT_RESOURCES = 0x1 / 0x89, "Insufficient Resources";
    AUTHENTICATION_REQUIRED = 0x1 / 0x91, "Authentication Required";
    ZONE_BOUNDARY = 0x1 / 0xb8, "Zoned Boundary Error";
    ZONE_FULL = 0x1 / 0xb9, "Zone Is Full";
    ZONE_READ_ONLY = 0x1 / 0xba, "Zone Is Read Only";
    ZONE_OFFLINE = 0x1 / 0xbb, "Zone Is Offline";
    ZONE_INVALID_WRITE = 0x1 / 0xbc, "Zone Invalid Write";
    ZONE_TOO_MANY_ACTIVE = 0x1 / 0xbd, "Too Many Active Zones";
    ZONE_TOO_MANY_OPEN = 0x1 / 0xbe, "Too Many Open Zones";
    ZONE_INVALID_TRANSITION = 0x1 / 0xbf, "Invalid Zone State Transition";
    WRITE_FAULT = 0x2 / 0x80, "Write Fault";
    UNRECOVERED_READ_ERROR = 0x2 / 0x81, "Unrecovered Read Error";
    GUARD_CHECK_ERROR = 0x2 / 0x82, "End-to-end Guard Check Error";
    APPLICATION_TAG_CHECK_ERROR = 0x2 / 0x83, "End-to-end Application Tag Check Error";
    REFERENCE_TAG_CHECK_ERROR = 0x2 / 0x84, "End-to-end Reference Tag Check Error";
    COMPARE_FAILURE = 0x2 / 0x85, "Compare Failure";
    ACCESS_DENIED = 0x2 / 0x86, "Access Denied";
    DEALLOCATED_BLOCK = 0x2 / 0x87, "Deallocated or Unwritten Logical Block";
    STORAGE_TAG_CHECK_ERROR = 0x2 / 0x88, "End-to-End Storage Tag Check Error";
    INTERNAL_PATH_ERROR = 0x3 / 0x00, "Internal Path Error";
    ANA_PERSISTENT_LOSS = 0x3 / 0x01, "Asymmetric Access Persistent Loss";
    ANA_INACCESSIBLE = 0x3 / 0x02, "Asymmetric Access Inaccessible";
    ANA_TRANSITION = 0x3 / 0x03, "Asymmetric Access Transition";
    CONTROLLER_PATH_ERROR = 0x3 / 0x60, "Controller Pathing Error";
    HOST_PATH_ERROR = 0x3 / 0x70, "Host Pathing Error";
    ABORTED_BY_HOST = 0x3 / 0x71, "Command Aborted By Host";
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text().unwrap_or("unknown status");
        write!(f, "{text} ({:x}h/{:02x}h)", self.code_type(), self.code())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Status {}

/// What was being done: some kinds and statuses depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    /// A read.
    Read,
    /// A compare.
    Compare,
    /// A write.
    Write,
    /// Writing zeroes.
    WriteZeroes,
    /// Deallocating.
    Deallocate,
    /// A flush.
    Flush,
    /// A Copy.
    Copy,
    /// An admin or fabrics command.
    Admin,
}

impl Doing {
    const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Compare => "compare",
            Self::Write => "write",
            Self::WriteZeroes => "write-zeroes",
            Self::Deallocate => "deallocate",
            Self::Flush => "flush",
            Self::Copy => "copy",
            Self::Admin => "admin command",
        }
    }
}

const ANY: u8 = 0xff;
const COPY: u8 = Doing::Copy.bit();
const NOT_COPY: u8 = !COPY;
const READS: u8 = Doing::Read.bit() | Doing::Compare.bit();
const ADMIN: u8 = Doing::Admin.bit();
const WRITES: u8 = !(READS | ADMIN);

/// Which way a row of the table is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Error to status, by a target.
    Out,
    /// Status to error, by a host.
    In,
    Both,
}
use Way::{Both, In, Out};

/// The table. The first row that fits decides; what fits none is `Io`, and 0h/06h.
const TABLE: [(Way, u8, Kind, Status); 34] = [
    // Only what says "not supported" lets a copy step down. A format the controller does not know or the host has not
    // enabled is an Invalid Field, and a Copy has no other field at fault that reading and writing would not report
    // again.
    (Both, NOT_COPY, Kind::Unsupported, Status::INVALID_OPCODE),
    (Both, COPY, Kind::Unsupported, Status::FAST_COPY_NOT_POSSIBLE),
    (In, COPY, Kind::Unsupported, Status::INVALID_OPCODE),
    (In, COPY, Kind::Unsupported, Status::INVALID_FIELD),
    (Both, COPY, Kind::TooLarge { max_bytes: 0 }, Status::COPY_SIZE_LIMIT_EXCEEDED),
    (Out, NOT_COPY, Kind::TooLarge { max_bytes: 0 }, Status::INVALID_FIELD),
    (Both, NOT_COPY, Kind::InvalidInput, Status::INVALID_FIELD),
    (Out, COPY, Kind::InvalidInput, Status::INVALID_FIELD),
    // The controller cannot copy between these two: reading and writing can.
    (In, COPY, Kind::Unsupported, Status::INCOMPATIBLE_NAMESPACE),
    (In, COPY, Kind::Unsupported, Status::NAMESPACE_NOT_REACHABLE),
    (Out, ANY, Kind::Misaligned, Status::INVALID_FIELD),
    (Both, ANY, Kind::OutOfRange, Status::LBA_OUT_OF_RANGE),
    (Both, COPY, Kind::Overlap, Status::OVERLAPPING_IO_RANGE),
    (Out, NOT_COPY, Kind::Overlap, Status::INVALID_FIELD),
    (Both, ANY, Kind::ReadOnly, Status::NAMESPACE_WRITE_PROTECTED),
    // To an I/O command it says "Attempted Write to Read Only Range".
    (In, WRITES, Kind::ReadOnly, Status::CONNECT_INVALID_PARAMETERS),
    (Both, ANY, Kind::InUse, Status::NAMESPACE_NOT_READY.retryable()),
    (In, ANY, Kind::InUse, Status::RESERVATION_CONFLICT),
    (In, ANY, Kind::NotFound, Status::INVALID_NAMESPACE),
    // The backing file is gone: the namespace the host sees is still valid.
    (Out, ANY, Kind::NotFound, Status::INTERNAL_ERROR),
    (Both, ANY, Kind::Permission, Status::ACCESS_DENIED),
    (In, ANY, Kind::Permission, Status::OPERATION_DENIED),
    (In, ANY, Kind::Permission, Status::AUTHENTICATION_REQUIRED),
    (In, ADMIN, Kind::Permission, Status::CONNECT_INVALID_HOST),
    (Both, ANY, Kind::NoSpace, Status::CAPACITY_EXCEEDED),
    (Out, ANY, Kind::NoMemory, Status::INTERNAL_ERROR.retryable()),
    (Both, READS, Kind::Io, Status::UNRECOVERED_READ_ERROR),
    // A Copy too: what the host must know is that the destination was not written. A target that knows it was the
    // source that failed asks for the status of a read.
    (Both, WRITES, Kind::Io, Status::WRITE_FAULT),
    (Both, ADMIN, Kind::Io, Status::INTERNAL_ERROR),
    (Out, ANY, Kind::Aborted, Status::INTERNAL_ERROR.retryable()),
    (Both, ANY, Kind::Cancelled, Status::ABORT_REQUESTED),
    // Nothing the host can do brings it back but reopening the device at the target.
    (Out, ANY, Kind::Poisoned, Status::INTERNAL_ERROR),
    (Both, ANY, Kind::Mismatch, Status::COMPARE_FAILURE),
    (Out, ANY, Kind::SourceChanged, Status::INTERNAL_ERROR.retryable()),
];

impl Status {
    /// The status a target answers with when its device failed.
    pub fn of(error: &Error, doing: Doing) -> Self {
        let kind = discriminant(&error.kind());
        let fits = |row: &&(Way, u8, Kind, Self)| {
            row.0 != In && row.1 & doing.bit() != 0 && discriminant(&row.2) == kind
        };
        TABLE.iter().find(fits).map_or(Self::INTERNAL_ERROR, |row| row.3)
    }

    /// The error a host's device answers with when a command ended with this status (not a success). The status is its
    /// cause.
    ///
    /// `max_bytes`: longest copy the namespace takes, when the caller knows it. Without it a Copy that was too large is
    /// `InvalidInput`: `TooLarge` must say how long it may be.
    pub fn to_error(self, doing: Doing, max_bytes: Option<u64>) -> Error {
        let fits = |row: &&(Way, u8, Kind, Self)| row.0 != Out && row.1 & doing.bit() != 0 && row.3.is(self);
        let kind = match (TABLE.iter().find(fits).map_or(Kind::Io, |row| row.2), max_bytes) {
            (Kind::TooLarge { .. }, Some(max_bytes)) => Kind::TooLarge { max_bytes },
            (Kind::TooLarge { .. }, None) => Kind::InvalidInput,
            (kind, _) => kind,
        };
        let advice = self.advice().map_or(String::new(), |advice| format!("; {advice}"));
        Error::new(kind, format!("{} failed: {self}{advice}", doing.name())).because(self)
    }

    /// Whether a host sends the command again. Never with do-not-retry set, and never where the status says what is
    /// wrong with the command itself: the same command would get the same answer.
    pub fn retry(self, doing: Doing) -> Retry {
        if self.do_not_retry() || self.is_success() {
            return Retry::Never;
        }
        let passes = [
            Self::COMMAND_INTERRUPTED,
            Self::TRANSIENT_TRANSPORT_ERROR,
            Self::MEDIA_NOT_READY,
            Self::NAMESPACE_NOT_READY,
            Self::SANITIZE_IN_PROGRESS,
            Self::FORMAT_IN_PROGRESS,
            Self::ABORTED_SQ_DELETION,
            Self::INSUFFICIENT_RESOURCES,
        ];
        let path = self.code_type() == 3 && !self.is(Self::ANA_PERSISTENT_LOSS);
        if path || passes.iter().any(|s| s.is(self)) {
            return Retry::UntilItPasses;
        }
        // A flush that failed may have lost what it was to store: the next one would know nothing of it.
        let persistent = self.is(Self::ANA_PERSISTENT_LOSS) || matches!(doing, Doing::Flush | Doing::Admin);
        if persistent || self.to_error(doing, None).kind() != Kind::Io {
            Retry::Never
        } else {
            Retry::AFewTimes
        }
    }

    /// What the user of the host can do about it, where that is not plain from the status itself.
    fn advice(self) -> Option<&'static str> {
        let table = [
            (
                Self::INSUFFICIENT_RESOURCES,
                "the target is short of resources: wait, or run fewer copies at once",
            ),
            (Self::COMMAND_INTERRUPTED, "the target was busy with something else: try again"),
            (Self::NAMESPACE_NOT_READY, "the target is still starting this namespace: try again"),
            (Self::NAMESPACE_WRITE_PROTECTED, "lift the write protection at the target"),
            (Self::RESERVATION_CONFLICT, "another host holds a reservation on the namespace"),
            (Self::SANITIZE_IN_PROGRESS, "wait until the target has ended the sanitize operation"),
            (Self::FORMAT_IN_PROGRESS, "wait until the target has ended the format operation"),
            (Self::CAPACITY_EXCEEDED, "the target's storage is full: free space there"),
            (Self::ANA_PERSISTENT_LOSS, "this path to the namespace is gone for good: name another address"),
            (
                Self::ANA_INACCESSIBLE,
                "this path to the namespace cannot be used now: name another address, or try again",
            ),
            (Self::ANA_TRANSITION, "this path to the namespace is changing state: try again"),
        ];
        table.iter().find(|(status, _)| status.is(self)).map(|(_, advice)| *advice)
    }
}
