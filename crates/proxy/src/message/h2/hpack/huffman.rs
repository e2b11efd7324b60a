//! The code for texts (RFC 7541 appendix B).
//!
//! Invariant: padding is shorter than a byte and all ones; the end of text is never written out (§5.2).

use super::Garbled;

/// Bits of each byte's code, and of the end of text. Codes of one length follow each other in the order of the bytes.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,];
const END: u16 = 256;
const LONGEST: usize = 30;
/// Codes up to this length are looked up at once; nearly all of what is sent has such.
const SHORT: u32 = 8;

/// What is derived from the lengths.
struct Codes {
    /// By the next [`SHORT`] bits: the byte, and its code's length above that. 0: longer.
    short: [u16; 256],
    /// The bytes by their codes.
    sorted: [u16; 257],
    /// By length: the first code behind those of this length, and what to add to a code for its place in `sorted`.
    bounds: [(u32, u32); LONGEST + 1],
}

static CODES: Codes = codes();

/// Made by the compiler.
const fn codes() -> Codes {
    let mut all = Codes { short: [0; 256], sorted: [0; 257], bounds: [(0, 0); LONGEST + 1] };
    let (mut length, mut code, mut place) = (1, 0_u32, 0_u32);
    while length <= LONGEST {
        code <<= 1;
        let ahead = place.wrapping_sub(code);
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                all.sorted[place as usize] = symbol as u16;
                if length <= SHORT as usize {
                    let free = SHORT - length as u32;
                    let mut low = 0;
                    while low < 1 << free {
                        all.short[((code << free) + low) as usize] = symbol as u16 | (length as u16) << 8;
                        low += 1;
                    }
                }
                code += 1;
                place += 1;
            }
            symbol += 1;
        }
        all.bounds[length] = (code, ahead);
        length += 1;
    }
    all
}

/// Appends the text that `coded` stands for.
pub fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), Garbled> {
    out.reserve(coded.len().saturating_mul(8) / 5);
    // The next bits stand at the top.
    let (mut bits, mut have) = (0_u64, 0_u32);
    let mut rest = coded.iter();
    loop {
        while have <= 56
            && let Some(byte) = rest.next()
        {
            bits |= u64::from(*byte).wrapping_shl(56_u32.saturating_sub(have));
            have = have.saturating_add(8);
        }
        if have == 0 {
            return Ok(());
        }
        let top = usize::try_from(bits.wrapping_shr(56)).unwrap_or(0);
        let short = CODES.short.get(top).copied().unwrap_or(0);
        let (symbol, length) = if short == 0 { long(bits)? } else { (short & 0xff, u32::from(short.wrapping_shr(8))) };
        if length > have {
            // Nothing but padding can be left.
            let ones = u64::MAX.wrapping_shl(64_u32.saturating_sub(have));
            return if have < 8 && bits & ones == ones { Ok(()) } else { Err(Garbled) };
        }
        if symbol == END {
            return Err(Garbled);
        }
        out.push(u8::try_from(symbol).unwrap_or(0));
        bits = bits.wrapping_shl(length);
        have = have.saturating_sub(length);
    }
}

fn long(bits: u64) -> Result<(u16, u32), Garbled> {
    for (length, (bound, ahead)) in (0_u32..).zip(CODES.bounds).skip(9) {
        let code = u32::try_from(bits.wrapping_shr(64_u32.saturating_sub(length))).unwrap_or(u32::MAX);
        if code < bound {
            let place = usize::try_from(code.wrapping_add(ahead)).unwrap_or(usize::MAX);
            return CODES.sorted.get(place).map(|symbol| (*symbol, length)).ok_or(Garbled);
        }
    }
    Err(Garbled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The other way, bit by bit.
    fn encode(text: &[u8]) -> Vec<u8> {
        let code = |symbol: u16| {
            let length = u32::from(LENGTHS[usize::from(symbol)]);
            let place = CODES.sorted.iter().position(|s| *s == symbol).unwrap();
            (u32::try_from(place).unwrap().wrapping_sub(CODES.bounds[usize::try_from(length).unwrap()].1), length)
        };
        let mut bits = String::new();
        for byte in text {
            let (code, length) = code(u16::from(*byte));
            bits.push_str(&format!("{code:0width$b}", width = usize::try_from(length).unwrap()));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        (0..bits.len()).step_by(8).map(|at| u8::from_str_radix(&bits[at..at + 8], 2).unwrap()).collect()
    }

    #[test]
    fn as_in_the_rfc() {
        for (coded, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
        ] {
            let mut out = Vec::new();
            decode(&hex(coded), &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), text);
            assert_eq!(encode(text.as_bytes()), hex(coded));
        }
    }

    #[test]
    fn every_byte_comes_back_and_padding_is_checked() {
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        let mut out = Vec::new();
        decode(&encode(&all), &mut out).unwrap();
        assert_eq!(out, all);
        // A byte of padding; padding of zeros; the end of text.
        for coded in ["1fff", "18", "1fffffffff", "ffffffff"] {
            assert_eq!(decode(&hex(coded), &mut Vec::new()), Err(Garbled), "{coded}");
        }
    }
}
