//! How many queue pairs a virtio NIC gets.
//!
//! What is said of the NIC itself counts most (`queues=`), then what is said of all (`--vde-queues`).
//! A device with `mq=on` and no number anywhere gets a pair for each processor of the guest.

use crate::argv::Token;
use crate::props::Props;

/// The most queue pairs that the back end gives to a NIC.
pub const MAX_QUEUES: u16 = 16;

/// Reads a number of queue pairs; says what is wrong with it.
pub fn parse(text: &str) -> Result<u16, String> {
    let queues = text.parse().ok().filter(|queues| (1..=MAX_QUEUES).contains(queues));
    queues
        .ok_or_else(|| format!("'{text}' is no number of queue pairs; write queues=1 to queues={MAX_QUEUES}"))
}

/// One pair for each processor that the guest starts with.
pub fn per_cpu(tokens: &[Token]) -> u16 {
    let mut number = |key: &str| {
        let words = tokens.iter().filter(|token| token.is("smp")).filter_map(Token::text);
        words.filter_map(|text| Props::parse(text, "cpus").get(key)?.parse::<u16>().ok()).next_back()
    };
    let topology = ["sockets", "dies", "clusters", "cores", "threads"];
    let cpus = number("cpus")
        .unwrap_or_else(|| topology.into_iter().filter_map(&mut number).fold(1, u16::saturating_mul));
    cpus.clamp(1, MAX_QUEUES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::argv::scan;
    use std::ffi::OsString;

    #[test]
    fn per_cpu_reads_smp() {
        for (line, pairs) in [
            ("-m 64", 1),
            ("-smp 4", 4),
            ("-smp cpus=3,maxcpus=8", 3),
            ("-smp 2,sockets=2", 2),
            ("-smp sockets=2,cores=2,threads=2", 8),
            ("-smp 2 -smp cpus=5", 5),
            ("-smp 200", 16),
            ("-smp 0", 1),
            ("-smp lots", 1),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(per_cpu(&scan(&words)), pairs, "{line}");
        }
    }

    #[test]
    fn parse_refuses_what_the_back_end_has_not() {
        assert_eq!(parse("16"), Ok(16));
        for text in ["0", "17", "two", "", "-1", "65537"] {
            assert!(parse(text).expect_err(text).contains(&format!("'{text}'")));
        }
    }
}
