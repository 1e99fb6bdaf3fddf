//! The device that a layout and its legs make.

use super::guard;
use super::legs::{Legs, stacked};
use super::mapping::Mapping;
use super::queue::LayerQueue;
use crate::block::device::copies_of;
use crate::block::limits::{LimitsCell, Pair};
use crate::block::places::{LeafRun, places};
use crate::block::{
    Access, ByteRange, CopyAt, Counters, Device, Error, Extent, Identity, Kind, LeafId, Limits, LimitsChange,
    Queue, Resolution, Result,
};
use std::any::Any;
use std::sync::Arc;

/// A device made of others, laid out as `M` says.
pub struct Layer<M> {
    id: u64,
    legs: Arc<Legs<M>>,
    /// The soft limits of the map itself, on top of what its legs allow at the moment.
    own: LimitsCell,
}

/// Legs that were checked, and are to become a map.
pub(super) struct Ready {
    name: String,
    pub(super) legs: Vec<Arc<dyn Device>>,
    block_size: u32,
}

impl Ready {
    /// Errors: `InvalidInput` without a leg; `Overlap` when legs share blocks.
    pub(super) fn new(name: impl Into<String>, legs: impl Into<Vec<Arc<dyn Device>>>) -> Result<Self> {
        let (name, legs) = (name.into(), legs.into());
        if legs.is_empty() {
            return Err(Error::new(Kind::InvalidInput, "a map needs a device below it").on(&name));
        }
        refuse_shared_leaves(&name, &legs)?;
        let block_size = stacked(&legs).block_size.get();
        Ok(Self { name, legs, block_size })
    }

    /// Errors: `InvalidInput` when `what` of `bytes` bytes is not whole blocks.
    pub(super) fn check_whole(&self, what: &str, bytes: u64) -> Result<()> {
        let block = u64::from(self.block_size);
        if bytes.is_multiple_of(block) {
            return Ok(());
        }
        Err(self.invalid(format!(
            "{what} has {bytes} bytes, which is not a multiple of the map's block size ({block} bytes); use a range that is"
        )))
    }

    pub(super) fn invalid(&self, message: String) -> Error {
        Error::new(Kind::InvalidInput, message).on(&self.name)
    }

    /// The map of `size` bytes.
    pub(super) fn layer<M: Mapping>(self, size: u64, mapping: M) -> Result<Layer<M>> {
        // No restriction below the legs' hardware values.
        let hw = stacked(&self.legs);
        let open = |p: Option<_>| p.map_or(Pair::NONE, Pair::hw);
        let own = LimitsCell::new(Limits {
            copy_offload: hw.copy_max_bytes.get_hw().is_some(),
            copy_max_bytes: open(hw.copy_max_bytes.get_hw()),
            copy_max_range_bytes: open(hw.copy_max_range_bytes.get_hw()),
            copy_max_nr_ranges: hw.copy_max_nr_ranges.get_hw().map_or(Pair::NONE, Pair::hw),
            ..hw
        });
        let Self { name, legs: devices, block_size } = self;
        Ok(Layer {
            id: LeafId::fresh().id.0,
            legs: Arc::new(Legs { name, devices, size, block_size, mapping }),
            own,
        })
    }
}

/// Refuses legs that share bytes of a leaf: a write to one would change the other unseen.
///
/// A mirror below shows the leg it reads from only, so two maps over one mirror leg are not found here.
fn refuse_shared_leaves(name: &str, legs: &[Arc<dyn Device>]) -> Result<()> {
    let mut all = Vec::new();
    for (number, leg) in legs.iter().enumerate() {
        let runs = places(leg, ByteRange::to(leg.size()), Access::Read)?;
        let here = runs.iter().filter_map(LeafRun::on_leaf).filter(|(_, range)| !range.is_empty());
        all.extend(here.map(|(leaf, range)| (leaf, range.offset(), range.end(), number)));
    }
    all.sort_unstable();
    // The run that reaches furthest on the present leaf.
    let mut furthest: Option<(LeafId, u64, usize)> = None;
    for run in all {
        let (leaf, start, end, number) = run;
        if let Some((on, reach, other)) = furthest
            && on == leaf
            && start < reach
            && other != number
        {
            let (a, b) = (legs[other].name(), legs[number].name());
            let text = format!("the legs {a} and {b} share blocks of one device; give each its own");
            return Err(Error::new(Kind::Overlap, text).on(name));
        }
        furthest = match furthest {
            Some((on, reach, other)) if on == leaf && reach >= end => Some((on, reach, other)),
            _ => Some((leaf, end, number)),
        };
    }
    Ok(())
}

