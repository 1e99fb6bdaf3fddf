//! Get Log Page.

use super::context::Context;
use super::identify::firmware;
use super::outcome::Outcome;
use crate::block::Buf;
use crate::nvme::Status;
use crate::nvme::admin::GetLogPage;
use crate::nvme::command::{NSID_ALL, admin, nvm};
use crate::nvme::feature::fid;
use crate::nvme::identify::csi;
use crate::nvme::log::{
    ChangedNamespaces, CommandEffects, ErrorEntry, FirmwareSlots, Smart, Table, effect, lid, read_page,
};
use crate::nvmet::controller::{Controller, ERRORS_MAX};
use crate::nvmet::features;

/// Get Log Page.
pub(super) fn log_page(cx: &Context<'_>, command: &GetLogPage, mut out: Buf) -> Result<Outcome, Status> {
    if command.len != out.len() as u64 {
        return Err(Status::SGL_LENGTH_INVALID);
    }
    let controller = cx.controller();
    if !log_pages(controller.namespaces().is_discovery()).contains(&command.lid) {
        return Err(Status::INVALID_LOG_PAGE);
    }
    // No page has an index, and none is of a single namespace.
    if command.offset_is_index || !matches!(command.nsid, 0 | NSID_ALL) {
        return Err(Status::INVALID_FIELD);
    }
    let page = match command.lid {
        lid::SUPPORTED_LOG_PAGES => supported_log_pages(),
        lid::ERROR_INFORMATION => errors(controller),
        lid::SMART => smart(controller),
        lid::FIRMWARE_SLOTS => firmware_slots(),
        lid::CHANGED_NAMESPACES => {
            let nsids = controller.with_events(|events| events.read(command.rae));
            ChangedNamespaces::page(&nsids).to_vec()
        }
        lid::COMMAND_EFFECTS => command_effects(command.csi),
        lid::FEATURE_EFFECTS => feature_effects(),
        lid::COPY_OUTCOMES => controller.copy_outcomes().to_bytes().to_vec(),
        _ => cx.target.discovery_log(controller.host_nqn().as_str(), cx.connection.local),
    };
    read_page(&page, command.offset, &mut out)?;
    Ok(Outcome::data(out))
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
            lid::COPY_OUTCOMES,
        ]
    }
}

/// Supported Log Pages.
fn supported_log_pages() -> Vec<u8> {
    let entries: Vec<_> = log_pages(false).iter().map(|&lid| (lid, effect::SUPPORTED)).collect();
    Table::of(&entries).to_bytes().to_vec()
}

/// Error Information: as many entries as Identify says, those not used all zero.
fn errors(controller: &Controller) -> Vec<u8> {
    let (entries, _) = controller.errors();
    let mut page: Vec<u8> = entries.iter().flat_map(ErrorEntry::to_bytes).collect();
    page.resize(ERRORS_MAX * ErrorEntry::LEN, 0);
    page
}

/// SMART: what is known about a thing without wear or temperature.
fn smart(controller: &Controller) -> Vec<u8> {
    let totals = controller.namespaces().totals();
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
fn firmware_slots() -> Vec<u8> {
    let mut slots = FirmwareSlots { active: 1, ..FirmwareSlots::default() };
    slots.revisions[0] = Some(firmware());
    slots.to_bytes().to_vec()
}

/// Commands Supported and Effects of a command set. Content changes and nothing else, so that Linux lets ordinary users
/// pass them through. Of a set other than NVM there is no I/O command: nvme-cli asks for the zoned one too, and takes
/// no error well.
fn command_effects(set: u8) -> Vec<u8> {
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
fn feature_effects() -> Vec<u8> {
    let scope =
        |fid| if fid == fid::ERROR_RECOVERY { effect::NAMESPACE_SCOPE } else { effect::CONTROLLER_SCOPE };
    let entries: Vec<_> = features::ALL.iter().map(|&fid| (fid, effect::SUPPORTED | scope(fid))).collect();
    Table::of(&entries).to_bytes().to_vec()
}
