//! Sending on a datagram socket whose errors are the network's weather: the other end may be away and come back, and
//! a frame that cannot go meanwhile is lost, as it would be on a wire.

use std::os::fd::BorrowedFd;

use crate::datagram;
use crate::link::{LinkError, Meter, Sent, TxFrame};

/// [`Link::send`](crate::Link::send) over such a socket, by `attempt`, which sends there. `mend` is called on an error and
/// says whether another attempt is worth it, about whose error it is not asked; if not, all frames are lost.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    frames: &[TxFrame<'_>],
    meter: &Meter,
    attempt: impl Fn(&[TxFrame<'_>]) -> Result<Sent, LinkError>,
    mut mend: impl FnMut() -> bool,
) -> Sent {
    let mut done = Sent::default();
    let mut tried = false;
    while let Some(rest) = frames.get(done.taken..).filter(|rest| !rest.is_empty()) {
        let lost = match attempt(rest) {
            Ok(sent) => {
                done.segments = sent.segments;
                done.taken += sent.taken;
                done.dropped += sent.dropped;
                // Less than all: the socket is full, or an error follows, which the next call tells.
                if (1..rest.len()).contains(&sent.taken) && datagram::is_writable(fd) {
                    continue;
                }
                break;
            }
            Err(_) if tried => 1,
            Err(_) if mend() => {
                tried = true;
                continue;
            }
            Err(_) => rest.len(),
        };
        tried = false;
        done.taken += lost;
        done.dropped += lost;
        done.segments = 0;
        meter.sent(0, 0, lost);
    }
    done
}
