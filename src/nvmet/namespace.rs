//! A namespace: a device with a number, names that survive a restart, and the hosts that may see it.

use crate::block::container;
use crate::block::device::LeafSpace;
use crate::block::{ByteRange, Device, Error, Identity, Kind, Method, Result};
use crate::nvme::{Blocks, Count8, Status};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use uuid::Builder;

/// Smallest and largest logical block that can be asked for, in bytes. Hosts with pages of 4 KiB take no larger one.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 512..=4096;

/// Longest Copy in memory, in bytes: a few milliseconds, during which the thread does nothing else.
const COPY_MEMORY: u64 = 32 << 20;
/// Longest Copy of all others, in bytes: any may have to be read and written, also where the device shares extents, as
/// when it is unaligned or its source is elsewhere. A host gives a command 30 seconds; at 10 MB/s, slower than any disk
/// that is worth exporting, this takes 7. Where extents are shared, 1 GiB takes 16 commands: less than 4 KiB on the
/// wire.
const COPY_MOVED: u64 = 64 << 20;
/// Longest source range in blocks. MSSRL has 16 bits; a power of two, so that a host that cuts a copy there keeps the
/// alignment at which file systems share extents (65535 blocks of 512 bytes would lose it).
const MSSRL_MAX: u32 = 0x8000;

/// Who may see a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Hosts {
    /// Every host that reaches the target.
    #[default]
    Any,
    /// The hosts with these NQNs.
    These(Vec<String>),
}

impl Hosts {
    /// True when the host of this NQN is one of them.
    pub fn has(&self, nqn: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(nqns) => nqns.iter().any(|n| n == nqn),
        }
    }
}

/// How a device becomes a namespace.
#[derive(Clone, Debug, Default)]
pub struct NamespaceOptions {
    /// Its number; `None`: the lowest free one.
    pub nsid: Option<u32>,
    /// Logical block in bytes: 512, 1024, 2048 or 4096, not smaller than the device's. `None`: 512, or the device's.
    pub block_bytes: Option<u32>,
    /// Who may see it.
    pub hosts: Hosts,
    /// Refuse writes, also where the device takes them.
    pub read_only: bool,
    /// What NGUID and UUID are made of, beside the subsystem's NQN: the same words give the same names after a restart.
    /// `None`: what holds the device's bytes ([`Device::container`]), or its name where that does not matter.
    pub stable_name: Option<String>,
}

/// What one Copy command may ask of a namespace as its destination, in blocks of that namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyCommandLimits {
    /// Longest source range (MSSRL); counts, not 0's based.
    pub range_blocks: u16,
    /// Longest copy, all ranges together (MCL).
    pub blocks: u32,
    /// Most ranges (MSRC).
    pub ranges: Count8,
}

/// One namespace. What changes is the set of them, and whether its device answers.
pub struct Namespace {
    nsid: u32,
    nguid: [u8; 16],
    uuid: [u8; 16],
    generation: [u8; 16],
    device: Arc<dyn Device>,
    stable_name: String,
    block_shift: u32,
    blocks: u64,
    read_only: bool,
    hosts: Hosts,
    copy: CopyCommandLimits,
    /// Copies that were ended because the device answered none of their requests, which are still there.
    stalled: AtomicUsize,
}

/// What the subsystem has decided about a new namespace.
pub(super) struct NamespacePlace<'a> {
    pub(super) nsid: u32,
    pub(super) subsystem_nqn: &'a str,
    /// Namespaces of the subsystem that have the same stable name.
    pub(super) namesakes: usize,
}

impl Namespace {
    /// The namespace of `device`; its size is the one the device has now, cut to whole blocks.
    ///
    /// Errors: `InvalidInput` for a block size that cannot be, or a device shorter than a block.
    pub(super) fn new(
        device: Arc<dyn Device>,
        options: NamespaceOptions,
        place: &NamespacePlace<'_>,
    ) -> Result<Self> {
        let block_bytes = block_bytes(&device, options.block_bytes)?;
        let block_shift = block_bytes.trailing_zeros();
        let blocks = device.size() >> block_shift;
        if blocks == 0 {
            let text = format!("{} bytes are less than one block of {block_bytes}", device.size());
            return Err(Error::new(Kind::InvalidInput, text).on(device.name()));
        }
        let bound = bound_to(&device);
        let name = options.stable_name.unwrap_or_else(|| bound.clone());
        Ok(Self {
            nsid: place.nsid,
            nguid: identifier("nguid", &name, place),
            // Version 8 (RFC 9562): made by a rule of one's own.
            uuid: Builder::from_custom_bytes(identifier("uuid", &name, place)).into_uuid().into_bytes(),
            generation: container::generation_of(&bound),
            read_only: options.read_only || device.read_only(),
            copy: copy_limits(&device, block_shift),
            stalled: AtomicUsize::new(0),
            device,
            stable_name: name,
            block_shift,
            blocks,
            hosts: options.hosts,
        })
    }

