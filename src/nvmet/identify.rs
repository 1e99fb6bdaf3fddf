//! What the target says about itself: identify structures and log pages.

use super::Settings;
use super::controller::{Controller, ERRORS_MAX, VERSION};
use super::features;
use super::namespace::Namespace;
use super::subsystem::NSID_MAX;
use crate::nvme::command::{admin, nvm};
use crate::nvme::identify::{
    self, ControllerType, FlushAll, IdentifyController, IdentifyNamespace, IndependentNamespace, LEN,
    NamespaceIds, NvmController, NvmNamespace, cmic, csi, ctratt, lpa, oncs, sgls,
};
use crate::nvme::log::{CommandEffects, ErrorEntry, FirmwareSlots, Smart, Table, effect, lid};
use crate::nvme::{Ascii, Blocks, Count8};
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32};

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

fn firmware() -> Ascii<8> {
    Ascii::new(env!("CARGO_PKG_VERSION")).unwrap_or(Ascii(*b"unknown "))
}

fn model() -> Ascii<40> {
    Ascii::new(MODEL).expect("short, and printable")
}

/// Identify Controller.
pub(super) fn controller(controller: &Controller, settings: &Settings) -> IdentifyController {
    let subsystem = controller.subsystem();
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
pub(super) fn namespace(namespace: &Namespace) -> IdentifyNamespace {
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
pub(super) fn names(namespace: &Namespace) -> [u8; LEN] {
    let ids = NamespaceIds {
        eui64: None,
        nguid: Some(namespace.nguid()),
        uuid: Some(namespace.uuid()),
        csi: Some(csi::NVM),
    };
    ids.to_bytes()
}

/// Identify Namespace of the NVM command set.
pub(super) fn nvm_namespace() -> [u8; LEN] {
    NvmNamespace::default().to_bytes()
}

/// Identify Controller of the NVM command set: no limits beyond those of the fields.
pub(super) fn nvm_controller() -> [u8; LEN] {
    NvmController::default().to_bytes()
}

/// Identify Namespace independent of command sets.
pub(super) fn independent(namespace: &Namespace) -> [u8; LEN] {
    let id = IndependentNamespace {
        shared: true,
        write_protected: namespace.read_only(),
        ready: true,
        ..IndependentNamespace::default()
    };
    id.to_bytes()
}

/// The only combination of command sets: NVM.
pub(super) fn command_sets() -> [u8; LEN] {
    identify::command_sets(&[1 << csi::NVM])
}

/// Log pages of a kind of controller.
fn log_pages(discovery: bool) -> &'static [u8] {
    if discovery {
        &[lid::DISCOVERY]
    } else {
        &[
            lid::SUPPORTED_LOG_PAGES,
            lid::ERROR_INFORMATION,
            lid::SMART,
            lid::FIRMWARE_SLOTS,
            lid::CHANGED_NAMESPACES,
            lid::COMMAND_EFFECTS,
            lid::FEATURE_EFFECTS,
        ]
    }
}

/// True when a controller has a log page.
pub(super) fn has_log_page(discovery: bool, lid: u8) -> bool {
    log_pages(discovery).contains(&lid)
}

/// Supported Log Pages.
pub(super) fn supported_log_pages() -> Vec<u8> {
    let entries: Vec<_> = log_pages(false).iter().map(|&lid| (lid, effect::SUPPORTED)).collect();
    Table::of(&entries).to_bytes().to_vec()
}

/// Error Information: as many entries as Identify says, those not used all zero.
pub(super) fn errors(controller: &Controller) -> Vec<u8> {
    let (entries, _) = controller.errors();
    let mut page: Vec<u8> = entries.iter().flat_map(ErrorEntry::to_bytes).collect();
    page.resize(ERRORS_MAX * ErrorEntry::LEN, 0);
    page
}

/// SMART: what is known about a thing without wear or temperature.
pub(super) fn smart(controller: &Controller) -> Vec<u8> {
    let totals = controller.subsystem().totals();
    // In thousands of 512 bytes, rounded up.
    let units = |bytes: u64| u128::from(bytes.div_ceil(512_000));
    let smart = Smart {
        spare_percent: 100,
        spare_threshold_percent: 10,
        data_units_read: units(totals.read_bytes),
        data_units_written: units(totals.written_bytes),
        host_reads: totals.reads.into(),
        host_writes: totals.writes.into(),
        error_log_entries: controller.errors().1.into(),
        ..Smart::default()
    };
    smart.to_bytes().to_vec()
}

/// Firmware Slot Information.
pub(super) fn firmware_slots() -> Vec<u8> {
    let mut slots = FirmwareSlots { active: 1, ..FirmwareSlots::default() };
    slots.revisions[0] = Some(firmware());
    slots.to_bytes().to_vec()
}

/// Commands Supported and Effects of a command set. Content changes and nothing else, so that Linux lets ordinary users pass
/// them through. Of a set other than NVM there is no I/O command: nvme-cli asks for the zoned one too, and takes no error well.
pub(super) fn command_effects(set: u8) -> Vec<u8> {
    let plain = effect::SUPPORTED;
    let changes = effect::SUPPORTED | effect::CONTENT;
    let admin = Table::of(&[
        (admin::GET_LOG_PAGE, plain),
        (admin::IDENTIFY, plain),
        (admin::ABORT, plain),
        (admin::SET_FEATURES, plain),
        (admin::GET_FEATURES, plain),
        (admin::ASYNC_EVENT_REQUEST, plain),
        (admin::KEEP_ALIVE, plain),
    ]);
    let nvm = Table::of(&[
        (nvm::FLUSH, plain),
        (nvm::WRITE, changes),
        (nvm::READ, plain),
        (nvm::COMPARE, plain),
        (nvm::WRITE_ZEROES, changes),
        (nvm::DATASET_MANAGEMENT, changes),
        (nvm::COPY, changes),
    ]);
    let page = CommandEffects { admin, io: if set == csi::NVM { nvm } else { Table::of(&[]) } };
    page.to_bytes().to_vec()
}

/// Feature Identifiers Supported and Effects.
pub(super) fn feature_effects() -> Vec<u8> {
    use crate::nvme::feature::fid;
    let scope =
        |fid| if fid == fid::ERROR_RECOVERY { effect::NAMESPACE_SCOPE } else { effect::CONTROLLER_SCOPE };
    let entries: Vec<_> = features::ALL.iter().map(|&fid| (fid, effect::SUPPORTED | scope(fid))).collect();
    Table::of(&entries).to_bytes().to_vec()
}
