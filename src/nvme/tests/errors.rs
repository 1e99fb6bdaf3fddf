//! Statuses and errors: one table, both ways.

use crate::block::{Error, Kind};
use crate::nvme::status::Retry;
use crate::nvme::{Doing, Status};
use std::error::Error as _;
use strum::IntoEnumIterator as _;

const ALL: [Doing; 8] = [
    Doing::Read,
    Doing::Compare,
    Doing::Write,
    Doing::WriteZeroes,
    Doing::Deallocate,
    Doing::Flush,
    Doing::Copy,
    Doing::Admin,
];

/// Every kind, with a maximum that a device may have.
fn kinds() -> impl Iterator<Item = Kind> {
    Kind::iter().map(|kind| match kind {
        Kind::TooLarge { .. } => Kind::TooLarge { max_bytes: 4096 },
        kind => kind,
    })
}

fn of(kind: Kind, doing: Doing) -> Status {
    Status::of(&Error::new(kind, "it failed"), doing)
}

fn kind(status: Status, doing: Doing) -> Kind {
    status.to_error(doing, Some(1 << 20)).kind()
}

/// Every status there can be, whatever its other bits.
fn every_status() -> impl Iterator<Item = Status> {
    (1..0x800).flat_map(|bits| [Status::from_bits(bits), Status::from_bits(bits | 0x6000)])
}

#[test]
fn the_answers_of_a_target() {
    assert_eq!(of(Kind::OutOfRange, Doing::Read), Status::new(0, 0x80));
    assert_eq!(of(Kind::NoSpace, Doing::Write), Status::new(0, 0x81));
    assert_eq!(of(Kind::ReadOnly, Doing::Copy), Status::new(0, 0x20));
    assert_eq!([Doing::Read, Doing::Compare].map(|d| of(Kind::Io, d)), [Status::new(2, 0x81); 2]);
    let writes = [Doing::Write, Doing::WriteZeroes, Doing::Deallocate, Doing::Flush, Doing::Copy];
    assert_eq!(writes.map(|d| of(Kind::Io, d)), [Status::new(2, 0x80); 5]);
    assert_eq!(of(Kind::Io, Doing::Admin), Status::new(0, 0x06));
    assert_eq!(of(Kind::Cancelled, Doing::Copy), Status::new(0, 0x07));
    assert_eq!(of(Kind::Mismatch, Doing::Compare), Status::new(2, 0x85));
    assert_eq!(of(Kind::NoMemory, Doing::Write), Status::new(0, 0x06).retryable());
    assert_eq!(of(Kind::Poisoned, Doing::Write), Status::new(0, 0x06));
    assert_eq!(of(Kind::Unsupported, Doing::WriteZeroes), Status::new(0, 0x01));
    assert_eq!(of(Kind::Unsupported, Doing::Copy), Status::new(1, 0x86));
    assert_eq!(of(Kind::Overlap, Doing::Copy), Status::new(1, 0x87));
    assert_eq!(of(Kind::TooLarge { max_bytes: 1 }, Doing::Copy), Status::new(1, 0x83));
    assert_eq!(
        of(Kind::TooLarge { max_bytes: 1 }, Doing::Read),
        Status::new(0, 0x02),
        "1h/83h means something else"
    );
    for (kind, doing) in kinds().flat_map(|k| ALL.map(|d| (k, d))) {
        let status = of(kind, doing);
        assert!(!status.is_success() && status.text().is_some(), "{kind:?} {doing:?}");
        let may_help = matches!(kind, Kind::NoMemory | Kind::InUse | Kind::Aborted | Kind::SourceChanged);
        assert_eq!(status.do_not_retry(), !may_help, "{kind:?} {doing:?}");
    }
}

//= promise 2
#[test]
fn only_what_says_not_supported_lets_a_copy_step_down() {
    for (status, doing) in every_status().flat_map(|s| ALL.map(|d| (s, d))) {
        let steps_down = match (status.code_type(), status.code()) {
            (0, 0x01) => true,
            (0, 0x02) | (1, 0x85 | 0x86 | 0x88) => doing == Doing::Copy,
            _ => false,
        };
        assert_eq!(kind(status, doing) == Kind::Unsupported, steps_down, "{status} {doing:?}");
    }
}

#[test]
fn too_large_is_said_only_with_the_maximum() {
    let too_large = Status::COPY_SIZE_LIMIT_EXCEEDED;
    assert_eq!(kind(too_large, Doing::Copy), Kind::TooLarge { max_bytes: 1 << 20 });
    assert_eq!(too_large.to_error(Doing::Copy, None).kind(), Kind::InvalidInput);
    for (status, doing) in every_status().flat_map(|s| ALL.map(|d| (s, d))) {
        let is = matches!(kind(status, doing), Kind::TooLarge { .. });
        assert_eq!(is, status.is(too_large) && doing == Doing::Copy, "{status} {doing:?}");
    }
}