    /// True while the device has not answered what a copy that was ended had asked it.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire) > 0
    }

    /// A copy was ended with requests left in the device.
    pub(super) fn stalls(&self) {
        if self.stalled.fetch_add(1, Ordering::AcqRel) == 0 {
            tracing::warn!(
                nsid = self.nsid,
                device = self.device.name(),
                "the device does not answer; copies wait for it"
            );
        }
    }

    /// It has answered them.
    pub(super) fn answers_again(&self) {
        if self.stalled.fetch_sub(1, Ordering::AcqRel) == 1 {
            tracing::warn!(nsid = self.nsid, device = self.device.name(), "the device answers again");
        }
    }

    /// Its number.
    pub fn nsid(&self) -> u32 {
        self.nsid
    }

    /// Its globally unique identifier, as on the wire.
    pub fn nguid(&self) -> [u8; 16] {
        self.nguid
    }

    /// Its UUID, as on the wire.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// What its bytes are bound to, as a number: another one means that they may be others than before.
    pub fn generation(&self) -> [u8; 16] {
        self.generation
    }

    /// What it is made of.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// What its identifiers are made of.
    pub(super) fn stable_name(&self) -> &str {
        &self.stable_name
    }

    /// Logical block in bytes: a power of two.
    pub fn block_bytes(&self) -> u32 {
        1 << self.block_shift
    }

    /// Size in blocks (NSZE).
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// True when every write is refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Who may see it.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// What a Copy to it may ask.
    pub fn copy_limits(&self) -> CopyCommandLimits {
        self.copy
    }

    /// True when blocks that were deallocated read as zero: known of files and memory. A disk may answer anything.
    pub fn reads_zero_when_deallocated(&self) -> bool {
        let Identity::Leaf { leaf, .. } = self.device.identity() else { return false };
        matches!(leaf.space, LeafSpace::File | LeafSpace::Memory)
    }

    /// The bytes of `blocks` blocks from `lba`.
    ///
    /// Errors: LBA Out of Range.
    pub fn bytes(&self, lba: u64, blocks: u64) -> Result<ByteRange, Status> {
        let inside = lba.checked_add(blocks).is_some_and(|end| end <= self.blocks);
        // Inside the device, so both products fit.
        let range = || ByteRange::new(lba << self.block_shift, blocks << self.block_shift);
        if inside { range() } else { None }.ok_or(Status::LBA_OUT_OF_RANGE)
    }

    /// The bytes of a command's blocks; see [`Namespace::bytes`].
    pub fn extent(&self, lba: u64, blocks: Blocks) -> Result<ByteRange, Status> {
        self.bytes(lba, u64::from(blocks.get()))
    }
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "namespace {} ({})", self.nsid, self.device.name())
    }
}

fn block_bytes(device: &Arc<dyn Device>, asked: Option<u32>) -> Result<u32> {
    let own = device.limits().block_size.get();
    let refuse = |text: String| Err(Error::new(Kind::InvalidInput, text).on(device.name()));
    let block = asked.unwrap_or_else(|| own.max(*BLOCK_BYTES.start()));
    if let Some(asked) = asked
        && !(BLOCK_BYTES.contains(&asked) && asked.is_power_of_two())
    {
        return refuse(format!("a block of {asked} bytes is not offered; ask for 512, 1024, 2048 or 4096"));
    }
    if !block.is_multiple_of(own) || !block.is_power_of_two() {
        return refuse(format!(
            "the device has blocks of {own} bytes, and blocks of {block} bytes are not a multiple of them; ask for a \
             multiple"
        ));
    }
    Ok(block)
}

