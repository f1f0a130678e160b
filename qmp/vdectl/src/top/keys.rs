//! What a terminal sends, as keys.
//!
//! A key is one character or a sequence that begins with ESC, which may come in pieces over a slow line; ESC alone is a key
//! as well. So one that stands at the end of what was read waits for the rest, and whoever reads says when that will not come.

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character that can be printed.
    Char(char),
    /// Return.
    Enter,
    /// Escape.
    Escape,
    /// The one that deletes to the left.
    Backspace,
    /// Arrow.
    Up,
    /// Arrow.
    Down,
    /// Arrow.
    Left,
    /// Arrow.
    Right,
    /// Page up.
    PageUp,
    /// Page down.
    PageDown,
    /// To the start.
    Home,
    /// To the end.
    End,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-Z.
    Suspend,
    /// Ctrl-L.
    Repaint,
}

const ESCAPE: u8 = 0x1b;
/// A sequence that is longer is none.
const SEQUENCE_MAX: usize = 32;

/// The bytes that are no key yet.
#[derive(Debug, Default)]
pub struct Keys {
    rest: Vec<u8>,
}

/// What the first bytes are.
enum Found {
    /// This many bytes are a key, or none of ours.
    Key(usize, Option<Key>),
    /// The rest is still to come.
    Piece,
}

impl Keys {
    /// The keys in `bytes` and in what was left over before.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<Key> {
        self.rest.extend_from_slice(bytes);
        let mut keys = Vec::new();
        let mut done = 0;
        while let Some(rest) = self.rest.get(done..)
            && let Found::Key(length, key) = first(rest)
        {
            keys.extend(key);
            done += length;
        }
        self.rest.drain(..done);
        keys
    }

    /// Something waits for its rest.
    pub fn unfinished(&self) -> bool {
        !self.rest.is_empty()
    }

    /// The rest does not come: ESC was the key, and anything else nothing.
    pub fn give_up(&mut self) -> Option<Key> {
        let rest = std::mem::take(&mut self.rest);
        (rest == [ESCAPE]).then_some(Key::Escape)
    }
}

fn first(bytes: &[u8]) -> Found {
    match bytes {
        [] | [ESCAPE] => Found::Piece,
        [ESCAPE, ESCAPE, ..] => Found::Key(1, Some(Key::Escape)),
        [ESCAPE, b'[' | b'O', rest @ ..] => sequence(rest),
        // With Alt: the same without.
        [ESCAPE, rest @ ..] => match first(rest) {
            Found::Key(length, key) => Found::Key(length + 1, key),
            Found::Piece => Found::Piece,
        },
        [byte, ..] if byte.is_ascii() => Found::Key(1, character(*byte)),
        _ => many_bytes(bytes),
    }
}

fn character(byte: u8) -> Option<Key> {
    match byte {
        b'\r' | b'\n' => Some(Key::Enter),
        0x03 => Some(Key::Interrupt),
        0x1a => Some(Key::Suspend),
        0x0c => Some(Key::Repaint),
        0x08 | 0x7f => Some(Key::Backspace),
        b' '..=b'~' => Some(Key::Char(char::from(byte))),
        _ => None,
    }
}

/// What follows ESC and a bracket: parameters, then one byte that says which it is.
fn sequence(rest: &[u8]) -> Found {
    let Some(end) = rest.iter().take(SEQUENCE_MAX).position(|byte| (0x40..0x7f).contains(byte)) else {
        return match rest.len() {
            length if length >= SEQUENCE_MAX => Found::Key(2 + length, None),
            _ => Found::Piece,
        };
    };
    let (parameters, last) = rest.split_at(end);
    // Further parameters say which of Shift, Alt and Ctrl were held.
    let number = parameters.split(|byte| *byte == b';').next().unwrap_or_default();
    let key = match (last.first(), number) {
        (Some(b'A'), _) => Some(Key::Up),
        (Some(b'B'), _) => Some(Key::Down),
        (Some(b'C'), _) => Some(Key::Right),
        (Some(b'D'), _) => Some(Key::Left),
        (Some(b'H'), _) | (Some(b'~'), b"1" | b"7") => Some(Key::Home),
        (Some(b'F'), _) | (Some(b'~'), b"4" | b"8") => Some(Key::End),
        (Some(b'~'), b"5") => Some(Key::PageUp),
        (Some(b'~'), b"6") => Some(Key::PageDown),
        (Some(b'M'), b"") => Some(Key::Enter),
        _ => None,
    };
    Found::Key(2 + end + 1, key)
}

/// A character of UTF-8.
fn many_bytes(bytes: &[u8]) -> Found {
    let chunk = bytes.utf8_chunks().next();
    match chunk.map(|chunk| (chunk.valid().chars().next(), chunk.invalid().len())) {
        Some((Some(c), _)) => Found::Key(c.len_utf8(), (!c.is_control()).then_some(Key::Char(c))),
        // The end may be missing.
        Some((None, wrong)) if wrong == bytes.len() && wrong < 4 && bytes.first() >= Some(&0xc2) => {
            Found::Piece
        }
        Some((None, wrong)) => Found::Key(wrong.max(1), None),
        None => Found::Piece,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_knows_keys_of_several_terminals() {
        let mut keys = Keys::default();
        let found = keys.read(b"q\r\x1b[A\x1bOB\x1b[5~\x1b[6;2~\x1b[1~\x1b[F\x03\x7f\x1bj\x1b[200~\xc3\xa4");
        let want = [
            Key::Char('q'),
            Key::Enter,
            Key::Up,
            Key::Down,
            Key::PageUp,
            Key::PageDown,
            Key::Home,
            Key::End,
            Key::Interrupt,
            Key::Backspace,
            Key::Char('j'),
            Key::Char('ä'),
        ];
        assert_eq!(found, want);
        assert!(!keys.unfinished());
    }

    #[test]
    fn read_in_pieces_gives_the_same() {
        let mut keys = Keys::default();
        let mut found = Vec::new();
        for byte in b"\x1b[B\xe2\x82\xacx\x1b[6~" {
            found.extend(keys.read(&[*byte]));
        }
        assert_eq!(found, [Key::Down, Key::Char('€'), Key::Char('x'), Key::PageDown]);
    }

    #[test]
    fn escape_alone_is_a_key_once_given_up() {
        let mut keys = Keys::default();
        assert_eq!(keys.read(b"\x1b"), []);
        assert!(keys.unfinished());
        assert_eq!(keys.give_up(), Some(Key::Escape));
        assert_eq!(keys.read(b"\x1b[1"), []);
        assert_eq!(keys.give_up(), None);
        assert!(!keys.unfinished());
    }

    #[test]
    fn garbage_is_bounded_and_passes() {
        let mut keys = Keys::default();
        for byte in 0..=u8::MAX {
            let _ = keys.read(&[byte; 3]);
            let _ = keys.read(&[ESCAPE, b'[', byte]);
        }
        let _ = keys.read(&[ESCAPE, b'[']);
        let _ = keys.read(&[b'1'; 10_000]);
        assert!(keys.rest.len() < SEQUENCE_MAX, "{:?}", keys.rest);
        let _ = keys.give_up();
        assert_eq!(keys.read(b"\xff\xfe\xc3(q"), [Key::Char('('), Key::Char('q')]);
    }
}
