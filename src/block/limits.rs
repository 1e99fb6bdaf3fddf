//! What a device can do at once, and how stacked devices share it.
//!
//! Names are those of the copy-offload series' queue attributes. Each limit is a pair, soft <= hardware: the soft value
//! may be changed at run time, the hardware value is the device's. `None` means "cannot"; zero is never a limit.

use super::{Error, Kind, Result};
use crate::sys::sync::held;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::RwLock;

/// A soft value and the hardware value it never exceeds. `None`: the device cannot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Pair<T> {
    soft: Option<T>,
    hw: Option<T>,
}

impl<T: Copy + Ord> Pair<T> {
    /// Cannot.
    pub const NONE: Self = Self { soft: None, hw: None };

    /// Both values the device's own.
    pub const fn hw(value: T) -> Self {
        Self { soft: Some(value), hw: Some(value) }
    }

    /// The value in force.
    pub fn get(self) -> Option<T> {
        self.soft
    }

    /// The device's value.
    pub fn get_hw(self) -> Option<T> {
        self.hw
    }

    /// The pair with its soft value set, cut to the hardware value (as the series' attributes do).
    #[must_use]
    pub fn with_soft(self, soft: T) -> Self {
        Self { soft: self.hw.map(|hw| soft.min(hw)), hw: self.hw }
    }

    /// Smallest of both; one "cannot" makes the whole "cannot".
    #[must_use]
    pub fn stack(self, other: Self) -> Self {
        let least = |a: Option<T>, b: Option<T>| Some(a?.min(b?));
        Self { soft: least(self.soft, other.soft), hw: least(self.hw, other.hw) }
    }
}

/// What one device takes in one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Limits {
    /// Logical block in bytes: every offset and length of a request is a multiple. 1 for regular files. Stacks as the
    /// largest.
    pub block_size: NonZeroU32,
    /// Bytes that are written whole or not at all at a power cut; `None`: unknown. Stacks as the smallest.
    pub atomic_write_bytes: Option<NonZeroU32>,
    /// Alignment of offsets, lengths and memory for direct I/O, in bytes; `None`: no direct I/O. Stacks as the largest.
    pub direct_io_align: Option<NonZeroU32>,
    /// Size of one read or write that the device serves best, in bytes. Stacks as the largest.
    pub optimal_io_bytes: NonZeroU32,
    /// Whether copies may be handed to the device at all. Stacks as "all legs".
    pub copy_offload: bool,
    /// Longest copy in one request, all its ranges together, in bytes.
    pub copy_max_bytes: Pair<NonZeroU64>,
    /// Longest single source range of a copy, in bytes.
    pub copy_max_range_bytes: Pair<NonZeroU64>,
    /// Most source ranges in one copy request.
    pub copy_max_nr_ranges: Pair<NonZeroU32>,
}

/// The default optimal I/O size, in bytes: buffered writes of 128 to 512 KiB were measured fastest.
const OPTIMAL_IO_BYTES: NonZeroU32 = NonZeroU32::new(256 << 10).expect("not zero");

impl Limits {
    /// Limits of a device that cannot copy by itself.
    pub fn plain(block_size: NonZeroU32) -> Self {
        Self {
            block_size,
            atomic_write_bytes: None,
            direct_io_align: None,
            optimal_io_bytes: OPTIMAL_IO_BYTES,
            copy_offload: false,
            copy_max_bytes: Pair::NONE,
            copy_max_range_bytes: Pair::NONE,
            copy_max_nr_ranges: Pair::NONE,
        }
    }

    /// The same device, able to copy: `max_bytes` a request, `max_range_bytes` a range, `ranges` ranges.
    #[must_use]
    pub fn with_copy(self, max_bytes: NonZeroU64, max_range_bytes: NonZeroU64, ranges: NonZeroU32) -> Self {
        Self {
            copy_offload: true,
            copy_max_bytes: Pair::hw(max_bytes),
            copy_max_range_bytes: Pair::hw(max_range_bytes),
            copy_max_nr_ranges: Pair::hw(ranges),
            ..self
        }
    }

    /// True when copies may be handed to the device now.
    pub fn can_copy(&self) -> bool {
        self.copy_offload
            && self.copy_max_bytes.get().is_some()
            && self.copy_max_range_bytes.get().is_some()
            && self.copy_max_nr_ranges.get().is_some()
    }

