//! The header before each frame in a ring, as far as the driver's choice of features decides about it.

use offload::Header;
use offload::header::{GSO_NONE, NEEDS_CSUM};

use crate::features::Accepted;

/// Reads the header of a sent frame: `None` if it asks for what was not negotiated.
pub fn parse_tx(bytes: &[u8; Header::LEN], accepted: Accepted) -> Option<Header> {
    let header = Header::decode(bytes);
    let csum_allowed = accepted.csum || header.flags & NEEDS_CSUM == 0;
    (csum_allowed && header.gso_type == GSO_NONE).then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Accepted = Accepted { header_len: 12, mergeable: true, csum: false };
    const CSUM: Accepted = Accepted { csum: true, ..PLAIN };

    #[test]
    fn parse_tx_accepts_what_was_negotiated_only() {
        let header =
            |flags, gso_type| Header { flags, gso_type, csum_start: 34, csum_offset: 16, ..Header::NONE };
        let parse = |header: Header, accepted| parse_tx(&header.encode(0), accepted);
        assert_eq!(parse(header(0, 0), PLAIN), Some(header(0, 0)));
        assert_eq!(parse(header(1, 0), PLAIN), None);
        assert_eq!(parse(header(1, 0), CSUM), Some(header(1, 0)));
        assert_eq!(parse(header(0, 1), CSUM), None, "no segmentation was offered");
    }
}