/// What the device surely copies within a third of the 30 seconds a host gives a command.
fn copy_limits(device: &Arc<dyn Device>, shift: u32) -> CopyCommandLimits {
    let (limits, paths) = (device.limits(), device.copy_paths());
    let best = paths.iter().find(|p| p.preferred && p.carries_holes).map(|p| p.method);
    let bound = match best {
        Some(Method::Memory) => COPY_MEMORY,
        _ => COPY_MOVED,
    };
    let native = best.and(limits.copy_max_bytes.get()).map_or(bound, |most| most.get().min(bound));
    let blocks = u32::try_from(native >> shift).unwrap_or(u32::MAX).max(1);
    let range = best.and(limits.copy_max_range_bytes.get()).map_or(u64::MAX, |most| most.get() >> shift);
    let range = u32::try_from(range).unwrap_or(u32::MAX).clamp(1, MSSRL_MAX).min(blocks);
    let range_blocks = u16::try_from(range).expect("at most MSSRL_MAX");
    CopyCommandLimits { range_blocks, blocks, ranges: Count8::MAX }
}

/// What the names of a device are made of, where nothing else is said.
pub(super) fn bound_to(device: &Arc<dyn Device>) -> String {
    device.container().map_or_else(|| device.name().to_owned(), |c| c.words().to_owned())
}

