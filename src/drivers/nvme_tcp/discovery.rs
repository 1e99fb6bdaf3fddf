//! What a target has: the subsystems of its discovery log, and the namespaces of each.

use super::admin::{self, Admin, Ask, Facts, NamespaceFacts, Peer, Purpose};
use super::identity::{Host, hex};
use super::url::{Address, Url};
use super::{Options, Why};
use crate::block::{Error, Kind, Result};
use crate::nvme::Nqn;
use crate::nvme::discovery::{Entry, Header, SubsystemType};
use crate::nvme::log::lid;
use serde::Serialize;
use std::time::Instant;
use uuid::Uuid;

/// Entries read at most: more than anybody has, and a bound on what a target can make us read.
const ENTRIES_MAX: u64 = 1024;
/// Namespaces described at most, per subsystem.
const NAMESPACES_MAX: usize = 1024;
/// How often the log is read anew because it changed meanwhile.
const READS_MAX: u32 = 5;
/// The address of an entry that stands for whatever address the log was read from.
const ANY: [&str; 2] = ["0.0.0.0", "::"];

/// A subsystem, as far as it could be looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Subsystem {
    /// Its name.
    pub nqn: String,
    /// Where it is: `host:port`.
    pub address: String,
    /// `nvm`, or what else it is that has no namespaces for us.
    pub kind: &'static str,
    /// What its controller calls itself; `None` when it could not be asked.
    pub model: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Copies may go from one namespace to another.
    pub copies_across: bool,
    /// Its namespaces, ascending by number.
    pub namespaces: Vec<NamespaceInfo>,
    /// Namespaces that are not described above, because there are so many.
    pub more_namespaces: usize,
    /// Why it could not be looked at.
    pub error: Option<String>,
}

/// A namespace.
#[derive(Clone, Debug, Serialize)]
pub struct NamespaceInfo {
    /// Its number.
    pub nsid: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Size of its blocks, in bytes.
    pub block_size: u32,
    /// Metadata of each block, in bytes.
    pub metadata_bytes: u16,
    /// It cannot be written.
    pub read_only: bool,
    /// UUID.
    pub uuid: Option<String>,
    /// NGUID, in hex.
    pub nguid: Option<String>,
    /// EUI64, in hex.
    pub eui64: Option<String>,
    /// What one Copy may be; `None`: it takes none.
    pub copy: Option<CopyInfo>,
    /// The name to open it by.
    pub url: String,
    /// Why it cannot be opened.
    pub error: Option<String>,
}

/// What one Copy command may be.
#[derive(Clone, Debug, Serialize)]
pub struct CopyInfo {
    /// Bytes of all ranges together (MCL).
    pub max_bytes: u64,
    /// Bytes of one range (MSSRL).
    pub max_range_bytes: u64,
    /// Ranges (MSRC).
    pub max_nr_ranges: u32,
    /// Copy formats by number.
    pub formats: Vec<u8>,
}

/// What the discovery service at an address lists, each subsystem looked at.
///
/// Errors: those of reaching the service. A listed subsystem that cannot stat says so in its place.
pub fn discover(url: &Url) -> Result<Vec<Subsystem>> {
    let options = Options::of(url);
    let host = Host::new(url.host.clone())?;
    let peer = Peer { address: url.address.clone(), subsystem: Nqn::discovery(), host: host.clone() };
    let deadline = Instant::now() + options.connect_timeout;
    let mut admin = Admin::attach(&peer, &options, Purpose::Look, deadline)?;
    let entries = read_log(&mut admin, deadline).map_err(|e| e.on(&peer.address.to_string()))?;
    let _ = admin.shut_down(deadline);
    drop(admin);
    let mut all = Vec::new();
    for entry in entries {
        let (nqn, service) = (entry.subsystem.to_string(), entry.service.as_str());
        let host_name =
            if ANY.contains(&entry.address.as_str()) { &url.address.host } else { &entry.address };
        let mut found = Subsystem::blank(nqn, format!("{host_name}:{service}"));
        let port = service.parse().ok().filter(|&port: &u16| port != 0);
        match (entry.subsystem_type, port) {
            (SubsystemType::CurrentDiscovery, _) => continue,
            (SubsystemType::Referral, _) => found.kind = "referral",
            _ if entry.transport != Entry::TCP => found.kind = "not-tcp",
            (_, None) => found.error = Some(format!("port {service:?} is not a port number")),
            (SubsystemType::Nvm, Some(port)) => {
                let there = Url {
                    address: Address { host: host_name.clone(), port },
                    subsystem: Some(entry.subsystem.clone()),
                    ..url.clone()
                };
                found = look(&there, &options, host.clone());
            }
        }
        all.push(found);
    }
    Ok(all)
}

/// The one subsystem that a URL names, looked at.
///
/// Errors: `InvalidInput` for a URL without NQN, and those of reaching it.
pub fn subsystem(url: &Url) -> Result<Subsystem> {
    let options = Options::of(url);
    let found = look_into(url, &options, Host::new(url.host.clone())?);
    found.map_err(|e| e.on(&url.to_string()))
}

