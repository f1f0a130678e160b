//! For sinks that take one complete frame in one buffer, as plug-ins do: what a frame's header asks for is done in a
//! private copy of it, and each frame that it becomes is offered to the sink.

use offload::csum::Sum;
use offload::header::GSO_NONE;
use offload::{HEAD_MAX, Plan};

use crate::datagram::is_frame;
use crate::link::{LinkError, Meter, Sent, TxFrame};

/// What a sink did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Went {
    /// It took it.
    Sent,
    /// It lost it.
    Lost,
    /// It can take none now.
    Again,
}

/// Room for a frame, and for one of its segments.
#[derive(Debug, Default)]
pub(crate) struct Room {
    whole: Vec<u8>,
    segment: Vec<u8>,
}

/// [`Link::send`](crate::Link::send) over a sink. An error is told if it comes before anything went.
pub(crate) fn send(
    frames: &[TxFrame<'_>],
    max_frame: usize,
    room: &mut Room,
    meter: &Meter,
    mut sink: impl FnMut(&mut [u8]) -> Result<Went, LinkError>,
) -> Result<Sent, LinkError> {
    let mut done = Sent::default();
    for frame in frames {
        let sent = if is_frame(frame, max_frame) {
            let mut segments = frame.segments;
            let sent = offer(frame, max_frame, room, &mut segments, &mut sink);
            match sent {
                Ok(Some(sent)) => sent,
                Ok(None) => {
                    done.segments = segments;
                    break;
                }
                Err(_) if done.taken > 0 => break,
                Err(error) => return Err(error),
            }
        } else {
            false
        };
        done.taken += 1;
        if sent {
            meter.sent(1, frame.len(), 0);
        } else {
            done.dropped += 1;
            meter.sent(0, 0, 1);
        }
    }
    Ok(done)
}

/// Offers what a frame becomes, from segment number `segments` on, which is kept up to date. Whether anything of it
/// went; `None` if the sink can take no more.
fn offer(
    frame: &TxFrame<'_>,
    max_frame: usize,
    room: &mut Room,
    segments: &mut usize,
    mut sink: impl FnMut(&mut [u8]) -> Result<Went, LinkError>,
) -> Result<Option<bool>, LinkError> {
    let Some(plan) = gather(frame, max_frame, &mut room.whole) else { return Ok(Some(false)) };
    let Some(plan) = plan else {
        let went = sink(&mut room.whole)?;
        return Ok((went != Went::Again).then_some(went == Went::Sent));
    };
    // Those that were offered before went.
    let mut sent = *segments > 0;
    while *segments < plan.segments() {
        let mut head = [0; HEAD_MAX];
        let (head, payload) = plan.segment(*segments, &room.whole, &mut head);
        room.segment.clear();
        room.segment.extend_from_slice(head);
        room.segment.extend_from_slice(payload);
        match sink(&mut room.segment)? {
            Went::Again => return Ok(None),
            went => sent |= went == Went::Sent,
        }
        *segments += 1;
    }
    Ok(Some(sent))
}

/// Copies the frame and completes it there, or plans its segments; `None` if neither can be done.
fn gather(frame: &TxFrame<'_>, max_frame: usize, whole: &mut Vec<u8>) -> Option<Option<Plan>> {
    let len = frame.len();
    whole.clear();
    whole.resize(len, 0);
    frame.read_at(0, whole);
    if frame.header.gso_type != GSO_NONE {
        let plan = Plan::new(&frame.header, whole, len).ok()?;
        return (plan.longest() <= max_frame && frame.segments < plan.segments()).then_some(Some(plan));
    }
    if let Some(partial) = frame.header.partial() {
        let mut sum = Sum::default();
        sum.add(whole.get(partial.start..)?);
        whole.get_mut(partial.at..partial.at + 2)?.copy_from_slice(&sum.finish());
    }
    (len <= max_frame).then_some(None)
}

#[cfg(test)]
mod tests {
    use offload::{Header, header};

    use super::*;
    use crate::link::TxBuf;

    /// Sends to a sink that takes so many.
    fn offered(frame: TxFrame<'_>, mut takes: usize) -> (Sent, Vec<Vec<u8>>) {
        let mut got = Vec::new();
        let sent = send(&[frame], 1514, &mut Room::default(), &Meter::default(), |bytes| {
            if takes == 0 {
                return Ok(Went::Again);
            }
            takes -= 1;
            got.push(bytes.to_vec());
            Ok(Went::Sent)
        });
        (sent.unwrap(), got)
    }

    #[test]
    fn send_completes_a_checksum() {
        let bytes: Vec<u8> = (0..60).collect();
        let pieces = [TxBuf::new(&bytes[..33]), TxBuf::new(&bytes[33..])];
        let one = Sent { taken: 1, ..Sent::default() };
        assert_eq!(offered(TxFrame::new(&pieces), 9), (one, vec![bytes.clone()]));
        assert_eq!(offered(TxFrame::new(&pieces), 0), (Sent::default(), vec![]));
        let with = |csum_start, csum_offset| TxFrame {
            header: Header { flags: header::NEEDS_CSUM, csum_start, csum_offset, ..Header::NONE },
            ..TxFrame::new(&pieces)
        };
        let (sent, got) = offered(with(34, 6), 9);
        let mut sum = Sum::default();
        sum.add(&bytes[34..]);
        let expected = [&bytes[..40], &sum.finish()[..], &bytes[42..]].concat();
        assert_eq!((sent, got), (one, vec![expected]));
        for (start, offset) in [(34, 25), (34, 65535), (61, 0), (65535, 65535)] {
            let dropped = Sent { dropped: 1, ..one };
            assert_eq!(offered(with(start, offset), 9), (dropped, vec![]), "{start} {offset}");
        }
    }

    #[test]
    fn send_cuts_segments_and_goes_on_where_it_stopped() {
        let mut bytes = vec![0; 54 + 3000];
        bytes[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        bytes[16..18].copy_from_slice(&3040_u16.to_be_bytes());
        (bytes[23], bytes[46]) = (6, 0x50);
        let pieces = [TxBuf::new(&bytes)];
        let header = Header {
            flags: header::NEEDS_CSUM,
            gso_type: header::GSO_TCPV4,
            gso_size: 1000,
            csum_start: 34,
            csum_offset: 16,
            ..Header::NONE
        };
        let frame = TxFrame { header, ..TxFrame::new(&pieces) };
        let (sent, got) = offered(frame, 2);
        assert_eq!((sent, got.len()), (Sent { segments: 2, ..Sent::default() }, 2));
        let (sent, got) = offered(TxFrame { segments: 2, ..frame }, 9);
        assert_eq!((sent, got.len(), got[0].len()), (Sent { taken: 1, ..Sent::default() }, 1, 1054));
        assert_eq!(got[0][38..42], 2000_u32.to_be_bytes());
    }
}
