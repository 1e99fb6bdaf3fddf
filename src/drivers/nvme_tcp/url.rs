//! `nvme-tcp://host:port/NQN?nsid=N`: the name of a namespace, of a subsystem, or of a discovery service.

use crate::block::{Error, Kind, Result};
use crate::nvme::Nqn;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};

/// The port of subsystems, registered for NVMe over fabrics.
const PORT: u16 = 4420;
/// The port of discovery services.
const DISCOVERY_PORT: u16 = 8009;

/// Where a target listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    /// Name or number, an IPv6 number without its brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Address {
    /// The socket addresses it stands for; asks the resolver for a name.
    ///
    /// Errors: `NotFound`.
    pub(super) fn resolve(&self) -> Result<Vec<SocketAddr>> {
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let all: Vec<SocketAddr> = found
            .map_err(|e| Error::new(Kind::NotFound, "the host name cannot be resolved").because(e))?
            .collect();
        if all.is_empty() {
            return Err(Error::new(Kind::NotFound, "the host name has no address"));
        }
        Ok(all)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A URL, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    /// Where.
    pub address: Address,
    /// The subsystem; `None`: the discovery service of the address.
    pub subsystem: Option<Nqn>,
    /// The namespace (`nsid=`); `None`: the subsystem as a whole.
    pub nsid: Option<u32>,
    /// `hdgst`: header digests are asked for.
    pub header_digest: bool,
    /// `ddgst`: data digests are asked for.
    pub data_digest: bool,
    /// `hostnqn=`: who we say we are; `None`: this machine's own name.
    pub host: Option<Nqn>,
}

impl Url {
    /// How such names begin.
    pub const SCHEME: &'static str = "nvme-tcp://";

    /// Takes a URL apart. An IPv6 number stands in brackets; the port is 4420 unless given, 8009 without a subsystem.
    ///
    /// Errors: `InvalidInput` with the value and what would be taken.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: String| {
            let shape = "nvme-tcp://host:port/NQN?nsid=N";
            Error::new(Kind::InvalidInput, format!("{text}: {why}; the form is {shape}"))
        };
        let rest =
            text.strip_prefix(Self::SCHEME).ok_or_else(|| wrong("not an nvme-tcp:// URL".to_owned()))?;
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, name) = rest.split_once('/').unwrap_or((rest, ""));
        let subsystem = match name {
            "" => None,
            name => Some(Nqn::new(name).map_err(|e| wrong(e.to_string()))?),
        };
        let port = if subsystem.is_some() { PORT } else { DISCOVERY_PORT };
        let address = parse_address(authority, port).map_err(wrong)?;
        let mut url =
            Self { address, subsystem, nsid: None, header_digest: false, data_digest: false, host: None };
        for option in options.split('&').filter(|o| !o.is_empty()) {
            match option.split_once('=').unwrap_or((option, "")) {
                ("nsid", number) => {
                    // FFFFFFFFh is "all namespaces", FFFFFFFEh reserved.
                    let nsid = number.parse().ok().filter(|&n: &u32| (1..=0xffff_fffd).contains(&n));
                    url.nsid =
                        Some(nsid.ok_or_else(|| wrong(format!("nsid={number} is not a namespace number")))?);
                }
                ("hdgst", "") => url.header_digest = true,
                ("ddgst", "") => url.data_digest = true,
                ("hostnqn", name) => url.host = Some(Nqn::new(name).map_err(|e| wrong(e.to_string()))?),
                _ => {
                    let known = "nsid=N, hdgst, ddgst, hostnqn=NQN";
                    return Err(wrong(format!("unknown option {option:?}; the options are {known}")));
                }
            }
        }
        if url.nsid.is_some() && url.subsystem.is_none() {
            return Err(wrong("a namespace number without a subsystem's NQN".to_owned()));
        }
        Ok(url)
    }
}