/// Reads the log until it stands still.
fn read_log(admin: &mut Admin, deadline: Instant) -> Result<Vec<Entry>> {
    let mut ask = admin.asking(deadline);
    for _ in 0..READS_MAX {
        let before = header(&mut ask)?;
        if before.entries > ENTRIES_MAX {
            let text =
                format!("the discovery log has {} entries; at most {ENTRIES_MAX} are read", before.entries);
            return Err(Error::new(Kind::Unsupported, text));
        }
        let mut entries = Vec::new();
        for at in 0..before.entries {
            let offset = Header::LEN as u64 + at * Entry::LEN as u64;
            entries.push(Entry::parse(&admin::log_page(&mut ask, lid::DISCOVERY, offset, Entry::LEN)?)?);
        }
        if header(&mut ask)?.generation == before.generation {
            return Ok(entries);
        }
    }
    Err(Error::new(Kind::Io, "the discovery log keeps changing; try again"))
}

fn header(ask: &mut dyn Ask) -> Result<Header> {
    Header::parse(&admin::log_page(ask, lid::DISCOVERY, 0, Header::LEN)?)
}

fn look(url: &Url, options: &Options, host: Host) -> Subsystem {
    let name = url.subsystem.as_ref().map_or(String::new(), ToString::to_string);
    look_into(url, options, host).unwrap_or_else(|error| {
        let mut found = Subsystem::blank(name, url.address.to_string());
        found.error = Some(Why::of(&error).to_string());
        found
    })
}

fn look_into(url: &Url, options: &Options, host: Host) -> Result<Subsystem> {
    let Some(subsystem) = url.subsystem.clone() else {
        return Err(Error::new(Kind::InvalidInput, "does not name a subsystem"));
    };
    let mut found = Subsystem::blank(subsystem.to_string(), url.address.to_string());
    let peer = Peer { address: url.address.clone(), subsystem, host };
    let deadline = Instant::now() + options.connect_timeout;
    let mut admin = Admin::attach(&peer, options, Purpose::Look, deadline)?;
    let facts = admin.facts.clone();
    found.model = Some(facts.identify.model.to_string());
    found.serial = Some(facts.identify.serial.to_string());
    found.copies_across = facts.identify.copies_in(crate::nvme::copy::Format::F2);
    let mut ask = admin.asking(deadline);
    let active = admin::active_namespaces(&mut ask)?;
    found.more_namespaces = active.len().saturating_sub(NAMESPACES_MAX);
    for nsid in active.into_iter().take(NAMESPACES_MAX) {
        let url = Url { nsid: Some(nsid), ..url.clone() };
        found.namespaces.push(match admin::describe(&mut ask, &facts, nsid) {
            Ok(namespace) => NamespaceInfo::of(&namespace, &facts, &url),
            Err(error) => {
                NamespaceInfo { error: Some(Why::of(&error).to_string()), ..NamespaceInfo::blank(&url) }
            }
        });
    }
    let _ = admin.shut_down(deadline);
    Ok(found)
}

impl Subsystem {
    fn blank(nqn: String, address: String) -> Self {
        Self {
            nqn,
            address,
            kind: "nvm",
            model: None,
            serial: None,
            copies_across: false,
            namespaces: Vec::new(),
            more_namespaces: 0,
            error: None,
        }
    }
}

impl NamespaceInfo {
    fn blank(url: &Url) -> Self {
        Self {
            nsid: url.nsid.unwrap_or(0),
            size_bytes: 0,
            block_size: 0,
            metadata_bytes: 0,
            read_only: false,
            uuid: None,
            nguid: None,
            eui64: None,
            copy: None,
            url: url.to_string(),
            error: None,
        }
    }

    fn of(namespace: &NamespaceFacts, facts: &Facts, url: &Url) -> Self {
        let page = &namespace.identify;
        let block = u64::from(page.block_bytes());
        let formats = crate::nvme::copy::Format::ALL;
        let formats = formats.into_iter().filter(|&f| facts.identify.copies_in(f)).map(|f| f.number());
        Self {
            size_bytes: page.size_bytes().unwrap_or(u64::MAX),
            block_size: page.block_bytes(),
            metadata_bytes: page.lba_format().metadata_bytes,
            read_only: page.write_protected,
            uuid: namespace.ids.uuid.map(|id| Uuid::from_bytes(id).to_string()),
            nguid: namespace.ids.nguid.as_ref().map(|id| hex(id)),
            eui64: namespace.ids.eui64.as_ref().map(|id| hex(id)),
            copy: page.copy.filter(|_| facts.has(crate::nvme::identify::oncs::COPY)).map(|most| CopyInfo {
                max_bytes: u64::from(most.blocks_max.get()) * block,
                max_range_bytes: u64::from(most.range_blocks_max.get()) * block,
                max_nr_ranges: most.ranges_max.get(),
                formats: formats.collect(),
            }),
            error: namespace.check_plain().err().map(|e| Why::of(&e).to_string()),
            ..Self::blank(url)
        }
    }
}
