//! The features of one controller: what Set Features changes and Get Features returns.
//!
//! None can be saved. Those that mean nothing here (arbitration, temperature, normal atomicity) are kept as the host
//! set them, because the standard wants them there.

use crate::nvme::admin::{GetFeatures, Select, SetFeatures};
use crate::nvme::copy::Format;
use crate::nvme::feature::{
    Arbitration, AsyncEvents, ErrorRecovery, HostBehavior, KeepAlive, NumberOfQueues, PowerManagement,
    TemperatureThreshold, VolatileWriteCache, WriteAtomicity, capability, fid,
};
use crate::nvme::identify::oaes;
use crate::nvme::{Count16, Status};
use std::num::NonZeroU32;

/// Copy formats the target takes (OCFS).
pub(super) const COPY_FORMATS: u16 =
    Format::F0.bit() | Format::F1.bit() | Format::F2.bit() | Format::F3.bit();

/// Events that can be enabled.
pub(super) const EVENTS: u32 = oaes::NAMESPACE_ATTRIBUTE;

/// The features there are, in order.
pub(super) const ALL: [u8; 11] = [
    fid::ARBITRATION,
    fid::POWER_MANAGEMENT,
    fid::TEMPERATURE_THRESHOLD,
    fid::ERROR_RECOVERY,
    fid::VOLATILE_WRITE_CACHE,
    fid::NUMBER_OF_QUEUES,
    fid::WRITE_ATOMICITY,
    fid::ASYNC_EVENTS,
    fid::KEEP_ALIVE,
    fid::HOST_BEHAVIOR,
    fid::HOST_ID,
];

/// Composite temperature above which there would be a warning, in kelvin: the standard's FFFFh for the default.
const OVER_K: u16 = 0xffff;

/// Unit in which keep-alive time-outs are kept, in milliseconds (KAS is 10: ten times 100 ms).
const KEEP_ALIVE_UNIT_MS: u32 = 1000;

/// Features of one controller.
#[derive(Clone, Debug)]
pub(super) struct Features {
    io_queues_max: u16,
    /// Copy formats that are always on.
    copy_formats: u16,
    io_queues: u16,
    arbitration: Arbitration,
    power: PowerManagement,
    over: u16,
    under: u16,
    write_cache: bool,
    atomicity: WriteAtomicity,
    events: AsyncEvents,
    keep_alive: KeepAlive,
    behavior: HostBehavior,
}

/// The answer to Get Features.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Value {
    /// Dword 0 of the completion.
    pub(super) dword: u32,
    /// Data, for features that have some.
    pub(super) data: Vec<u8>,
}

impl Features {
    /// As after a Controller Level Reset: the keep-alive time-out belongs to the association and stays.
    pub(super) fn after_reset(&self) -> Self {
        Self { keep_alive: self.keep_alive, ..Self::new(self.io_queues_max, self.copy_formats) }
    }

    /// As after Connect. `io_queues_max`: most I/O queues granted; `copy_formats`: those that are always on.
    pub(super) fn new(io_queues_max: u16, copy_formats: u16) -> Self {
        Self {
            io_queues_max,
            copy_formats,
            io_queues: io_queues_max,
            arbitration: Arbitration { burst: 7, weights: [0; 3] },
            power: PowerManagement::default(),
            over: OVER_K,
            under: 0,
            write_cache: true,
            atomicity: WriteAtomicity::default(),
            events: AsyncEvents::default(),
            keep_alive: KeepAlive::default(),
            behavior: HostBehavior::default(),
        }
    }

    /// I/O queues granted.
    pub(super) fn io_queues(&self) -> u16 {
        self.io_queues
    }

    /// Copy formats enabled, of those there are. Formats 0h and 1h are always on.
    pub(super) fn copy_formats(&self) -> u16 {
        (self.behavior.copy_formats | self.copy_formats) & COPY_FORMATS | Format::F0.bit() | Format::F1.bit()
    }

    pub(super) fn write_cache(&self) -> bool {
        self.write_cache
    }

    pub(super) fn wants_namespace_events(&self) -> bool {
        self.events.enabled(oaes::NAMESPACE_ATTRIBUTE)
    }

