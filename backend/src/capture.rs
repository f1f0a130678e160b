//! The frames of a NIC in a file, in the pcapng format that Wireshark reads.
//!
//! # Theory of operation
//! Before each link of a captured NIC stands a [`Tap`]: a link that does what the other one does, and notes what went
//! through it. The links are the interfaces of the file, by their locators, so that a frame that went to two networks is
//! there twice, as it went. Outbound is what leaves the guest. Frames are noted as they pass between NIC and link: what the
//! guest left to be segmented is one long frame there, with a checksum still to be completed, and what is joined for the
//! guest was not joined yet.
//!
//! Each batch is one write, so that a file of a process that was killed is whole but for its last batch. A file that
//! cannot grow ends the capture with one line in the log: its last block is cut off again, and the NIC goes on.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use vdeplug::link::{BIG_FRAME_MAX, Stats};
use vdeplug::{Link, LinkError, Receiver, RxFrame, Sent, TxFrame};

/// Block types and options of pcapng (draft-ietf-opsawg-pcapng sections 4.1 to 4.3).
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const ETHERNET: u16 = 1;
const OPTION_NAME: u16 = 2;
const OPTION_FLAGS: u16 = 2;
const OPTION_RESOLUTION: u16 = 9;

/// Which way a frame went, as the flags of a packet say it.
#[derive(Clone, Copy, Debug)]
enum Way {
    Inbound = 1,
    Outbound = 2,
}

/// The file of one NIC.
#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    /// With the length of what is whole in it; `None` once it could not grow.
    file: Mutex<Option<(File, u64)>>,
}

/// The file of NIC `index` of `count`, where one was asked for.
pub fn path(asked: &Path, index: usize, count: usize) -> PathBuf {
    if count == 1 {
        return asked.to_owned();
    }
    let mut name = asked.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".nic{index}"));
    if let Some(extension) = asked.extension() {
        name.push(".");
        name.push(extension);
    }
    asked.with_file_name(name)
}

impl Capture {
    /// Makes the file, for links with these locators; only its owner may read what a guest says.
    pub fn create(path: PathBuf, locators: &[String]) -> std::io::Result<Arc<Self>> {
        // Not emptied before it is known to be ours: two writers would leave nothing that can be read.
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        // One that cannot be locked can be written to all the same.
        if let Err(Errno::WOULDBLOCK) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            return Err(std::io::Error::other("another capture is being written to it"));
        }
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        let mut start = Vec::new();
        // Byte order, version 1.0, and a section of unknown length.
        let body =
            [&0x1a2b_3c4d_u32.to_ne_bytes()[..], &[1_u16, 0].map(u16::to_ne_bytes).concat(), &[0xff; 8]];
        block(&mut start, SECTION, &body.concat());
        for locator in locators {
            let mut body = [ETHERNET, 0].map(u16::to_ne_bytes).concat();
            body.extend([0; 4]);
            option(&mut body, OPTION_NAME, locator.as_bytes());
            // Nanoseconds.
            option(&mut body, OPTION_RESOLUTION, &[9]);
            option(&mut body, 0, &[]);
            block(&mut start, INTERFACE, &body);
        }
        file.write_all(&start)?;
        Ok(Arc::new(Self { path, file: Mutex::new(Some((file, start.len() as u64))) }))
    }

    /// A link like `link`, whose frames are written down.
    pub fn tap(self: &Arc<Self>, number: usize, link: Arc<dyn Link>) -> Arc<dyn Link> {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Arc::new(Tap { link, notes: Notes { capture: self.clone(), number } })
    }

    fn write(&self, blocks: &[u8]) {
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((file, whole)) = slot.as_mut() else { return };
        match file.write_all(blocks) {
            Ok(()) => *whole += blocks.len() as u64,
            Err(error) => {
                let path = self.path.display();
                log::warn!("{path} cannot grow ({error}); the capture ends here, the network does not");
                // What is left of the last block would keep readers from what is before it.
                let _ = file.set_len(*whole);
                *slot = None;
            }
        }
    }

    fn is_over(&self) -> bool {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

/// What writes down the frames of one link.
#[derive(Clone, Debug)]
struct Notes {
    capture: Arc<Capture>,
    number: u32,
}

impl Notes {
    /// Notes frames, each by its length and by what copies its bytes.
    fn note<F>(&self, way: Way, frames: impl Iterator<Item = (usize, F)>)
    where
        F: FnOnce(&mut [u8]) -> usize,
    {
        let mut frames = frames.peekable();
        if frames.peek().is_none() || self.capture.is_over() {
            return;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).to_ne_bytes();
        // The upper half comes first, whatever the byte order.
        let (first, second) = nanoseconds.split_at(4);
        let time = if cfg!(target_endian = "little") { [second, first] } else { [first, second] }.concat();
        let mut blocks = Vec::new();
        for (len, read) in frames {
            let mut frame = vec![0; len.min(BIG_FRAME_MAX)];
            let got = read(&mut frame);
            frame.truncate(got);
            let lengths = [got, len].map(|len| u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes()).concat();
            let mut body = [&self.number.to_ne_bytes()[..], &time, &lengths].concat();
            padded(&mut body, &frame);
            option(&mut body, OPTION_FLAGS, &(way as u32).to_ne_bytes());
            option(&mut body, 0, &[]);
            block(&mut blocks, PACKET, &body);
        }
        self.capture.write(&blocks);
    }

    fn note_tx<'f>(&self, way: Way, frames: impl Iterator<Item = &'f TxFrame<'f>>) {
        self.note(way, frames.map(|frame| (frame.len(), |to: &mut [u8]| frame.read_at(0, to))));
    }
}

/// A link whose frames are written down.
#[derive(Debug)]
struct Tap {
    link: Arc<dyn Link>,
    notes: Notes,
}

impl Link for Tap {
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
        self.notes.note_tx(Way::Outbound, frames.iter().take(sent.taken));
        Ok(sent)
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        let got = self.link.recv(frames)?;
        let received = frames.iter().take(got);
        self.notes
            .note(Way::Inbound, received.map(|frame| (frame.len, |to: &mut [u8]| frame.read_at(0, to))));
        Ok(got)
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
        let tapped = TappedReceiver { receiver: receiver.clone(), notes: self.notes.clone() };
        let tapped: Arc<dyn Receiver> = Arc::new(tapped);
        self.link.deliver_to(&tapped)
    }
}

/// Who takes the frames of a link that delivers them itself.
#[derive(Debug)]
struct TappedReceiver {
    receiver: Arc<dyn Receiver>,
    notes: Notes,
}

impl Receiver for TappedReceiver {
    fn deliver(&self, frames: &[TxFrame<'_>]) {
        self.notes.note_tx(Way::Inbound, frames.iter());
        self.receiver.deliver(frames);
    }
}

/// Appends bytes and what fills them up to a multiple of four.
fn padded(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(bytes);
    to.extend(std::iter::repeat_n(0, bytes.len().wrapping_neg() % 4));
}

fn option(to: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    to.extend(code.to_ne_bytes());
    to.extend(u16::try_from(value.len()).unwrap_or_default().to_ne_bytes());
    padded(to, value);
}

/// A block has its length at both ends.
fn block(to: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_ne_bytes();
    to.extend(kind.to_ne_bytes());
    to.extend(length);
    to.extend_from_slice(body);
    to.extend(length);
}

#[cfg(test)]
mod tests;
