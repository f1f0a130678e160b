//! What is measured: the lines of the table.

use Library::{Crate, CrateBig, Debian, OurC, Raw};

/// One load, and who carries it.
pub struct Line {
    /// As it stands in the table, and as `--only` knows it.
    pub name: String,
    /// Who sends to whom.
    pub traffic: Traffic,
    /// Ours, then what it is compared with.
    pub sides: Vec<Side>,
}

/// Who sends to whom. Numbers of ends are at most 99.
#[derive(Clone, Copy)]
pub enum Traffic {
    /// So many ends to as many others, each to its own one.
    Pairs(u8),
    /// One end to everybody: so many others.
    ToAll(u8),
    /// So many peers to the process that has the node.
    ToOwner(u8),
    /// The process that has the node to so many peers.
    FromOwner(u8),
}

/// One way to carry a load.
pub struct Side {
    /// As it stands in the table.
    pub title: &'static str,
    /// What carries the frames.
    pub network: Network,
    /// What the ends are made of.
    pub ends: Library,
    /// Bytes of a frame.
    pub size: usize,
    /// How many times as fast the line's first side should be, if that was promised.
    pub wanted: Option<f64>,
}

/// What carries the frames.
#[derive(Clone, Copy)]
pub enum Network {
    /// Debian's `vde_switch`.
    VdeSwitch,
    /// A node of this scheme, in a process over this library.
    Node(&'static str, Library),
    /// Nothing but the two ends, both of which open a locator of this scheme.
    Pair(&'static str),
    /// Nothing but the two ends, which are two sockets.
    Sockets,
}

/// What an end, or a node, is made of.
#[derive(Clone, Copy)]
pub enum Library {
    /// Our crate.
    Crate,
    /// System calls on a pair of sockets.
    Raw,
    /// Our C library.
    OurC,
    /// Our crate, with big frames.
    CrateBig,
    /// Debian's C library.
    Debian,
}

/// The shortest frame, the longest of an ordinary network, and a jumbo frame.
const SIZES: [usize; 3] = [64, 1514, 9000];

/// TCP that becomes 44 frames of 1514 bytes.
const BIG: usize = HEADS + 44 * 1460;

/// Headers of Ethernet, IPv4 and TCP, which each of those frames has.
pub const HEADS: usize = 14 + 20 + 20;

/// All lines, in the order of the table.
pub fn lines() -> Vec<Line> {
    let mut lines = Vec::new();
    clients(&mut lines);
    c_libraries(&mut lines);
    cut_by_us(&mut lines);
    nodes(&mut lines);
    big_frames(&mut lines);
    pairs(&mut lines);
    lines
}

/// Through one switch. It cuts what is longer than 1518 bytes (VDE fact 2.7), so there is no jumbo frame here.
fn clients(lines: &mut Vec<Line>) {
    for (count, peers) in [(1, "2 peers"), (4, "8 peers")] {
        for size in &SIZES[..2] {
            let side =
                |title, ends| Side { title, network: Network::VdeSwitch, ends, size: *size, wanted: None };
            lines.push(Line {
                name: format!("vde_switch, {peers}, {size} B"),
                traffic: Traffic::Pairs(count),
                sides: vec![side("our crate", Crate), side("Debian's library", Debian)],
            });
        }
    }
}

/// The same C program over either library.
fn c_libraries(lines: &mut Vec<Line>) {
    for size in &SIZES[..2] {
        let side =
            |title, ends, wanted| Side { title, network: Network::VdeSwitch, ends, size: *size, wanted };
        lines.push(Line {
            name: format!("vde_switch, C program, {size} B"),
            traffic: Traffic::Pairs(1),
            sides: vec![side("our C library", OurC, None), side("Debian's library", Debian, Some(0.97))],
        });
    }
}

/// Frames that are still to be segmented, on a network that cannot: we do it.
fn cut_by_us(lines: &mut Vec<Line>) {
    let side = |title, size| Side { title, network: Network::VdeSwitch, ends: Crate, size, wanted: None };
    lines.push(Line {
        name: format!("vde_switch, TCP segmented by us, {BIG} B"),
        traffic: Traffic::Pairs(1),
        sides: vec![side("TCP of 64 KiB", BIG), side("frames of 1514 B", 1514)],
    });
}

/// Through a process that serves a node.
fn nodes(lines: &mut Vec<Line>) {
    let loads = [
        ("multi", "2 peers to the owner", Traffic::ToOwner(2)),
        ("multi", "8 peers to the owner", Traffic::ToOwner(8)),
        ("multi", "the owner to 2 peers", Traffic::FromOwner(2)),
        ("multi", "the owner to 8 peers", Traffic::FromOwner(8)),
        ("switch", "2 peers", Traffic::Pairs(1)),
        ("switch", "8 peers", Traffic::Pairs(4)),
        ("hub", "2 peers", Traffic::ToAll(1)),
        ("hub", "8 peers", Traffic::ToAll(7)),
    ];
    for (scheme, who, traffic) in loads {
        for size in SIZES {
            let side = |title, owner, ends, wanted| {
                let network = Network::Node(scheme, owner);
                Side { title, network, ends, size, wanted }
            };
            lines.push(Line {
                name: format!("{scheme}, {who}, {size} B"),
                traffic,
                sides: vec![
                    side("our node and ends", Crate, Crate, None),
                    side("Debian's node, our ends", Debian, Crate, None),
                    side("Debian's node and ends", Debian, Debian, Some(1.6)),
                ],
            });
        }
    }
}

/// Frames that are still to be segmented, between ends that agreed on that with the node.
fn big_frames(lines: &mut Vec<Line>) {
    let loads = [
        ("multi", "2 peers to the owner", Traffic::ToOwner(2)),
        ("multi", "the owner to 2 peers", Traffic::FromOwner(2)),
        ("switch", "2 peers", Traffic::Pairs(1)),
    ];
    for (scheme, who, traffic) in loads {
        let side = |title, library, size, wanted| Side {
            title,
            network: Network::Node(scheme, library),
            ends: library,
            size,
            wanted,
        };
        lines.push(Line {
            name: format!("{scheme}, {who}, big frames"),
            traffic,
            sides: vec![
                side("TCP of 64 KiB", CrateBig, BIG, None),
                side("frames of 1514 B", Crate, 1514, Some(2.5)),
            ],
        });
    }
}

/// Two ends and nothing between them.
fn pairs(lines: &mut Vec<Line>) {
    for size in SIZES {
        let side = |title, network, ends, wanted| Side { title, network, ends, size, wanted };
        lines.push(Line {
            name: format!("ptp, {size} B"),
            traffic: Traffic::Pairs(1),
            sides: vec![
                side("our crate", Network::Pair("ptp"), Crate, None),
                side("raw socket pair", Network::Sockets, Raw, Some(0.95)),
                side("Debian's library", Network::Pair("ptp"), Debian, None),
            ],
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_all_have_names_of_their_own_and_something_to_compare() {
        let lines = lines();
        let mut names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), lines.len());
        for line in &lines {
            assert!(line.sides.len() > 1, "{}", line.name);
        }
    }
}