    /// Sets the keep-alive time-out, rounded up to the unit kept; the value in force, in milliseconds.
    pub(super) fn set_keep_alive(&mut self, asked: Option<NonZeroU32>) -> Option<NonZeroU32> {
        let up = |ms: NonZeroU32| {
            let units = ms.get().div_ceil(KEEP_ALIVE_UNIT_MS);
            NonZeroU32::new(units.saturating_mul(KEEP_ALIVE_UNIT_MS))
        };
        self.keep_alive = KeepAlive(asked.and_then(up));
        self.keep_alive.0
    }

    /// Changes a feature; dword 0 of the completion. `has_io_queues`: the number of queues cannot change any more.
    ///
    /// Errors: Feature Identifier Not Saveable, Feature Not Changeable, Command Sequence Error, Data SGL Length
    /// Invalid, and Invalid Field for unknown features and values.
    pub(super) fn set(
        &mut self,
        command: &SetFeatures,
        data: &[u8],
        has_io_queues: bool,
    ) -> Result<u32, Status> {
        if !ALL.contains(&command.fid) {
            return Err(Status::INVALID_FIELD);
        }
        if command.save {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        let value = command.cdw11;
        match command.fid {
            fid::ARBITRATION => self.arbitration = Arbitration::from_dword(value),
            fid::POWER_MANAGEMENT => match PowerManagement::from_dword(value) {
                // There is one power state (NPSS is 0).
                power if power.state == 0 => self.power = power,
                _ => return Err(Status::INVALID_FIELD),
            },
            fid::TEMPERATURE_THRESHOLD => match TemperatureThreshold::from_dword(value) {
                TemperatureThreshold { kelvin, sensor: 0 | 15, kind: 0 } => self.over = kelvin,
                TemperatureThreshold { kelvin, sensor: 0 | 15, kind: 1 } => self.under = kelvin,
                _ => return Err(Status::INVALID_FIELD),
            },
            // No error on deallocated blocks (NSFEAT bit 2), no limit on the time of retries.
            fid::ERROR_RECOVERY => match ErrorRecovery::from_dword(value) {
                now if now == ErrorRecovery::default() => {}
                ErrorRecovery { deallocated_error: true, .. } => return Err(Status::INVALID_FIELD),
                _ => return Err(Status::FEATURE_NOT_CHANGEABLE),
            },
            fid::VOLATILE_WRITE_CACHE => self.write_cache = VolatileWriteCache::from_dword(value).enabled,
            fid::NUMBER_OF_QUEUES => {
                let asked = NumberOfQueues::from_dword(value)?;
                if has_io_queues {
                    return Err(Status::COMMAND_SEQUENCE_ERROR);
                }
                let asked = asked.submission.get().min(asked.completion.get());
                self.io_queues = u16::try_from(asked).unwrap_or(u16::MAX).min(self.io_queues_max);
                return Ok(self.queues().to_dword());
            }
            fid::WRITE_ATOMICITY => self.atomicity = WriteAtomicity::from_dword(value),
            fid::ASYNC_EVENTS => self.events = AsyncEvents(value & EVENTS),
            fid::KEEP_ALIVE => {
                self.set_keep_alive(KeepAlive::from_dword(value).0);
            }
            fid::HOST_BEHAVIOR => self.behavior = HostBehavior::parse(data)?,
            // Connect has set it, and fabrics forbid another.
            _ => return Err(Status::COMMAND_SEQUENCE_ERROR),
        }
        Ok(0)
    }

    fn queues(&self) -> NumberOfQueues {
        NumberOfQueues::pairs(Count16::from_wire(self.io_queues.saturating_sub(1)))
    }

    /// Tells a feature. `host_id`: the host's identifier.
    ///
    /// Errors: Invalid Field for an unknown feature or part of one; Host Identifier Inconsistent Format for a short
    /// identifier.
    pub(super) fn get(&self, command: &GetFeatures, host_id: [u8; 16]) -> Result<Value, Status> {
        if !ALL.contains(&command.fid) {
            return Err(Status::INVALID_FIELD);
        }
        let plain = |dword| Ok(Value { dword, data: Vec::new() });
        match command.select {
            Select::Current => self.value(command, host_id),
            // What cannot be saved has the default for its saved value.
            Select::Default | Select::Saved => {
                Self::new(self.io_queues_max, self.copy_formats).value(command, host_id)
            }
            Select::Capabilities => match command.fid {
                fid::ERROR_RECOVERY => plain(capability::BY_NAMESPACE),
                fid::HOST_ID => plain(0),
                _ => plain(capability::CHANGEABLE),
            },
        }
    }

    fn value(&self, command: &GetFeatures, host_id: [u8; 16]) -> Result<Value, Status> {
        let mut data = Vec::new();
        let dword = match command.fid {
            fid::ARBITRATION => self.arbitration.to_dword(),
            fid::POWER_MANAGEMENT => self.power.to_dword(),
            fid::TEMPERATURE_THRESHOLD => {
                let asked = TemperatureThreshold::from_dword(command.cdw11);
                let kelvin = match (asked.sensor, asked.kind) {
                    (0, 0) => self.over,
                    (0, 1) => self.under,
                    _ => return Err(Status::INVALID_FIELD),
                };
                TemperatureThreshold { kelvin, sensor: 0, kind: 0 }.to_dword()
            }
            fid::ERROR_RECOVERY => ErrorRecovery::default().to_dword(),
            fid::VOLATILE_WRITE_CACHE => VolatileWriteCache { enabled: self.write_cache }.to_dword(),
            fid::NUMBER_OF_QUEUES => self.queues().to_dword(),
            fid::WRITE_ATOMICITY => self.atomicity.to_dword(),
            fid::ASYNC_EVENTS => self.events.0,
            fid::KEEP_ALIVE => self.keep_alive.to_dword(),
            fid::HOST_BEHAVIOR => {
                let mut behavior = self.behavior;
                behavior.copy_formats |= self.copy_formats;
                data = behavior.to_bytes().to_vec();
                0
            }
            _ if command.cdw11 & 1 == 0 => return Err(Status::HOST_IDENTIFIER_INCONSISTENT),
            _ => {
                data = host_id.to_vec();
                0
            }
        };
        Ok(Value { dword, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(features: &Features, fid: u8) -> u32 {
        features.get(&GetFeatures::new(fid), [0; 16]).unwrap().dword
    }

    fn set(features: &mut Features, fid: u8, value: u32) -> Result<u32, Status> {
        features.set(&SetFeatures::new(fid, value), &[], false)
    }

    #[test]
    fn what_is_set_is_told_and_a_new_controller_has_the_defaults() {
        let fresh = Features::new(4, 0);
        // (feature, value set, value told)
        for (fid, value, told) in [
            (fid::ARBITRATION, 0x0302_0103, 0x0302_0103),
            (fid::POWER_MANAGEMENT, 0x20, 0x20),
            (fid::TEMPERATURE_THRESHOLD, 400, 400),
            (fid::ERROR_RECOVERY, 0, 0),
            (fid::VOLATILE_WRITE_CACHE, 0, 0),
            (fid::VOLATILE_WRITE_CACHE, 1, 1),
            (fid::NUMBER_OF_QUEUES, 0x0001_0002, 0x0001_0001),
            (fid::NUMBER_OF_QUEUES, 0x00ff_00ff, 0x0003_0003),
            (fid::WRITE_ATOMICITY, 1, 1),
            (fid::ASYNC_EVENTS, u32::MAX, oaes::NAMESPACE_ATTRIBUTE),
            (fid::KEEP_ALIVE, 5001, 6000),
            (fid::KEEP_ALIVE, u32::MAX, u32::MAX),
            (fid::KEEP_ALIVE, 0, 0),
        ] {
            let mut features = fresh.clone();
            set(&mut features, fid, value).unwrap();
            assert_eq!(get(&features, fid), told, "feature {fid:02x}h");
            for select in [Select::Default, Select::Saved] {
                let command = GetFeatures { select, ..GetFeatures::new(fid) };
                assert_eq!(
                    features.get(&command, [0; 16]).unwrap().dword,
                    get(&fresh, fid),
                    "{fid:02x}h {select:?}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_set() {
        for (fid, value, status) in [
            (fid::POWER_MANAGEMENT, 1, Status::INVALID_FIELD),
            (fid::TEMPERATURE_THRESHOLD, 1 << 16, Status::INVALID_FIELD),
            (fid::TEMPERATURE_THRESHOLD, 2 << 20, Status::INVALID_FIELD),
            (fid::ERROR_RECOVERY, 5, Status::FEATURE_NOT_CHANGEABLE),
            (fid::ERROR_RECOVERY, 1 << 16, Status::INVALID_FIELD),
            (fid::NUMBER_OF_QUEUES, 0xffff, Status::INVALID_FIELD),
            (fid::NUMBER_OF_QUEUES, 0xffff << 16, Status::INVALID_FIELD),
            (fid::HOST_BEHAVIOR, 0, Status::SGL_LENGTH_INVALID),
            (fid::HOST_ID, 1, Status::COMMAND_SEQUENCE_ERROR),
            (0x08, 0, Status::INVALID_FIELD),
            (0xc0, 0, Status::INVALID_FIELD),
        ] {
            let mut features = Features::new(4, 0);
            assert_eq!(set(&mut features, fid, value), Err(status), "feature {fid:02x}h");
        }
        let mut features = Features::new(4, 0);
        let save = SetFeatures { save: true, ..SetFeatures::new(fid::VOLATILE_WRITE_CACHE, 0) };
        assert_eq!(features.set(&save, &[], false), Err(Status::FEATURE_NOT_SAVEABLE));
        let queues = SetFeatures::new(fid::NUMBER_OF_QUEUES, 0);
        assert_eq!(features.set(&queues, &[], true), Err(Status::COMMAND_SEQUENCE_ERROR));
    }

    #[test]
    fn copy_formats_2_and_3_are_off_until_enabled_and_unknown_ones_stay_off() {
        let mut features = Features::new(4, 0);
        assert_eq!(features.copy_formats(), 0b0011);
        for (asked, on) in [(0b0100, 0b0111), (0b1100, 0b1111), (0xffff, 0b1111), (0, 0b0011)] {
            let data = HostBehavior { copy_formats: asked, ..Default::default() }.to_bytes();
            features.set(&SetFeatures::new(fid::HOST_BEHAVIOR, 0), &data, false).unwrap();
            assert_eq!(features.copy_formats(), on);
            let told = features.get(&GetFeatures::new(fid::HOST_BEHAVIOR), [0; 16]).unwrap();
            assert_eq!(HostBehavior::parse(&told.data).unwrap().copy_formats, asked, "as the host set it");
        }
    }

    #[test]
    fn formats_that_are_always_on_stay_on_whatever_the_host_sets() {
        let mut features = Features::new(4, Format::F2.bit());
        for asked in [0, Format::F3.bit(), 0] {
            let data = HostBehavior { copy_formats: asked, ..Default::default() }.to_bytes();
            features.set(&SetFeatures::new(fid::HOST_BEHAVIOR, 0), &data, false).unwrap();
            assert_eq!(features.copy_formats(), 0b0111 | asked);
            assert_eq!(features.after_reset().copy_formats(), 0b0111);
            let told = features.get(&GetFeatures::new(fid::HOST_BEHAVIOR), [0; 16]).unwrap();
            assert_eq!(HostBehavior::parse(&told.data).unwrap().copy_formats, Format::F2.bit() | asked);
        }
    }

    #[test]
    fn thresholds_are_apart_and_the_host_id_is_told_whole_only() {
        let mut features = Features::new(4, 0);
        set(&mut features, fid::TEMPERATURE_THRESHOLD, 1 << 20 | 250).unwrap();
        let of = |features: &Features, cdw11| {
            features.get(&GetFeatures { cdw11, ..GetFeatures::new(fid::TEMPERATURE_THRESHOLD) }, [0; 16])
        };
        assert_eq!((of(&features, 0).unwrap().dword, of(&features, 1 << 20).unwrap().dword), (0xffff, 250));
        assert_eq!(of(&features, 1 << 16), Err(Status::INVALID_FIELD));
        let id = |cdw11| features.get(&GetFeatures { cdw11, ..GetFeatures::new(fid::HOST_ID) }, [7; 16]);
        assert_eq!(id(0), Err(Status::HOST_IDENTIFIER_INCONSISTENT));
        assert_eq!(id(1).unwrap().data, [7; 16]);
    }

    #[test]
    fn every_feature_tells_what_can_be_done_with_it() {
        let features = Features::new(4, 0);
        for fid in ALL {
            let command = GetFeatures { select: Select::Capabilities, ..GetFeatures::new(fid) };
            let bits = features.get(&command, [0; 16]).unwrap().dword;
            assert_eq!(bits & capability::SAVEABLE, 0);
            assert_eq!(
                bits & capability::CHANGEABLE != 0,
                !matches!(fid, fid::ERROR_RECOVERY | fid::HOST_ID)
            );
        }
    }
}
