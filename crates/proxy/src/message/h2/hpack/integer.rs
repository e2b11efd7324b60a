//! Numbers (RFC 7541 §5.1).
//!
//! Invariant: none is larger than any length or place can be; a longer one is an error before it is read to its end.

use super::Garbled;

/// Longest number that means anything: far more than any block or table has.
const MOST: usize = 1 << 28;

/// Reads a number whose first byte is `first`, of which `bits` belong to it, and takes the rest off `from`.
pub fn read(first: u8, bits: u32, from: &mut &[u8]) -> Result<usize, Garbled> {
    let mask = u8::MAX.checked_shr(8_u32.saturating_sub(bits)).unwrap_or(0);
    let mut value = usize::from(first & mask);
    if first & mask != mask {
        return Ok(value);
    }
    let mut shift = 0_u32;
    loop {
        let (byte, rest) = from.split_first().ok_or(Garbled)?;
        *from = rest;
        if shift > 28 {
            return Err(Garbled);
        }
        let more = usize::from(byte & 0x7f).checked_shl(shift).unwrap_or(MOST);
        value = value.saturating_add(more);
        if value > MOST {
            return Err(Garbled);
        }
        if byte & 0x80 == 0 {
            return Ok(value);
        }
        shift = shift.saturating_add(7);
    }
}

/// Writes a number behind the upper bits of `first`.
pub fn write(out: &mut Vec<u8>, first: u8, bits: u32, value: usize) {
    let mask = u8::MAX.checked_shr(8_u32.saturating_sub(bits)).unwrap_or(0);
    match u8::try_from(value) {
        Ok(small) if small < mask => out.push(first | small),
        _ => {
            out.push(first | mask);
            let mut rest = value.saturating_sub(usize::from(mask));
            while let Some(low) = u8::try_from(rest & 0x7f).ok().filter(|_| rest >= 0x80) {
                out.push(low | 0x80);
                rest = rest.wrapping_shr(7);
            }
            out.push(u8::try_from(rest).unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_in_the_rfc() {
        for (value, bits, wanted) in [(10, 5, &[10][..]), (1337, 5, &[31, 154, 10]), (42, 8, &[42])] {
            let mut out = Vec::new();
            write(&mut out, 0, bits, value);
            assert_eq!(out, wanted);
        }
        for bits in 1..=8 {
            for value in (0..300).chain([16383, 16384, 1 << 20, MOST]) {
                let mut out = Vec::new();
                write(&mut out, 0, bits, value);
                let mut rest = &out[1..];
                assert_eq!((read(out[0], bits, &mut rest), rest), (Ok(value), &[][..]), "{bits}");
            }
        }
        assert_eq!(read(0xff, 7, &mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01][..]), Err(Garbled));
        assert_eq!(read(0xff, 7, &mut &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80][..]), Err(Garbled));
        assert_eq!(read(0xff, 7, &mut &[0x80][..]), Err(Garbled));
    }
}
