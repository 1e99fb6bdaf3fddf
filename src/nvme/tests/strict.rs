//! Parsers take the exact length and nothing else, survive any bytes, and lose nothing of what they take.

use super::super::copy::{CopyCommand, Format, parse_ranges};
use super::super::discovery::{Entry, Header, SubsystemType};
use super::super::fabrics::ConnectData;
use super::super::feature::{
    Arbitration, AsyncEvent, ErrorRecovery, HostBehavior, KeepAlive, NumberOfQueues, PowerManagement,
    TemperatureThreshold, VolatileWriteCache, WriteAtomicity,
};
use super::super::identify::{
    IdentifyController, IdentifyNamespace, IndependentNamespace, NamespaceIds, NvmController, NvmNamespace,
    command_sets, controller_list, namespace_list, parse_command_sets, parse_controller_list,
    parse_namespace_list,
};
use super::super::io::parse_dsm_ranges;
use super::super::log::{ChangedNamespaces, CommandEffects, ErrorEntry, FirmwareSlots, Smart, Table};
use super::super::{Count8, Cqe, Nqn};
use proptest::prelude::*;

/// A parser: its name, bytes it takes, and what it makes of others: `None`, or the value written again.
type Parser = (&'static str, Vec<u8>, fn(&[u8]) -> Option<Vec<u8>>);

fn parsers() -> Vec<Parser> {
    let name = Nqn::new("nqn.2014-08.org.example:sub").unwrap();
    let entry = Entry::tcp(SubsystemType::Nvm, name.clone(), "192.0.2.7".parse().unwrap(), 4420);
    let connect =
        ConnectData { host_id: [1; 16], cntlid: 0xffff, subsystem: name.clone(), host: Nqn::discovery() };
    let slots = FirmwareSlots { active: 1, ..FirmwareSlots::default() };
    let ids = NamespaceIds { nguid: Some([1; 16]), csi: Some(0), ..NamespaceIds::default() };
    vec![
        ("controller", IdentifyController::new(name, 1).to_bytes().to_vec(), |b| {
            IdentifyController::parse(b).ok().map(|v| v.to_bytes().to_vec())
        }),
        ("namespace", IdentifyNamespace::new(8, 9).to_bytes().to_vec(), |b| {
            IdentifyNamespace::parse(b).ok().map(|v| v.to_bytes().to_vec())
        }),
        ("NVM controller", vec![0; 4096], |b| NvmController::parse(b).ok().map(|v| v.to_bytes().to_vec())),
        ("NVM namespace", vec![0; 4096], |b| NvmNamespace::parse(b).ok().map(|v| v.to_bytes().to_vec())),
        ("independent namespace", vec![0; 4096], |b| {
            IndependentNamespace::parse(b).ok().map(|v| v.to_bytes().to_vec())
        }),
        ("namespace list", namespace_list(1..9, 0).to_vec(), |b| {
            parse_namespace_list(b, 0).ok().map(|v| namespace_list(v, 0).to_vec())
        }),
        ("controller list", controller_list(1..9, 0).to_vec(), |b| {
            parse_controller_list(b).ok().map(|v| controller_list(v, 0).to_vec())
        }),
        ("descriptors", ids.to_bytes().to_vec(), |b| {
            NamespaceIds::parse(b).ok().map(|v| v.to_bytes().to_vec())
        }),
        ("command sets", command_sets(&[1]).to_vec(), |b| {
            parse_command_sets(b).ok().map(|v| command_sets(&v).to_vec())
        }),
        ("error entry", vec![0; 64], |b| ErrorEntry::parse(b).ok().map(|v| v.to_bytes().to_vec())),
        ("SMART", vec![0; 512], |b| Smart::parse(b).ok().map(|v| v.to_bytes().to_vec())),
        ("firmware slots", slots.to_bytes().to_vec(), |b| {
            FirmwareSlots::parse(b).ok().map(|v| v.to_bytes().to_vec())
        }),
        ("changed namespaces", ChangedNamespaces::page(&[1, 2]).to_vec(), |b| {
            ChangedNamespaces::parse(b).ok().map(|v| match v {
                ChangedNamespaces::These(nsids) => ChangedNamespaces::page(&nsids).to_vec(),
                ChangedNamespaces::TooMany => ChangedNamespaces::page(&[1; 1025]).to_vec(),
            })
        }),
        ("table", vec![0; 1024], |b| Table::parse(b).ok().map(|v| v.to_bytes().to_vec())),
        ("effects", vec![0; 4096], |b| CommandEffects::parse(b).ok().map(|v| v.to_bytes().to_vec())),
        ("host behavior", vec![0; 512], |b| HostBehavior::parse(b).ok().map(|v| v.to_bytes().to_vec())),
        ("connect data", connect.to_bytes().to_vec(), |b| {
            ConnectData::parse(b).ok().map(|v| v.to_bytes().to_vec())
        }),
        ("discovery entry", entry.to_bytes().to_vec(), |b| {
            Entry::parse(b).ok().map(|v| v.to_bytes().to_vec())
        }),
    ]
}

#[test]
fn every_other_length_is_refused() {
    for (name, good, parse) in parsers() {
        assert_eq!(parse(&good).as_ref(), Some(&good), "{name}");
        for len in 0..good.len() {
            assert_eq!(parse(&good[..len]), None, "{name} cut at {len}");
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(parse(&longer), None, "{name} and one byte more");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// What is read is all there is: written and read again it is the same, so no field is lost on either way.
    #[test]
    fn any_bytes_are_refused_or_survive_the_wire(
        which in 0..parsers().len(),
        noise in prop::collection::vec(any::<u8>(), 4096),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        all_noise in any::<bool>(),
    ) {
        let (name, good, parse) = parsers().swap_remove(which);
        let mut bytes = if all_noise { noise[..good.len()].to_vec() } else { good };
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(written) = parse(&bytes) {
            prop_assert_eq!(parse(&written), Some(written), "{}", name);
        }
    }

    /// The page with all but the checked fields filled with noise: every field that is kept comes back.
    #[test]
    fn every_field_that_is_read_is_written(noise in prop::collection::vec(any::<u8>(), 4096)) {
        let name = Nqn::new("nqn.2014-08.org.example:sub").unwrap();
        let mut controller: Vec<u8> = noise.clone();
        controller[111] &= 3;
        controller[525] |= 4;
        controller[768..1024].copy_from_slice(&name.to_field());
        let read = IdentifyController::parse(&controller).unwrap();
        prop_assert_eq!(&IdentifyController::parse(&read.to_bytes()).unwrap(), &read);

        let mut namespace = noise.clone();
        (namespace[25], namespace[26], namespace[130]) = (noise[25] & 63, noise[26] & 0x10, 12);
        let read = IdentifyNamespace::parse(&namespace).unwrap();
        prop_assert_eq!(&IdentifyNamespace::parse(&read.to_bytes()).unwrap(), &read);

        let mut entry = noise[..1024].to_vec();
        (entry[2], entry[3]) = (1 + noise[2] % 3, noise[3] & 0xfc | (noise[3] % 3));
        entry[32..64].iter_mut().for_each(|b| *b = b' ' + *b % 90);
        entry[512..768].iter_mut().for_each(|b| *b = b' ' + *b % 90);
        entry[256..512].copy_from_slice(&name.to_field());
        let read = Entry::parse(&entry).unwrap();
        prop_assert_eq!(&Entry::parse(&read.to_bytes()).unwrap(), &read);

        let mut slots = noise[..512].to_vec();
        slots[0] |= 1;
        let read = FirmwareSlots::parse(&slots).unwrap();
        prop_assert_eq!(FirmwareSlots::parse(&read.to_bytes()).unwrap(), read);
        for (name, good, parse) in parsers() {
            let written = parse(&noise[..good.len()]);
            prop_assert_eq!(written.as_ref().and_then(|w| parse(w)), written, "{}", name);
        }
    }

    #[test]
    fn dwords_survive_the_wire(dword in any::<u32>()) {
        let again = [
            Arbitration::from_dword(Arbitration::from_dword(dword).to_dword()).to_dword()
                == Arbitration::from_dword(dword).to_dword(),
            PowerManagement::from_dword(PowerManagement::from_dword(dword).to_dword())
                == PowerManagement::from_dword(dword),
            TemperatureThreshold::from_dword(TemperatureThreshold::from_dword(dword).to_dword())
                == TemperatureThreshold::from_dword(dword),
            ErrorRecovery::from_dword(ErrorRecovery::from_dword(dword).to_dword())
                == ErrorRecovery::from_dword(dword),
            VolatileWriteCache::from_dword(dword).to_dword() == dword & 1,
            WriteAtomicity::from_dword(dword).to_dword() == dword & 1,
            KeepAlive::from_dword(dword).to_dword() == dword,
            AsyncEvent::from_dword(AsyncEvent::from_dword(dword).to_dword()) == AsyncEvent::from_dword(dword),
            NumberOfQueues::from_dword(dword).map_or(true, |q| q.to_dword() == dword),
        ];
        prop_assert_eq!(again, [true; 9]);
    }

    #[test]
    fn lists_of_any_bytes_and_length_are_read_within_their_bounds(
        count in any::<u8>(),
        format in 0u8..5,
        list in prop::collection::vec(any::<u8>(), 0..10300),
        exact in any::<bool>(),
    ) {
        let command = CopyCommand::new(1, 0, Count8::from_wire(count), Format::from_number(format).unwrap());
        let list = if exact { list.get(..command.list_len()).unwrap_or(&list) } else { &list[..] };
        match parse_ranges(&command, list) {
            Ok(ranges) => {
                prop_assert_eq!(list.len(), command.list_len());
                prop_assert!(ranges.total_blocks() >= command.ranges.get());
                prop_assert_eq!(ranges.count(), command.ranges.get() as usize);
            }
            Err(_) => prop_assert!(list.len() != command.list_len() || format == 4),
        }
        match parse_dsm_ranges(command.ranges, list) {
            Ok(ranges) => prop_assert_eq!(ranges.count(), command.ranges.get() as usize),
            Err(_) => prop_assert!(list.len() < command.ranges.get() as usize * 16),
        }
    }

    #[test]
    fn completions_survive_the_wire(bytes in any::<[u8; 16]>()) {
        let cqe = Cqe::from_bytes(&bytes);
        let mut without_phase = bytes;
        without_phase[14] &= 0xfe;
        prop_assert_eq!(cqe.to_bytes(), without_phase);
    }

    #[test]
    fn a_head_of_any_length_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert_eq!(Header::parse(&header.to_bytes()).unwrap(), header);
        }
    }
}