    /// Limits of a device made of two: what both accept. Order-free.
    #[must_use]
    pub fn stack(self, other: Self) -> Self {
        Self {
            block_size: self.block_size.max(other.block_size),
            atomic_write_bytes: self.atomic_write_bytes.zip(other.atomic_write_bytes).map(|(a, b)| a.min(b)),
            direct_io_align: self.direct_io_align.zip(other.direct_io_align).map(|(a, b)| a.max(b)),
            optimal_io_bytes: self.optimal_io_bytes.max(other.optimal_io_bytes),
            copy_offload: self.copy_offload && other.copy_offload,
            copy_max_bytes: self.copy_max_bytes.stack(other.copy_max_bytes),
            copy_max_range_bytes: self.copy_max_range_bytes.stack(other.copy_max_range_bytes),
            copy_max_nr_ranges: self.copy_max_nr_ranges.stack(other.copy_max_nr_ranges),
        }
    }
}

/// A change of soft limits at run time; `None` leaves a value as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LimitsChange {
    /// Turns handing copies to the device on or off.
    pub copy_offload: Option<bool>,
    /// New [`Limits::copy_max_bytes`]; a multiple of the block size, not 0.
    pub copy_max_bytes: Option<u64>,
    /// New [`Limits::copy_max_range_bytes`]; a multiple of the block size, not 0.
    pub copy_max_range_bytes: Option<u64>,
    /// New [`Limits::copy_max_nr_ranges`]; not 0.
    pub copy_max_nr_ranges: Option<u32>,
}

impl LimitsChange {
    /// The limits after this change. Values above the hardware's are cut to it.
    ///
    /// Errors: `InvalidInput` for 0, for a value that is not a multiple of the block size, and for turning offload
    /// on where
    /// the device cannot copy.
    pub fn apply(self, now: &Limits) -> Result<Limits> {
        let mut new = *now;
        let bytes = |name: &'static str, value: u64| {
            let unit = u64::from(now.block_size.get());
            let value = NonZeroU64::new(value).ok_or_else(|| zero(name))?;
            if value.get() % unit != 0 {
                return Err(Error::new(
                    Kind::InvalidInput,
                    format!("{name}: {value} bytes is not a multiple of the block size ({unit} bytes)"),
                ));
            }
            Ok(value)
        };
        if let Some(v) = self.copy_max_bytes {
            new.copy_max_bytes = now.copy_max_bytes.with_soft(bytes("copy_max_bytes", v)?);
        }
        if let Some(v) = self.copy_max_range_bytes {
            new.copy_max_range_bytes = now.copy_max_range_bytes.with_soft(bytes("copy_max_range_bytes", v)?);
        }
        if let Some(v) = self.copy_max_nr_ranges {
            let v = NonZeroU32::new(v).ok_or_else(|| zero("copy_max_nr_ranges"))?;
            new.copy_max_nr_ranges = now.copy_max_nr_ranges.with_soft(v);
        }
        if let Some(on) = self.copy_offload {
            if on && now.copy_max_bytes.get_hw().is_none() {
                return Err(Error::new(
                    Kind::InvalidInput,
                    "copy_offload: this device cannot copy; leave copy_offload off",
                ));
            }
            new.copy_offload = on;
        }
        Ok(new)
    }
}

fn zero(name: &str) -> Error {
    Error::new(Kind::InvalidInput, format!("{name}: 0 is not a limit; turn copies off with copy_offload"))
}

/// Limits that may change while others read them: a reader gets one consistent set.
#[derive(Debug)]
pub struct LimitsCell(RwLock<Limits>);

impl LimitsCell {
    /// A cell holding `limits`.
    pub fn new(limits: Limits) -> Self {
        Self(RwLock::new(limits))
    }

    /// The limits in force.
    pub fn get(&self) -> Limits {
        *held(self.0.read())
    }

    /// Applies `change` as one step and returns the result.
    pub fn change(&self, change: LimitsChange) -> Result<Limits> {
        let mut now = held(self.0.write());
        let new = change.apply(&now)?;
        *now = new;
        Ok(new)
    }
}

