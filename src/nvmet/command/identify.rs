//! Identify: what the target says about itself and its namespaces.

use super::context::Context;
use super::outcome::Outcome;
use crate::block::Buf;
use crate::nvme::admin::Identify;
use crate::nvme::command::NSID_ALL;
use crate::nvme::identify::{
    self, ControllerType, FlushAll, IdentifyController, IdentifyNamespace, IndependentNamespace, LEN,
    NamespaceIds, NvmController, NvmNamespace, cmic, cns, controller_list, csi, ctratt, lpa, namespace_list,
    oncs, sgls,
};
use crate::nvme::{Ascii, Blocks, Count8, Status};
use crate::nvmet::controller::{Controller, ERRORS_MAX, VERSION};
use crate::nvmet::features;
use crate::nvmet::namespace::Namespace;
use crate::nvmet::namespace_set::NSID_MAX;
use crate::nvmet::settings::Settings;
use crate::nvmet::subsystem::Subsystem;
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32};
use std::sync::Arc;

/// Model number.
const MODEL: &str = "blkcopy";
/// Abort commands at a time.
pub(super) const ABORTS_MAX: Count8 = Count8::from_wire(3);
/// Requests for events at a time.
pub(super) const EVENT_REQUESTS_MAX: Count8 = Count8::from_wire(3);
/// Unit of keep-alive time-outs: 10 times 100 ms.
const KAS: NonZeroU16 = NonZeroU16::new(10).expect("not zero");
/// Longest shutdown, in microseconds: the flush of every namespace. Linux waits that long.
const SHUTDOWN_US: NonZeroU32 = NonZeroU32::new(10_000_000).expect("not zero");

/// Identify.
pub(super) fn identify(cx: &mut Context<'_>, command: &Identify, mut out: Buf) -> Result<Outcome, Status> {
    if out.len() != LEN {
        return Err(Status::SGL_LENGTH_INVALID);
    }
    let page = if command.cns == cns::CONTROLLER {
        controller_page(cx.controller(), cx.target.settings()).to_bytes()
    } else if cx.controller().namespaces().is_discovery() {
        return Err(Status::INVALID_FIELD);
    } else {
        other_page(cx, command)?
    };
    out.copy_from_slice(&page);
    Ok(Outcome::data(out))
}

