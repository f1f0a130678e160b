//! The frame that is sent: addresses, and zeros; a long one is TCP that is still to be cut into segments.

use anyhow::{Result, bail};
use offload::Header;
use offload::csum::Sum;
use offload::header::{GSO_TCPV4, NEEDS_CSUM};

/// Longer than any network carries whole (VDE fact 2.7).
const WHOLE_MAX: usize = 9234;

/// Headers of Ethernet, IPv4 and TCP.
const HEADS: usize = 14 + 20 + 20;

/// What one segment carries on a network of 1500 bytes.
const SEGMENT: u16 = 1460;

/// For experiments within one's own network (IEEE 802).
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// A frame, and what is still to be done to it.
#[derive(Clone)]
pub struct Frame {
    bytes: Vec<u8>,
    header: Header,
}

impl Frame {
    /// A frame of `len` bytes from end number `own` to `peer`, `None` is everybody.
    pub fn new(len: usize, own: u8, peer: Option<u8>) -> Result<Self> {
        if !(60..=HEADS + 0xfe00).contains(&len) {
            bail!("a frame has 60 to {} bytes, not {len}", HEADS + 0xfe00);
        }
        let mut bytes = vec![0; len];
        bytes[..6].copy_from_slice(&peer.map_or([0xff; 6], address));
        bytes[6..12].copy_from_slice(&address(own));
        let mut header = Header::NONE;
        if len > WHOLE_MAX {
            header = tcp(&mut bytes)?;
        } else {
            bytes[12..14].copy_from_slice(&EXPERIMENTAL);
        }
        Ok(Self { bytes, header })
    }

    /// The shortest frame from the same end to everybody.
    pub fn to_everybody(&self) -> Self {
        let mut bytes = self.bytes.get(..60).unwrap_or(&self.bytes).to_vec();
        bytes[..6].fill(0xff);
        bytes[12..14].copy_from_slice(&EXPERIMENTAL);
        Self { bytes, header: Header::NONE }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub const fn header(&self) -> Header {
        self.header
    }

    pub const fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// A private unicast address.
const fn address(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

/// Writes headers of IPv4 and TCP, the checksum of TCP left to be completed.
fn tcp(frame: &mut [u8]) -> Result<Header> {
    let ip_len = u16::try_from(frame.len() - 14)?;
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[14..34];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
    (ip[8], ip[9]) = (64, 6);
    ip[12..16].copy_from_slice(&[10, 0, 0, 1]);
    ip[16..20].copy_from_slice(&[10, 0, 0, 2]);
    let mut sum = Sum::default();
    sum.add(ip);
    ip[10..12].copy_from_slice(&sum.finish());
    let mut pseudo = Sum::default();
    pseudo.add(&frame[26..34]);
    pseudo.add(&[0, 6]);
    pseudo.add(&(ip_len - 20).to_be_bytes());
    let tcp = &mut frame[34..HEADS];
    (tcp[12], tcp[13]) = (5 << 4, 0x10);
    // The driver leaves the plain sum of the pseudo header, not its complement (virtio 1.2 § 5.1.6.2).
    tcp[16..18].copy_from_slice(&pseudo.finish().map(|byte| !byte));
    Ok(Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: u16::try_from(HEADS)?,
        gso_size: SEGMENT,
        csum_start: 34,
        csum_offset: 16,
    })
}
