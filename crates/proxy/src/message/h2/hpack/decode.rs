//! Header blocks read (RFC 7541 §3).
//!
//! Invariant: the table is followed through every block, also through one of which nothing is wanted any more. It never holds more than
//! was agreed, and a field in it costs no copy to be used again.

use super::{Field, Garbled, Name, OVERHEAD, huffman, integer, statics};
use std::collections::VecDeque;

/// The table that every connection begins with, bytes.
pub const TABLE: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct Decoder {
    /// The newest first.
    table: VecDeque<Entry>,
    size: usize,
    /// As the peer has set it.
    max: usize,
    /// As we have allowed it.
    allowed: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    field: Field,
    /// Length of its name.
    name: usize,
    size: usize,
}

impl Decoder {
    /// With a table of `allowed` bytes in our settings. What every peer may use before it knows of them it may use here.
    pub fn new(allowed: usize) -> Self {
        let allowed = allowed.max(TABLE);
        Decoder { table: VecDeque::new(), size: 0, max: TABLE, allowed, name: Vec::new(), value: Vec::new() }
    }

    /// Gives each field of a whole block with its size (RFC 9113 §6.5.2).
    ///
    /// # Errors
    /// It cannot be read.
    pub fn decode(&mut self, block: &[u8], mut each: impl FnMut(Field, usize)) -> Result<(), Garbled> {
        let mut rest = block;
        let mut begun = false;
        while let Some((first, behind)) = rest.split_first() {
            rest = behind;
            let first = *first;
            if first & 0x80 != 0 {
                let (field, size) = self.indexed(integer::read(first, 7, &mut rest)?)?;
                each(field.clone(), size);
            } else if first & 0xe0 == 0x20 {
                let max = integer::read(first, 5, &mut rest)?;
                if begun || max > self.allowed {
                    return Err(Garbled);
                }
                self.max = max;
                self.shrink(max);
                continue;
            } else {
                let kept = first & 0x40 != 0;
                let place = integer::read(first, if kept { 6 } else { 4 }, &mut rest)?;
                let Entry { mut field, name, size } = self.literal(place, &mut rest)?;
                if first & 0xf0 == 0x10
                    && let Field::Other(_, value) = &mut field
                {
                    // Whoever sends it on must not index it either (§6.2.3).
                    value.set_sensitive(true);
                }
                if kept {
                    self.keep(Entry { field: field.clone(), name, size });
                }
                each(field, size);
            }
            begun = true;
        }
        Ok(())
    }

    fn indexed(&self, place: usize) -> Result<(&Field, usize), Garbled> {
        match place.checked_sub(statics::COUNT.saturating_add(1)) {
            Some(at) => self.table.get(at).map(|entry| (&entry.field, entry.size)),
            None => statics::field(place),
        }
        .ok_or(Garbled)
    }

    fn literal(&mut self, place: usize, rest: &mut &[u8]) -> Result<Entry, Garbled> {
        let (name, length) = match place.checked_sub(statics::COUNT.saturating_add(1)) {
            Some(at) => self.table.get(at).map(|entry| (entry.field.name(), entry.name)).ok_or(Garbled)?,
            None if place > 0 => statics::name(place).map(|(name, length)| (name.clone(), length)).ok_or(Garbled)?,
            None => {
                let text = text(rest, &mut self.name)?;
                (Name::new(text), text.len())
            }
        };
        let value = text(rest, &mut self.value)?;
        let size = length.saturating_add(value.len()).saturating_add(OVERHEAD);
        Ok(Entry { field: name.with(value), name: length, size })
    }

    fn keep(&mut self, entry: Entry) {
        self.shrink(self.max.saturating_sub(entry.size));
        // One that is larger than the table empties it (§4.4).
        if entry.size <= self.max {
            self.size = self.size.saturating_add(entry.size);
            self.table.push_front(entry);
        }
    }

    fn shrink(&mut self, most: usize) {
        while self.size > most
            && let Some(entry) = self.table.pop_back()
        {
            self.size = self.size.saturating_sub(entry.size);
        }
    }
}

/// A text, taken off `rest`; decoded into `room` where it is coded.
fn text<'a, 'b: 'a>(rest: &mut &'b [u8], room: &'a mut Vec<u8>) -> Result<&'a [u8], Garbled> {
    let (first, behind) = rest.split_first().ok_or(Garbled)?;
    *rest = behind;
    let length = integer::read(*first, 7, rest)?;
    let (text, behind) = rest.split_at_checked(length).ok_or(Garbled)?;
    *rest = behind;
    if first & 0x80 == 0 {
        return Ok(text);
    }
    room.clear();
    huffman::decode(text, room)?;
    Ok(room)
}

#[cfg(test)]
mod tests;
