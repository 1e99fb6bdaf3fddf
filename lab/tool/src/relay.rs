//! A relay of NVMe/TCP connections, which can rename one feature on the way.
//!
//! Newer Linux kernels (6.12.117 and 7.2 among them) refuse Set Features of Host Behavior Support (16h) to every
//! program, and never set it for the formats of Copy themselves. A feature of the vendor's range they let through: the
//! relay makes 16h of it, so that a stock kernel can be seen to send Copy between namespaces.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

/// Length of the common header of a PDU.
const HEADER_LEN: usize = 8;
/// Longest PDU a Linux host sends: data of MAXH2CDATA with header and digests.
const PDU_LEN_MAX: usize = 16 << 20;
const CAPSULE_CMD: u8 = 0x04;
const SET_FEATURES: u8 = 0x09;
const HOST_BEHAVIOR_SUPPORT: u8 = 0x16;
/// Where opcode and CDW10 lie in a command capsule: the entry begins behind the common header.
const OPCODE_AT: usize = HEADER_LEN;
const CDW10_AT: usize = HEADER_LEN + 40;

/// Listens on `listen` and carries each connection to `to`; Set Features of `rename` becomes one of 16h.
pub(crate) fn run(listen: &str, to: &str, rename: Option<u8>) -> Result<String, String> {
    let listener = TcpListener::bind(listen).map_err(|e| format!("{listen}: {e}"))?;
    println!("listening");
    for host in listener.incoming() {
        let host = host.map_err(|e| format!("{listen}: {e}"))?;
        // A target that is not there now may be there later: the host finds its connection closed and comes again.
        if let Ok(target) = TcpStream::connect(to) {
            carry(host, target, rename).map_err(|e| format!("{listen}: {e}"))?;
        }
    }
    Ok(String::new())
}

fn carry(host: TcpStream, target: TcpStream, rename: Option<u8>) -> io::Result<()> {
    let (mut from_host, mut to_target) = (host.try_clone()?, target.try_clone()?);
    let (mut from_target, mut to_host) = (target, host);
    for stream in [&from_host, &from_target] {
        stream.set_nodelay(true)?;
    }
    std::thread::spawn(move || {
        // Whatever ends one direction, its reader learns of it.
        let _ = pdus(&mut from_host, &mut to_target, rename);
        let _ = to_target.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_target, &mut to_host);
        let _ = to_host.shutdown(Shutdown::Both);
    });
    Ok(())
}

/// Carries whole PDUs until the end.
fn pdus(from: &mut impl Read, to: &mut impl Write, rename: Option<u8>) -> io::Result<()> {
    let mut pdu = vec![0; HEADER_LEN];
    loop {
        pdu.truncate(HEADER_LEN);
        from.read_exact(&mut pdu)?;
        let length = u32::from_le_bytes([pdu[4], pdu[5], pdu[6], pdu[7]]) as usize;
        if !(HEADER_LEN..=PDU_LEN_MAX).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        pdu.resize(length, 0);
        from.read_exact(&mut pdu[HEADER_LEN..])?;
        let is_set_features = pdu[0] == CAPSULE_CMD && length > CDW10_AT && pdu[OPCODE_AT] == SET_FEATURES;
        if is_set_features && Some(pdu[CDW10_AT]) == rename {
            pdu[CDW10_AT] = HOST_BEHAVIOR_SUPPORT;
        }
        to.write_all(&pdu)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capsule(opcode: u8, feature: u8) -> Vec<u8> {
        let mut pdu = vec![0; 72];
        (pdu[0], pdu[2], pdu[4]) = (CAPSULE_CMD, 72, 72);
        (pdu[OPCODE_AT], pdu[CDW10_AT]) = (opcode, feature);
        pdu
    }

    #[test]
    fn only_the_feature_named_is_renamed() {
        let sent = [capsule(9, 0xd6), capsule(9, 0x07), capsule(0x0a, 0xd6)].concat();
        let mut got = Vec::new();
        assert!(pdus(&mut sent.as_slice(), &mut got, Some(0xd6)).is_err()); // the end
        assert_eq!(got, [capsule(9, 0x16), capsule(9, 0x07), capsule(0x0a, 0xd6)].concat());
        got.clear();
        assert!(pdus(&mut sent.as_slice(), &mut got, None).is_err());
        assert_eq!(got, sent);
    }
}
