//! Who this host says it is: its NQN and its identifier.

use crate::block::{Error, Kind, Result};
use crate::nvme::Nqn;
use std::fmt::Write as _;
use std::fs;
use uuid::{Builder, Uuid};

/// A host's name and identifier. Targets expect one identifier with each name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Host {
    pub(super) nqn: Nqn,
    pub(super) id: [u8; 16],
}

impl Host {
    /// The host named by the user, or this machine: as `/etc/nvme/hostnqn` and `hostid` say, else after its machine id
    /// or its boot.
    ///
    /// Errors: `InvalidInput` for a machine that has none of these. Two hosts of one name would end each other's
    /// associations.
    pub(super) fn new(named: Option<Nqn>) -> Result<Self> {
        if let Some(nqn) = named {
            return Ok(Self::of(nqn));
        }
        if let Some(nqn) = line("/etc/nvme/hostnqn").and_then(|text| Nqn::new(&text).ok()) {
            let id = line("/etc/nvme/hostid").and_then(|text| uuid(&text));
            return Ok(match id {
                Some(id) => Self { nqn, id },
                None => Self::of(nqn),
            });
        }
        // The machine id itself is not for others to see: what goes out is a digest of it, in the form of a UUID.
        Self::of_machine(line("/etc/machine-id"), line("/proc/sys/kernel/random/boot_id"))
    }

    fn of_machine(machine: Option<String>, boot: Option<String>) -> Result<Self> {
        // Images are shipped with that word instead of an id.
        let Some(machine) = machine.filter(|id| id != "uninitialized").or(boot) else {
            let text = "this machine has no host NQN (/etc/nvme/hostnqn, /etc/machine-id); add one to the URL: \
                &hostnqn=NQN";
            return Err(Error::new(Kind::InvalidInput, text));
        };
        let uuid = Builder::from_custom_bytes(digest(&machine)).into_uuid();
        let nqn = Nqn::new(&format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}"))?;
        Ok(Self { nqn, id: uuid.into_bytes() })
    }

    /// A host by its name: the identifier is the UUID in the name, or a digest of it.
    fn of(nqn: Nqn) -> Self {
        let in_name = nqn.as_str().rsplit_once("uuid:").and_then(|(_, text)| uuid(text));
        let id = in_name.unwrap_or_else(|| digest(nqn.as_str()));
        Self { nqn, id }
    }
}

fn line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn digest(text: &str) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::derive_key("blkcopy nvme host id", text.as_bytes())[..16]);
    id
}

/// The bytes of a UUID, in the order they are written.
fn uuid(text: &str) -> Option<[u8; 16]> {
    Uuid::try_parse(text).ok().map(Uuid::into_bytes)
}

/// Bytes as lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_the_same_each_time_and_its_id_is_the_uuid_in_its_name() {
        let me = Host::new(None).unwrap();
        assert_eq!(me, Host::new(None).unwrap());
        let id = |text: &str| Some(text.to_owned());
        let known = Host::of_machine(id("a"), None).unwrap();
        assert_eq!((known.id[6] >> 4, known.id[8] >> 6), (8, 2), "version and variant of the UUID");
        assert_eq!(Host::of(known.nqn.clone()), known);
        assert_ne!(Host::of_machine(id("a"), None).unwrap(), Host::of_machine(id("b"), None).unwrap());
        let booted = Host::of_machine(None, id("b")).unwrap();
        assert_eq!(Host::of_machine(id("uninitialized"), id("b")).unwrap(), booted);
        assert_eq!(Host::of_machine(None, None).unwrap_err().kind(), Kind::InvalidInput);
        let text = "01234567-89ab-cdef-0123-456789abcdef";
        let named = Nqn::new(&format!("nqn.2014-08.org.nvmexpress:uuid:{text}")).unwrap();
        let host = Host::new(Some(named)).unwrap();
        assert_eq!(Uuid::from_bytes(host.id).to_string(), text);
        assert_eq!(host.id[..4], [0x01, 0x23, 0x45, 0x67]);
        let odd = Nqn::new("nqn.2014-08.org.nvmexpress:uuid:not-one").unwrap();
        let other = Nqn::new("nqn.x:y").unwrap();
        assert_ne!(Host::of(odd).id, Host::of(other).id);
    }
}
