//! The limit: two datagram sockets connected to each other, and two system calls on batches prepared once.
//!
//! Nothing that carries frames over such sockets can be faster than this.
//!
//! Invariant A: the headers point to pieces, and the pieces to memory, that were leaked and are used by the kernel
//! alone, during the calls made here.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use anyhow::Result;
use vdeplug::{RxBuf, TxBuf};

use crate::frame::Frame;
use crate::{BATCH, End, ROOM};

/// One of the two sockets.
pub struct Raw {
    socket: UnixDatagram,
    /// The other's name, until both are connected.
    peer: Option<String>,
    tx: Option<Vec<libc::mmsghdr>>,
    rx: Vec<libc::mmsghdr>,
}

impl Raw {
    /// Makes the socket `STEM.OWN`.
    pub fn open(stem: &str, own: u8, peer: u8) -> Result<Self> {
        let socket = UnixDatagram::bind(format!("{stem}.{own}"))?;
        let rx = Vec::leak(vec![0; BATCH * ROOM]).chunks_exact_mut(ROOM).map(|room| {
            let piece: &mut RxBuf = Box::leak(Box::new(RxBuf::new(room)));
            header(std::ptr::from_mut(piece).cast())
        });
        Ok(Self { rx: rx.collect(), socket, peer: Some(format!("{stem}.{peer}")), tx: None })
    }

    fn connect(&mut self) -> io::Result<()> {
        if let Some(peer) = &self.peer {
            self.socket.connect(peer)?;
            self.peer = None;
        }
        Ok(())
    }
}

/// 0 for "again".
fn done(result: i32) -> Result<usize> {
    match usize::try_from(result).map_err(|_| io::Error::last_os_error()) {
        Ok(count) => Ok(count),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error.into()),
    }
}

impl End for Raw {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send(&mut self, frame: &Frame, count: usize) -> Result<usize> {
        if count < BATCH {
            // The other may not be there yet; it is greeted again.
            return Ok(self.connect().and_then(|()| self.socket.send(frame.bytes())).map_or(0, |_| count));
        }
        let tx = self.tx.get_or_insert_with(|| {
            let bytes = Vec::leak(frame.bytes().to_vec());
            let piece: &mut TxBuf = Box::leak(Box::new(TxBuf::new(bytes)));
            let piece = std::ptr::from_mut(piece).cast();
            (0..BATCH).map(|_| header(piece)).collect()
        });
        let count = u32::try_from(tx.len())?;
        // SAFETY: `count` headers lie there, and A.
        done(unsafe { libc::sendmmsg(self.socket.as_raw_fd(), tx.as_mut_ptr(), count, libc::MSG_DONTWAIT) })
    }

    fn recv(&mut self) -> Result<(usize, usize)> {
        let (fd, rx) = (self.socket.as_raw_fd(), self.rx.as_mut_ptr());
        let count = u32::try_from(self.rx.len())?;
        // SAFETY: `count` headers lie there, and A; there is no time-out.
        let got = done(unsafe { libc::recvmmsg(fd, rx, count, libc::MSG_DONTWAIT, std::ptr::null_mut()) })?;
        Ok((got, self.rx[..got].iter().map(|header| header.msg_len as usize).sum()))
    }
}

/// A header for a datagram in one piece.
fn header(piece: *mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: all fields are integers and pointers, for which zero is a value.
    let mut header: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_hdr.msg_iov = piece;
    header.msg_hdr.msg_iovlen = 1;
    header
}
