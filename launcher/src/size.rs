//! Sizes of memory as QEMU writes them.

/// Guest RAM is a multiple of this: QEMU rounds `-m` up to it, and a backend of another size is refused.
pub const RAM_STEP: u64 = 8 << 10;

/// Reads a size such as `512`, `1.5G` or `64k` in bytes; a bare number counts in `unit`, and may be
/// hexadecimal where that is a byte. Minus signs, fractions of a bare number and anything after the suffix are
/// refused, as QEMU does.
pub fn parse(text: &str, unit: u64) -> Option<u64> {
    let text = text.trim_start();
    if let Some(digits) = text.strip_prefix("0x").filter(|_| unit == 1) {
        return u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'));
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let unit = match suffix {
        "" if number.contains('.') => return None,
        "" => unit,
        "b" | "B" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        "p" | "P" => 1 << 50,
        "e" | "E" => 1 << 60,
        _ => return None,
    };
    if whole.len() + fraction.len() == 0 || fraction.len() > 18 || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()?.into() };
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse::<u64>().ok()?.into() };
    let bytes = (whole.checked_mul(scale)? + fraction).checked_mul(unit.into())? / scale;
    u64::try_from(bytes).ok()
}

/// Rounds up to what QEMU makes of `-m`.
pub fn round_up(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(RAM_STEP)
}

/// A size for people.
pub fn human(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{} GiB", b >> 30),
        b if b >= 1 << 20 => format!("{} MiB", b >> 20),
        b => format!("{} KiB", b >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn parse_sizes() {
        for (text, bytes) in [
            ("512", Some(512 * MIB)),
            ("1.5G", Some(1536 * MIB)),
            ("64k", Some(64 << 10)),
            ("0", Some(0)),
            ("100001k", Some(102_401_024)),
            ("1.", None),
            ("64.7", None),
            ("1.G", Some(1024 * MIB)),
            (".5G", Some(512 * MIB)),
            (" +64", Some(64 * MIB)),
            (".", None),
            (".M", None),
            ("0x10", None),
            ("-1", None),
            ("1e3", None),
            ("", None),
            ("G", None),
            ("1.2.3M", None),
            ("1GB", None),
            ("99999999999E", None),
        ] {
            assert_eq!(parse(text, MIB), bytes, "{text}");
        }
        for (text, bytes) in [("0x4000000", Some(64 * MIB)), ("0x", None), ("0x+1", None), ("0x40M", None)] {
            assert_eq!(parse(text, 1), bytes, "{text}");
        }
        assert_eq!(round_up(102_401_024), Some(102_408_192));
        assert_eq!(round_up(u64::MAX), None);
    }
}