fn other_page(cx: &mut Context<'_>, command: &Identify) -> Result<[u8; LEN], Status> {
    let nsid = command.nsid;
    let by_csi = matches!(command.cns, cns::CSI_NAMESPACE | cns::CSI_CONTROLLER | cns::CSI_ACTIVE_NAMESPACES);
    if by_csi && command.csi != csi::NVM {
        return Err(Status::INVALID_FIELD);
    }
    match command.cns {
        cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => of_active(cx, nsid, |n| namespace_page(n).to_bytes()),
        cns::CSI_NAMESPACE => of_active(cx, nsid, |_| nvm_namespace()),
        cns::INDEPENDENT_NAMESPACE => of_active(cx, nsid, independent),
        cns::ACTIVE_NAMESPACES | cns::CSI_ACTIVE_NAMESPACES | cns::ALLOCATED_NAMESPACES => {
            // No list can begin after FFFFFFFEh or FFFFFFFFh.
            if nsid >= NSID_ALL - 1 {
                return Err(Status::INVALID_NAMESPACE);
            }
            let seen = seen_namespaces(cx);
            Ok(namespace_list(seen.iter().map(|n| n.nsid()), nsid))
        }
        cns::NAMESPACE_DESCRIPTORS => {
            let at = cx.find(nsid)?;
            Ok(names(&cx.backends.get(at).namespace))
        }
        cns::CSI_CONTROLLER => Ok(nvm_controller()),
        cns::NAMESPACE_CONTROLLERS => {
            let at = cx.find(nsid)?;
            let ids = subsystem(cx)?.controller_ids(Some(&cx.backends.get(at).namespace));
            Ok(controller_list(ids, command.cntid))
        }
        cns::CONTROLLERS => {
            let ids = subsystem(cx)?.controller_ids(None);
            Ok(controller_list(ids, command.cntid))
        }
        cns::COMMAND_SETS => Ok(command_sets()),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// What is to be said of a namespace; zeroes for a number that is not an active namespace of this host.
fn of_active(
    cx: &mut Context<'_>,
    nsid: u32,
    page: impl FnOnce(&Namespace) -> [u8; LEN],
) -> Result<[u8; LEN], Status> {
    match cx.find(nsid) {
        Ok(at) => Ok(page(&cx.backends.get(at).namespace)),
        Err(status) if status == Status::INVALID_FIELD => Ok([0; LEN]),
        Err(status) => Err(status),
    }
}

/// The namespaces this host sees, also those this thread cannot open.
fn seen_namespaces(cx: &Context<'_>) -> Vec<Arc<Namespace>> {
    let controller = cx.controller();
    controller.namespaces().attached(controller.host_nqn().as_str())
}

fn subsystem<'c>(cx: &'c Context<'_>) -> Result<&'c Subsystem, Status> {
    cx.connection.subsystem.as_deref().ok_or(Status::COMMAND_SEQUENCE_ERROR)
}

pub(super) fn firmware() -> Ascii<8> {
    Ascii::new(env!("CARGO_PKG_VERSION")).unwrap_or(Ascii(*b"unknown "))
}

fn model() -> Ascii<40> {
    Ascii::new(MODEL).expect("short, and printable")
}

/// Identify Controller.
fn controller_page(controller: &Controller, settings: &Settings) -> IdentifyController {
    let subsystem = controller.namespaces();
    let mut id = IdentifyController::new(subsystem.nqn().clone(), controller.id());
    id.version = VERSION;
    id.serial = subsystem.serial();
    id.model = model();
    id.firmware = firmware();
    id.mdts = NonZeroU8::new(shift(settings.transfer_bytes / 4096));
    id.ctratt = ctratt::HOST_ID_128;
    id.abort_limit = ABORTS_MAX;
    id.async_event_limit = EVENT_REQUESTS_MAX;
    id.kas = Some(KAS);
    id.maxcmd = u16::try_from(settings.queue_entries.get()).ok().and_then(NonZeroU16::new);
    id.sgls = sgls::SUPPORTED | sgls::OFFSET | sgls::TRANSPORT;
    id.msdbd = Some(NonZeroU8::MIN);
    id.shutdown_us = Some(SHUTDOWN_US);
    id.lpa = lpa::EXTENDED;
    if subsystem.is_discovery() {
        id.controller_type = ControllerType::Discovery;
        return id;
    }
    id.cmic = cmic::MULTI_PORT | cmic::MULTI_CONTROLLER;
    id.oaes = features::EVENTS;
    // One slot, read-only.
    id.frmw = 1 | 1 << 1;
    id.lpa |= lpa::COMMAND_EFFECTS | lpa::SUPPORTED_LOG_PAGES;
    id.error_log_entries = Count8::new(u32::try_from(ERRORS_MAX).unwrap_or(1)).unwrap_or(Count8::ONE);
    id.nn = NSID_MAX;
    id.oncs = oncs::COMPARE
        | oncs::DATASET_MANAGEMENT
        | oncs::WRITE_ZEROES
        | oncs::SAVE_AND_SELECT
        | oncs::COPY
        | oncs::COPY_SINGLE_ATOMICITY;
    id.write_cache = true;
    id.flush_all = FlushAll::Flushes;
    // Reads and writes exclude copies, not each other: nothing beyond a block is promised.
    (id.awun, id.awupf) = (Blocks::ONE, Blocks::ONE);
    id.ocfs = features::COPY_FORMATS;
    id.ioccsz = (settings.in_capsule_bytes + 64) / 16;
    id
}

fn shift(power_of_two: u32) -> u8 {
    u8::try_from(power_of_two.trailing_zeros()).unwrap_or(0)
}

/// Identify Namespace.
fn namespace_page(namespace: &Namespace) -> IdentifyNamespace {
    let mut id = IdentifyNamespace::new(namespace.blocks(), shift(namespace.block_bytes()));
    id.shared = true;
    id.write_protected = namespace.read_only();
    id.nguid = Some(namespace.nguid());
    id.generation = Some(namespace.generation());
    if namespace.reads_zero_when_deallocated() {
        // Deallocated blocks read as zero, and Write Zeroes may deallocate.
        id.dlfeat = 1 | 1 << 3;
    }
    let limits = namespace.copy_limits();
    let copy = NonZeroU16::new(limits.range_blocks).zip(NonZeroU32::new(limits.blocks));
    id.copy = copy.map(|(range_blocks_max, blocks_max)| identify::CopyLimits {
        range_blocks_max,
        blocks_max,
        ranges_max: limits.ranges,
    });
    id
}

/// Names of a namespace.
fn names(namespace: &Namespace) -> [u8; LEN] {
    let ids = NamespaceIds {
        eui64: None,
        nguid: Some(namespace.nguid()),
        uuid: Some(namespace.uuid()),
        csi: Some(csi::NVM),
    };
    ids.to_bytes()
}

/// Identify Namespace of the NVM command set.
fn nvm_namespace() -> [u8; LEN] {
    NvmNamespace::default().to_bytes()
}

/// Identify Controller of the NVM command set: no limits beyond those of the fields.
fn nvm_controller() -> [u8; LEN] {
    NvmController::default().to_bytes()
}

/// Identify Namespace independent of command sets.
fn independent(namespace: &Namespace) -> [u8; LEN] {
    let id = IndependentNamespace {
        shared: true,
        write_protected: namespace.read_only(),
        ready: true,
        ..IndependentNamespace::default()
    };
    id.to_bytes()
}

/// The only combination of command sets: NVM.
fn command_sets() -> [u8; LEN] {
    identify::command_sets(&[1 << csi::NVM])
}
