//! Statuses of completed commands, and how they stand to [`crate::block::Error`]: one table for both ways.

use std::fmt;

/// A status: code type and code, and whether a retry is pointless. Bit layout of [`Status::bits`]: the CQE's status field
/// without the phase bit (SC 7:0, SCT 10:8, MORE 13, DNR 14), as Linux prints it.
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
    INTERNAL_ERROR = 0x0 / 0x06, "Internal Error";
    ABORT_REQUESTED = 0x0 / 0x07, "Command Abort Requested";
    ABORTED_SQ_DELETION = 0x0 / 0x08, "Command Aborted due to SQ Deletion";
    INVALID_NAMESPACE = 0x0 / 0x0b, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = 0x0 / 0x0c, "Command Sequence Error";
    INVALID_SGL_DESCRIPTOR = 0x0 / 0x0d, "Invalid SGL Segment Descriptor";
    INVALID_SGL_COUNT = 0x0 / 0x0e, "Invalid Number of SGL Descriptors";
    SGL_LENGTH_INVALID = 0x0 / 0x0f, "Data SGL Length Invalid";
    SGL_TYPE_INVALID = 0x0 / 0x11, "SGL Descriptor Type Invalid";
    SGL_OFFSET_INVALID = 0x0 / 0x16, "SGL Offset Invalid";
    HOST_IDENTIFIER_INCONSISTENT = 0x0 / 0x18, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_TIMER_EXPIRED = 0x0 / 0x19, "Keep Alive Timer Expired";
    NAMESPACE_WRITE_PROTECTED = 0x0 / 0x20, "Namespace is Write Protected";
    TRANSIENT_TRANSPORT_ERROR = 0x0 / 0x22, "Transient Transport Error";
    LBA_OUT_OF_RANGE = 0x0 / 0x80, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0x0 / 0x81, "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0x0 / 0x82, "Namespace Not Ready";
    RESERVATION_CONFLICT = 0x0 / 0x83, "Reservation Conflict";
    INVALID_QUEUE_IDENTIFIER = 0x1 / 0x01, "Invalid Queue Identifier";
    ABORT_LIMIT_EXCEEDED = 0x1 / 0x03, "Abort Command Limit Exceeded";
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x1 / 0x05, "Asynchronous Event Request Limit Exceeded";
    INVALID_LOG_PAGE = 0x1 / 0x09, "Invalid Log Page";
    FEATURE_NOT_SAVEABLE = 0x1 / 0x0d, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 0x1 / 0x0e, "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x1 / 0x0f, "Feature Not Namespace Specific";
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
    WRITE_FAULT = 0x2 / 0x80, "Write Fault";
    UNRECOVERED_READ_ERROR = 0x2 / 0x81, "Unrecovered Read Error";
    COMPARE_FAILURE = 0x2 / 0x85, "Compare Failure";
    DEALLOCATED_BLOCK = 0x2 / 0x87, "Deallocated or Unwritten Logical Block";
    HOST_PATH_ERROR = 0x3 / 0x70, "Host Pathing Error";
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text().unwrap_or("status not known here");
        write!(f, "{text} ({:x}h/{:02x}h)", self.code_type(), self.code())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