fn parse_address(text: &str, default_port: u16) -> Result<Address, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) =
                rest.split_once(']').ok_or_else(|| format!("the bracket in {text:?} is not closed"))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("{host:?} in brackets is not an IPv6 address"));
            }
            match port.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if port.is_empty() => (host, None),
                None => return Err(format!("{port:?} after the bracket is not a port")),
            }
        }
        None => match text.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return Err(format!("{text:?}: an IPv6 address needs brackets"));
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err("no host".to_owned());
    }
    let port = match port {
        None => default_port,
        Some(port) => match port.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(format!("{port:?} is not a port (1 to 65535)")),
        },
    };
    Ok(Address { host: host.to_owned(), port })
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::SCHEME, self.address)?;
        if let Some(name) = &self.subsystem {
            write!(f, "/{name}")?;
        }
        let options = [
            self.nsid.map(|n| format!("nsid={n}")),
            self.header_digest.then(|| "hdgst".to_owned()),
            self.data_digest.then(|| "ddgst".to_owned()),
            self.host.as_ref().map(|h| format!("hostnqn={h}")),
        ];
        for (i, option) in options.into_iter().flatten().enumerate() {
            write!(f, "{}{option}", if i == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_put_together_again() {
        let all = "nvme-tcp://box:4421/nqn.2014-08.org.x:a?nsid=7&hdgst&ddgst&hostnqn=nqn.2014-08.org.x:me";
        let url = Url::parse(all).unwrap();
        assert_eq!((url.address.host.as_str(), url.address.port, url.nsid), ("box", 4421, Some(7)));
        assert_eq!(url.subsystem.as_ref().unwrap().as_str(), "nqn.2014-08.org.x:a");
        assert!(url.header_digest && url.data_digest);
        assert_eq!(url.host.as_ref().unwrap().as_str(), "nqn.2014-08.org.x:me");
        assert_eq!(url.to_string(), all);
        let url = Url::parse("nvme-tcp://[::1]/nqn?nsid=4294967293").unwrap();
        assert_eq!((url.address.host.as_str(), url.address.port, url.nsid), ("::1", 4420, Some(0xffff_fffd)));
        assert_eq!(url.to_string(), "nvme-tcp://[::1]:4420/nqn?nsid=4294967293");
        let url = Url::parse("nvme-tcp://10.0.0.1").unwrap();
        assert_eq!((url.address.port, url.subsystem, url.nsid), (8009, None, None));
        assert_eq!(Url::parse("nvme-tcp://[fe80::1]:1/").unwrap().address.port, 1);
    }

    #[test]
    fn bad_urls_are_one_clear_error() {
        for (text, part) in [
            ("nvme-tcp://", "no host"),
            ("nvme-tcp:///nqn?nsid=1", "no host"),
            ("nvme-tcp://h:0/nqn", "is not a port"),
            ("nvme-tcp://h:65536/nqn", "is not a port"),
            ("nvme-tcp://h:/nqn", "is not a port"),
            ("nvme-tcp://::1/nqn", "needs brackets"),
            ("nvme-tcp://[::1/nqn", "is not closed"),
            ("nvme-tcp://[box]/nqn", "not an IPv6 address"),
            ("nvme-tcp://[::1]4420/nqn", "is not a port"),
            ("nvme-tcp://h/nqn?nsid=0", "not a namespace number"),
            ("nvme-tcp://h/nqn?nsid=4294967295", "not a namespace number"),
            ("nvme-tcp://h/nqn?nsid=4294967294", "not a namespace number"),
            ("nvme-tcp://h/nqn?nsid=-1", "not a namespace number"),
            ("nvme-tcp://h/nqn?nsid", "not a namespace number"),
            ("nvme-tcp://h/nqn?nsid=1&fast", "unknown option \"fast\""),
            ("nvme-tcp://h/nqn?hdgst=no", "unknown option"),
            ("nvme-tcp://h/nqn?hostnqn=", "not empty"),
            ("nvme-tcp://h?nsid=1", "without a subsystem"),
            ("nvme-rdma://h/nqn", "not an nvme-tcp:// URL"),
        ] {
            let error = Url::parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput, "{text}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        let long = format!("nvme-tcp://h/{}?nsid=1", "n".repeat(224));
        assert!(Url::parse(&long).unwrap_err().to_string().contains("223"));
    }
}
