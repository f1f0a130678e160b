//! The exit statuses of `vdeq` itself. After `exec` the status is QEMU's own.

/// Why `vdeq` ended without becoming QEMU. The numbers are documented in vdeq(1) and `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// The command line cannot be understood or is not supported.
    CommandLine = 2,
    /// A network could not be joined; reported by the back end.
    Network = 3,
    /// The back end or its sockets could not be set up.
    BackEnd = 4,
    /// Guest memory cannot be shared, or there is not enough room for it.
    Memory = 5,
    /// QEMU is too old, or does not say how old it is.
    QemuVersion = 6,
    /// The program exists but cannot be executed.
    NotExecutable = 126,
    /// There is no such program.
    NotFound = 127,
}

impl ExitStatus {
    /// The number that the shell sees.
    pub const fn code(self) -> u8 {
        self as u8
    }
}
