//! From the words of C to a connection.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt::Write;

use vdeplug::{OpenOptions, Port};

use crate::border::Errno;
use crate::conn::Conn;

/// `struct vde_open_args`: what a program may ask for beside the locator, which wins over it.
#[repr(C)]
#[derive(Debug)]
pub struct OpenArgs {
    /// Number of a port; 0 any, negative the management port.
    port: c_int,
    /// Name or number of the group of our end's socket; NULL none.
    group: *const c_char,
    /// Mode of our end's socket; 0 the default, which the original takes for "nobody" (VDE facts 2.6, V-2).
    mode: c_uint,
}

/// The only version of the interface there is.
const INTERFACE_VERSION: c_int = 1;

/// A call of `vde_open_real`, as text and options of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    locator: String,
    description: String,
    port: Port,
    group: Option<String>,
    mode: u32,
}

impl Request {
    /// Reads a call's arguments.
    ///
    /// # Safety
    /// The texts are NULL or end in NUL; `args` is NULL or points to a structure, of this layout if the version is 1.
    pub(crate) unsafe fn read(
        locator: *const c_char,
        description: *const c_char,
        version: c_int,
        args: *const OpenArgs,
    ) -> Result<Self, Errno> {
        let mut request = Self {
            // SAFETY: as promised by the caller.
            locator: unsafe { text(locator) }.map(locator_text).unwrap_or_default(),
            // SAFETY: as promised by the caller.
            description: unsafe { text(description) }.map(description_text).unwrap_or_default(),
            port: Port::Any,
            group: None,
            mode: 0,
        };
        if args.is_null() {
            return Ok(request);
        }
        if version != INTERFACE_VERSION {
            return Err(libc::EINVAL);
        }
        // SAFETY: not NULL, and of this layout by its version.
        let args = unsafe { &*args };
        request.port = match args.port {
            0 => Port::Any,
            // What is too large for a request is refused by the link.
            number => u32::try_from(number).map_or(Port::Management, Port::Number),
        };
        // SAFETY: as promised by the caller.
        if let Some(group) = unsafe { text(args.group) }.filter(|group| !group.is_empty()) {
            request.group = Some(group.to_str().map_err(|_| libc::EINVAL)?.to_owned());
        }
        // A mode has no more bits for chmod either.
        request.mode = args.mode & 0o7777;
        Ok(request)
    }

    /// Opens the connection.
    pub(crate) fn open(self) -> Result<Conn, Errno> {
        let Self { locator, description, port, group, mode } = self;
        let options = OpenOptions { description, port, group, mode, ..OpenOptions::default() };
        let link = vdeplug::open(&locator, &options).map_err(|error| error.errno())?;
        Conn::new(link)
    }
}

/// # Safety
/// `text` is NULL or ends in NUL, and stays as it is for `'a`.
unsafe fn text<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: as promised by the caller.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

/// A locator as UTF-8. Bytes that are none are written as `%HH`, by which a locator means just these bytes.
fn locator_text(locator: &CStr) -> String {
    let mut text = String::new();
    for chunk in locator.to_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02x}");
        }
    }
    text
}

/// A description is for people to read.
fn description_text(description: &CStr) -> String {
    description.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(locator: Option<&CStr>, version: c_int, args: Option<&OpenArgs>) -> Result<Request, Errno> {
        let locator = locator.map_or(std::ptr::null(), CStr::as_ptr);
        let args = args.map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: what is not NULL is borrowed for longer than the call.
        unsafe { Request::read(locator, std::ptr::null(), version, args) }
    }

    fn args(port: c_int, group: Option<&'static CStr>, mode: c_uint) -> OpenArgs {
        OpenArgs { port, group: group.map_or(std::ptr::null(), CStr::as_ptr), mode }
    }

    #[test]
    fn read_of_nothing_is_the_default() {
        let nothing = read(None, 1, None).expect("good");
        assert_eq!((nothing.locator.as_str(), nothing.description.as_str()), ("", ""));
        assert_eq!((nothing.port, nothing.group, nothing.mode), (Port::Any, None, 0));
        // A version is that of the arguments.
        assert!(read(None, 7, None).is_ok());
        assert_eq!(read(None, 2, Some(&args(0, None, 0))), Err(libc::EINVAL));
    }

    #[test]
    fn read_takes_arguments() {
        let port = |number| read(None, 1, Some(&args(number, None, 0))).expect("good").port;
        assert_eq!([0, 7, -1].map(port), [Port::Any, Port::Number(7), Port::Management]);
        assert_eq!((port(c_int::MAX), port(c_int::MIN)), (Port::Number(0x7fff_ffff), Port::Management));
        let group = |group| read(None, 1, Some(&args(0, Some(group), 0))).map(|request| request.group);
        assert_eq!(group(c"users"), Ok(Some("users".into())));
        assert_eq!(group(c""), Ok(None));
        assert_eq!(group(c"\xff"), Err(libc::EINVAL));
        assert_eq!(read(None, 1, Some(&args(0, None, 0o100_640))).expect("good").mode, 0o640);
    }

    #[test]
    fn read_of_bytes_that_are_no_text() {
        let locator = |text: &CStr| read(Some(text), 1, None).expect("good").locator;
        assert_eq!(locator(c"/run/sw\xff\xe9[5]"), "/run/sw%ff%e9[5]");
        assert_eq!(locator(c"/run/\xc3\xa9%41"), "/run/\u{e9}%41");
    }
}