#[test]
fn what_a_target_says_a_host_understands() {
    // Kinds that have a status of their own come back; the others become what their status says.
    for doing in ALL {
        for sent in kinds() {
            let got = kind(of(sent, doing), doing);
            let expected = match sent {
                Kind::Unsupported => Kind::Unsupported,
                Kind::TooLarge { .. } if doing == Doing::Copy => Kind::TooLarge { max_bytes: 1 << 20 },
                Kind::Overlap if doing == Doing::Copy => Kind::Overlap,
                // An Invalid Field of a Copy may be its format: the host tries another way and learns there what is
                // wrong.
                Kind::InvalidInput | Kind::Misaligned if doing == Doing::Copy => Kind::Unsupported,
                Kind::TooLarge { .. } | Kind::Misaligned | Kind::Overlap => Kind::InvalidInput,
                Kind::NotFound | Kind::NoMemory | Kind::Aborted | Kind::Poisoned | Kind::SourceChanged => {
                    Kind::Io
                }
                own => own,
            };
            assert_eq!(got, expected, "{sent:?} {doing:?}");
        }
    }
}

#[test]
fn the_errors_of_a_host() {
    assert_eq!(kind(Status::INVALID_NAMESPACE, Doing::Copy), Kind::NotFound);
    assert_eq!(kind(Status::RESERVATION_CONFLICT, Doing::Write), Kind::InUse);
    // It is the controller that is short of something, not this host.
    let short = Status::INSUFFICIENT_RESOURCES.to_error(Doing::Copy, None);
    assert_eq!(short.kind(), Kind::Io);
    assert!(short.to_string().contains("the target is short of resources"), "{short}");
    assert_eq!(kind(Status::AUTHENTICATION_REQUIRED, Doing::Admin), Kind::Permission);
    // One status, two meanings.
    assert_eq!(kind(Status::new(1, 0x82), Doing::Write), Kind::ReadOnly);
    assert_eq!(kind(Status::new(1, 0x82), Doing::Admin), Kind::Io);
    assert_eq!(kind(Status::new(1, 0x84), Doing::Admin), Kind::Permission);
    assert_eq!(kind(Status::UNRECOVERED_READ_ERROR, Doing::Copy), Kind::Io);
    assert_eq!(kind(Status::new(7, 0x7f), Doing::Read), Kind::Io, "vendor's");
    let error = Status::WRITE_FAULT.retryable().to_error(Doing::Copy, None);
    assert_eq!(error.to_string(), "copy failed: Write Fault (2h/80h)");
    let cause = error.source().unwrap().downcast_ref::<Status>().unwrap();
    assert_eq!((cause.bits(), cause.do_not_retry()), (0x280, false), "type, code and do-not-retry are kept");
}

#[test]
fn what_passes_is_tried_again_and_a_plain_answer_is_not() {
    for (status, doing) in every_status().flat_map(|s| ALL.map(|d| (s, d))) {
        let retry = status.retry(doing);
        if status.do_not_retry() {
            assert_eq!(retry, Retry::Never, "{status} {doing:?}: do not retry means it");
        } else if kind(status, doing) == Kind::Unsupported || kind(status, doing) == Kind::OutOfRange {
            assert_eq!(retry, Retry::Never, "{status} {doing:?}");
        }
    }
    let passes =
        [(0, 0x21), (0, 0x22), (0, 0x82), (1, 0x89), (3, 0), (3, 2), (3, 3), (3, 0x60), (3, 0x70), (3, 0x71)];
    for ((code_type, code), doing) in passes.into_iter().flat_map(|s| ALL.map(|d| (s, d))) {
        let status = Status::new(code_type, code).retryable();
        assert_eq!(status.retry(doing), Retry::UntilItPasses, "{status} {doing:?}");
    }
    let gone = Status::ANA_PERSISTENT_LOSS.retryable();
    assert_eq!(gone.retry(Doing::Read), Retry::Never);
    let media = Status::WRITE_FAULT.retryable();
    assert_eq!([media.retry(Doing::Write), media.retry(Doing::Flush)], [Retry::AFewTimes, Retry::Never]);
    assert_eq!(Status::INVALID_FIELD.retryable().retry(Doing::Copy), Retry::Never, "the copy steps down");
    assert_eq!(Status::from_bits(0x21 | 2 << 11).retry_delay(), 2);
}
