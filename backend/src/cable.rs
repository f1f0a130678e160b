//! A link as its user sees it: what passes can be written down, and frames that pass unsegmented are counted.
//!
//! # Theory of operation
//! Between each link and the threads that use it stands a [`Cable`], a link that does what the other one does. Of a batch it
//! counts the frames that are to be segmented yet, in one step, and asks the [`Tap`] of the NIC once whether
//! anybody wants to see it. So a capture can begin and end while frames pass, and costs nothing while there is none.
//!
//! A link that delivers frames itself ([`Link::deliver_to`]) gets an [`Ear`] in place of the receiver.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use offload::header::GSO_NONE;
use vde_control::Traffic;
use vdeplug::link::Stats;
use vdeplug::{Link, LinkError, Receiver, RxFrame, Sent, TxFrame};

use crate::capture::{Frame, Tap, Way};

/// What a link is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Unique among those of its user.
    pub id: String,
    /// The network that it leads to.
    pub locator: String,
}

/// A link in use.
#[derive(Debug)]
pub struct Cable {
    link: Arc<dyn Link>,
    notes: Arc<Notes>,
}

/// What notes what passes through a cable.
#[derive(Debug)]
struct Notes {
    name: Name,
    tap: Arc<Tap>,
    tx_big: AtomicU64,
    rx_big: AtomicU64,
}

impl Notes {
    fn sent(&self, frames: &[TxFrame<'_>]) {
        count_big(&self.tx_big, frames);
        self.tap.note(Way::Outbound, &self.name, frames);
    }

    fn received<F: Frame>(&self, frames: &[F]) {
        count_big(&self.rx_big, frames);
        self.tap.note(Way::Inbound, &self.name, frames);
    }
}

/// Counts the frames that are to be segmented yet.
fn count_big<F: Frame>(counter: &AtomicU64, frames: &[F]) {
    let is_big = |frame: &&F| frame.header().gso_type != GSO_NONE;
    let big = frames.iter().filter(is_big).count();
    if big > 0 {
        counter.fetch_add(big as u64, Ordering::Relaxed);
    }
}

impl Cable {
    /// A link with its name, to be captured where `tap` says so.
    pub fn new(link: Arc<dyn Link>, name: Name, tap: Arc<Tap>) -> Self {
        let notes = Notes { name, tap, tx_big: AtomicU64::new(0), rx_big: AtomicU64::new(0) };
        Self { link, notes: Arc::new(notes) }
    }

    /// What passed since the link was opened.
    pub fn traffic(&self) -> Traffic {
        let Stats { total, .. } = self.link.stats();
        Traffic {
            tx_frames: total.tx_frames,
            tx_bytes: total.tx_bytes,
            tx_dropped: total.tx_dropped,
            tx_big: self.notes.tx_big.load(Ordering::Relaxed),
            rx_frames: total.rx_frames,
            rx_bytes: total.rx_bytes,
            rx_dropped: total.rx_dropped,
            rx_big: self.notes.rx_big.load(Ordering::Relaxed),
        }
    }
}

impl Link for Cable {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.link.data_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.control_fd()
    }

    fn max_frame(&self) -> usize {
        self.link.max_frame()
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        let sent = self.link.send(frames)?;
        self.notes.sent(frames.get(..sent.taken).unwrap_or(frames));
        Ok(sent)
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        let count = self.link.recv(frames)?;
        self.notes.received(frames.get(..count).unwrap_or(frames));
        Ok(count)
    }

    fn offloads(&self) -> bool {
        self.link.offloads()
    }

    fn stats(&self) -> Stats {
        self.link.stats()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        self.link.check_control()
    }

    fn another(&self, offloads: bool) -> Option<Arc<dyn Link>> {
        self.link.another(offloads)
    }

    fn deliver_to(&self, receiver: &Arc<dyn Receiver>) -> bool {
        let ear: Arc<dyn Receiver> = Arc::new(Ear { receiver: receiver.clone(), notes: self.notes.clone() });
        self.link.deliver_to(&ear)
    }

    // No `plain_socket`: who uses that passes us by.
}