#[cfg(test)]
mod stacking {
    use super::*;
    use proptest::prelude::*;

    fn pair32() -> impl Strategy<Value = Pair<NonZeroU32>> {
        prop::option::of((1u32..100, 1u32..100)).prop_map(|p| match p {
            Some((hw, soft)) => {
                Pair::hw(NonZeroU32::new(hw).unwrap()).with_soft(NonZeroU32::new(soft).unwrap())
            }
            None => Pair::NONE,
        })
    }

    fn pair64() -> impl Strategy<Value = Pair<NonZeroU64>> {
        pair32().prop_map(|p| match (p.get_hw(), p.get()) {
            (Some(hw), Some(soft)) => Pair::hw(hw.into()).with_soft(soft.into()),
            _ => Pair::NONE,
        })
    }

    fn limits() -> impl Strategy<Value = Limits> {
        let small = || prop::option::of((0u32..8).prop_map(|n| NonZeroU32::new(1 << n).unwrap()));
        ((0u32..8, small(), small(), any::<bool>()), (pair64(), pair64(), pair32())).prop_map(
            |((block, atomic_write_bytes, direct_io_align, copy_offload), (bytes, range, ranges))| Limits {
                atomic_write_bytes,
                direct_io_align,
                copy_offload,
                copy_max_bytes: bytes,
                copy_max_range_bytes: range,
                copy_max_nr_ranges: ranges,
                ..Limits::plain(NonZeroU32::new(1 << block).unwrap())
            },
        )
    }

    fn is_sound<T: Copy + Ord>(a: Pair<T>, b: Pair<T>, both: Pair<T>) -> bool {
        let cannot = a.get_hw().is_none() || b.get_hw().is_none();
        both.get_hw().is_none() == cannot
            && both.get().is_none() == cannot
            && both.get() <= both.get_hw()
            && (cannot || (both.get() == a.get().min(b.get()) && both.get_hw() == a.get_hw().min(b.get_hw())))
    }

    proptest! {
        #[test]
        fn stacking_is_order_free_and_takes_the_smallest(a in limits(), b in limits(), c in limits()) {
            let ab = a.stack(b);
            prop_assert_eq!(ab, b.stack(a));
            prop_assert_eq!(ab.stack(c), a.stack(b.stack(c)));
            prop_assert_eq!(a.stack(a), a);
            prop_assert!(is_sound(a.copy_max_bytes, b.copy_max_bytes, ab.copy_max_bytes));
            prop_assert!(is_sound(a.copy_max_range_bytes, b.copy_max_range_bytes, ab.copy_max_range_bytes));
            prop_assert!(is_sound(a.copy_max_nr_ranges, b.copy_max_nr_ranges, ab.copy_max_nr_ranges));
            prop_assert_eq!(ab.block_size, a.block_size.max(b.block_size));
            prop_assert_eq!(ab.copy_offload, a.copy_offload && b.copy_offload);
            prop_assert!(!ab.can_copy() || (a.can_copy() && b.can_copy()));
        }
    }

    #[test]
    fn readers_see_one_consistent_set_while_limits_change() {
        let n = |v: u32| NonZeroU32::new(v).unwrap();
        let max = NonZeroU64::new(1 << 20).unwrap();
        let start = Limits::plain(n(1)).with_copy(max, max, n(1 << 20));
        let cell = LimitsCell::new(start);
        let set = |v: u32| LimitsChange {
            copy_max_bytes: Some(v.into()),
            copy_max_range_bytes: Some(v.into()),
            copy_max_nr_ranges: Some(v),
            copy_offload: None,
        };
        cell.change(set(1)).unwrap();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..50_000 {
                            let seen = cell.get();
                            let bytes = seen.copy_max_bytes.get().unwrap();
                            assert_eq!(Some(bytes), seen.copy_max_range_bytes.get());
                            assert_eq!(Some(bytes), seen.copy_max_nr_ranges.get().map(NonZeroU64::from));
                            assert!(seen.copy_max_bytes.get() <= seen.copy_max_bytes.get_hw());
                        }
                    })
                })
                .collect();
            let mut value = 1;
            while readers.iter().any(|r| !r.is_finished()) {
                value = value % 1000 + 1;
                cell.change(set(value)).unwrap();
            }
        });
    }
}
