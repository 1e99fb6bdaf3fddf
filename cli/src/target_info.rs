//! `blkcopy info nvme-tcp://host:port[/NQN]`: what a target has.

use crate::fail::{Code, Fail};
use crate::output::{self, table};
use blkcopy::drivers::nvme_tcp::{self, NamespaceInfo, Subsystem, Url};
use blkcopy::volume::{size, size_exact};
use serde::Serialize;

/// A target, as `--json` prints it.
#[derive(Serialize)]
struct Target {
    schema: &'static str,
    url: String,
    subsystems: Vec<Subsystem>,
}

/// Runs the command for a URL that does not name a namespace. The answer is no when a subsystem could not be looked at.
pub(crate) fn run(url: &Url, json: bool) -> Result<Code, Fail> {
    let subsystems = match &url.subsystem {
        Some(name) if !name.is_discovery() => vec![nvme_tcp::subsystem(url)?],
        _ => nvme_tcp::discover(url)?,
    };
    let failed = subsystems.iter().any(|s| s.error.is_some());
    if json {
        let target = Target { schema: "blkcopy-target/1", url: url.to_string(), subsystems };
        output::out(&output::json(&target));
    } else {
        output::out(&text(url, &subsystems));
    }
    Ok(if failed { Code::No } else { Code::Done })
}

fn text(url: &Url, subsystems: &[Subsystem]) -> String {
    if subsystems.is_empty() {
        return format!("{url}: lists no subsystems for this host\n");
    }
    let mut text = String::new();
    for (i, s) in subsystems.iter().enumerate() {
        if i > 0 {
            text.push('\n');
        }
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let mut rows = vec![row("subsystem", &s.nqn), row("address", &s.address)];
        rows.extend(s.model.iter().map(|m| row("model", m)));
        rows.extend(s.serial.iter().map(|n| row("serial", n)));
        if s.kind != "nvm" {
            rows.push(row("kind", s.kind));
        }
        if let Some(error) = &s.error {
            rows.push(row("not checked", error));
        } else if s.kind == "nvm" {
            let across = if s.copies_across { "yes" } else { "no" };
            rows.push(row("copies between namespaces", across));
        }
        for n in &s.namespaces {
            rows.push(row(&format!("namespace {}", n.nsid), &namespace(n)));
            rows.extend(ids(n).map(|id| row("", &id)));
            rows.push(row("", &n.url));
        }
        if s.more_namespaces > 0 {
            rows.push(row("", &format!("and {} more namespaces", s.more_namespaces)));
        }
        text += &table(&rows);
    }
    text
}

fn namespace(n: &NamespaceInfo) -> String {
    if let Some(error) = &n.error {
        return format!("cannot be opened: {error}");
    }
    let copies = match &n.copy {
        Some(c) => format!(
            "Copy of {} in all, {} a range, {} ranges, formats {:?}",
            size(c.max_bytes),
            size(c.max_range_bytes),
            c.max_nr_ranges,
            c.formats
        ),
        None => "no Copy command".to_owned(),
    };
    let read_only = if n.read_only { ", read-only" } else { "" };
    format!("{}, blocks of {}{read_only}; {copies}", size_exact(n.size_bytes), size(n.block_size.into()))
}

fn ids(n: &NamespaceInfo) -> impl Iterator<Item = String> {
    let named = |name: &str, id: &Option<String>| id.as_ref().map(|id| format!("{name} {id}"));
    [named("UUID", &n.uuid), named("NGUID", &n.nguid), named("EUI64", &n.eui64)].into_iter().flatten()
}