/// Who takes the frames of a link that delivers them itself.
#[derive(Debug)]
struct Ear {
    receiver: Arc<dyn Receiver>,
    notes: Arc<Notes>,
}

impl Receiver for Ear {
    fn deliver(&self, frames: &[TxFrame<'_>]) {
        self.notes.received(frames);
        self.receiver.deliver(frames);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    use vdeplug::{Header, OpenOptions, RxBuf, TxBuf, header};

    use super::*;
    use crate::capture::{Order, Recorder};

    #[derive(Debug, Default)]
    struct Sink(Mutex<Vec<usize>>);

    impl Receiver for Sink {
        fn deliver(&self, frames: &[TxFrame<'_>]) {
            self.0.lock().unwrap().extend(frames.iter().map(TxFrame::len));
        }
    }

    fn cable(link: Arc<dyn Link>, tap: &Arc<Tap>) -> Cable {
        Cable::new(link, Name { id: "link0".into(), locator: "hub://".into() }, tap.clone())
    }

    /// TCP over IPv4 that is to be cut into two segments.
    fn big() -> (Header, Vec<u8>) {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 7, 0xf8, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        frame.extend([1; 2000]);
        let header = Header {
            flags: header::NEEDS_CSUM,
            gso_type: header::GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1000,
            csum_start: 34,
            csum_offset: 16,
        };
        (header, frame)
    }

    /// Two ports of a hub: frames that are received and frames that are delivered are noted and counted alike.
    #[test]
    fn cables_note_what_passes() {
        let dir = tempfile::tempdir().unwrap();
        let locator = format!("hub://{}", dir.path().join("hub").display());
        let first =
            vdeplug::open(&locator, &OpenOptions { offloads: true, ..OpenOptions::default() }).unwrap();
        let second = first.another(true).unwrap();
        let mut recorders = [Recorder::new("near"), Recorder::new("far")];
        let files = [(); 2].map(|()| tempfile::tempfile().unwrap());
        for (recorder, file) in recorders.iter_mut().zip(&files) {
            let to = file.try_clone().unwrap().into();
            let order =
                Order { to, resumes: false, links: Vec::new(), only: None, max_bytes: None, max_time: None };
            recorder.start(order, Box::new(|_| {})).unwrap();
        }
        let (near, far) = (cable(first, recorders[0].tap()), cable(second, recorders[1].tap()));
        let (header, frame) = big();
        let (whole, small) = ([TxBuf::new(&frame)], [TxBuf::new(&[1; 60])]);
        let frames = [TxFrame { header, ..TxFrame::new(&whole) }, TxFrame::new(&small)];
        // Left for the receiver to fetch, then given to it.
        assert_eq!(near.send(&frames).unwrap().taken, 2);
        let mut rooms = [(); 3].map(|()| vec![0; 70_000]);
        let rooms: Vec<_> = rooms.iter_mut().map(|room| [RxBuf::new(room)]).collect();
        let mut received: Vec<_> = rooms.iter().map(|room| RxFrame::new(room)).collect();
        let deadline = Instant::now() + Duration::from_secs(10);
        while far.recv(&mut received).unwrap() == 0 {
            assert!(Instant::now() < deadline, "the frames do not come");
        }
        assert_eq!([received[0].len, received[1].len], [frame.len(), 60]);
        let sink = Arc::new(Sink::default());
        let receiver: Arc<dyn Receiver> = sink.clone();
        assert!(far.deliver_to(&receiver));
        assert_eq!(near.send(&frames).unwrap().taken, 2);
        assert_eq!(*sink.0.lock().unwrap(), [frame.len(), 60]);

        let bytes = 2 * (frame.len() as u64 + 60);
        let sent = Traffic { tx_frames: 4, tx_bytes: bytes, tx_big: 2, ..Traffic::default() };
        let received = Traffic { rx_frames: 4, rx_bytes: bytes, rx_big: 2, ..Traffic::default() };
        assert_eq!((near.traffic(), far.traffic()), (sent, received));
        for (recorder, file) in recorders.iter_mut().zip(&files) {
            recorder.finish();
            assert!(file.metadata().unwrap().len() > bytes, "all of them are in the file");
        }
    }
}