impl<M: Mapping> Layer<M> {
    /// The layout.
    pub(super) fn mapping(&self) -> &M {
        &self.legs.mapping
    }

    fn devices(&self) -> impl Iterator<Item = &Arc<dyn Device>> {
        self.legs.devices.iter()
    }

    fn any(&self, ask: impl Fn(&Arc<dyn Device>) -> bool) -> bool {
        self.devices().any(ask)
    }
}

/// One number from several: differs when any of them does, but for chance.
fn mix_generations(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, |h: u64, n| (h ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}

impl<M: Mapping> Device for Layer<M> {
    fn name(&self) -> &str {
        &self.legs.name
    }
    fn identity(&self) -> Identity {
        Identity::Map(self.id)
    }
    fn size(&self) -> u64 {
        self.legs.size
    }
    fn read_only(&self) -> bool {
        self.any(|leg| leg.read_only())
    }
    fn limits(&self) -> Limits {
        self.own.get().stack(stacked(&self.legs.devices))
    }
    fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
        self.own.change(change)?;
        Ok(self.limits())
    }
    fn generation(&self) -> u64 {
        let legs = self.devices().map(|leg| leg.generation());
        mix_generations(std::iter::once(self.mapping().generation()).chain(legs))
    }
    fn next_extent(&self, range: ByteRange) -> Result<Extent> {
        self.legs.check(range)?;
        let first = &self.mapping().sources(range)[0];
        let from = first.legs[0];
        self.legs.devices[from.leg].next_extent(from.run(first.range.len()))
    }
    fn copies(&self, range: ByteRange) -> Option<Vec<CopyAt>> {
        let mut all = Vec::new();
        for part in self.mapping().copies(range) {
            for on in &part.legs {
                let there = copies_of(&self.legs.devices[on.leg], on.run(part.range.len()));
                all.extend(there.into_iter().map(|mut one| {
                    let start = part.range.offset() + (one.range.offset() - on.offset);
                    one.range = ByteRange::between(start, start + one.range.len());
                    one
                }));
            }
        }
        Some(all)
    }
    fn resolve(self: Arc<Self>, range: ByteRange, access: Access) -> Result<Resolution> {
        self.legs.check(range)?;
        match access {
            Access::Read => guard::resolve_read(self.legs.clone(), range),
            Access::Write => guard::resolve_write(self.legs.clone(), range),
        }
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        Ok(Box::new(LayerQueue::open(self.legs.clone())?))
    }
    fn legs(&self) -> &[Arc<dyn Device>] {
        &self.legs.devices
    }
    fn allocated_bytes(&self) -> Option<u64> {
        let legs: Vec<_> = self.devices().map(|leg| (leg.allocated_bytes(), leg.size())).collect();
        self.mapping().allocated(&legs)
    }
    fn may_wait(&self) -> bool {
        self.any(|leg| leg.may_wait())
    }
    fn counters(&self) -> Counters {
        self.devices().fold(Counters::default(), |mut sum, leg| {
            sum += leg.counters();
            sum
        })
    }
    fn cache_losses(&self) -> Option<u64> {
        self.devices().filter_map(|leg| leg.cache_losses()).reduce(u64::wrapping_add)
    }
    fn drop_cache(&self) {
        self.devices().for_each(|leg| leg.drop_cache());
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
