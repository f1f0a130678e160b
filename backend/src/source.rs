//! What the control thread's events are about.

use rustix::event::epoll::EventData;

/// What an epoll event is about, packed into its data word: kind in the upper half, number of the NIC or of the client in
/// the lower.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// A signal came.
    Signal,
    /// The life line was cut.
    Lifeline,
    /// Another thread has news.
    News,
    /// A front end waits at the door of this NIC.
    Listener(usize),
    /// The front end of this NIC says something.
    Connection(usize),
    /// A client waits at the control socket.
    Control,
    /// This client says something, or listens again.
    Client(usize),
    /// The process that is followed has ended.
    Followed,
}

impl Source {
    /// The word of such events.
    pub fn pack(self) -> EventData {
        let (kind, number) = match self {
            Self::Signal => (0, 0),
            Self::Lifeline => (1, 0),
            Self::News => (2, 0),
            Self::Listener(nic) => (3, nic),
            Self::Connection(nic) => (4, nic),
            Self::Control => (5, 0),
            Self::Client(client) => (6, client),
            Self::Followed => (7, 0),
        };
        EventData::new_u64(kind << 32 | (number as u64 & 0xffff_ffff))
    }

    /// What an event with this word is about.
    pub fn unpack(data: EventData) -> Self {
        let number = usize::try_from(data.u64() & 0xffff_ffff).unwrap_or(usize::MAX);
        match data.u64() >> 32 {
            1 => Self::Lifeline,
            2 => Self::News,
            3 => Self::Listener(number),
            4 => Self::Connection(number),
            5 => Self::Control,
            6 => Self::Client(number),
            7 => Self::Followed,
            _ => Self::Signal,
        }
    }
}