/// 16 bytes that stay the same as long as subsystem, name and number of namesakes do.
fn identifier(kind: &str, name: &str, place: &NamespacePlace<'_>) -> [u8; 16] {
    container::identifier(kind, &[place.subsystem_nqn, name, &place.namesakes.to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::{mem::Mem, null::Null};
    use std::num::NonZeroU32;

    fn mem(size: u64, block: u32) -> Arc<dyn Device> {
        Arc::new(Mem::new("mem", size, NonZeroU32::new(block).unwrap()).unwrap())
    }

    fn make(device: Arc<dyn Device>, options: NamespaceOptions) -> Result<Namespace> {
        Namespace::new(device, options, &NamespacePlace { nsid: 7, subsystem_nqn: "nqn.x", namesakes: 0 })
    }

    fn asked(block_bytes: u32) -> NamespaceOptions {
        NamespaceOptions { block_bytes: Some(block_bytes), ..Default::default() }
    }

    #[test]
    fn the_block_is_the_larger_of_512_and_the_devices() {
        for (own, asked_bytes, block) in [
            (1, None, Some(512)),
            (512, None, Some(512)),
            (4096, None, Some(4096)),
            (1, Some(4096), Some(4096)),
            (4096, Some(512), None),
            (1, Some(513), None),
            (1, Some(8192), None),
            (1, Some(0), None),
            (1, Some(256), None),
        ] {
            let options = asked_bytes.map_or_else(NamespaceOptions::default, asked);
            let made = make(mem(1 << 20, own), options);
            assert_eq!(made.ok().map(|n| n.block_bytes()), block, "{own} {asked_bytes:?}");
        }
    }

    #[test]
    fn a_ragged_end_is_not_addressable_and_less_than_a_block_is_no_namespace() {
        assert_eq!(make(mem(5 * 512 + 511, 1), NamespaceOptions::default()).unwrap().blocks(), 5);
        assert_eq!(make(mem(511, 1), NamespaceOptions::default()).unwrap_err().kind(), Kind::InvalidInput);
    }

    #[test]
    fn what_lies_outside_is_out_of_range_however_the_sum_wraps() {
        let ns = make(mem(8 * 512, 512), NamespaceOptions::default()).unwrap();
        assert_eq!(ns.bytes(0, 8), Ok(ByteRange::to(4096)));
        assert_eq!(ns.bytes(7, 1), Ok(ByteRange::between(3584, 4096)));
        for (lba, blocks) in
            [(8, 1), (7, 2), (0, 9), (u64::MAX, 1), (u64::MAX - 6, 8), (1 << 55, 1), (1 << 63, 1 << 63)]
        {
            assert_eq!(ns.bytes(lba, blocks), Err(Status::LBA_OUT_OF_RANGE), "{lba}+{blocks}");
        }
    }

    #[test]
    fn copy_limits_follow_the_backend_in_blocks_of_the_namespace() {
        let limits = |device, block| make(device, asked(block)).unwrap().copy_limits();
        let null = |size| Arc::new(Null::new("null", size, NonZeroU32::MIN).unwrap());
        // Memory: 32 MiB, at 512 bytes twice what a range may have.
        let l = limits(mem(1 << 30, 1), 512);
        assert_eq!((l.range_blocks, l.blocks, l.ranges.get()), (32768, 65536, 256));
        let l = limits(mem(1 << 30, 1), 4096);
        assert_eq!((l.range_blocks, l.blocks), (8192, 8192), "no range is longer than the whole");
        let l = limits(null(1 << 40), 4096);
        assert_eq!(
            (l.range_blocks, l.blocks),
            (16384, 1 << 14),
            "no longer than what can be read and written in time"
        );
        let dir = tempfile::tempdir().unwrap();
        let file = crate::drivers::File::open(
            dir.path().join("f"),
            crate::drivers::FileOptions { write: true, create: true },
        )
        .unwrap();
        file.set_len(1 << 20).unwrap();
        let l = limits(file, 512);
        assert_eq!(
            (l.range_blocks, l.blocks),
            (32768, 1 << 17),
            "whatever it shares: the source may be elsewhere"
        );
        // 1 GiB in as few commands as that takes: header and entry, a list of formats 2h or 3h, and the answer.
        for block in [512, 1024, 2048, 4096] {
            let l = limits(null(1 << 40), block);
            let commands = (1 << 30) / (u64::from(l.blocks) * u64::from(block));
            let ranges = u64::from(l.blocks.div_ceil(l.range_blocks.into()));
            assert!(commands * (72 + 32 * ranges + 24) <= 4096, "{block}");
        }
    }

    //= promise 1
    #[test]
    fn names_end_with_the_bytes_they_name() {
        let place = || NamespacePlace { nsid: 1, subsystem_nqn: "nqn.x", namesakes: 0 };
        let of = |device: Arc<dyn Device>, name: Option<&str>| {
            let options =
                NamespaceOptions { stable_name: name.map(str::to_owned), ..NamespaceOptions::default() };
            let ns = Namespace::new(device, options, &place()).unwrap();
            (ns.nguid(), ns.uuid(), ns.generation())
        };
        let (a, b) = (mem(4096, 1), mem(4096, 1));
        assert_eq!(of(a.clone(), None), of(a.clone(), None));
        let (first, other) = (of(a.clone(), None), of(b.clone(), None));
        assert!(first.0 != other.0 && first.1 != other.1 && first.2 != other.2, "two memories of one name");
        // A name that the user gave stays; that the bytes may be others is said all the same.
        let (first, other) = (of(a, Some("x")), of(b, Some("x")));
        assert!(first.0 == other.0 && first.1 == other.1 && first.2 != other.2);
        // A file is the same under another path, and another file at the same path is not.
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, create| {
            let options = crate::drivers::FileOptions { write: true, create };
            let file = crate::drivers::File::open(dir.path().join(name), options).unwrap();
            file.set_len(4096).unwrap();
            file as Arc<dyn Device>
        };
        let first = of(open("f", true), None);
        assert_eq!(of(open("f", false), None), first);
        std::fs::rename(dir.path().join("f"), dir.path().join("g")).unwrap();
        assert_eq!(of(open("g", false), None), first);
        assert_ne!(of(open("f", true), None), first);
    }

    #[test]
    fn names_depend_on_what_it_is_and_on_nothing_else() {
        let named = |name: &str, nsid, subsystem_nqn, namesakes| {
            let options = NamespaceOptions { stable_name: Some(name.to_owned()), ..Default::default() };
            let ns =
                Namespace::new(mem(4096, 1), options, &NamespacePlace { nsid, subsystem_nqn, namesakes })
                    .unwrap();
            (ns.nguid(), ns.uuid())
        };
        let first = named("/a", 1, "nqn.x", 0);
        assert_eq!(first, named("/a", 9, "nqn.x", 0), "another number is the same namespace");
        assert_ne!(first.0, first.1);
        for other in [named("/b", 1, "nqn.x", 0), named("/a", 1, "nqn.y", 0), named("/a", 1, "nqn.x", 1)] {
            assert!(other.0 != first.0 && other.1 != first.1);
        }
        assert_eq!((first.1[6] >> 4, first.1[8] >> 6), (8, 2), "version and variant of the UUID");
    }
}
