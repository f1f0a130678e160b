//! What the names of a back end's counters mean; `man vhost-user-vde` explains each.

/// Which way a frame goes, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It leaves the guest.
    Tx,
    /// It enters the guest.
    Rx,
}

impl Direction {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tx => "tx",
            Self::Rx => "rx",
        }
    }
}

/// What a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// Frames that passed.
    Frames(Direction),
    /// Their bytes.
    Bytes(Direction),
    /// Frames that did not pass, and why.
    Drop(Direction, &'a str),
    /// Something else.
    Event,
}

/// Why frames are dropped, in the words of the back end.
const DROPS: [&str; 10] = [
    "bad_header",
    "runt",
    "too_long",
    "disabled",
    "no_link",
    "refused",
    "link_full",
    "no_buffer",
    "no_queue",
    "overrun",
];

/// What a counter of this name counts. One that a newer back end brings along is an event.
pub fn kind(name: &str) -> Kind<'_> {
    let (direction, rest) = match name.split_once('_') {
        Some(("tx", rest)) => (Direction::Tx, rest),
        Some(("rx", rest)) => (Direction::Rx, rest),
        _ => return Kind::Event,
    };
    match rest {
        "frames" => Kind::Frames(direction),
        "bytes" => Kind::Bytes(direction),
        reason if DROPS.contains(&reason) => Kind::Drop(direction, reason),
        _ => Kind::Event,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_is_counted() {
        let cases = [
            ("tx_frames", Kind::Frames(Direction::Tx)),
            ("rx_bytes", Kind::Bytes(Direction::Rx)),
            ("tx_link_full", Kind::Drop(Direction::Tx, "link_full")),
            ("rx_no_queue", Kind::Drop(Direction::Rx, "no_queue")),
            ("rx_joined", Kind::Event),
            ("rx_waited", Kind::Event),
            ("bad_chains", Kind::Event),
            ("brand_new", Kind::Event),
            ("tx", Kind::Event),
        ];
        for (name, expected) in cases {
            assert_eq!(kind(name), expected, "{name}");
        }
    }
}
